"""What can be done to a job that runs on the cluster: each returns the id of the job that goes on.

They are put where it hurts: in the middle of a transaction, in the middle of a checkpoint, or when
the writers have handed over a transaction and nothing of it is committed yet.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flink_jobs.cluster.rest import ENDED
from tests.cluster.deploy import Deployment
from tests.kafka.jobs import COMMITTED, WRITTEN
from tests.runs import is_alive, python_workers, wait_until

SOON_S = 120
#: So many events come in a fifth of a second, and a checkpoint is taken every half.
UNCOMMITTED = 200
#: What makes a job fail soon when its broker is away.
IMPATIENT = {
    "request.timeout.ms": 2_000,
    "default.api.timeout.ms": 3_000,
    "delivery.timeout.ms": 3_000,
    "max.block.ms": 3_000,
}
#: From and to: the records of a partition that were in an open transaction.
Open = dict[tuple[str, int], tuple[int, int]]


def worker_is_killed(deployment: Deployment, job: str) -> str:
    workers = python_workers(deployment.cluster.pid("taskmanager"))
    assert workers, "no worker was found"
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    return job


def taskmanager_is_killed(deployment: Deployment, job: str) -> str:
    """It alone: its workers are left without it, and end by themselves."""
    taskmanager = deployment.cluster.pid("taskmanager")
    workers = python_workers(taskmanager)
    assert workers, "no worker was found"
    os.kill(taskmanager, signal.SIGKILL)
    wait_until("the workers' end", lambda: not any(map(is_alive, workers)), SOON_S)
    deployment.cluster.kill("taskmanager")
    deployment.cluster.start_taskmanager()
    return job


def jobmanager_is_killed(deployment: Deployment, job: str) -> str:
    """It knows nothing of the job when it comes back: the retained checkpoint does."""
    deployment.cluster.kill("jobmanager")
    # The TaskManager drops the job's tasks when it notices, and registers with the new one.
    deployment.cluster.start_jobmanager()
    return resumed(deployment, job)


def broker_is_killed(deployment: Deployment, job: str) -> str:
    deployment.broker.kill()
    deployment.broker.start()
    return job


def broker_is_away(deployment: Deployment, job: str) -> str:
    """For longer than its clients have patience: the job fails, comes up without it, fails again.

    Each time its sinks are closed without a broker. That was seen to end the TaskManager.
    """
    enough = restarts(deployment, job) + 2
    deployment.broker.kill()
    deployment.wait("two restarts without a broker", lambda: restarts(deployment, job) >= enough)
    deployment.broker.start()
    return job


def restarts(deployment: Deployment, job: str) -> float:
    """As Flink says; it has no answer until it has been asked a first time."""
    return deployment.cluster.rest.metrics(f"/jobs/{job}", ["numRestarts"]).get("numRestarts", 0)


def job_is_cancelled(deployment: Deployment, job: str) -> str:
    rest = deployment.cluster.rest
    rest.cancel(job)
    wait_until("the end of the job", lambda: rest.state(job) in ENDED, SOON_S)
    assert rest.state(job) == "CANCELED"
    return resumed(deployment, job)


def resumed(deployment: Deployment, job: str) -> str:
    """Submit again from the newest checkpoint that the job has left."""
    newest = deployment.cluster.checkpoints / job / f"chk-{deployment.checkpoint(job)}"
    return deployment.submit(
        "--config", deployment.folder / "kafka.toml", "--from-savepoint", newest
    )


def wait_for_a_checkpoint_in_progress(deployment: Deployment, job: str) -> None:
    """Until there is the folder of one that is not complete; looked for without a pause."""
    folder = deployment.cluster.checkpoints / job
    deadline = time.monotonic() + SOON_S
    # Later than the newest: of those before it folders are being removed.
    while max(_numbers(folder), default=0) <= deployment.checkpoint(job):
        assert time.monotonic() < deadline, f"no checkpoint of {job} within {SOON_S} s"


def _numbers(folder: Path) -> Iterator[int]:
    return (int(path.name.removeprefix("chk-")) for path in folder.glob("chk-*"))


def wait_for_a_transaction_in_progress(deployment: Deployment, job: str) -> None:
    """Until events have been written that are in no checkpoint: they must be taken back."""
    topic = deployment.topic("processed-events")
    deployment.wait_for_checkpoints(job)
    wanted = sum(deployment.ends(topic, WRITTEN).values()) + UNCOMMITTED
    wait_until(
        f"{UNCOMMITTED} events of a transaction",
        lambda: sum(deployment.ends(topic, WRITTEN).values()) >= wanted,
        SOON_S,
    )


def taskmanager_is_killed_before_it_commits(deployment: Deployment, job: str) -> Open:
    """Kill it when a checkpoint is durable, and it has, as far as can be, not been told so yet.

    It is stopped in the moment when the JobManager, which has heard of all subtasks that they have
    pre-committed, begins to write the checkpoint's metadata; what follows is but for milliseconds
    away, so the folder is watched without a pause. The JobManager completes the checkpoint; the
    notification that would make the TaskManager commit does not get through any more.

    Returns:
        The events that were in open transactions when it died.
    """
    folder = deployment.cluster.checkpoints / job
    former = deployment.checkpoint(job)
    deadline = time.monotonic() + SOON_S
    while not (number := _being_written(folder, former)):
        assert time.monotonic() < deadline, f"no checkpoint of {job} within {SOON_S} s"
    os.kill(deployment.cluster.pid("taskmanager"), signal.SIGSTOP)
    metadata = folder / f"chk-{number}" / "_metadata"
    wait_until("the checkpoint to be complete", metadata.exists, SOON_S)
    topic = deployment.topic("processed-events")
    begins, ends = deployment.ends(topic, COMMITTED), deployment.ends(topic, WRITTEN)
    deployment.cluster.kill("taskmanager")
    return {place: (begins[place], ends[place]) for place in ends}


def _being_written(folder: Path, after: int) -> int:
    """The number of a checkpoint later than one, whose metadata is there at least in part; or 0."""
    for entry in os.scandir(folder):
        number = int(entry.name[4:]) if entry.name.startswith("chk-") else 0
        with suppress(FileNotFoundError):
            if number > after and any("_metadata" in name for name in os.listdir(entry)):
                return number
    return 0


def committed_of(deployment: Deployment, were_open: Open) -> int:
    """How many of the events that were in open transactions are committed by now."""
    nothing = (0, 0)
    found = [
        (message.offset(), were_open.get((message.topic(), message.partition()), nothing))
        for message in deployment.output("processed_events")
    ]
    return sum(begin <= offset < end for offset, (begin, end) in found)
