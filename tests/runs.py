"""Real runs of the command for the tests: started as a user starts it, and always ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import pytest

from flink_jobs.generate import generate
from flink_jobs.output import OutputFolder
from flink_jobs.rest import Rest

BREAKWATER = Path(sys.executable).with_name("breakwater")
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
RUN_ENDS_WITHIN_S = 240
SOON_S = 120


def events(
    path: Path, n: int, *, bad_rate: float = 0.03, disorder_s: float = 15, seed: int = 1
) -> Path:
    """A generated input file: 100 events a second of event time."""
    generate(n, bad_rate, disorder_s, 200, seed, START, path)
    return path


def settings_file(path: Path, **tables: dict[str, object]) -> Path:
    """A TOML file from tables of plain values."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {toml(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def toml(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(each)}' for key, each in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def command(*arguments: object) -> list[str]:
    return [str(BREAKWATER), *map(str, arguments)]


def changed(change: str, *arguments: object) -> list[str]:
    """The command with a part of it replaced, to see the test of that part fail."""
    code = f"{change}\nfrom flink_jobs.cli import main\nmain()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def run(
    *arguments: object,
    change: str = "",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        changed(change, *arguments) if change else command(*arguments),
        capture_output=True,
        text=True,
        timeout=RUN_ENDS_WITHIN_S,
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )


@contextmanager
def started(
    *arguments: object, change: str = "", env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a process group of its own; what the test does not end is killed."""
    process = subprocess.Popen(
        changed(change, *arguments) if change else command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    with ending(process):
        yield process


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that has not ended by itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=RUN_ENDS_WITHIN_S)


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """As a terminal sends it: to the command and to every process that it has started."""
    os.killpg(process.pid, signal.SIGINT)


def wait_until(what: str, condition: Callable[[], object], within_s: float = SOON_S) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def tell(capsys: pytest.CaptureFixture[str], what: str, took_s: float) -> None:
    """Print it, whatever pytest catches."""
    with capsys.disabled():
        print(f"\n{what}: output again after {took_s:.1f} s")


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run that is going on."""
    return list((output / ".breakwater" / "checkpoints").glob("*/chk-*/_metadata"))


class Taken(NamedTuple):
    """A complete checkpoint: when it was asked for, in seconds since 1970, and how long it took."""

    at_s: float
    took_ms: int


def taken(output: Path) -> list[Taken]:
    """Those that Flink's REST interface tells of a run that is going on, oldest first.

    It tells as many, and as soon, as its settings say (web.checkpoints.history, .refresh-interval).
    """
    log = "".join(path.read_text() for path in OutputFolder(output).log.glob("*.log"))
    if not (found := re.findall(r"Rest endpoint listening at (\S+)", log)):
        return []
    rest = Rest(found[-1])
    history = [each for job in rest.jobs() for each in rest.checkpoints(job["jid"])["history"]]
    return sorted(
        Taken(each["trigger_timestamp"] / 1000, each["end_to_end_duration"])
        for each in history
        if each["status"] == "COMPLETED"
    )


def descendants(pid: int) -> dict[int, str]:
    """Processes below one: id to command line."""
    return {p: line for p, (_, line) in _below(pid).items()}


def _below(pid: int) -> dict[int, tuple[int, str]]:
    """Processes below one: id to the parent's id and the command line."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                lines[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                )
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {p for p, parent in parents.items() if parent in below} - below:
        below |= more
    return {p: (parents[p], lines[p]) for p in below - {pid} if p in lines}


def python_workers(pid: int) -> list[int]:
    """The Python workers that Flink has started for a run.

    On this machine they are forks of one process (flink_jobs/worker_server.py), on a cluster not.
    """
    below = _below(pid)
    if forks := [
        p for p, (parent, line) in below.items()
        if "worker_server" in line and "worker_server" in below.get(parent, (0, ""))[1]
    ]:  # fmt: skip
        return forks
    return [] if _serves(below) else worker_clients(pid)


def worker_clients(pid: int) -> list[int]:
    """What Flink itself has started as Python workers."""
    return [
        p
        for p, line in descendants(pid).items()
        if "beam_boot" in line and "bin/python" in line.split(" ")[0]
    ]


def _serves(below: dict[int, tuple[int, str]]) -> bool:
    return any("worker_server" in line for _, line in below.values())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but not been waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
