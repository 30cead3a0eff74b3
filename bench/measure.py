"""What the measurements share: what a program costs, and on which machine."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

RUN_ENDS_WITHIN_S = 1800
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What one run of a program took, in seconds."""

    wall_s: float
    cpu_s: float

    def __truediv__(self, by: float) -> Cost:
        return Cost(self.wall_s / by, self.cpu_s / by)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def cost_of(command: list[str], environ: Mapping[str, str] | None = None) -> Cost:
    """Run a program to its end; it has to succeed."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ) as process:
        cpu = CpuOfTree(process.pid)
        try:
            code = process.wait(timeout=RUN_ENDS_WITHIN_S)
        except BaseException:
            process.terminate()
            raise
        if code != 0:
            raise SystemExit(f"{command} failed with exit code {code}")
    wall_s = time.monotonic() - began
    return Cost(wall_s, cpu.total_s())


def kafka_arguments(doc: str | None) -> argparse.ArgumentParser:
    """The call of every program that is measured from Kafka to Kafka."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--prefix", required=True, help="of the output topics, which are there")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--checkpoint-interval-ms", type=int, default=2000)
    parser.add_argument("--jars", default="", help="folder of the connector; that of make jars")
    return parser


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
        for pid, cpu_s in cpu_of_tree(self._seconds).items():
            self._seconds[pid] = max(cpu_s, self._seconds.get(pid, 0.0))


def cpu_of_tree(roots: Iterable[str]) -> dict[str, float]:
    """CPU seconds of each process that lives, of some and of all that they have started."""
    processes = {pid: (parent, cpu) for pid, parent, cpu in all_processes()}
    ours = set(roots)
    while more := {p for p, (parent, _) in processes.items() if parent in ours} - ours:
        ours |= more
    return {pid: processes[pid][1] for pid in ours & processes.keys()}


def all_processes() -> list[tuple[str, str, float]]:
    """Id, parent's id and CPU seconds of every process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
        found.append((stat.parent.name, fields[1], cpu_s))
    return found
