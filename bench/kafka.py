"""From Kafka to exactly-once Kafka, side by side in one run: `make bench-kafka`.

Programs, each on a skewed topic (60, 5, 26 and 9 % of the records), in turn:

- Breakwater's job;
- jvm_sql: the same in nothing but Flink SQL;
- record_at_a_time: the same in PyFlink, a record at a time, its windows too;
- record_at_a_time_sql_windows: the same, its windows in Flink SQL;
- handwritten: a confluent-kafka script that keeps its windows in memory.

The broker is warmed up first. Start-up and the compiling of the first seconds drop out: what is
compared is the slope between a short and a long topic. CPU time is that of the whole process tree;
the broker's is shown apart. Then which threads take the CPU time; the time from append to output
at a low rate; memory and state over time at a constant load; an outage of the broker for minutes,
with all clients' own waits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field

from bench.events import DATA
from bench.kafka_latency import latency
from bench.kafka_outage import outage
from bench.kafka_setup import OTHERS, Place, place
from bench.kafka_soak import soak
from bench.kafka_threads import threads
from bench.measure import Cost, machine

PARTS = ("throughput", "threads", "latency", "soak", "outage")
PROGRAMS = ("breakwater", *OTHERS)
#: By name only: `make bench-delivery` asks for it.
DELIVERING = "delivering"
LABELS = {
    "breakwater": "Breakwater",
    DELIVERING: "Breakwater, delivering to a no-op async target",
    "jvm_sql": "pure Flink SQL",
    "record_at_a_time": "record at a time, windows in PyFlink",
    "record_at_a_time_sql_windows": "record at a time, windows in SQL",
    "handwritten": "hand-written script",
}
GOALS = {
    "jvm_sql": "at least 1.3, better 2",
    "record_at_a_time": "at least 8",
    "record_at_a_time_sql_windows": "at least 8",
}
#: The outputs of these programs have to be the same.
ALIKE = ("breakwater", DELIVERING, "record_at_a_time", "record_at_a_time_sql_windows")
#: By the beginning of an output's name, as dead letters are in one topic or in several.
ALIKE_COUNTS = {
    "processed events": ("processed-events",),
    "late events": ("late-events",),
    "dead letters": ("dlq-", "dead-letters"),
    "quarantined": ("quarantine",),
    "windows": ("user-windows",),
    "events in windows": ("windowed",),
    "value of the windows": ("value",),
}


@dataclass
class Slopes:
    """What a program costs a record, one value a repetition, in microseconds."""

    start_s: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    broker_us: list[float] = field(default_factory=list)


def main() -> int:
    call = arguments().parse_args()
    print(machine(), flush=True)
    with place(DATA / "kafka", call.parallelism, call.checkpoint_interval_ms) as here:
        if "throughput" in call.parts:
            throughput(here, call)
        if "threads" in call.parts:
            threads(here, call.long, call.users)
        if "latency" in call.parts:
            latency(here, call.latency_rate, call.latency_seconds)
        if "soak" in call.parts:
            soak(here, call.soak_rate, call.soak_minutes, call.soak_warm_up_seconds)
        if "outage" in call.parts:
            outage(here, call.outage_rate, call.outage_minutes)
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["throughput", "latency"])
    parser.add_argument(
        "--programs", nargs="+", choices=(*PROGRAMS, DELIVERING), default=list(PROGRAMS)
    )
    parser.add_argument("--short", type=int, default=2_000_000, help="events of the short topic")
    parser.add_argument("--long", type=int, default=10_000_000, help="and of the long one")
    parser.add_argument("--users", type=int, default=1000, help="keys of the windows")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--checkpoint-interval-ms", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each program, in turn")
    parser.add_argument("--no-check", action="store_true", help="do not count the outputs")
    parser.add_argument("--latency-rate", type=int, default=1000, help="events a second")
    parser.add_argument("--latency-seconds", type=int, default=60)
    parser.add_argument("--soak-rate", type=int, default=5000, help="events a second")
    parser.add_argument("--soak-minutes", type=float, default=20)
    # Until windows close as fast as they open, and Java has compiled what it will.
    parser.add_argument("--soak-warm-up-seconds", type=float, default=150)
    parser.add_argument("--outage-rate", type=int, default=200, help="events a second")
    parser.add_argument("--outage-minutes", type=float, default=4)
    return parser


def throughput(here: Place, call: argparse.Namespace) -> None:
    short, long = here.load(call.short, call.users), here.load(call.long, call.users)
    slopes = {program: Slopes() for program in call.programs}
    # The broker is Java too: the first program would pay for the compiling of what it runs.
    here.remove(here.measured("handwritten", short)[2])
    counts: dict[str, dict[str, int]] = {}
    for repetition in range(call.repeat):
        for program in call.programs:
            check = repetition == 0 and not call.no_check
            one, one_broker, written = run(here, program, short, call.short, check=check)
            if check:
                counts[program] = written
                refuse_different(counts)
            two, two_broker, _ = run(here, program, long, call.long)
            n = (call.long - call.short) / 1e6
            slope = two - one
            found = slopes[program]
            found.start_s.append(one.wall_s - slope.wall_s / n * call.short / 1e6)
            found.wall_us.append(slope.wall_s / n)
            found.cpu_us.append(slope.cpu_s / n)
            found.broker_us.append((two_broker - one_broker) / n)
    print_table(call, slopes)
    print_ratios(slopes)


def run(
    here: Place, program: str, topic: str, events: int, *, check: bool = False
) -> tuple[Cost, float, dict[str, int]]:
    """Cost of a run, the broker's seconds and, if they are to be checked, its outputs' counts."""
    cost, broker_s, prefix = here.measured(program, topic)
    print(
        f"  {program}, {events:,} events: {cost.wall_s:.1f} s, CPU {cost.cpu_s:.1f} s, "
        f"broker {broker_s:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    written = here.counts(prefix) if check else {}
    if check:
        said = ", ".join(f"{name} {n:,}" for name, n in sorted(written.items()) if n)
        print(f"- {LABELS[program]}, of {events:,} events: {said}", flush=True)
    here.remove(prefix)
    return cost, broker_s, written


def refuse_different(counts: dict[str, dict[str, int]]) -> None:
    """Programs that do not do the same work are not compared: what they have written is counted.

    Raises:
        SystemExit: two programs that should be alike have different outputs.
    """
    for said, names in ALIKE_COUNTS.items():
        of_each = {
            program: sum(n for name, n in counts[program].items() if name.startswith(names))
            for program in ALIKE
            if program in counts
        }
        if len(set(of_each.values())) > 1:
            raise SystemExit(f"outputs of the short topic are not the same, {said}: {of_each}")


def print_table(call: argparse.Namespace, slopes: dict[str, Slopes]) -> None:
    print(
        f"\nSlope between {call.short:,} and {call.long:,} events, {call.users:,} keys, "
        f"parallelism {call.parallelism}, checkpoints every {call.checkpoint_interval_ms} ms, "
        f"median of {call.repeat} in turn:\n"
    )
    print("| program | start-up s | records/s | wall us a record | CPU us a record | broker's |")
    print("|---|---|---|---|---|---|")
    for program, found in slopes.items():
        wall = statistics.median(found.wall_us)
        print(
            f"| {LABELS[program]} | {statistics.median(found.start_s):.1f} | {1e6 / wall:,.0f} "
            f"| {wall:.2f} | {statistics.median(found.cpu_us):.2f} "
            f"| {statistics.median(found.broker_us):.2f} |"
        )


def print_ratios(slopes: dict[str, Slopes]) -> None:
    ours = slopes.get("breakwater")
    if ours is None:
        return
    print()
    if DELIVERING in slopes:
        fast = ratios(ours.wall_us, slopes[DELIVERING].wall_us)
        cpu = ratios(ours.cpu_us, slopes[DELIVERING].cpu_us)
        print(f"Throughput with delivery to none: {fast} (goal: 0.5); CPU time the same way {cpu}.")
    for program, goal in GOALS.items():
        if program in slopes:
            fast = ratios(slopes[program].wall_us, ours.wall_us)
            cpu = ratios(slopes[program].cpu_us, ours.cpu_us)
            print(
                f"Breakwater's throughput is {fast} times that of {LABELS[program]} "
                f"(goal: {goal}); {LABELS[program]} takes {cpu} times Breakwater's CPU time."
            )
    if "handwritten" in slopes:
        cpu = ratios(ours.cpu_us, slopes["handwritten"].cpu_us)
        print(f"Breakwater takes {cpu} times the CPU time of the hand-written script (goal: 3).")


def ratios(above: list[float], below: list[float]) -> str:
    found = [a / b for a, b in zip(above, below, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


if __name__ == "__main__":
    sys.exit(main())
