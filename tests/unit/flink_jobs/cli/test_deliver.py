"""breakwater deliver as a user calls it, killed and stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http_server import HttpServer, Rule
from tests.runs import command, ending, run, settings_file, wait_until
from tests.unit.flink_jobs.dead_letters.stored import line, once_each, reasons, write_part

CALLS = 4
EVENTS = 300


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as started:
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "fallback"
    for part in range(3):
        lines = [line(f"p{i}", f"u{i % 70}") for i in range(part * 100, part * 100 + 100)]
        write_part(folder, f"part-aa-{part}.jsonl", lines)
    return folder


@pytest.fixture
def config(tmp_path: Path, server: HttpServer) -> Path:
    return settings_file(
        tmp_path / "shop.toml",
        delivery={"target": "http", "calls_per_worker": CALLS},
        http={"url": f"{server.url}/events"},
        retry={"base_ms": 1, "max_attempts": 2},
    )


def deliver(root: Path, config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run("deliver", "--from", root, "--config", config, *more)


def begun(root: Path, config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("deliver", "--from", root, "--config", config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def table(out: str) -> dict[str, str]:
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in out.splitlines()]
    return {" ".join(filter(None, row[:2])): row[2] for row in rows if len(row) == 3}


def test_all_that_is_there_is_sent_and_a_second_call_sends_nothing(
    root: Path, config: Path, server: HttpServer
) -> None:
    first = deliver(root, config)
    assert (first.returncode, first.stderr) == (0, ""), first.stderr
    assert table(first.stdout) == {
        "in the folder": "300", "delivered now": "300", "undelivered": "0", "left": "0",
    }  # fmt: skip
    assert "done: every event has been delivered" in first.stdout
    second = deliver(root, config)
    assert second.returncode == 0
    assert table(second.stdout)["before"] == "300"
    assert len(server.requests()) == EVENTS
    assert once_each(request.key for request in server.requests())


def test_what_is_left_is_told_and_exit_code_1(root: Path, config: Path, server: HttpServer) -> None:
    server.behave(Rule(key="key-p7", status=400), Rule(key="key-p8", status=503))
    ended = deliver(root, config)
    assert (ended.returncode, ended.stderr) == (1, "")
    rows = table(ended.stdout)
    assert (rows["undelivered http_400"], rows["http_503"], rows["left"]) == ("1", "1", "0")
    assert f"reasons: {root}/undelivered.ndjson (send it once more with --again)" in ended.stdout
    assert sorted(each["error_type"] for each in reasons(root)) == ["http_400", "http_503"]
    assert deliver(root, config).returncode == 1
    server.behave()
    again = deliver(root, config, "--again")
    assert again.returncode == 0
    assert (table(again.stdout)["delivered now"], reasons(root)) == ("2", [])


def test_a_program_is_told_the_same(root: Path, config: Path, server: HttpServer) -> None:
    server.behave(Rule(key="key-p7", status=400))
    ended = deliver(root, config, "--json", "--rate-per-second", "5000")
    assert (ended.returncode, ended.stderr) == (1, "")
    told = json.loads(ended.stdout)
    assert told.pop("wall_time_s") > 0
    assert told.pop("events_per_s") > 0
    assert told == {
        "events": 300, "delivered_before": 0, "delivered": 299, "undelivered": {"http_400": 1},
        "left": 0, "gave_up": False, "stopped": False,
    }  # fmt: skip


def test_killed_twice_it_goes_on_and_repeats_only_what_was_in_flight(
    root: Path, config: Path, server: HttpServer
) -> None:
    """Each event is with the service; again, with the same key, at most what a kill has cut off."""
    server.behave(Rule(delay_ms=10), Rule(key="key-p7", status=400))
    for so_many in (70, 180):
        process = begun(root, config)
        with ending(process):
            wait_until("some are sent", lambda n=so_many: len(server.requests()) > n)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    ended = deliver(root, config, "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert told["delivered_before"] + told["delivered"] == EVENTS
    assert 180 - 2 * CALLS < told["delivered_before"] < EVENTS
    keys = Counter(request.key for request in server.requests())
    assert keys.keys() == {f"key-p{i}" for i in range(EVENTS)}
    assert keys.total() - EVENTS <= 2 * CALLS


def test_reasons_are_there_once_each_after_a_kill(
    root: Path, config: Path, server: HttpServer
) -> None:
    server.behave(Rule(status=400, delay_ms=5))
    process = begun(root, config)
    with ending(process):
        wait_until("some are sent", lambda: len(server.requests()) > 100)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with (root / "undelivered.ndjson").open("ab") as file:
        file.write(b'{"part":"part-aa-0.json')
    ended = deliver(root, config, "--json")
    assert (ended.returncode, json.loads(ended.stdout)["undelivered"]) == (1, {"http_400": EVENTS})
    places = [(each["part"], each["line"]) for each in reasons(root)]
    assert len(places) == len(set(places)) == EVENTS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_in_order(
    root: Path, config: Path, server: HttpServer, number: signal.Signals
) -> None:
    server.behave(Rule(delay_ms=30))
    process = begun(root, config)
    with ending(process):
        wait_until("some are sent", lambda: len(server.requests()) > 20)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "stopped; the same call goes on where this one has ended\n"
    sent = int(table(out)["delivered now"])
    assert sent == len(server.requests()) < EVENTS
    assert int(table(out)["left"]) == EVENTS - sent
    assert deliver(root, config).returncode == 0
    assert once_each(request.key for request in server.requests())


def test_ctrl_c_ends_it_while_the_target_is_down(
    root: Path, config: Path, server: HttpServer
) -> None:
    server.behave(Rule(status=503))
    config.write_text(config.read_text() + "[breaker]\nconsecutive = 1\n")
    process = begun(root, config)
    with ending(process):
        wait_until("it has tried", lambda: len(server.requests()) > 0)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert table(out)["left"] == "300"


def test_it_ends_when_the_target_takes_nothing_and_goes_on_when_it_does(
    root: Path, config: Path, server: HttpServer
) -> None:
    """The bug it catches: while the target is down it waits for ever, in a night's job too."""
    server.behave(*(Rule(key=f"key-p{i}", first=1) for i in range(20)), Rule(status=503))
    config.write_text(config.read_text() + "[breaker]\nopen_ms = 100\nopen_cap_ms = 100\n")
    ended = deliver(root, config, "--give-up-after-seconds", "2")
    assert ended.returncode == 1, ended.stderr
    delivered, left = int(table(ended.stdout)["delivered now"]), int(table(ended.stdout)["left"])
    assert 0 < delivered <= 20
    assert ended.stderr == (
        f"given up, the target has taken nothing for 2 s: {delivered} delivered, {left} left; "
        "the same call goes on where this one has ended\n"
    )
    assert len([each for each in server.requests() if each.status == 503]) > 10, "no more probes"
    server.behave()
    again = deliver(root, config, "--again", "--json")
    told = json.loads(again.stdout)
    assert (again.returncode, told["gave_up"]) == (0, False)
    assert (told["delivered_before"], told["delivered"]) == (delivered, EVENTS - delivered)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing option '--from'"),
        (["--from", "gone"], "there is no such folder"),
        (["--from", "."], "has no committed part-*.jsonl"),
        (["--from", "fallback", "--rate-per-second", "0"], "--rate-per-second"),
        (["--from", "fallback", "--rate-per-second", "fast"], "--rate-per-second"),
        (["--from", "fallback", "--give-up-after-seconds", "0"], "--give-up-after-seconds"),
        (["--from", "fallback", "--config", "gone.toml"], "gone.toml"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    root: Path, config: Path, arguments: list[str], says: str
) -> None:
    more: list[Any] = [] if "--config" in arguments else ["--config", config]
    ended = run("deliver", *arguments, *more, cwd=root.parent)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert sorted(path.name for path in root.iterdir()) == [f"part-aa-{n}.jsonl" for n in range(3)]


@pytest.mark.parametrize("enabled", [False, True])
def test_without_a_target_there_is_nothing_to_deliver_to(
    root: Path, tmp_path: Path, enabled: bool
) -> None:
    """A job that deduplicates has the step without one: it would take all of it, for nobody."""
    config = settings_file(tmp_path / "none.toml", deduplicate={"enabled": enabled})
    ended = run("deliver", "--from", root, "--config", config)
    assert ended.returncode == 2
    assert "delivery.target: is missing" in ended.stderr


def test_the_help_has_examples_and_exit_codes() -> None:
    ended = run("deliver", "--help")
    assert ended.returncode == 0
    assert ended.stdout.count(" breakwater deliver --from") >= 2
    assert "0 all is delivered, 1 something is left" in ended.stdout
