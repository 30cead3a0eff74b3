"""Real topics and real runs of the Kafka job for the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from flink_jobs.demo.broker import Broker
from flink_jobs.settings import SinkSettings
from tests.runs import command, ending, python_workers, settings_file, wait_until

ROOT = Path(__file__).resolve().parents[2]
RUN_ENDS_WITHIN_S = 240
CLIENT_WITHIN_S = 30
LARGEST_RECORD_BYTES = 8_000_000
#: The tests' runs are too short for Java to compile for its peak.
SHORT = {"JVM_ARGS": "-XX:TieredStopAtLevel=1"}
COMMITTED = IsolationLevel.READ_COMMITTED
WRITTEN = IsolationLevel.READ_UNCOMMITTED
#: What a broker says of a partition that it has not taken up yet.
NOT_YET = {
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
}
READ_COMMITTED = {
    "group.id": "unused",
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
}
OUTPUTS = SinkSettings().topics()


@dataclass(frozen=True)
class Sent:
    """A record as it was written, with its place."""

    topic: str
    partition: int
    offset: int
    value: bytes | None


@dataclass
class Kafka:
    """A broker, one test's names on it, and the login of the test's clients where it wants one."""

    broker: Broker
    name: str
    folder: Path
    login: dict[str, str] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)

    @property
    def servers(self) -> str:
        return self.broker.bootstrap_servers

    def client(self, **more: Any) -> dict[str, Any]:
        # The log level spares the tests' output the broker's comings and goings.
        return {"bootstrap.servers": self.servers, "log_level": 0, **self.login, **more}

    def topic(self, name: str) -> str:
        return f"{self.name}-{name}"

    def create(self, name: str, partitions: int = 4, **config: str) -> str:
        # Larger than what Breakwater takes: an oversized record must be able to come in. And some
        # records are of years ago: half a minute after its start the broker would delete them.
        kept = {"max.message.bytes": str(LARGEST_RECORD_BYTES), "retention.ms": "-1"}
        config = {**kept, **config}
        topic = NewTopic(self.topic(name), partitions, 1, config=config)
        # The client must outlive the call.
        admin = AdminClient(self.client())
        (made,) = admin.create_topics([topic]).values()
        made.result(CLIENT_WITHIN_S)
        return self.topic(name)

    def send(self, topic: str, records: Iterable[tuple[int, bytes | None]], **more: Any) -> None:
        """Write (partition, value) records, and remember what has got which offset."""
        producer = Producer(self.client(**{"message.max.bytes": LARGEST_RECORD_BYTES}))

        def written(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            self.sent.append(Sent(topic, message.partition(), message.offset(), message.value()))

        for i, (partition, value) in enumerate(records):
            producer.produce(topic, value, partition=partition, on_delivery=written, **more)
            if i % 1000 == 0:
                producer.poll(0)
        assert producer.flush(CLIENT_WITHIN_S) == 0, f"not all of {topic} was written"

    def read(self, topics: Iterable[str]) -> list[Message]:
        """All that a read_committed consumer finds, up to the present end."""
        wanted = set(topics)
        places = [
            TopicPartition(topic, number, OFFSET_BEGINNING)
            for topic, number in self.places()
            if topic in wanted
        ]
        # Where nothing more comes, the broker would wait for half a second before it says so.
        to_the_end = {"enable.partition.eof": True, "fetch.wait.max.ms": 10}
        consumer = Consumer(self.client(**READ_COMMITTED, **to_the_end))
        consumer.assign(places)
        found, ended = [], set()
        try:
            while len(ended) < len(places):
                message = consumer.poll(CLIENT_WITHIN_S)
                assert message is not None, f"no end of {topics} within {CLIENT_WITHIN_S} s"
                error = message.error()
                if error is None:
                    found.append(message)
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    ended.add((message.topic(), message.partition()))
        finally:
            consumer.close()
        return found

    def settle(self) -> None:
        """Wait until every transaction has ended.

        A commit is done for the one who commits when the coordinator has written it down; the
        markers that make the records visible follow a moment later.
        """
        wait_until(
            "the end of all transactions",
            lambda: self.ends(self.name, COMMITTED) == self.ends(self.name, WRITTEN),
            CLIENT_WITHIN_S,
        )

    def places(self) -> list[tuple[str, int]]:
        """Every partition of this test's topics."""
        topics = AdminClient(self.client()).list_topics(timeout=CLIENT_WITHIN_S).topics
        return [
            (topic, number)
            for topic in topics
            if topic.startswith(self.name)
            for number in topics[topic].partitions
        ]

    def ends(self, prefix: str, isolation: IsolationLevel) -> dict[tuple[str, int], int]:
        """Where the partitions of some topics end: up to the first open transaction, or wholly.

        A broker that has just come back answers before it has taken up its partitions.
        """
        found: dict[tuple[str, int], int] = {}

        def answered() -> bool:
            try:
                found.update(self._ends(prefix, isolation))
            except KafkaException as error:
                if error.args[0].code() not in NOT_YET:
                    raise
                return False
            return True

        wait_until(f"the ends of {prefix}", answered, CLIENT_WITHIN_S)
        return found

    def _ends(self, prefix: str, isolation: IsolationLevel) -> dict[tuple[str, int], int]:
        places = [
            TopicPartition(topic, number)
            for topic, number in self.places()
            if topic.startswith(prefix)
        ]
        # The client must outlive the call.
        admin = AdminClient(self.client())
        asked = {place: OffsetSpec.latest() for place in places}
        found = admin.list_offsets(asked, isolation_level=isolation)
        return {
            (place.topic, place.partition): found[place].result(CLIENT_WITHIN_S).offset
            for place in places
        }

    def output(self, output: str) -> list[Message]:
        """The committed records of an output, from all its topics."""
        prefix = self.topic(OUTPUTS[output].split("{")[0])
        topics = AdminClient(self.client()).list_topics(timeout=CLIENT_WITHIN_S).topics
        return self.read(topic for topic in topics if topic.startswith(prefix))

    def rows(self, output: str) -> list[dict[str, Any]]:
        return [json.loads(message.value()) for message in self.output(output)]

    # --- the job ---------------------------------------------------------------------------------

    def settings(self, **tables: dict[str, object]) -> Path:
        """A settings file: this test's topics, and small windows and batches."""
        defaults: dict[str, dict[str, object]] = {
            "kafka": {
                "bootstrap_servers": self.servers,
                "topics": [self.topic("in")],
                "group": self.name,
                "end": "latest",
            },
            "sink": {
                "transactional_id_prefix": self.name,
                **{f"{name}_topic": self.topic(topic) for name, topic in OUTPUTS.items()},
            },
            "windows": {"size_ms": 10_000, "watermark_delay_ms": 20_000},
            "batch": {"max_records": 300},
            "checkpoint": {"interval_ms": 500},
        }
        merged = {
            name: {**defaults.get(name, {}), **tables.get(name, {})}
            for name in [*defaults, *(set(tables) - set(defaults))]
        }
        return settings_file(self.folder / "kafka.toml", connector="kafka", **merged)

    def command(self, config: Path) -> list[str]:
        state = self.folder / "state"
        return command("run", "--config", config, "--state", state)

    def run(self, config: Path, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the job to its end."""
        ended = subprocess.run(
            self.command(config), capture_output=True, text=True, check=False, cwd=ROOT,
            timeout=RUN_ENDS_WITHIN_S, env={**os.environ, **SHORT, **environ},
        )  # fmt: skip
        if ended.returncode == 0:
            self.settle()
        return ended

    @contextmanager
    def started(self, config: Path) -> Iterator[subprocess.Popen[str]]:
        """Start the job; what the test does not end is killed."""
        process = subprocess.Popen(
            self.command(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=ROOT, env={**os.environ, **SHORT},
        )  # fmt: skip
        with ending(process):
            yield process

    def checkpoint(self) -> int:
        """The number of the newest complete checkpoint: Flink goes on counting after a restart."""
        found = (self.folder / "state").glob(".breakwater/checkpoints/*/chk-*/_metadata")
        return max((int(path.parent.name.removeprefix("chk-")) for path in found), default=0)

    def checkpoints_again_s(self, job: subprocess.Popen[str], fault_at: float, seen: int) -> float:
        """Seconds from a fault to the second checkpoint after it.

        One that was under way may still have been completed by what the fault has left.

        Args:
            job: must not have ended before.
            fault_at: when it was, as `time.monotonic` says.
            seen: the newest checkpoint at that time.
        """
        wait_until("checkpoints", lambda: self.checkpoint() > seen + 1 or job.poll() is not None)
        assert job.poll() is None, "the job has ended before"
        return time.monotonic() - fault_at

    def kill_workers(self, job: subprocess.Popen[str]) -> None:
        """Kill a job's Python workers when it has taken two checkpoints."""
        wait_until("a checkpoint", lambda: self.checkpoint() >= 2)
        workers = python_workers(job.pid)
        assert workers, "no worker was found"
        for worker in workers:
            os.kill(worker, signal.SIGKILL)

    def end(self, job: subprocess.Popen[str]) -> None:
        """Let a job run to its end."""
        said, _ = job.communicate(timeout=RUN_ENDS_WITHIN_S)
        assert job.returncode == 0, said
        self.settle()
