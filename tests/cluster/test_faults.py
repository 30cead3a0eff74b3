"""Kill -9 on the cluster while input keeps flowing: what is committed is still the recount.

Each prints how long the output stood still: from the kill to the next committed event.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from flink_jobs.broker import Broker
from flink_jobs.cluster import Cluster
from flink_jobs.rest import RestError
from tests.cluster.deploy import Deployment
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, lines, skewed
from tests.runs import python_workers, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(900)]

MANY = 200_000
SOON_S = 300


@pytest.fixture(scope="module")
def own_broker(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One that these tests may kill."""
    with Broker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker


@pytest.fixture
def flowing(own_broker: Broker, cluster: Cluster, tmp_path: Path) -> Iterator[Deployment]:
    """Topics with a steady input, for as long as the test lasts."""
    deployment = Deployment(own_broker, f"f{uuid.uuid4().hex[:8]}", tmp_path, cluster=cluster)
    try:
        yield deployment
    finally:
        deployment.cancel_all()


def taskmanager_is_killed(deployment: Deployment, job: str) -> str:
    deployment.cluster.kill("taskmanager")
    deployment.cluster.start_taskmanager()
    return job


def jobmanager_is_killed(deployment: Deployment, job: str) -> str:
    """It knows nothing of the job when it comes back: the retained checkpoint does."""
    checkpoint = deployment.cluster.rest.newest_checkpoint(job)
    deployment.cluster.kill("jobmanager")
    # The TaskManager drops the job's tasks when it notices, and registers with the new one.
    deployment.cluster.start_jobmanager()
    newest = newest_checkpoint(checkpoint)
    return deployment.submit(
        "--config", deployment.folder / "kafka.toml", "--from-savepoint", newest
    )


def newest_checkpoint(one: str) -> Path:
    """Of the same job; the one that was asked for may have been followed by a newer one."""
    folder = Path(one.removeprefix("file:")).parent
    complete = [path.parent for path in folder.glob("chk-*/_metadata")]
    return max(complete, key=lambda path: int(path.name.removeprefix("chk-")))


def worker_is_killed(deployment: Deployment, job: str) -> str:
    workers = python_workers(deployment.cluster.pid("taskmanager"))
    assert workers, "no worker was found"
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    return job


def broker_is_killed(deployment: Deployment, job: str) -> str:
    deployment.broker.kill()
    deployment.broker.start()
    return job


@pytest.mark.parametrize(
    "fault", [worker_is_killed, taskmanager_is_killed, jobmanager_is_killed, broker_is_killed]
)
def test_a_kill_costs_nothing(
    flowing: Deployment, fault: Callable[[Deployment, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    events = skewed(lines(flowing.folder, MANY, BEYOND_THE_DELAY_S))
    with flowing.flowing(flowing.create("in"), events):
        job = flowing.submit("--config", flowing.settings(kafka={"end": "never"}))
        flowing.wait_for_output("processed_events", 1)
        # In the middle of a checkpoint: writers have pre-committed, and nothing is committed yet.
        wait_until("a checkpoint in progress", lambda: in_progress(flowing, job))
        killed_at = time.monotonic()
        job = fault(flowing, job)
        committed = len(flowing.output("processed_events"))
        wait_until(
            "output after the kill",
            lambda: len(flowing.output("processed_events")) > committed,
            SOON_S,
        )
        took = time.monotonic() - killed_at
        flowing.wait_for_checkpoints(job)
    flowing.end_and_drain(job)
    assert assert_topics_are_right(flowing, expect(flowing.sent)) > 0
    with capsys.disabled():
        print(f"\n{fault.__name__}: output again after {took:.1f} s")


def in_progress(deployment: Deployment, job: str) -> bool:
    with suppress(RestError):
        return bool(deployment.cluster.rest.checkpoints(job)["counts"]["in_progress"])
    return False
