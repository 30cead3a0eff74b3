"""`make kafka-demo` as a user runs it, and that nothing of it stays behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runs import RUN_ENDS_WITHIN_S, ctrl_c, is_alive, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
EVENTS = 3_000
JOB_FAILS = """
import flink_jobs.job
def start(*_):
    raise RuntimeError("the job of this test fails")
flink_jobs.job.start = start
"""


@contextmanager
def demo(folder: Path, change: str = "") -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, as a terminal starts it.

    What it has left is killed at the end: whether it left anything is to be asked before.
    """
    code = f"{change}\nimport sys\nfrom flink_jobs.demo.kafka_demo import main\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--events", str(EVENTS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "120"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in started_in(folder):
            os.kill(pid, 9)
        process.communicate(timeout=RUN_ENDS_WITHIN_S)


def started_in(folder: Path) -> list[int]:
    """Every process below the demo, however far: all of them have its folder in their TMPDIR."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_ours = b"TMPDIR=" + os.fsencode(folder) in environ.read_bytes()
        except OSError:
            continue
        if is_ours and is_alive(int(environ.parent.name)):
            found.append(int(environ.parent.name))
    return found


def port_of(text: str) -> int:
    found = re.search(r"127\.0\.0\.1:(\d+)", text)
    assert found, text
    return int(found[1])


def assert_nothing_is_left(folder: Path, port: int) -> None:
    assert started_in(folder) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_the_demo_shows_its_books_and_its_output_and_leaves_nothing(
    jars: None, tmp_path: Path
) -> None:
    with demo(tmp_path) as process:
        said, _ = process.communicate(timeout=RUN_ENDS_WITHIN_S)
        assert process.returncode == 0, said
        assert_nothing_is_left(tmp_path, port_of(said))
    assert re.search(rf"received +│ +│ +{EVENTS:,} ", said), said
    assert "balanced" in said
    assert re.search(r'^processed-events: \{"user_id":"user_\d+"', said, re.MULTILINE), said
    assert re.search(r'^user-windows: \{"user_id":.*"event_count":\d+\}', said, re.MULTILINE), said
    assert re.search(r"^dlq-data_quality: \{", said, re.MULTILINE), said
    assert re.search(r"^  key: [0-9a-f]{32}$", said, re.MULTILINE), said
    assert "  breakwater-source-topic: ecommerce-events\n" in said
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_job_runs_ends_all_of_it(jars: None, tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_until("the job's Java", lambda: list(tmp_path.glob("*/state/.breakwater/log/*")), 120)
        # Positive control: the search finds the demo itself, its broker and its job.
        assert len(started_in(tmp_path)) >= 3
        ctrl_c(process)
        said, _ = process.communicate(timeout=RUN_ENDS_WITHIN_S)
        assert process.returncode == 1, said
        assert_nothing_is_left(tmp_path, port_of(said))
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_job_is_one_line_and_ends_all_of_it(jars: None, tmp_path: Path) -> None:
    with demo(tmp_path, JOB_FAILS) as process:
        said, _ = process.communicate(timeout=RUN_ENDS_WITHIN_S)
        assert_nothing_is_left(tmp_path, port_of(said))
    assert process.returncode == 1, said
    assert "breakwater: the job did not start: the job of this test fails (logs: " in said
    assert "Traceback" not in said


def test_a_missing_broker_is_named_before_anything_starts(tmp_path: Path) -> None:
    missing = f"""
import flink_jobs.demo.kafka_demo as demo, flink_jobs.kafka.jars as jars, pathlib
demo.broker_class_path = lambda: jars.broker_class_path(pathlib.Path({str(tmp_path)!r}))
"""
    with demo(tmp_path, missing) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == f"breakwater: {tmp_path} has no Kafka broker: run `make jars`\n"
    assert list(tmp_path.iterdir()) == []
