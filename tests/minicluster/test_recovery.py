"""Kill -9 in the middle of a run, then resume: the same recount holds.

Where the kill falls is chosen by what the run has done (a checkpoint is complete), never by a
sleep. That each kill really hit a run in the middle is checked too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flink_jobs.output import OutputFolder
from tests.oracle import Expected, assert_outputs_are_right, assert_run_is_right, expect
from tests.runs import (
    checkpoints,
    ctrl_c,
    descendants,
    events,
    is_alive,
    python_workers,
    run,
    settings_file,
    started,
    wait_until,
    worker_clients,
)

pytestmark = pytest.mark.minicluster

WINDOW_MS, DELAY_MS = 10_000, 20_000
EVENTS = 150_000


#: What a shell, a URI and Flink's own paths each take for something else.
ODD = "ö p %20 #1 +"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"in {ODD}")
    return events(folder / "events.jsonl", EVENTS, disorder_s=19)


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


def outputs_are_right(output: Path, expected: Expected) -> None:
    assert_outputs_are_right(output, expected, window_ms=WINDOW_MS, delay_ms=DELAY_MS)


def is_right(output: Path, expected: Expected) -> dict[str, object]:
    ledger = assert_run_is_right(output, expected, window_ms=WINDOW_MS, delay_ms=DELAY_MS)
    assert ledger["late"] == 0, "resuming made events late"
    return ledger


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where runs put their temporary files: a place of their own, to see that nothing stays."""
    folder = tmp_path / "tmp_ö%20#+"  # the run refuses one with a space
    folder.mkdir()
    return folder


def test_a_killed_driver_is_resumed_with_another_parallelism(
    tmp_path: Path, source: Path, expected: Expected, slow: Path, temporary: Path
) -> None:
    """Twice killed, resumed with 3 and with 1 subtasks where it began with 2; all in odd paths."""
    output = tmp_path / f"out {ODD}" / "out"
    env = {"TMPDIR": str(temporary)}
    call = ["run", "--input", source, "--output", output, "--config", slow]
    for more in ([], ["--resume", "--parallelism", 3]):
        before = set(checkpoints(output))
        with started(*call, *more, env=env) as killed:
            wait_until("a new checkpoint", lambda: set(checkpoints(output)) - before)  # noqa: B023
            left = descendants(killed.pid)
            killed.send_signal(signal.SIGKILL)
            killed.wait(timeout=30)
        assert not (output / "ledger.json").exists(), "the run was over before it was killed"
        # Positive controls: half a run is not right, and a killed one does leave files.
        with pytest.raises(AssertionError):
            outputs_are_right(output, expected)
        assert list(temporary.iterdir())
        wait_until("its processes have ended", lambda: not any(map(is_alive, left)))  # noqa: B023
    ended = run(*call, "--resume", "--parallelism", 1, "--json", env=env)
    assert ended.returncode == 0, ended.stderr
    is_right(output, expected)
    assert not list(output.rglob("*inprogress*"))
    assert not list(temporary.iterdir())


FORGETS_THE_CHECKPOINT = """
import flink_jobs.local as local
options = local.local_options
local.local_options = lambda folder, tmp, checkpoint: options(folder, tmp, None)
"""


@pytest.fixture
def half(tmp_path: Path) -> list[object]:
    """The call of a run that was killed when it had committed some of its output, to ``out``."""
    source = events(tmp_path / "events.jsonl", 60_000, disorder_s=19)
    config = settings_file(
        tmp_path / "eager.toml",
        source={"split_bytes": 20_000},
        windows={"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
        batch={"max_records": 100},
        checkpoint={"interval_ms": 300},
        sink={"rollover_interval_ms": 100},  # so that each checkpoint commits
    )
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", config]
    with started(*call) as killed:
        wait_until("output is committed", lambda: OutputFolder(output).parts("processed_events"))
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=30)
    assert not (output / "ledger.json").exists(), "the run was over before it was killed"
    return call


def test_a_resume_that_forgets_its_checkpoint_is_found_out(
    tmp_path: Path, half: list[object]
) -> None:
    """Positive control of the test above: books, input coverage and oracle all can fail."""
    ended = run(*half, "--resume", "--json", change=FORGETS_THE_CHECKPOINT)
    assert ended.returncode == 1, ended.stderr
    problems = json.loads(ended.stdout)["problems"]
    assert [p for p in problems if "pieces were read more than once" in p], problems
    with pytest.raises(AssertionError, match="an event was written twice"):
        outputs_are_right(tmp_path / "out", expect([tmp_path / "events.jsonl"]))


def test_a_row_of_the_ledger_that_was_lost_before_a_resume_is_found(
    tmp_path: Path, half: list[object]
) -> None:
    """All outputs are there; it is only the books that can no longer vouch for them."""
    part, *_ = OutputFolder(tmp_path / "out").parts("ledger")
    first, *others = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(others))
    ended = run(*half, "--resume")
    assert (ended.returncode, ended.stderr) == (1, "")
    lost = json.loads(first)
    off = [line for line in ended.stdout.splitlines() if line.startswith("off: ")]
    assert [line for line in off if f"({lost['received']} too many)" in line], off
    outputs_are_right(tmp_path / "out", expect([tmp_path / "events.jsonl"]))


@pytest.mark.parametrize("killed", [python_workers, worker_clients])
def test_a_killed_python_worker_costs_only_a_moment(
    tmp_path: Path,
    source: Path,
    expected: Expected,
    slow: Path,
    killed: Callable[[int], list[int]],
) -> None:
    """Killed is the worker itself, or the process that Flink takes for it."""
    output = tmp_path / "out"
    with started("run", "--input", source, "--output", output, "--config", slow) as process:
        wait_until("a checkpoint", lambda: checkpoints(output))
        workers = python_workers(process.pid)
        assert workers, descendants(process.pid)
        os.kill(killed(process.pid)[0], signal.SIGKILL)
        wait_until(
            "a new worker in its place",
            lambda: set(python_workers(process.pid)) - set(workers),
        )
        printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    is_right(output, expected)


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(
    tmp_path: Path, source: Path, expected: Expected, slow: Path, temporary: Path
) -> None:
    output = tmp_path / "out"
    env = {"TMPDIR": str(temporary)}
    call = ["run", "--input", source, "--output", output, "--config", slow]
    with started(*call, env=env) as process:
        wait_until("a checkpoint", lambda: checkpoints(output))
        left = descendants(process.pid)
        assert list(temporary.iterdir())
        ctrl_c(process)
        printed, _ = process.communicate(timeout=120)
    stopped_in_order(process.returncode, printed, left, temporary)
    ended = run(*call, "--resume", "--json", env=env)
    assert ended.returncode == 0, ended.stderr
    is_right(output, expected)
    assert not list(temporary.iterdir())


def stopped_in_order(code: int, printed: str, left: dict[int, str], temporary: Path) -> None:
    assert code == 1, printed
    (last,) = printed.splitlines()[-1:]
    assert last.startswith("stopped; nothing is lost")
    assert "--resume" in last
    assert "Traceback" not in printed
    wait_until("every process that it started has ended", lambda: not any(map(is_alive, left)))
    assert not list(temporary.iterdir())


def has_java(run: subprocess.Popen[str], output: Path) -> bool | None:
    """Whether the run's Java process is there; None before the run has begun."""
    try:
        mark = json.loads((output / ".breakwater" / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    if mark["driver_pid"] != run.pid:
        return None
    return mark["jvm_pid"] is not None


def test_ctrl_c_while_flink_is_starting_stops_in_order_too(
    tmp_path: Path, slow: Path, temporary: Path
) -> None:
    """Once while Java starts, once while the job does; then the run is done as if nothing was.

    Before all that, a driver is killed while Java starts: nothing of it stays either.
    """
    source = events(tmp_path / "events.jsonl", 2_000, disorder_s=19)
    output = tmp_path / "out"
    env = {"TMPDIR": str(temporary)}
    call = ["run", "--input", source, "--output", output, "--config", slow]
    with started(*call, env=env) as killed:
        wait_until("Java is starting", lambda: has_java(killed, output) is False)
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=30)
    assert list(temporary.iterdir())
    for java in (False, True):
        with started(*call, "--resume", env=env) as process:
            wait_until("it is that far", lambda: has_java(process, output) is java)  # noqa: B023
            left = descendants(process.pid)
            ctrl_c(process)
            printed, _ = process.communicate(timeout=60)
        stopped_in_order(process.returncode, printed, left, temporary)
    ended = run(*call, "--resume", "--json", env=env)
    assert ended.returncode == 0, ended.stderr
    is_right(output, expect([source]))


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, slow: Path, temporary: Path) -> None:
    source = events(tmp_path / "events.jsonl", 2_000, disorder_s=19)
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", slow]
    with started(*call, env={"TMPDIR": str(temporary)}) as process:
        wait_until("Java has started", lambda: has_java(process, output))
        left = descendants(process.pid)
        # A hand that does not wait: more than two come, and only the second may do something.
        wait_until("it ends", lambda: process.poll() is not None or ctrl_c(process), within_s=30)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1, printed
    (line,) = printed.splitlines()
    assert line.startswith("breakwater: stopped at once; nothing is lost")
    wait_until("every process that it started has ended", lambda: not any(map(is_alive, left)))
    assert not list(temporary.iterdir())
