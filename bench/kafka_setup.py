"""A broker for the measurements, its topics, and the programs that are run on them."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka.admin import AdminClient

from bench.events import events_file, sent_ms
from bench.measure import Cost, all_processes, cost_of
from flink_jobs.demo.broker import Broker
from flink_jobs.demo.kafka_demo import spread as skewed
from flink_jobs.demo.topics import Topics
from flink_jobs.local.process import tuning
from flink_jobs.settings import SinkSettings

HERE = Path(__file__).resolve().parent
PARTITIONS = 4
WITHIN_S = 30
#: A broker of its own cores would have its own: a little more room, and compiled code.
BROKER_JVM = ("-Xms512m", "-Xmx1g", "-XX:+UseSerialGC")
TOPICS = SinkSettings().topics()
#: What the programs without a start of their own write to.
PLAIN_OUTPUTS = ("processed-events", "late-events", "user-windows", "dead-letters", "quarantine")
#: The programs that are Breakwater's job, and what else stands in their settings.
OURS = {
    "breakwater": "",
    "delivering": '[delivery]\ntarget = "bench.delivery_targets:batch"\nbatch_max_events = 5000\n',
}
#: The others: the module, and what else stands in its call.
OTHERS = {
    "jvm_sql": ("jvm_sql",),
    "record_at_a_time": ("record_at_a_time_kafka", "--windows", "pyflink"),
    "record_at_a_time_sql_windows": ("record_at_a_time_kafka", "--windows", "sql"),
    "handwritten": ("handwritten",),
}


@dataclass
class Place:
    """The broker of one run of the measurements."""

    broker: Broker
    folder: Path
    parallelism: int
    checkpoint_interval_ms: int
    runs: int = 0

    @property
    def topics(self) -> Topics:
        return Topics(self.broker.bootstrap_servers)

    def load(self, events: int, users: int) -> str:
        """A skewed topic of generated events, each of which has its event's time as its own."""
        file = events_file(events, users=users)
        name = f"events-{events}-{users}"
        # Records of that age are not to be deleted.
        self.topics.create(name, PARTITIONS, retention_ms="-1")
        with file.open("rb") as lines, file.open("rb") as same_lines:
            # An empty line is a tombstone.
            values = (line.rstrip(b"\n") or None for line in lines)
            records = zip(skewed(), values, strict=False)
            written = self.topics.load(name, records, times_ms=sent_ms(same_lines))
        if written != events:
            raise SystemExit(f"{written} of {events} events were loaded")
        return name

    def measured(self, program: str, topic: str) -> tuple[Cost, float, str]:
        """Run a program on a topic to its end; its cost, the broker's CPU, its topics' prefix."""
        self.runs += 1
        prefix = f"{program}-{self.runs}"
        if program not in OURS:
            for name in PLAIN_OUTPUTS:
                self.topics.create(f"{prefix}-{name}", PARTITIONS)
        before = self._broker_cpu_s()
        cost = cost_of(self.command(program, topic, prefix), environ())
        return cost, self._broker_cpu_s() - before, prefix

    def command(self, program: str, topic: str, prefix: str) -> list[str]:
        if program in OURS:
            state = self.folder / "state"
            shutil.rmtree(state, ignore_errors=True)
            config = self.settings(prefix, topic, more=OURS[program])
            job = ["-m", "flink_jobs.cli", "run", "--config", str(config), "--state", str(state)]
            return [sys.executable, *job]
        module, *how = OTHERS[program]
        return [
            sys.executable, "-W", "ignore", "-m", f"bench.{module}", *how,
            "--servers", self.broker.bootstrap_servers, "--topic", topic, "--prefix", prefix,
            "--parallelism", str(self.parallelism),
            "--checkpoint-interval-ms", str(self.checkpoint_interval_ms),
        ]  # fmt: skip

    def settings(self, prefix: str, topic: str, end: str = "latest", more: str = "") -> Path:
        """A settings file of Breakwater's job."""
        outputs = "".join(f'{name}_topic = "{prefix}-{of}"\n' for name, of in TOPICS.items())
        file = self.folder / f"{prefix}.toml"
        file.write_text(
            f'connector = "kafka"\nparallelism = {self.parallelism}\n'
            f'[kafka]\nbootstrap_servers = "{self.broker.bootstrap_servers}"\n'
            f'topics = ["{topic}"]\ngroup = "{prefix}"\nend = "{end}"\n'
            f'[sink]\ntransactional_id_prefix = "{prefix}"\n{outputs}'
            f"[checkpoint]\ninterval_ms = {self.checkpoint_interval_ms}\n{more}"
        )
        return file

    def counts(self, prefix: str, *, ended: bool = True) -> dict[str, int]:
        """How many records an output has; how many events its windows hold, and their value.

        Of a job that was stopped, and has not ended, transactions stay open.
        """
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap_servers, "log_level": 0})
        names = [n for n in admin.list_topics(timeout=WITHIN_S).topics if n.startswith(prefix)]
        if ended:
            self.topics.settle(names)
        counts, value = {"windowed": 0}, 0.0
        for name in names:
            messages = self.topics.read([name])
            output = name.removeprefix(f"{prefix}-")
            n = 0
            for message in messages:
                n += 1
                if output == "user-windows":
                    window = msgspec.json.decode(message.value())
                    counts["windowed"] += window["event_count"]
                    value += window["total_value"]
            counts[output] = n
        # The order of adding up decides the last digits.
        return {**counts, "value": round(value)}

    def remove(self, prefix: str) -> None:
        """The topics of a run."""
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap_servers, "log_level": 0})
        names = [n for n in admin.list_topics(timeout=WITHIN_S).topics if n.startswith(prefix)]
        for gone in admin.delete_topics(names).values():
            gone.result(WITHIN_S)

    def _broker_cpu_s(self) -> float:
        return next(cpu for pid, _, cpu in all_processes() if pid == str(self.broker.pid))


@contextmanager
def place(folder: Path, parallelism: int, checkpoint_interval_ms: int) -> Iterator[Place]:
    """A broker that lives as long as the caller needs it."""
    shutil.rmtree(folder, ignore_errors=True)
    broker = Broker(folder / "broker", {"log.cleaner.enable": "false"}, BROKER_JVM)
    try:
        broker.start()
        yield Place(broker, folder, parallelism, checkpoint_interval_ms)
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)


def environ() -> dict[str, str]:
    """For the programs: where this project is, and for all of them what makes ours fast."""
    root = str(HERE.parent)
    paths = itertools.chain([root], filter(None, [os.environ.get("PYTHONPATH", "")]))
    tuned = tuning(os.environ, for_long=True)
    return {**os.environ, **tuned, "PYTHONPATH": os.pathsep.join(paths)}
