"""One real broker and one real cluster for the session; each test has its own topics and job."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flink_jobs.broker import Broker
from flink_jobs.cluster import Cluster
from flink_jobs.jars import KAFKA, JarError, broker_class_path, find_jar
from tests.cluster.deploy import Deployment


@pytest.fixture(scope="session")
def jars() -> None:
    """The jars that these tests need."""
    try:
        broker_class_path()
        find_jar(KAFKA, "", {})
    except JarError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def broker(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="session")
def cluster(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def deployment(broker: Broker, cluster: Cluster, tmp_path: Path) -> Iterator[Deployment]:
    """A test's own topics on the broker, and the commands against the cluster."""
    deployment = Deployment(broker, f"c{uuid.uuid4().hex[:8]}", tmp_path, cluster=cluster)
    try:
        yield deployment
    finally:
        deployment.cancel_all()
