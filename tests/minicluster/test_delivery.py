"""Delivery in the real job, to a real HTTP server that is told how to behave.

What is promised is looked at from outside: at the server, and in the output files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from flink_jobs.run_folder.folder import OutputFolder
from tests.books import all_is_booked, all_waits, books_so_far
from tests.http_server import Request, Rule, ServerProcess
from tests.oracle import Expected, assert_run_is_right, expect, rows
from tests.runs import (
    checkpoints,
    events,
    python_workers,
    run,
    settings_file,
    started,
    taken,
    wait_until,
)

pytestmark = pytest.mark.minicluster

WINDOW_MS, DELAY_MS = 10_000, 20_000
EVENTS = 3_000
#: As by default: of a subtask as many as make a Python bundle (main.py).
LANES = 16
#: So many have their durations compared.
CHECKPOINTS = 6
Settings = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events(tmp_path_factory.mktemp("in") / "events.jsonl", EVENTS, disorder_s=19)


@pytest.fixture(scope="module")
def expected(source: Path) -> Expected:
    return expect([source])


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        yield server


def call(
    tmp_path: Path, path: Path, server: ServerProcess, /, **tables: dict[str, object]
) -> list[object]:
    """A run that delivers to the server: small chunks, short waits."""
    settings: Settings = {
        "source": {"split_bytes": 20_000},
        "windows": {"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
        "checkpoint": {"interval_ms": 300},
        "delivery": {"target": "http", "lanes": LANES, "timeout_ms": 5_000},
        "http": {"url": f"{server.url}/events"},
        "retry": {"base_ms": 100},
        "breaker": {"open_ms": 300, "open_cap_ms": 300},
        "sink": {"rollover_interval_ms": 300},
    }
    for table, values in tables.items():
        settings[table] = {**settings.get(table, {}), **values}
    config = settings_file(tmp_path / "delivery.toml", **settings)
    return ["run", "--input", path, "--output", tmp_path / "out", "--config", config, "--json"]


def ended(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The books of a run that has ended well; they balance, or it had not."""
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def place(event: dict[str, Any]) -> tuple[str, int]:
    return event["source_topic"], event["source_offset"]


def delivered(server: ServerProcess) -> Counter[tuple[str, int]]:
    """How often the server has taken each event."""
    taken = (request for request in server.requests() if request.status == 200)
    return Counter(place(json.loads(request.body)) for request in taken)


def test_each_event_is_delivered_once_and_the_outputs_are_those_of_a_run_without(
    tmp_path: Path, source: Path, expected: Expected, server: ServerProcess
) -> None:
    ended(run(*call(tmp_path, source, server)))
    output = tmp_path / "out"
    ledger = assert_run_is_right(output, expected, window_ms=WINDOW_MS, delay_ms=DELAY_MS)
    assert ledger["late"] == 0, "the watermark has not waited"
    processed = rows(output / "processed_events")
    assert delivered(server) == Counter(map(place, processed))
    assert set(delivered(server).values()) == {1}


def test_an_outage_within_the_budget_costs_no_record_and_few_calls(
    tmp_path: Path, source: Path, expected: Expected, server: ServerProcess
) -> None:
    server.behave(Rule(status=503))
    with started(*call(tmp_path, source, server)) as job:
        wait_until("the service is called", lambda: server.counts()["requests"])
        begun_s = time.monotonic()
        time.sleep(6)  # more than ten times as long as all attempts of a record take
        refused, outage_s = server.counts()["requests"], time.monotonic() - begun_s
        server.behave()
        stdout, _ = job.communicate(timeout=120)
    assert job.returncode == 0, stdout
    assert all_is_booked(tmp_path / "out", expected).processed == len(expected.processed)
    # Until the fifth has failed, up to 16 are out; then one probe each time a breaker half opens.
    assert refused <= LANES * (4 + 16 + outage_s / 0.3 + 1)
    assert set(delivered(server).values()) == {1}


def test_an_outage_beyond_it_makes_each_record_a_dead_letter_once(
    tmp_path: Path, source: Path, expected: Expected, server: ServerProcess
) -> None:
    server.behave(Rule(status=503, retry_after="1"))
    job = call(tmp_path, source, server, delivery={"max_age_ms": 3_000})
    ended(run(*job))
    assert all_is_booked(tmp_path / "out", expected).processed == 0
    letters = rows(tmp_path / "out" / "dead_letters")
    ours = [letter for letter in letters if letter["processing_stage"] == "delivery"]
    assert len(ours) == len({place(letter) for letter in ours}) == len(expected.processed)
    assert {letter["disposition"] for letter in ours} <= {"expired", "exhausted"}
    tried = [letter for letter in ours if letter["attempts"]]
    assert tried
    for letter in tried:
        assert {each["error_type"] for each in letter["attempts"]} == {"http_503"}
        assert letter["first_failure_time"] == letter["attempts"][0]["at"]
    assert all("http_503" in letter["error_message"] for letter in ours if not letter["attempts"])


@pytest.fixture(scope="module")
def long_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So much that it is read for longer than a test looks on: at its end is no checkpoint."""
    return events(tmp_path_factory.mktemp("in") / "events.jsonl", 200_000, disorder_s=19)


def test_a_call_that_hangs_keeps_neither_other_keys_nor_checkpoints_waiting(
    tmp_path: Path, long_source: Path, server: ServerProcess
) -> None:
    user = '"user_id":"user_00000"'
    settings: Settings = {
        "source": {"split_bytes": 5_000},
        "delivery": {"timeout_ms": 60_000, "max_records": 1_000_000},
        "flink": {
            "web.checkpoints.history": "1000",
            "web.refresh-interval": "200",
            # What lies in the network is what a checkpoint takes its time for: little of it here.
            "taskmanager.memory.segment-size": "4kb",
        },
    }
    output = tmp_path / "out"

    def since(at_s: float) -> list[int]:
        return [each.took_ms for each in taken(output) if each.at_s > at_s]

    with started(*call(tmp_path, long_source, server, **settings)):
        wait_until("it is called", server.requests)
        begun_s = time.time()
        wait_until("checkpoints before", lambda: len(since(begun_s)) >= CHECKPOINTS)
        before = since(begun_s)
        server.behave(Rule(body_has=user, hang=True, first=1))
        wait_until("it hangs", lambda: any(r.ending == "hung" for r in server.requests()))
        hung_s = time.time()
        wait_until("checkpoints while it hangs", lambda: len(since(hung_s)) >= CHECKPOINTS, 50)
        meanwhile = since(hung_s)
        requests = server.requests()
        counts = books_so_far(output)
    (hung,) = [request for request in requests if request.ending == "hung"]
    assert median(meanwhile) <= 3 * median(before), (before, meanwhile)
    assert counts.pending > 0
    assert counts.processed > 0
    behind = requests[hung.number + 1 :]
    assert not [request for request in behind if user in request.body], "it was overtaken"
    keys = {json.loads(request.body)["user_id"] for request in behind}
    assert len(keys) > 100
    assert [request for request in behind if request.status == 200]


def in_order(requests: list[Request]) -> None:
    """Of each key no event is called with before those before it have been taken."""
    taken: defaultdict[str, set[int]] = defaultdict(set)
    places: defaultdict[str, set[int]] = defaultdict(set)
    for request in requests:
        event = json.loads(request.body)
        places[event["user_id"]].add(event["source_offset"])
    for request in requests:
        event = json.loads(request.body)
        key, offset = event["user_id"], event["source_offset"]
        before = {each for each in places[key] if each < offset}
        assert before <= taken[key], f"{key}: {offset} before {sorted(before - taken[key])}"
        if request.status == 200:
            taken[key].add(offset)


def kill_workers(job: subprocess.Popen[str]) -> None:
    workers = python_workers(job.pid)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)


def test_the_order_of_a_key_is_kept_through_failures_and_a_kill(
    tmp_path: Path, source: Path, expected: Expected, server: ServerProcess
) -> None:
    server.behave(Rule(probability=0.1, status=503))
    # One reader, so that there is an order; and failures are drawn, so they are no outage.
    job = call(tmp_path, source, server, breaker={"consecutive": 0}, retry={"max_attempts": 20})
    with started(*job, "--parallelism", 1) as running:
        wait_until(
            "it is in the middle",
            lambda: checkpoints(tmp_path / "out") and server.counts()["requests"] > EVENTS / 4,
        )
        kill_workers(running)
        stdout, _ = running.communicate(timeout=120)
    assert running.returncode == 0, stdout
    requests = server.requests()
    in_order(requests)
    keys: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    for request in requests:
        keys[place(json.loads(request.body))].add(request.key)
    assert {len(of_event) for of_event in keys.values()} == {1}, "its key has changed"
    assert max(delivered(server).values()) > 1, "the kill has cost nothing: was it too late?"
    processed = rows(tmp_path / "out" / "processed_events")
    assert Counter(map(place, processed)) == Counter(dict.fromkeys(keys, 1))
    counts = all_is_booked(tmp_path / "out", expected)
    assert counts.processed == len(processed) == len(expected.processed)


def test_a_breaker_that_is_open_is_still_open_after_a_kill(
    tmp_path: Path, long_source: Path, server: ServerProcess
) -> None:
    open_s = 15.0
    server.behave(Rule(status=503))
    settings: Settings = {
        "source": {"split_bytes": 5_000},
        "breaker": {"open_ms": round(open_s * 1000), "open_cap_ms": round(open_s * 1000)},
        "delivery": {"lanes": 1, "max_records": 1_000_000},
    }
    output = tmp_path / "out"
    job = call(tmp_path, long_source, server, **settings)
    with started(*job, "--parallelism", 1) as running:
        wait_until("it is open", lambda: server.counts()["requests"] >= 5)
        time.sleep(1.5)  # Flink comes by at least once a second while calls are out
        seen = set(checkpoints(output))
        wait_until("a checkpoint has it", lambda: set(checkpoints(output)) - seen)
        before, booked = server.requests(), all_waits(output)
        kill_workers(running)
        killed_s = time.time()
        wait_until("it goes on", lambda: all_waits(output).received > booked.received)
        wait_until("a probe", lambda: server.counts()["requests"] > len(before), 60)
        time.sleep(1)
        all_waits(output)
    probe, *more = server.requests()[len(before) :]
    assert killed_s < probe.at_s
    assert probe.at_s - before[-1].at_s > 0.9 * open_s, "it forgot that it was open"
    assert not more, "one record is the probe"


def test_other_lanes_and_other_windows_are_refused_by_the_state_itself(
    tmp_path: Path, long_source: Path, server: ServerProcess
) -> None:
    """As on a cluster, where nobody compares the settings with those of the savepoint."""
    output = OutputFolder(tmp_path / "out")
    job = call(tmp_path, long_source, server, source={"split_bytes": 5_000})
    with started(*job) as running:
        wait_until("a checkpoint", lambda: checkpoints(output.root))
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    kept = output.settings.read_text()
    for table, name, value, said in (
        ("delivery", "lanes", 2 * LANES, f"delivery.lanes = {2 * LANES}, and it was {LANES} in"),
        ("windows", "size_ms", 77_000, "with windows.size_ms and the type of the contract's value"),
    ):
        changed = json.loads(kept)
        changed[table][name] = value
        output.settings.write_text(json.dumps(changed))
        other = call(
            tmp_path,
            long_source,
            server,
            source={"split_bytes": 5_000},
            flink={"restart-strategy.type": "none"},
            **{table: {name: value}},
        )
        refused = run(*other, "--resume")
        assert refused.returncode != 0
        assert said in refused.stderr


def test_what_is_delivered_after_its_window_has_closed_is_late_and_counted(
    tmp_path: Path, server: ServerProcess
) -> None:
    """The watermark waits for first calls, and not for retries."""
    source = events(tmp_path / "events.jsonl", 4 * EVENTS, disorder_s=19)
    expected = expect([source])
    user = next(iter(expected.processed.values()))["user_id"]
    server.behave(Rule(body_has=f'"user_id":"{user}"', status=503, first=1))
    windows = {"size_ms": 1_000}
    job = call(tmp_path, source, server, windows=windows, retry={"base_ms": 8_000})
    books, late = ended(run(*job)), rows(tmp_path / "out" / "late_events")
    assert late
    assert {event["user_id"] for event in late} == {user}
    assert books["late"] == len(late) == len({place(event) for event in late})
    assert books["windowed"] + books["late"] == books["processed"] == len(expected.processed)
    all_is_booked(tmp_path / "out", expected)


def test_what_the_service_refuses_is_a_dead_letter_at_once(
    tmp_path: Path, source: Path, expected: Expected, server: ServerProcess
) -> None:
    """The e-commerce example: the service knows the users, and answers with what it has of them."""
    unknown = next(iter(expected.processed.values()))["user_id"]
    server.behave(
        Rule(path=f"/users/{unknown}", status=404, json={"error": "no such user"}),
        json={"price": 77.0},
    )
    ended(
        run(
            *call(
                tmp_path,
                source,
                server,
                http={
                    "url": f"{server.url}/users/{{user_id}}",
                    "method": "GET",
                    "body": "none",
                    "answer_fields": ["price"],
                },
            )
        )
    )
    of_unknown = sum(e["user_id"] == unknown for e in expected.processed.values())
    assert all_is_booked(tmp_path / "out", expected).dead_lettered["http_404"] == of_unknown
    processed = rows(tmp_path / "out" / "processed_events")
    assert {event["price"] for event in processed} == {77.0}
    assert unknown not in {event["user_id"] for event in processed}
    letter = next(
        letter
        for letter in rows(tmp_path / "out" / "dead_letters")
        if letter["error_type"] == "http_404"
    )
    assert letter["failure_category"] == "data_quality"
    assert letter["processing_attempts"] == 0 or len(letter["attempts"]) == 1
    assert "no such user" in letter["error_message"]
