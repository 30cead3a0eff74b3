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
import shutil
import statistics
import sys
import time
from pathlib import Path

import msgspec

from udfs.ecommerce import EcommerceEvent

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from bench.events import DATA, events_file
from bench.measure import Cost, cost_of, machine, spread

HERE = Path(__file__).resolve().parent
TINY = 1000


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
    source = events_file(events)
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
        _, cost = apart(breakwater, events_file(n, bad_rate=rate), parallelism)
        print(
            f"| {rate:.0%} | {n:,} | {cost.wall_s:.1f} | {n / cost.wall_s:,.0f} "
            f"| {cost.cpu_s / n * 1e6:.1f} |"
        )


def apart(program: list[str], source: Path, parallelism: int) -> tuple[Cost, Cost]:
    """Start-up, and the run on the source without it."""
    start = measured(program, events_file(TINY), parallelism)
    return start, measured(program, source, parallelism) - start


breakwater = [str(Path(sys.executable).with_name("breakwater")), "run", "--json"]
record_at_a_time = [sys.executable, "-W", "ignore", str(HERE / "record_at_a_time.py")]


def measured(program: list[str], source: Path, parallelism: int) -> Cost:
    """Run a program to its end; it has to succeed."""
    output = DATA / "out"
    shutil.rmtree(output, ignore_errors=True)
    call = ["--input", str(source), "--output", str(output), "--parallelism", str(parallelism)]
    cost = cost_of([*program, *call])
    shutil.rmtree(output, ignore_errors=True)
    return cost


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


if __name__ == "__main__":
    sys.exit(main())
