"""One real cluster for the session; each test has its own topics and job."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flink_jobs.cluster.standalone import Cluster
from flink_jobs.demo.broker import Broker
from tests.cluster.deploy import Deployment
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, lines


@pytest.fixture(scope="session")
def cluster(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def many_lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """More events than are sent in the time that a test takes: enough for 400 s."""
    return lines(tmp_path_factory.mktemp("events"), 400_000, BEYOND_THE_DELAY_S)


@pytest.fixture
def deployment(shared_broker: Broker, cluster: Cluster, tmp_path: Path) -> Iterator[Deployment]:
    """A test's own topics on the broker, and the commands against the cluster."""
    yield from deployed(shared_broker, cluster, tmp_path)


@pytest.fixture
def flowing(own_broker: Broker, cluster: Cluster, tmp_path: Path) -> Iterator[Deployment]:
    """The same on a broker that may be killed."""
    yield from deployed(own_broker, cluster, tmp_path)


def deployed(broker: Broker, cluster: Cluster, folder: Path) -> Iterator[Deployment]:
    deployment = Deployment(broker, f"c{uuid.uuid4().hex[:8]}", folder, cluster=cluster)
    try:
        yield deployment
    finally:
        deployment.cancel_all()
