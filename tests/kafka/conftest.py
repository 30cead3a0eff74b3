"""Each test has its own topics, group and transactional ids on the broker."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from flink_jobs.demo.broker import Broker
from tests.kafka.jobs import Kafka


@pytest.fixture
def kafka(shared_broker: Broker, tmp_path: Path) -> Kafka:
    return Kafka(shared_broker, f"t{uuid.uuid4().hex[:8]}", tmp_path)
