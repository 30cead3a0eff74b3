"""How long a short job takes, beside another checkout of this project: `bench/start.py OTHER`.

Both run the same twenty events in turn: from a file to files, and from Kafka to Kafka with a broker
that is shared (needs `make jars`). The third part is what `make run` runs: 200,000 events are
generated and read. CPU time is that of the command and of all that it has waited for.

Each checkout runs with its own .venv, and once before it is measured: after that its archive of
Java's classes is there, if it makes one. The archives are in a folder of this measurement.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from bench.events import events_file
from bench.kafka_setup import TOPICS
from bench.measure import Cost, machine
from flink_jobs.broker import Broker
from flink_jobs.topics import Topics

HERE = Path(__file__).resolve().parent.parent
EVENTS = 20
DEMO_EVENTS = 200_000
TOPIC = "events"
ARCHIVE_WITHIN_S = 300.0
RUN_ENDS_WITHIN_S = 300.0
#: Runs a checkout, numbered, and returns the commands that it takes.
Part = Callable[[Path, str], list[list[str]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("other", type=Path, help="folder of the checkout to compare with")
    parser.add_argument("--pairs", type=int, default=10, help="runs of each, in turn")
    parser.add_argument(
        "--parts", nargs="+", choices=["files", "kafka", "demo"], default=["files", "kafka", "demo"]
    )
    call = parser.parse_args()
    checkouts = (call.other.resolve(), HERE)
    folder = Path(tempfile.mkdtemp(prefix="breakwater-bench-start-"))
    print(f"{machine()}; {call.pairs} pairs in turn, medians\n")
    print("| what | other s | this s | ratio of pairs | other CPU s | this CPU s |")
    print("|---|---|---|---|---|---|", flush=True)
    try:
        for name in call.parts:
            with PARTS[name](folder) as commands:
                compare(name, commands, checkouts, folder / "cache", call.pairs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def compare(
    name: str, commands: Part, checkouts: tuple[Path, Path], cache: Path, pairs: int
) -> None:
    """One row of the table."""
    for number, checkout in enumerate(checkouts):
        measured(commands(checkout, f"warm-{number}"), checkout, cache)
        wait_for_archives(cache)
    costs: list[tuple[Cost, Cost]] = []
    for pair in range(pairs):
        one, two = (
            measured(commands(checkout, f"{pair}-{number}"), checkout, cache)
            for number, checkout in enumerate(checkouts)
        )
        costs.append((one, two))
    ratios = [this.wall_s / other.wall_s for other, this in costs]
    walls = [statistics.median(cost.wall_s for cost in side) for side in zip(*costs, strict=True)]
    cpus = [statistics.median(cost.cpu_s for cost in side) for side in zip(*costs, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(
        f"| {name} | {walls[0]:.1f} | {walls[1]:.1f} | {spread} | {cpus[0]:.1f} | {cpus[1]:.1f} |",
        flush=True,
    )


def measured(commands: list[list[str]], checkout: Path, cache: Path) -> Cost:
    """What a checkout's commands take, one after the other; they have to succeed."""
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(checkout)}
    cpu_before, began = children_cpu_s(), time.monotonic()
    for command in commands:
        subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            env=environ,
            cwd=checkout,
            timeout=RUN_ENDS_WITHIN_S,
            check=True,
        )
    return Cost(time.monotonic() - began, children_cpu_s() - cpu_before)


def children_cpu_s() -> float:
    """Of all processes that have been waited for, and of those that they have waited for."""
    times = os.times()
    return times.children_user + times.children_system


def wait_for_archives(cache: Path) -> None:
    """Until every archive that was begun is there."""
    deadline = time.monotonic() + ARCHIVE_WITHIN_S
    while any(not (each / "classes.jsa").exists() for each in cache.glob("breakwater/java-*")):
        if time.monotonic() > deadline:
            raise SystemExit(f"no archive of Java's classes after {ARCHIVE_WITHIN_S:g} s")
        time.sleep(0.5)


@contextmanager
def files(folder: Path) -> Iterator[Part]:
    """From a file to files."""
    source = folder / "events.jsonl"
    source.write_bytes(b"".join(some_events()))

    def commands(checkout: Path, run: str) -> list[list[str]]:
        out = folder / f"out-{run}"
        return [[breakwater(checkout), "run", "--input", str(source), "--output", str(out)]]

    yield commands


@contextmanager
def kafka(folder: Path) -> Iterator[Part]:
    """From Kafka to Kafka, each run with its own topics for the output."""
    with Broker(folder / "broker") as broker:
        topics = Topics(broker.bootstrap_servers)
        topics.create(TOPIC, 2)
        topics.load(TOPIC, [(n % 2, line.rstrip()) for n, line in enumerate(some_events())])

        def commands(checkout: Path, run: str) -> list[list[str]]:
            config = folder / f"{run}.toml"
            config.write_text(kafka_settings(broker.bootstrap_servers, run))
            return [kafka_command(checkout, config, folder / f"state-{run}")]

        yield commands


@contextmanager
def demo(folder: Path) -> Iterator[Part]:
    """What `make run` runs."""

    def commands(checkout: Path, run: str) -> list[list[str]]:
        source, out = folder / f"demo-{run}.jsonl", folder / f"demo-{run}"
        events = ["--events", str(DEMO_EVENTS), "--out", str(source)]
        program = breakwater(checkout)
        return [
            [program, "generate", *events],
            [program, "run", "--input", str(source), "--output", str(out)],
        ]

    yield commands


PARTS = {"files": files, "kafka": kafka, "demo": demo}


def some_events() -> list[bytes]:
    with events_file(1000).open("rb") as lines:
        return [next(lines) for _ in range(EVENTS)]


def breakwater(checkout: Path) -> str:
    return str(checkout / ".venv" / "bin" / "breakwater")


def kafka_command(checkout: Path, config: Path, state: Path) -> list[str]:
    """As the checkout has it: `breakwater run`, or before that was a module of its own."""
    module = checkout / "flink_jobs" / "kafka_job.py"
    if module.exists() and "--local" in module.read_text():
        python = str(checkout / ".venv" / "bin" / "python")
        job = [python, "-m", "flink_jobs.kafka_job", "--config", str(config)]
        return [*job, "--local", str(state)]
    return [breakwater(checkout), "run", "--config", str(config), "--state", str(state)]


def kafka_settings(servers: str, run: str) -> str:
    outputs = "".join(f'{name}_topic = "{run}-{of}"\n' for name, of in TOPICS.items())
    return (
        '[source]\nkind = "kafka"\n'
        f'[kafka]\nbootstrap_servers = "{servers}"\ntopics = ["{TOPIC}"]\n'
        f'group = "{run}"\nend = "latest"\n'
        f'[sink]\nkind = "kafka"\ntransactional_id_prefix = "{run}"\n{outputs}'
    )


if __name__ == "__main__":
    sys.exit(main())
