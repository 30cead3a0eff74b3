"""The fallback store of a real run, and what breakwater deliver makes of it."""

from __future__ import annotations

import hashlib
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.ledger.audit import audit_folder
from flink_jobs.run_folder.folder import OutputFolder
from tests.http_server import HttpServer, Rule
from tests.minicluster.flow import main_job, pickled
from tests.oracle import Expected, at, expect, lines_of, placed_rows, rows
from tests.runs import events, run, settings_file, started, wait_until

pytestmark = pytest.mark.minicluster

EVENTS = 20_000
CALLS = 8
#: So many are sent before it is killed.
SOME = 3_000


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(Rule(status=503)) as service:
        yield service


@pytest.fixture
def config(tmp_path: Path, server: HttpServer) -> Path:
    return settings_file(
        tmp_path / "shop.toml",
        source={"split_bytes": 20_000},
        batch={"max_records": 100},
        checkpoint={"interval_ms": 300},
        sink={"rollover_interval_ms": 100},  # so that each checkpoint commits
        delivery={
            "target": "http",
            "fallback": "file",
            "overflow": "fallback",
            "max_records": 200,
            "slow_input_ms": 2,
            "drain_timeout_ms": 500,
            "calls_per_worker": CALLS,
        },
        http={"url": f"{server.url}/events"},
        retry={"max_attempts": 2, "base_ms": 1},
    )


def keys_of(source: Path, expected: Expected) -> dict[str, str]:
    """The idempotency key of each accepted event, by its place; worked out from the input."""
    found = {}
    for offset, line in lines_of(source):
        place = (str(source.resolve()), offset)
        if place in expected.processed:
            found[str(place)] = hashlib.md5(line).hexdigest()  # noqa: S324 # what it is
    return found


def store_is_right(output: Path, source: Path, expected: Expected) -> None:
    """All that is good is there, as processed_events would have it, and once."""
    stored = rows(output / "fallback")
    assert Counter(at(row) for row in stored) == Counter(dict.fromkeys(expected.processed, 1))
    keys = keys_of(source, expected)
    for row in stored:
        fields = expected.processed[at(row)]
        assert {name: row[name] for name in fields} == fields
        assert row["breakwater_key"] == keys[str(at(row))]
        assert list(row)[-4:] == [
            "source_topic", "source_partition", "source_offset", "breakwater_key",
        ]  # fmt: skip
    assert not any(rows(output / name) for name in ("processed_events", "late_events"))
    dead = placed_rows(output / "dead_letters", "error_type")
    assert Counter((at(row), kind) for kind, row in dead) == Counter(expected.dead.items())


def books_are_right(output: Path, expected: Expected) -> None:
    ledger = json.loads((output / "ledger.json").read_text())
    assert (ledger["balanced"], ledger["fallback"]) == (True, len(expected.processed))
    assert (ledger["received"], ledger["processed"], ledger["pending"]) == (EVENTS, 0, 0)
    audit = audit_folder(output)
    assert audit.balanced, audit.problems
    assert audit.book.total.fallback == len(expected.processed)


def all_is_sent_once(folder: Path, config: Path, server: HttpServer, keys: set[str]) -> None:
    """Killed in the middle, and again, and again when there is nothing left."""
    call = ["deliver", "--from", folder, "--config", config, "--json"]
    with started(*call) as sending:
        wait_until("some are sent", lambda: server.counts()["requests"] > SOME)
        sending.send_signal(signal.SIGKILL)
        sending.wait(timeout=30)
    ended = run(*call)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert told["delivered_before"] + told["delivered"] == len(keys)
    assert SOME - CALLS < told["delivered_before"] < len(keys)
    found = Counter(request.key for request in server.requests())
    assert found.keys() == keys
    assert found.total() - len(found) <= CALLS, "more was repeated than was in flight"
    assert run(*call).returncode == 0
    assert server.counts()["requests"] == found.total()


def test_with_the_target_down_all_goes_to_the_store_once_and_is_sent_later_once(
    tmp_path: Path, config: Path, server: HttpServer
) -> None:
    """The run is killed when some of it is committed; sending it later is killed as well."""
    source = events(tmp_path / "events.jsonl", EVENTS)
    expected = expect([source])
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", config]
    with started(*call) as killed:
        wait_until("something is kept", lambda: OutputFolder(output).parts("fallback"))
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=30)
    assert not (output / "ledger.json").exists(), "the run was over before it was killed"
    ended = run(*call, "--resume")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    store_is_right(output, source, expected)
    books_are_right(output, expected)
    assert f"│ fallback      │                  │ {len(expected.processed):>7,} │" in ended.stdout

    server.behave(Rule(delay_ms=1))
    server.reset()
    keys = set(keys_of(source, expected).values())
    all_is_sent_once(output / "fallback", config, server, keys)

    # What it has left there is nobody's output; what is lost of the output is found.
    assert audit_folder(output).balanced
    part = OutputFolder(output).parts("fallback")[0]
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[1:]))
    assert [each for each in audit_folder(output).problems if each.startswith("fallback: ")]


@pytest.mark.parametrize("fallback", ["file", "dead_letters"])
def test_the_store_is_in_the_flow_where_the_settings_say_so(
    flink: Callable[..., Any], tmp_path: Path, fallback: str
) -> None:
    call = {"delivery.target": "http", "http.url": "http://h/", "delivery.fallback": fallback}
    steps = main_job(flink, tmp_path, call)
    uids = {step.getUid() for step in steps}
    assert ({"fallback", "fallback-blocks"} <= uids) is (fallback == "file")
    consumed = {
        step.getOutputTag().getId()
        for step in steps
        if step.getClass().getSimpleName() == "SideOutputTransformation"
    }
    assert ("fallback" in consumed) is (fallback == "file")
    assert pickled(steps) == {}
