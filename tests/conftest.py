"""For all tests: a skip that may not be one, and the broker, which is started when it is wanted.

With BREAKWATER_REQUIRE=all a skipped test is a failed one.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flink_jobs.demo.broker import Broker
from flink_jobs.kafka.jars import KAFKA, Jar, JarError, broker_class_path, find_jar


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """Turn a skip into a failure where every real part has to be there."""
    report = yield
    if report.skipped and os.environ.get("BREAKWATER_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped, but BREAKWATER_REQUIRE=all: {report.longrepr}"
        )
    return report


@pytest.fixture(scope="session")
def kafka_jar() -> Jar:
    """Flink's Kafka connector."""
    with _skipped_without():
        return find_jar(KAFKA, "", {})


@pytest.fixture(scope="session")
def jars(kafka_jar: Jar) -> None:
    """The jars that tests with a broker need."""
    with _skipped_without():
        broker_class_path()


@contextmanager
def _skipped_without() -> Iterator[None]:
    try:
        yield
    except JarError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_broker(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all: each test has its own topics, group and transactional ids."""
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def own_broker(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One that the tests of a module may kill."""
    with Broker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker
