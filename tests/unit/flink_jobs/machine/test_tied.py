"""A process that must not outlive the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flink_jobs.machine.tied import tied
from tests.runs import is_alive, wait_until

ROOT = Path(__file__).resolve().parents[3]
PARENT = """
import subprocess, sys, time
from flink_jobs.machine.tied import tied
command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
process = subprocess.Popen({how}, stdout=subprocess.PIPE, start_new_session=True)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the signal")


def outlives(how: str) -> int:
    """Kill a parent; the id of its child."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(how=how)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
    return child


def test_it_ends_when_the_one_that_started_it_is_killed() -> None:
    child = outlives("tied(command)")
    wait_until("the child's end", lambda: not is_alive(child), 20)


def test_another_process_goes_on() -> None:
    """The positive control: without the signal it stays."""
    child = outlives("command")
    try:
        assert is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_it_ends_with_is_the_commands_own() -> None:
    done = subprocess.run(
        tied([sys.executable, "-c", "import sys; print('said'); sys.exit(3)"]),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "said\n")
