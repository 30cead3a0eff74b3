"""The Kafka demo: a real broker on this machine, the job from topics to topics, and its books.

    make kafka-demo

starts a broker from Maven's jars on loopback, loads generated events with every kind of damage into
a topic, runs the job on them, prints the ledger that it has committed and some of its output, and
stops all that it has started, also after Ctrl-C or a fault.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Console

from flink_jobs.broker import Broker
from flink_jobs.errors import FAILED, UserError
from flink_jobs.faults import one_line
from flink_jobs.generate import Summary, generate
from flink_jobs.here import run_here
from flink_jobs.interrupt import Interrupt, interruptible
from flink_jobs.jars import KAFKA, Jar, broker_class_path, find_jar
from flink_jobs.java import find_java
from flink_jobs.report import Report
from flink_jobs.settings import Settings
from flink_jobs.topics import Topics
from operators.rules.ledger import Counts, differences

if TYPE_CHECKING:
    from confluent_kafka import Message
    from pyflink.common import JobClient

    from flink_jobs.audit import Audit

INPUT: Final = "ecommerce-events"
#: Of a hundred records so many go to each partition: topics are not even, and no event may be late
#: because its partition is read more slowly than another.
SHARES: Final = (60, 5, 26, 9)
_DISORDER_S: Final = 300
_BAD_RATE: Final = 0.02
_USERS: Final = 1000
_SEED: Final = 42
_START: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)
_SAMPLES: Final = 3
_VALUE_CHARS: Final = 300


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--events", type=_count, default=200_000, help="how many are generated")
    call = parser.parse_args(arguments)
    # Who closes the terminal wants all to end, too; without this the broker would stay.
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        jar = _parts()
        with interruptible() as interrupt:
            return _with_folder(call.events, jar, interrupt)
    except UserError as error:
        print(f"breakwater: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once", file=sys.stderr)
        return FAILED


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100_000_000:
        raise argparse.ArgumentTypeError("must be from 1 to 100000000")
    return number


def _parts() -> Jar:
    """See that all that is needed is there, before anything starts.

    Raises:
        UserError: names what is missing.
    """
    find_java(os.environ)
    broker_class_path()
    return find_jar(KAFKA, "", os.environ)


def _with_folder(events: int, jar: Jar, interrupt: Interrupt) -> int:
    """All files of the demo are in one temporary folder; after a fault its logs are kept."""
    folder = Path(tempfile.mkdtemp(prefix="breakwater-kafka-demo-"))
    try:
        code = _with_broker(folder, events, jar, interrupt)
    except UserError as error:
        shutil.rmtree(folder / "broker" / "data", ignore_errors=True)
        raise UserError(f"{error} (logs: {folder})", error.exit_code) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return code


def _with_broker(folder: Path, events: int, jar: Jar, interrupt: Interrupt) -> int:
    console = Console()
    with console.status("starting a broker"):
        broker = Broker(folder / "broker")
    try:
        # The first Ctrl-C only leaves word: the process is never lost between start and stop.
        broker.start()
        console.print(f"broker: a real one, on {broker.bootstrap_servers}", highlight=False)
        if not interrupt.requested:
            with one_line("the demo failed"):
                return _demo(folder, broker.bootstrap_servers, events, jar, interrupt, console)
        return FAILED
    finally:
        try:
            broker.stop()
        finally:
            broker.kill()
        console.print("stopped: the broker and all that the job had started", highlight=False)


def _demo(
    folder: Path, servers: str, events: int, jar: Jar, interrupt: Interrupt, console: Console
) -> int:
    topics = Topics(servers)
    with console.status(f"loading {events:,} events"):
        made = _load(topics, folder / "events.jsonl", events, interrupt)
    if interrupt.requested:
        return FAILED
    shares = ", ".join(f"{share} %" for share in SHARES)
    damaged = sum(made.damaged.values())
    console.print(
        f"loaded: {made.lines:,} events, {damaged:,} of them damaged, into {INPUT} "
        f"(partitions with {shares} of them)",
        highlight=False,
        soft_wrap=True,
    )
    settings = demo_settings(servers)
    ended: list[tuple[float, Audit]] = []
    began = time.monotonic()
    code = run_here(
        folder / "state",
        _starter(settings, replace(jar, in_flink=True)),
        jars=[] if jar.in_flink else [jar.path],
        advice="",
        at_end=lambda: ended.append((time.monotonic() - began, _audit(topics, settings, jar))),
    )
    if code:
        return code
    ((wall_s, audit),) = ended
    read = read_outputs(topics, settings)
    counts = audit.book.total
    problems = [*audit.problems, *differences(counts, read.counts())]
    report = Report.of(counts, problems, events, wall_s)
    report.print_table(console, f"topics on {servers}; some of it:")
    read.print_samples(console)
    return 0 if report.balanced else FAILED


def _load(topics: Topics, file: Path, events: int, interrupt: Interrupt) -> Summary:
    made = generate(events, _BAD_RATE, _DISORDER_S, _USERS, _SEED, _START, file)
    topics.create(INPUT, len(SHARES))
    with file.open("rb") as lines:
        values = (line.rstrip(b"\n") or None for line in lines)
        topics.load(INPUT, zip(spread(), values, strict=False), lambda: interrupt.requested)
    file.unlink()
    return made


def spread() -> Iterator[int]:
    """Partitions for one record after the other, in the given shares and well mixed."""
    hundred = [number for number, share in enumerate(SHARES) for _ in range(share)]
    return (hundred[i * 37 % 100] for i in itertools.count())


def demo_settings(servers: str) -> Settings:
    """What a settings file would say for this job."""
    return Settings.model_validate(
        {
            "source": {"kind": "kafka"},
            "kafka": {"bootstrap_servers": servers, "topics": [INPUT], "end": "latest"},
            "sink": {"kind": "kafka"},
            "checkpoint": {"interval_ms": 1000},
        }
    )


def _starter(settings: Settings, jar: Jar) -> Any:
    def start(options: dict[str, str]) -> JobClient:
        # Java starts in its own place.
        from flink_jobs.early_cluster import early_cluster  # noqa: PLC0415
        from flink_jobs.kafka_job import run  # noqa: PLC0415

        return run(settings, jar, options, prepare=early_cluster)

    return start


# --- what is there afterwards ---------------------------------------------------------------------


def _audit(topics: Topics, settings: Settings, jar: Jar) -> Audit:
    """What `breakwater ledger` says, in the job's own Java process."""
    from flink_jobs.audit import audit_topics  # noqa: PLC0415 - Java starts in its own place
    from flink_jobs.kafka_job import client_properties  # noqa: PLC0415
    from flink_jobs.topic_reader import connected  # noqa: PLC0415

    topics.settle([settings.sink.ledger_topic])
    with connected(client_properties(settings), jar) as committed:
        return audit_topics(committed, settings.sink.ledger_topic, settings)


@dataclass
class Read:
    """What the output topics hold: counted on its own, and some of it.

    Attributes:
        numbers: records by output; the events of all windows are `windowed`.
        kinds: dead letters and quarantined records by their reason.
        samples: the first few records by output.
    """

    numbers: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    samples: dict[str, list[Message]] = field(default_factory=dict)

    def add(self, output: str, message: Message) -> None:
        """Take in a record."""
        self.numbers[output] += 1
        if output == "user_windows":
            self.numbers["windowed"] += msgspec.json.decode(message.value())["event_count"]
        elif output in ("dead_letters", "quarantine"):
            kind = headers_of(message)["breakwater-error-type"]
            self.kinds.setdefault(output, Counter())[kind] += 1
        samples = self.samples.setdefault(output, [])
        if len(samples) < _SAMPLES:
            samples.append(message)

    def counts(self) -> Counts:
        """What can be counted in the topics."""
        return Counts(
            processed=self.numbers["processed_events"],
            dead_lettered=self.kinds.get("dead_letters", {}),
            quarantined=self.kinds.get("quarantine", {}),
            windowed=self.numbers["windowed"],
            late=self.numbers["late_events"],
            fallback=self.numbers["fallback"],
        )

    def print_samples(self, console: Console) -> None:
        """Some events and windows, and one dead letter with its headers."""
        for output in ("processed_events", "user_windows"):
            for message in self.samples.get(output, []):
                _print(console, message.topic(), message.value())
        for message in self.samples.get("dead_letters", [])[:1]:
            _print(console, message.topic(), message.value())
            _print(console, "  key", message.key())
            for name, value in headers_of(message).items():
                _print(console, f"  {name}", value)


def read_outputs(topics: Topics, settings: Settings) -> Read:
    """Read all that the job has committed but its ledger: a count that has nothing of the job's."""
    from flink_jobs.kafka_job import output_topics  # noqa: PLC0415 - PyFlink takes seconds

    names = output_topics(settings)
    del names["ledger"]
    topics.settle(itertools.chain.from_iterable(names.values()))
    read = Read()
    for output, of_output in names.items():
        for message in topics.read(of_output):
            read.add(output, message)
    return read


def headers_of(message: Message) -> dict[str, str]:
    """A record's headers as text."""
    return {name: value.decode() for name, value in message.headers() or ()}


def _print(console: Console, name: str, value: bytes | str) -> None:
    text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
    short = text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}..."
    console.print(f"{name}: {short}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
