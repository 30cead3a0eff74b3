"""How a job on a cluster is: its state, checkpoints, restarts, lag and backpressure, from REST."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flink_jobs.cluster.rest import ENDED, Rest
from flink_jobs.machine.waiting import wait_a_moment

#: Flink fetches metrics only when somebody asks: the first answer is empty.
_METRICS_WITHIN_S: Final = 12.0
#: So many names in one call: Flink takes a request line of 4 KB.
_NAMES_A_CALL: Final = 20
_POSITION: Final = re.compile(
    r"(?P<reader>\d+)\.(?P<source>.*)\.KafkaSourceReader\.topic\.(?P<topic>.+)"
    r"\.partition\.(?P<partition>\d+)\.(?:currentOffset)"
)
_NAME_CHARS: Final = 60


@dataclass(frozen=True)
class Partition:
    """A partition that is read.

    Attributes:
        topic: its topic.
        partition: its number.
        next_offset: up to where it has been read.
        lag: records behind; None while Flink cannot tell it for this one alone.
        reader: the subtask that reads it.
        reader_lag: records that this subtask is behind, in all of its partitions.
    """

    topic: str
    partition: int
    next_offset: int
    lag: int | None
    reader: int
    reader_lag: int | None


@dataclass(frozen=True)
class Step:
    """A step as Flink runs it: several of ours in one chain.

    Attributes:
        name: names of the chain.
        state: of its subtasks.
        parallelism: how many subtasks.
        busy: share of time at work, of the busiest subtask.
        backpressured: share of time waiting for those below, of the worst subtask.
    """

    name: str
    state: str
    parallelism: int
    busy: float | None
    backpressured: float | None


@dataclass(frozen=True)
class Checkpoint:
    """The newest checkpoint."""

    number: int
    age_ms: int
    duration_ms: int
    state_bytes: int
    path: str


@dataclass(frozen=True)
class Status:
    """All that is shown of a job."""

    job_id: str
    name: str
    state: str
    since: str
    restarts: int | None
    checkpoints_completed: int
    checkpoints_failed: int
    last_checkpoint: Checkpoint | None
    last_failure: str
    partitions: list[Partition]
    steps: list[Step]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


def status_of(rest: Rest, job_id: str) -> Status:
    """Ask for all of it.

    Raises:
        RestError: the cluster or the job is not there.
    """
    job = rest.job(job_id)
    checkpoints = rest.checkpoints(job_id)
    counts = checkpoints["counts"]
    pressures = _pressures(rest, job_id, job) if job["state"] == "RUNNING" else {}
    restarts = rest.metrics(f"/jobs/{job_id}", ["numRestarts"])
    return Status(
        job_id=job_id,
        name=job["name"],
        state=job["state"],
        since=_iso(job["start-time"]),
        restarts=int(restarts["numRestarts"]) if restarts else None,
        checkpoints_completed=counts["completed"],
        checkpoints_failed=counts["failed"],
        last_checkpoint=_checkpoint((checkpoints.get("latest") or {}).get("completed"), job["now"]),
        last_failure=rest.failure(job_id),
        partitions=partitions_of(rest, job) if pressures else [],
        steps=[_step(vertex, pressures.get(vertex["id"], [])) for vertex in job["vertices"]],
    )


def partitions_of(rest: Rest, job: dict[str, Any]) -> list[Partition]:
    """What a job that runs reads, and how far behind it is, as far as Flink has told so far.

    Args:
        rest: the cluster.
        job: as `Rest.job` has it.
    """
    found = [p for vertex in job["vertices"] for p in _partitions(rest, job["jid"], vertex)]
    return sorted(found, key=lambda p: (p.topic, p.partition))


def _checkpoint(latest: dict[str, Any] | None, now_ms: int) -> Checkpoint | None:
    if not latest:
        return None
    return Checkpoint(
        number=latest["id"],
        age_ms=max(0, now_ms - latest["latest_ack_timestamp"]),
        duration_ms=latest["end_to_end_duration"],
        state_bytes=latest["state_size"],
        path=latest["external_path"] or "",
    )


def _pressures(rest: Rest, job_id: str, job: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Busy and backpressured shares of each step's subtasks, as soon as Flink has fetched them."""
    deadline = time.monotonic() + _METRICS_WITHIN_S
    while True:
        found = {
            vertex["id"]: rest.get(f"/jobs/{job_id}/vertices/{vertex['id']}/backpressure")
            for vertex in job["vertices"]
        }
        if all(each["status"] == "ok" for each in found.values()) or time.monotonic() > deadline:
            return {name: each.get("subtasks", []) for name, each in found.items()}
        wait_a_moment()


def _step(vertex: dict[str, Any], subtasks: list[dict[str, Any]]) -> Step:
    return Step(
        name=vertex["name"],
        state=vertex["status"],
        parallelism=vertex["parallelism"],
        busy=max((each["busyRatio"] for each in subtasks), default=None),
        backpressured=max((each["ratio"] for each in subtasks), default=None),
    )


def _partitions(rest: Rest, job_id: str, vertex: dict[str, Any]) -> Iterator[Partition]:
    """Positions by partition; Flink counts what is left by reader."""
    if not vertex["name"].startswith("Source: "):
        return
    path = f"/jobs/{job_id}/vertices/{vertex['id']}"
    found = [m for m in map(_POSITION.fullmatch, rest.metrics(path)) if m]
    readers = {m["reader"]: f"{m['reader']}.{m['source']}.pendingRecords" for m in found}
    values = _values(rest, path, [*(m[0] for m in found), *readers.values()])
    for match in found:
        reader = match["reader"]
        behind = values.get(readers[reader])
        alone = sum(m["reader"] == reader for m in found) == 1
        lag = None if behind is None else int(behind)
        if match[0] in values:
            yield Partition(
                topic=match["topic"],
                partition=int(match["partition"]),
                # The metric is the offset of the last record that was handed on.
                next_offset=int(values[match[0]]) + 1,
                # With nothing left in all of them there is nothing left in each.
                lag=lag if alone or lag == 0 else None,
                reader=int(reader),
                reader_lag=lag,
            )


def _values(rest: Rest, path: str, names: Iterable[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    wanted = list(names)
    for i in range(0, len(wanted), _NAMES_A_CALL):
        values |= rest.metrics(path, wanted[i : i + _NAMES_A_CALL])
    return values


# --- showing it ----------------------------------------------------------------------------------


def print_jobs(rest: Rest, console: Console) -> None:
    """All jobs of a cluster, a line each."""
    table = Table("job", "name", "state", "since")
    for job in rest.jobs():
        table.add_row(job["jid"], escape(job["name"]), job["state"], _iso(job["start-time"]))
    console.print(table)


def print_status(status: Status, console: Console) -> None:
    """One job, as tables that a person reads."""
    table = Table("job", status.job_id)
    table.add_row("name", escape(status.name))
    table.add_row("state", f"{status.state} since {status.since}")
    table.add_row("restarts", _number(status.restarts))
    table.add_row("last checkpoint", _checkpoint_line(status))
    if status.last_failure:
        table.add_row("last failure", escape(status.last_failure))
    console.print(table)
    if status.last_checkpoint is not None:
        # Beside the table: wrapped, a path cannot be copied.
        console.print(f"checkpoint: {status.last_checkpoint.path}", markup=False, soft_wrap=True)
    if status.partitions:
        console.print(_partition_table(status.partitions))
    if status.state not in ENDED:
        console.print(_step_table(status.steps))


def _checkpoint_line(status: Status) -> str:
    last, failed = status.last_checkpoint, status.checkpoints_failed
    also = f"; {failed} failed" if failed else ""
    if last is None:
        return f"none{also}"
    return (
        f"{last.number}, {last.age_ms / 1000:.1f} s ago, took {last.duration_ms} ms, "
        f"{last.state_bytes:,} bytes{also}"
    )


def _partition_table(partitions: list[Partition]) -> Table:
    table = Table("topic", "partition", "next offset", "lag", "reader", "its lag")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in partitions:
        table.add_row(
            each.topic,
            str(each.partition),
            f"{each.next_offset:,}",
            _number(each.lag),
            str(each.reader),
            _number(each.reader_lag),
        )
    return table


def _step_table(steps: list[Step]) -> Table:
    table = Table("step", "state", "subtasks", "busy", "backpressured")
    for column in table.columns[2:]:
        column.justify = "right"
    for step in steps:
        name = step.name if len(step.name) <= _NAME_CHARS else f"{step.name[:_NAME_CHARS]}..."
        shares = (_share(step.busy), _share(step.backpressured))
        table.add_row(escape(name), step.state, str(step.parallelism), *shares)
    return table


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "?" if value is None else f"{value:.0%}"


def _iso(ms: int) -> str:
    time_ = datetime.fromtimestamp(ms / 1000, timezone.utc).replace(tzinfo=None)
    return f"{time_.isoformat(timespec='milliseconds')}Z"
