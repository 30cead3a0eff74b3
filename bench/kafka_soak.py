"""A soak: memory of each process and size of the state over time, at a constant load."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.kafka_load import Load, go_on, running, state_folder, wait_for
from bench.kafka_setup import PARTITIONS, Place
from bench.measure import cpu_of_tree

STARTS_WITHIN_S = 120
BAD_RATE = 0.1
#: Windows have to open and to close before state can be level: short ones do soon.
WINDOWS = "[windows]\nsize_ms = 30000\nwatermark_delay_ms = 30000\n"
LOOK_EVERY_S = 5.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def soak(here: Place, rate: int, minutes: float, warm_up_s: float) -> None:
    servers, topic, prefix = here.broker.bootstrap_servers, "soak", "soak-out"
    here.topics.create(topic, PARTITIONS)
    load = Load(servers, topic, rate, BAD_RATE)
    looks: list[dict[str, float]] = []
    with running(here, topic, prefix, WINDOWS) as job:
        load.start()
        wait_for("a checkpoint", lambda: state_bytes(state_folder(here)), job, STARTS_WITHIN_S)
        ends = time.monotonic() + warm_up_s + minutes * 60
        begins = time.monotonic() + warm_up_s
        while time.monotonic() < ends:
            go_on(job, LOOK_EVERY_S)
            if time.monotonic() >= begins:
                looks.append(memory_mb(job.pid, here.broker.pid) | state_mb(state_folder(here)))
        load.stop()
    counts = here.counts(prefix, ended=False)
    print(
        f"\nSoak: {minutes:g} minutes after {warm_up_s:g} s of warming up, {rate:,} events/s, "
        f"{BAD_RATE:.0%} of them dead letters, windows of 30 s, checkpoints every "
        f"{here.checkpoint_interval_ms} ms. {load.sent:,} events sent; committed when it was "
        f"stopped: {counts.get('processed-events', 0):,} processed, "
        f"{sum(n for name, n in counts.items() if name.startswith('dlq-')):,} dead letters.\n"
    )
    print_table(looks)
    here.remove(prefix)


def print_table(looks: list[dict[str, float]]) -> None:
    """The first and the last tenth of the time beside each other: one look may fall on a peak."""
    tenth = max(1, len(looks) // 10)
    print("| MB | first tenth, mean | last tenth, mean | highest |")
    print("|---|---|---|---|")
    for name in sorted({name for look in looks for name in look}):
        values = [look[name] for look in looks if name in look]
        first, last = values[:tenth], values[-tenth:]
        print(
            f"| {name} | {sum(first) / len(first):,.1f} | {sum(last) / len(last):,.1f} "
            f"| {max(values):,.1f} |",
            flush=True,
        )


def memory_mb(job: int, broker: int) -> dict[str, float]:
    """Resident memory of each process of the job, and of the broker."""
    found: dict[str, float] = {"broker (not the job's)": resident_mb(str(broker))}
    workers = 0
    for pid in sorted(cpu_of_tree([str(job)]), key=int):
        name = "driver (Python)" if pid == str(job) else kind_of(pid)
        if name == "worker":
            workers += 1
            name = f"Python worker {workers}"
        if name:
            found[name] = found.get(name, 0.0) + resident_mb(pid)
    return found


def kind_of(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if words[0].endswith(b"java"):
        return "Flink (Java)"
    return "worker" if b"python" in words[0] else ""


def resident_mb(pid: str) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * PAGE_BYTES / 1e6


def state_mb(state: Path) -> dict[str, float]:
    return {"newest checkpoint": state_bytes(state) / 1e6}


def state_bytes(state: Path) -> int:
    """Size of the newest complete checkpoint; 0 without one."""
    newest = newest_checkpoint(state)
    if newest is None:
        return 0
    size = 0
    for file in newest.iterdir():
        try:
            size += file.stat().st_size
        except OSError:
            continue  # a newer one has replaced it meanwhile
    return size


def newest_checkpoint(state: Path) -> Path | None:
    """The folder of the newest complete checkpoint."""
    done = [path.parent for path in state.glob(".breakwater/checkpoints/*/chk-*/_metadata")]
    return max(done, key=lambda folder: int(folder.name[4:]), default=None)
