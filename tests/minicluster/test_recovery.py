"""Kill -9 in the middle of a run, then resume: the same recount holds.

Where the kill falls is chosen by what the run has done (a checkpoint is complete), never by a
sleep. That each kill really hit a run in the middle is checked too.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.oracle import Expected, assert_run_is_right, expect
from tests.runs import (
    checkpoints,
    descendants,
    events,
    is_alive,
    python_workers,
    run,
    settings_file,
    started,
    wait_until,
)

pytestmark = pytest.mark.minicluster

WINDOW_MS, DELAY_MS = 10_000, 20_000
EVENTS = 150_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return events(tmp_path_factory.mktemp("in") / "events.jsonl", EVENTS, disorder_s=19)


@pytest.fixture(scope="module")
def expected(source: Path) -> Expected:
    return expect([source])


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Tiny splits, so that the run takes long enough to be hit in the middle."""
    return settings_file(
        tmp_path / "slow.toml",
        source={"split_bytes": 20_000},
        windows={"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
        batch={"max_records": 100},
        checkpoint={"interval_ms": 300},
    )


def is_right(output: Path, expected: Expected) -> dict[str, object]:
    ledger = assert_run_is_right(output, expected, window_ms=WINDOW_MS, delay_ms=DELAY_MS)
    assert ledger["late"] == 0, "resuming made events late"
    return ledger


def test_a_killed_driver_is_resumed_with_another_parallelism(
    tmp_path: Path, source: Path, expected: Expected, slow: Path
) -> None:
    """Twice killed, resumed with 3 and with 1 subtasks where it began with 2."""
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", slow]
    for more in ([], ["--resume", "--parallelism", 3]):
        before = set(checkpoints(output))
        with started(*call, *more) as killed:
            wait_until("a new checkpoint", lambda: set(checkpoints(output)) - before)  # noqa: B023
            killed.send_signal(signal.SIGKILL)
            killed.wait(timeout=30)
        assert not (output / "ledger.json").exists(), "the run was over before it was killed"
    ended = run(*call, "--resume", "--parallelism", 1, "--json")
    assert ended.returncode == 0, ended.stderr
    is_right(output, expected)
    assert not list(output.rglob("*inprogress*"))


def test_a_killed_python_worker_costs_only_a_moment(
    tmp_path: Path, source: Path, expected: Expected, slow: Path
) -> None:
    output = tmp_path / "out"
    with started("run", "--input", source, "--output", output, "--config", slow) as process:
        wait_until("a checkpoint", lambda: checkpoints(output))
        workers = python_workers(process.pid)
        assert workers, descendants(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        wait_until(
            "a new worker in its place",
            lambda: set(python_workers(process.pid)) - set(workers),
        )
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    is_right(output, expected)


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(
    tmp_path: Path, source: Path, expected: Expected, slow: Path
) -> None:
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", slow]
    with started(*call) as process:
        wait_until("a checkpoint", lambda: checkpoints(output))
        left = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    assert "--resume" in printed
    assert "Traceback" not in printed
    wait_until("every process that it started has ended", lambda: not any(map(is_alive, left)))
    ended = run(*call, "--resume", "--json")
    assert ended.returncode == 0, ended.stderr
    is_right(output, expected)


def test_a_run_that_was_killed_when_only_its_ledger_was_missing_is_counted_not_repeated(
    tmp_path: Path, slow: Path
) -> None:
    source = events(tmp_path / "events.jsonl", 2_000, disorder_s=19)
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", slow, "--json"]
    assert run(*call).returncode == 0
    (output / "ledger.json").unlink()
    ended = run(*call, "--resume")
    assert ended.returncode == 0, ended.stderr
    is_right(output, expect([source]))


@pytest.mark.parametrize("lost", [True, False])
def test_a_line_that_is_lost_or_doubled_on_disk_is_found_and_named(
    tmp_path: Path, slow: Path, lost: bool
) -> None:
    """Positive control of the ledger and of the oracle: both must be able to fail."""
    source = events(tmp_path / "events.jsonl", 2_000, disorder_s=19)
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", slow, "--json"]
    assert run(*call).returncode == 0
    part = next((output / "processed_events").glob("*.jsonl"))
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[1:] if lost else [lines[0], *lines]))
    (output / "ledger.json").unlink()
    ended = run(*call, "--resume")
    assert ended.returncode == 1
    ledger = json.loads(ended.stdout)
    assert not ledger["balanced"]
    assert [p for p in ledger["problems"] if p.startswith("processed")], ledger
    with pytest.raises(AssertionError):
        is_right(output, expect([source]))
