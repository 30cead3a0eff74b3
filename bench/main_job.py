"""The main job beside the same job written record at a time, in one run: `make bench`.

Prints three tables, ready for bench/README.md:

1. Breakwater and the yardstick (bench/record_at_a_time.py) on the same events;
2. Breakwater with no, few and only bad records;
3. CPU time a record, beside a bare loop of msgspec over the same lines.

Start-up is measured apart: the same program on a thousand events, taken off the time of the long
run. CPU time is that of the whole process tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from flink_jobs.generate import generate
from udfs.ecommerce import EcommerceEvent

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
DISORDER_S, USERS, SEED = 300, 1000, 42
TINY = 1000
RUN_ENDS_WITHIN_S = 1800


@dataclass(frozen=True)
class Cost:
    """What one run of a program took, in seconds."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each program, in turn")
    call = parser.parse_args()
    print(machine())
    compare(call.events, call.parallelism, call.repeat)
    bad_rates(call.events, call.parallelism)
    return 0


def compare(events: int, parallelism: int, repeat: int) -> None:
    """Tables 1 and 3."""
    source = events_file(events, 0.02)
    ours, theirs = [], []
    for _ in range(repeat):
        ours.append(apart(breakwater, source, parallelism))
        theirs.append(apart(record_at_a_time, source, parallelism))
    print(f"\n{events:,} events, 2 % bad, parallelism {parallelism}, median of {repeat} in turn:\n")
    print("| program | start-up s | without it s | records/s | CPU us a record |")
    print("|---|---|---|---|---|")
    for name, runs in (("Breakwater", ours), ("record at a time", theirs)):
        start = statistics.median(s.wall_s for s, _ in runs)
        wall = statistics.median(r.wall_s for _, r in runs)
        cpu = statistics.median(r.cpu_s for _, r in runs)
        print(
            f"| {name} | {start:.1f} | {wall:.1f} | {events / wall:,.0f} "
            f"| {cpu / events * 1e6:.1f} |"
        )
    ratios = [t.wall_s / o.wall_s for (_, o), (_, t) in zip(ours, theirs, strict=True)]
    whole = [
        (ts.wall_s + t.wall_s) / (os_.wall_s + o.wall_s)
        for (os_, o), (ts, t) in zip(ours, theirs, strict=True)
    ]
    print(
        f"\nBreakwater is {spread(ratios)} times as fast, start-up included {spread(whole)} times."
    )
    loop = statistics.median(msgspec_loop(source) for _ in range(repeat))
    cpu = statistics.median(r.cpu_s for _, r in ours) / events
    print(
        f"CPU a record: a bare msgspec loop over the same lines {loop * 1e6:.2f} us, Breakwater "
        f"{cpu * 1e6:.1f} us, {cpu / loop:.1f} times as much (reading, verdicts, windows, "
        "checkpoints and two-phase-commit files included)."
    )


def bad_rates(events: int, parallelism: int) -> None:
    """Table 2."""
    print("\n| bad records | events | without start-up s | records/s | CPU us a record |")
    print("|---|---|---|---|---|")
    for rate, n in ((0.0, events), (0.02, events), (1.0, events // 4)):
        _, cost = apart(breakwater, events_file(n, rate), parallelism)
        print(
            f"| {rate:.0%} | {n:,} | {cost.wall_s:.1f} | {n / cost.wall_s:,.0f} "
            f"| {cost.cpu_s / n * 1e6:.1f} |"
        )


def apart(program: list[str], source: Path, parallelism: int) -> tuple[Cost, Cost]:
    """Start-up, and the run on the source without it."""
    start = measured(program, events_file(TINY, 0.02), parallelism)
    return start, measured(program, source, parallelism) - start


breakwater = [str(Path(sys.executable).with_name("breakwater")), "run", "--json"]
record_at_a_time = [sys.executable, "-W", "ignore", str(HERE / "record_at_a_time.py")]


def measured(program: list[str], source: Path, parallelism: int) -> Cost:
    """Run a program to its end; it has to succeed."""
    output = DATA / "out"
    shutil.rmtree(output, ignore_errors=True)
    call = ["--input", str(source), "--output", str(output), "--parallelism", str(parallelism)]
    began = time.monotonic()
    with subprocess.Popen([*program, *call], stdout=subprocess.DEVNULL) as process:
        cpu = CpuOfTree(process.pid)
        if process.wait(timeout=RUN_ENDS_WITHIN_S) != 0:
            raise SystemExit(f"{program} failed with exit code {process.returncode}")
    wall_s = time.monotonic() - began
    shutil.rmtree(output, ignore_errors=True)
    return Cost(wall_s, cpu.total_s())


def events_file(n: int, bad_rate: float) -> Path:
    """The input, made once."""
    DATA.mkdir(exist_ok=True)
    path = DATA / f"events-{n}-{bad_rate:g}.jsonl"
    if not path.exists():
        generate(n, bad_rate, DISORDER_S, USERS, SEED, START, path)
    return path


def msgspec_loop(source: Path) -> float:
    """CPU seconds a record of the least that any job must do: decode and validate each line."""
    lines = source.read_bytes().split(b"\n")
    decode = msgspec.json.Decoder(EcommerceEvent).decode
    began = time.process_time()
    for line in lines:
        try:  # noqa: SIM105 - the least that any job does, nothing more
            decode(line)
        except Exception:  # noqa: S110 - the same
            pass
    return (time.process_time() - began) / len(lines)


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python {python}"


class CpuOfTree:
    """CPU time of a process and of all it starts, gathered while they live."""

    INTERVAL_S = 0.25

    def __init__(self, pid: int) -> None:
        self._seconds: dict[str, float] = {str(pid): 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def total_s(self) -> float:
        self._stop.set()
        self._thread.join()
        return sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            self._look()

    def _look(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        processes = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            processes[stat.parent.name] = (fields[1], (int(fields[11]) + int(fields[12])) / tick)
        ours = set(self._seconds)
        while more := {p for p, (parent, _) in processes.items() if parent in ours} - ours:
            ours |= more
        for pid in ours & processes.keys():
            self._seconds[pid] = max(processes[pid][1], self._seconds.get(pid, 0.0))


if __name__ == "__main__":
    sys.exit(main())
