"""The job as Flink's own client starts it: python -m flink_jobs.main, without the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flink_jobs.ledger.audit import audit_run
from flink_jobs.ledger.recount import count_lines
from flink_jobs.machine.java import find_java
from flink_jobs.run_folder.folder import OutputFolder
from flink_jobs.run_folder.plan import plan_files
from flink_jobs.settings import load_settings
from tests.oracle import assert_outputs_are_right, expect
from tests.runs import RUN_ENDS_WITHIN_S, events, settings_file

pytestmark = pytest.mark.minicluster

WINDOW_MS, DELAY_MS = 10_000, 20_000


def submit(*arguments: object, tmp: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flink_jobs.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=RUN_ENDS_WITHIN_S,
        check=False,
        env={
            **os.environ,
            "JAVA_HOME": str(find_java(os.environ).home),
            "FLINK_LOG_DIR": str(tmp),
            # As on a cluster: real worker processes (trap T1).
            "_python_worker_execution_mode": "process",
        },
    )


def test_the_job_does_the_same_without_the_command(tmp_path: Path) -> None:
    source = events(tmp_path / "events.jsonl", 20_000, disorder_s=40)
    config = settings_file(
        tmp_path / "s.toml",
        source={"split_bytes": 500_000},
        windows={"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
    )
    output = tmp_path / "out"
    ended = submit("--input", source, "--output", output, "--config", config, tmp=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert_outputs_are_right(output, expect([source]), window_ms=WINDOW_MS, delay_ms=DELAY_MS)
    plan = plan_files(load_settings(config), [source], output)
    assert audit_run(OutputFolder(output), plan).problems == []


def test_a_used_output_folder_is_written_to_only_when_it_is_meant(tmp_path: Path) -> None:
    """What two jobs have written cannot be told apart; from a savepoint it is one job's."""
    source, output = events(tmp_path / "events.jsonl", 100, bad_rate=0), tmp_path / "out"
    before = output / "processed_events" / "part-0.jsonl"
    before.parent.mkdir(parents=True)
    before.write_text("{}\n")
    call = ["--input", source, "--output", output]
    ended = submit(*call, tmp=tmp_path)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("breakwater: ")]
    assert line.startswith(f"breakwater: output folder {output} is not empty: choose another")
    assert OutputFolder(output).parts("processed_events") == [before]
    # Positive control: it is told from one that goes on, which fails here for another reason.
    gone = settings_file(tmp_path / "s.toml", flink={"execution.state-recovery.path": "/gone"})
    ended = submit(*call, "--config", gone, tmp=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "is not empty" not in ended.stderr
    ended = submit(*call, "--append", tmp=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert count_lines(OutputFolder(output).parts("processed_events")) == 101


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--input", "gone.jsonl", "--output", "out"], "input gone.jsonl does not exist"),
        (
            ["--input", ".", "--output", "out", "--config", "gone.toml"],
            "gone.toml: there is no such settings file; check --config",
        ),
    ],
)
def test_a_foreseeable_fault_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    ended = submit(*arguments, tmp=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"breakwater: {told}\n"


def test_a_job_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"{}\n")
    config = settings_file(tmp_path / "s.toml", flink={"execution.checkpointing.interval": "soon"})
    ended = submit(
        "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--config", config,
        tmp=tmp_path,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("breakwater: ")]
    assert "the run failed" in line
    assert "Traceback" not in ended.stderr


def test_a_missing_argument_is_named(tmp_path: Path) -> None:
    ended = submit("--input", "x", tmp=tmp_path)
    assert ended.returncode == 2
    assert "the following arguments are required: --output" in ended.stderr
