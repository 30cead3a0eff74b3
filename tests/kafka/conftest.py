"""One real broker for the session; each test has its own topics, group and transactional ids."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flink_jobs.broker import Broker
from flink_jobs.jars import KAFKA, JarError, broker_class_path, find_jar
from tests.kafka.jobs import Kafka


@pytest.fixture(scope="session")
def jars() -> None:
    """The jars that these tests need."""
    try:
        broker_class_path()
        find_jar(KAFKA, "", {})
    except JarError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_broker(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def kafka(shared_broker: Broker, tmp_path: Path) -> Kafka:
    return Kafka(shared_broker, f"t{uuid.uuid4().hex[:8]}", tmp_path)
