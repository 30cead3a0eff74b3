"""What status makes of Flink's answers; what a real cluster answers is in tests/cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from flink_jobs.cluster.rest import Rest
from flink_jobs.cluster.status import (
    Checkpoint,
    Partition,
    Status,
    Step,
    print_jobs,
    print_status,
    status_of,
)
from tests.unit.flink_jobs.cluster.server import answering

JOB, OLDER, SOURCE, GATE = "0" * 32, "1" * 32, "a" * 32, "b" * 32
#: Brackets are nothing that the tables may take for markup.
FAILURE = "IOException: [/127.0.0.1:9092] is gone"
START_MS = 1_767_225_600_000
NOW_MS = START_MS + 60_000
#: Longer than a terminal is wide, and with what a markup of colours would take out.
PATH = f"file:/[old]/{'checkpoints/' * 20}{JOB}/chk-41"
READ = "Source__events[1].KafkaSourceReader.topic.in.partition"
PENDING = "1.Source__events[1].pendingRecords"
#: Reader 0 has one partition and reader 1 has two, in one of which it has found nothing yet.
OF_SOURCE = {
    f"0.{READ}.1.currentOffset": "499",
    f"0.{READ}.1.committedOffset": "399",
    "0.Source__events[1].pendingRecords": "12",
    f"1.{READ}.0.currentOffset": "1233",
    f"1.{READ}.2.currentOffset": "-1",
    PENDING: "3400",
    "1.Source__events[1].numRecordsOutPerSecond": "NaN",
}
NOT_FETCHED = {"status": "deprecated"}


def vertex(uid: str, name: str, parallelism: int) -> dict[str, Any]:
    return {"id": uid, "name": name, "parallelism": parallelism, "status": "RUNNING"}


def listed(jid: str, state: str, start_ms: int) -> dict[str, Any]:
    return {"jid": jid, "name": "breakwater", "state": state, "start-time": start_ms}


def pressure(*shares: tuple[float, float]) -> dict[str, Any]:
    """Of subtasks, busy and backpressured."""
    subtasks = [
        {"subtask": i, "ratio": waits, "idleRatio": 1 - busy - waits, "busyRatio": busy}
        for i, (busy, waits) in enumerate(shares)
    ]
    return {"status": "ok", "end-timestamp": NOW_MS, "subtasks": subtasks}


#: By path, as Flink 2.3 has them; metrics by name.
ANSWERS: dict[str, Any] = {
    "/jobs/overview": {
        "jobs": [listed(OLDER, "FINISHED", START_MS - 1000), listed(JOB, "RUNNING", START_MS)]
    },
    f"/jobs/{JOB}": {
        **listed(JOB, "RUNNING", START_MS),
        "now": NOW_MS,
        "vertices": [vertex(SOURCE, "Source: events[1] -> intake", 2), vertex(GATE, "gate", 1)],
    },
    f"/jobs/{JOB}/checkpoints": {
        "counts": {"restored": 1, "total": 9, "in_progress": 1, "completed": 7, "failed": 1},
        "latest": {
            "completed": {
                "id": 41, "status": "COMPLETED", "is_savepoint": False,
                "trigger_timestamp": NOW_MS - 1730, "latest_ack_timestamp": NOW_MS - 1500,
                "checkpointed_size": 4321, "state_size": 98_765, "end_to_end_duration": 230,
                "external_path": PATH,
            },
            "restored": {"id": 34, "external_path": "file:/savepoints/savepoint-1"},
        },
    },
    f"/jobs/{JOB}/exceptions": {
        "exceptionHistory": {
            "entries": [{"timestamp": START_MS, "stacktrace": f"java.io.{FAILURE}\n\tat x"}]
        }
    },
    f"/jobs/{JOB}/metrics": {"numRestarts": "2"},
    f"/jobs/{JOB}/vertices/{SOURCE}/metrics": OF_SOURCE,
    f"/jobs/{JOB}/vertices/{SOURCE}/backpressure": pressure((0.8, 0.05), (0.3, 0.1)),
    f"/jobs/{JOB}/vertices/{GATE}/backpressure": pressure((0.25, 0.0)),
}  # fmt: skip

STATUS = Status(
    job_id=JOB,
    name="breakwater",
    state="RUNNING",
    since="2026-01-01T00:00:00.000Z",
    restarts=2,
    checkpoints_completed=7,
    checkpoints_failed=1,
    last_checkpoint=Checkpoint(
        number=41, age_ms=1500, duration_ms=230, state_bytes=98_765, path=PATH
    ),
    last_failure=FAILURE,
    partitions=[
        Partition("in", 0, next_offset=1234, lag=None, reader=1, reader_lag=3400),
        Partition("in", 1, next_offset=500, lag=12, reader=0, reader_lag=12),
        Partition("in", 2, next_offset=0, lag=None, reader=1, reader_lag=3400),
    ],
    steps=[
        Step("Source: events[1] -> intake", "RUNNING", 2, busy=0.8, backpressured=0.1),
        Step("gate", "RUNNING", 1, busy=0.25, backpressured=0.0),
    ],
)


@contextmanager
def flink(changed: dict[str, Any] | None = None) -> Iterator[Rest]:
    """A server on loopback that answers as Flink does; where several are given, one by one."""
    answers = ANSWERS | (changed or {})

    def said(path: str) -> bytes:
        parts = urlsplit(path)
        answer = answers[parts.path]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if parts.path.endswith("/metrics"):
            # Names, or values of those that are asked for and are there.
            wanted = parse_qs(parts.query).get("get")
            names = [n for n in wanted[0].split(",") if n in answer] if wanted else list(answer)
            answer = [{"id": n, **({"value": answer[n]} if wanted else {})} for n in names]
        return json.dumps(answer).encode()

    with answering(said) as target:
        yield Rest(target)


def printed(show: Callable[[Console], None]) -> str:
    out = StringIO()
    show(Console(width=200, file=out))
    return out.getvalue()


def rows(text: str) -> list[list[str]]:
    """Of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_all_that_flink_tells_of_a_job() -> None:
    """One number taken for another (acknowledged for triggered, the last offset for the next)."""
    with flink() as rest:
        assert status_of(rest, JOB) == STATUS


@pytest.mark.parametrize(("pending", "lag"), [("0", 0), ("", None)])
def test_a_reader_of_several_partitions(pending: str, lag: int | None) -> None:
    """Nothing left is nothing in each; not counted yet is "?" and not 0, which says "all read"."""
    metrics = {name: value for name, value in (OF_SOURCE | {PENDING: pending}).items() if value}
    with flink({f"/jobs/{JOB}/vertices/{SOURCE}/metrics": metrics}) as rest:
        found = status_of(rest, JOB).partitions
    readers = {0: (lag, 1, lag), 1: (12, 0, 12), 2: (lag, 1, lag)}
    assert {p.partition: (p.lag, p.reader, p.reader_lag) for p in found} == readers


def test_what_flink_has_not_fetched_yet_is_waited_for() -> None:
    """Its first answer about metrics is empty: without a second look there is never a share."""
    path = f"/jobs/{JOB}/vertices/{GATE}/backpressure"
    with flink({path: [NOT_FETCHED, ANSWERS[path]]}) as rest:
        assert status_of(rest, JOB).steps == STATUS.steps


def test_what_flink_does_not_fetch_at_all_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is told all the same, and after a time; what is not known is no zero."""
    monkeypatch.setattr("flink_jobs.cluster.status._METRICS_WITHIN_S", 0)
    changed = {f"/jobs/{JOB}/vertices/{each}/backpressure": NOT_FETCHED for each in (SOURCE, GATE)}
    changed |= {f"/jobs/{JOB}/metrics": {}, f"/jobs/{JOB}/vertices/{SOURCE}/metrics": {}}
    with flink(changed) as rest:
        found = status_of(rest, JOB)
    steps = [replace(step, busy=None, backpressured=None) for step in STATUS.steps]
    assert found == replace(STATUS, restarts=None, partitions=[], steps=steps)
    shown = rows(printed(lambda console: print_status(found, console)))
    assert ["restarts", "?"] in shown
    assert ["gate", "RUNNING", "1", "?", "?"] in shown


def test_a_job_that_has_ended_before_its_first_checkpoint() -> None:
    """It has no shares any more: asking for them would wait in vain."""
    ended = {**ANSWERS[f"/jobs/{JOB}"], "state": "FAILED"}
    none = {"counts": {"completed": 0, "failed": 3}, "latest": {"completed": None}}
    pressures = {path: None for path in ANSWERS if path.endswith("/backpressure")}
    with flink({f"/jobs/{JOB}": ended, f"/jobs/{JOB}/checkpoints": none, **pressures}) as rest:
        found = status_of(rest, JOB)
    assert (found.last_checkpoint, found.partitions) == (None, [])
    text = printed(lambda console: print_status(found, console))
    assert rows(text) == [
        ["name", "breakwater"],
        ["state", f"FAILED since {STATUS.since}"],
        ["restarts", "2"],
        ["last checkpoint", "none; 3 failed"],
        ["last failure", FAILURE],
    ]
    assert "checkpoint: " not in text


def test_what_a_person_sees_of_a_job() -> None:
    """The path is copied to --from-savepoint: on one line, and as it is."""
    text = printed(lambda console: print_status(STATUS, console))
    assert JOB in text.splitlines()[1]
    assert f"checkpoint: {PATH}" in text.splitlines()
    assert rows(text) == [
        ["name", "breakwater"],
        ["state", "RUNNING since 2026-01-01T00:00:00.000Z"],
        ["restarts", "2"],
        ["last checkpoint", "41, 1.5 s ago, took 230 ms, 98,765 bytes; 1 failed"],
        ["last failure", FAILURE],
        ["in", "0", "1,234", "?", "1", "3,400"],
        ["in", "1", "500", "12", "0", "12"],
        ["in", "2", "0", "?", "1", "3,400"],
        ["Source: events[1] -> intake", "RUNNING", "2", "80%", "10%"],
        ["gate", "RUNNING", "1", "25%", "0%"],
    ]


def test_what_a_person_sees_of_all_jobs() -> None:
    """The newest is on top: an old one is not taken for the one that runs."""
    with flink() as rest:
        text = printed(lambda console: print_jobs(rest, console))
    assert rows(text) == [
        [JOB, "breakwater", "RUNNING", "2026-01-01T00:00:00.000Z"],
        [OLDER, "breakwater", "FINISHED", "2025-12-31T23:59:59.000Z"],
    ]
