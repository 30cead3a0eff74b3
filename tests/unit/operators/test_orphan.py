"""A worker ends with its TaskManager: real processes, one below the other as Flink starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from operators.orphan import end_when_orphaned
from tests.runs import is_alive, wait_until

ROOT = Path(__file__).resolve().parents[3]
#: A shell between the two, in a pipe: it outlives the one that started it.
TASKMANAGER = """
import subprocess, sys, time
shell = 'echo $$ >&2; "$0" -c "$1" | cat'
subprocess.Popen(["bash", "-c", shell, sys.executable, sys.argv[1]])
time.sleep(600)
"""
WORKER = """
import os, time
from operators import orphan
{watch}
print(os.getpid(), flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def family(watch: str) -> tuple[subprocess.Popen[str], int, int]:
    """The TaskManager, and the ids of its shell and of its worker."""
    taskmanager = subprocess.Popen(
        [sys.executable, "-c", TASKMANAGER, WORKER.format(watch=watch)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert taskmanager.stdout is not None
    assert taskmanager.stderr is not None
    return taskmanager, int(taskmanager.stderr.readline()), int(taskmanager.stdout.readline())


def end(taskmanager: subprocess.Popen[str], *others: int) -> None:
    taskmanager.kill()
    for each in others:
        if is_alive(each):
            os.kill(each, signal.SIGKILL)
    taskmanager.communicate(timeout=60)


@pytest.mark.parametrize("killed", ["taskmanager", "shell"])
def test_a_worker_ends_when_one_above_it_is_killed(killed: str) -> None:
    taskmanager, shell, worker = family("orphan.watch()")
    try:
        os.kill({"taskmanager": taskmanager.pid, "shell": shell}[killed], signal.SIGKILL)
        wait_until("the worker's end", lambda: not is_alive(worker), 20)
    finally:
        end(taskmanager, shell, worker)


def test_without_the_watch_it_stays() -> None:
    """The positive control."""
    taskmanager, shell, worker = family("pass")
    try:
        taskmanager.kill()
        taskmanager.wait(60)
        assert is_alive(worker)
    finally:
        end(taskmanager, shell, worker)


def test_a_process_that_is_no_worker_is_not_watched() -> None:
    """PyFlink runs steps in the driver's process too, in local runs of others."""
    before = threading.active_count()
    end_when_orphaned()
    assert threading.active_count() == before
