"""The commands as a user calls them, against the real cluster, on a test's own topics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from flink_jobs.cluster.rest import ENDED, RestError
from flink_jobs.cluster.standalone import Cluster
from flink_jobs.cluster.status import partitions_of
from tests.kafka.jobs import (
    CLIENT_WITHIN_S,
    COMMITTED,
    LARGEST_RECORD_BYTES,
    OUTPUTS,
    READ_COMMITTED,
    WRITTEN,
    Kafka,
    Sent,
)
from tests.kafka.recount import place_of
from tests.runs import wait_until

COMMAND_ENDS_WITHIN_S = 600
SOON_S = 300


@dataclass
class Deployment(Kafka):
    """Topics, and a cluster to run the job on."""

    cluster: Cluster = None  # type: ignore[assignment]  # always given, but Kafka has defaults

    def breakwater(
        self, *arguments: object, source: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, of another version's source tree if one is given."""
        path = {"PYTHONPATH": str(source)} if source else {}
        return subprocess.run(
            [sys.executable, "-m", "flink_jobs.cli", *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=COMMAND_ENDS_WITHIN_S,
            cwd=self.folder, env={**os.environ, **path, **environ},
        )  # fmt: skip

    def did(self, *arguments: object, **more: Any) -> str:
        """Run a command that must succeed; returns what it printed."""
        ended = self.breakwater(*arguments, **more)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def submit(self, *arguments: object, **more: Any) -> str:
        """Submit, and return the job's id."""
        said = self.did("submit", "--target", self.cluster.target, *arguments, **more)
        return job_in(said)

    def stop(self, job: str, *options: str) -> str:
        """Stop with a savepoint, and return where it is."""
        said = self.did(
            "stop", "--target", self.cluster.target, "--job", job,
            "--savepoint", self.cluster.savepoints, *options,
        )  # fmt: skip
        (line,) = [line for line in said.splitlines() if line.startswith("savepoint ")]
        return line.split(" ", 1)[1]

    def status(self, job: str) -> dict[str, Any]:
        said = self.did("status", "--target", self.cluster.target, "--job", job, "--json")
        found: dict[str, Any] = json.loads(said)
        return found

    def checkpoint(self, job: str) -> int:
        """The number of a job's newest complete checkpoint, 0 without one."""
        found = (self.cluster.checkpoints / job).glob("chk-*/_metadata")
        return max((int(path.parent.name.removeprefix("chk-")) for path in found), default=0)

    def wait_for_checkpoints(self, job: str, more: int = 1) -> None:
        """Wait for new ones, on the disk: Flink's own answer may be a second old."""
        wanted = self.checkpoint(job) + more
        self.wait(f"{more} checkpoints of {job}", lambda: self.checkpoint(job) >= wanted)

    def wait_for_end(self, job: str) -> None:
        """A bounded job comes to its end."""
        self.wait(f"the end of {job}", lambda: self.cluster.rest.state(job) in ENDED)
        assert self.cluster.rest.state(job) == "FINISHED", self.cluster.rest.failure(job)

    def end_and_drain(self, job: str) -> None:
        """All that was sent has been read; the job is ended for ever, and closes its windows."""

        def all_read() -> bool:
            rest = self.cluster.rest
            partitions = partitions_of(rest, rest.job(job))
            read = {(p.topic, p.partition): p.next_offset for p in partitions if p.lag == 0}
            return read == self.ends(self.topic("in"), WRITTEN)

        self.wait(f"{job} has read all", all_read)
        self.did("stop", "--target", self.cluster.target, "--job", job, "--drain")

    def wait_for_output(self, output: str) -> None:
        """Wait for a record of this output that is committed from now on."""
        self._wait_for_record(output, bool)

    def wait_for_event_after(self, sent: int) -> None:
        """Wait for a committed event that came in later than the first `sent` ones."""

        def later(records: list[Message]) -> bool:
            new = {(each.topic, each.partition, each.offset) for each in self.sent[sent:]}
            return any(place_of(json.loads(each.value())) in new for each in records)

        self._wait_for_record("processed_events", later)

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        """Wait; if it is in vain, say how the cluster and its jobs are."""
        try:
            wait_until(what, condition, SOON_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._cluster_says()}") from None

    def _cluster_says(self) -> str:
        rest = self.cluster.rest
        here = f"{rest.get('/overview')['taskmanagers']} TaskManager, logs in {self.cluster.folder}"
        jobs = [
            f"job {job['jid']} is {job['state']} ({rest.failure(job['jid'])})"
            for job in rest.jobs()
            if job["state"] not in ENDED
        ]
        return "; ".join([here, *jobs])

    def _wait_for_record(self, output: str, wanted: Callable[[list[Message]], bool]) -> None:
        topic = self.topic(OUTPUTS[output])
        consumer = Consumer(self.client(**READ_COMMITTED))
        ends = self.ends(topic, COMMITTED)
        consumer.assign([TopicPartition(*place, end) for place, end in ends.items()])

        def found() -> bool:
            messages = consumer.consume(1000, 0.1)
            return wanted([each for each in messages if each.error() is None])

        try:
            self.wait(f"a record in {topic}", found)
        finally:
            consumer.close()

    def cancel_all(self) -> None:
        """Leave the cluster's slots free for the next test."""
        with suppress(RestError):
            for job in self.cluster.rest.jobs():
                if job["state"] not in ENDED:
                    self.cluster.rest.cancel(job["jid"])
            wait_until(
                "no job left",
                lambda: all(job["state"] in ENDED for job in self.cluster.rest.jobs()),
            )

    @contextmanager
    def flowing(self, topic: str, records: Iterator[tuple[int, bytes | None]]) -> Iterator[None]:
        """Write records at a steady rate for as long as the block lasts, and remember them."""
        ended, ran_out = threading.Event(), threading.Event()
        # Idempotent: a broker that is killed must not get a record twice.
        options = {"message.max.bytes": LARGEST_RECORD_BYTES, "enable.idempotence": True}
        producer = Producer(self.client(**options))

        def written(error: Any, message: Any) -> None:
            if error is None:
                sent = Sent(topic, message.partition(), message.offset(), message.value())
                self.sent.append(sent)

        def write() -> None:
            while not ended.wait(0.05):
                tick = list(islice(records, PER_TICK))
                for partition, value in tick:
                    producer.produce(topic, value, partition=partition, on_delivery=written)
                if not tick:
                    ran_out.set()
                producer.poll(0)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(CLIENT_WITHIN_S)
            assert producer.flush(CLIENT_WITHIN_S) == 0, f"not all of {topic} was written"
            assert not ran_out.is_set(), "the records ran out: what was waited for could not come"


#: 20 ticks a second: 1000 records a second, which are 10 s of event time.
PER_TICK = 50


def job_in(said: str) -> str:
    found = re.findall(r"^job ([0-9a-f]{32})$", said, re.MULTILINE)
    assert found, said
    return str(found[-1])
