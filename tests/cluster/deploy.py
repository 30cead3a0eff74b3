"""The commands as a user calls them, against the real cluster, on a test's own topics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from flink_jobs.cluster import Cluster
from flink_jobs.rest import ENDED, RestError
from tests.kafka.jobs import CLIENT_WITHIN_S, LARGEST_RECORD_BYTES, Kafka, Sent
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

    def stop(self, job: str) -> str:
        """Stop with a savepoint, and return where it is."""
        said = self.did(
            "stop", "--target", self.cluster.target, "--job", job,
            "--savepoint", self.cluster.savepoints,
        )  # fmt: skip
        (line,) = [line for line in said.splitlines() if line.startswith("savepoint ")]
        return line.split(" ", 1)[1]

    def status(self, job: str) -> dict[str, Any]:
        said = self.did("status", "--target", self.cluster.target, "--job", job, "--json")
        found: dict[str, Any] = json.loads(said)
        return found

    def completed(self, job: str) -> int:
        """How many checkpoints of a job are complete."""
        with suppress(RestError):
            return int(self.cluster.rest.checkpoints(job)["counts"]["completed"])
        return 0

    def wait_for_checkpoints(self, job: str, more: int = 1) -> None:
        wanted = self.completed(job) + more
        wait_until(f"{more} checkpoints of {job}", lambda: self.completed(job) >= wanted, SOON_S)

    def wait_for_end(self, job: str) -> None:
        """A bounded job comes to its end."""
        wait_until(f"the end of {job}", lambda: self.cluster.rest.state(job) in ENDED, SOON_S)
        assert self.cluster.rest.state(job) == "FINISHED", self.cluster.rest.failure(job)

    def end_and_drain(self, job: str) -> None:
        """All that was sent has been read; the job is ended for ever, and closes its windows."""

        def all_read() -> bool:
            return {p["lag"] for p in self.status(job)["partitions"]} == {0}

        wait_until(f"{job} has read all", all_read, SOON_S)
        self.did("stop", "--target", self.cluster.target, "--job", job, "--drain")

    def wait_for_output(self, output: str, n: int) -> None:
        wait_until(f"{n} of {output}", lambda: len(self.output(output)) >= n, SOON_S)

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
        ended = threading.Event()
        # Idempotent: a broker that is killed must not get a record twice.
        options = {"message.max.bytes": LARGEST_RECORD_BYTES, "enable.idempotence": True}
        producer = Producer(self.client(**options))

        def written(error: Any, message: Any) -> None:
            if error is None:
                sent = Sent(topic, message.partition(), message.offset(), message.value())
                self.sent.append(sent)

        def write() -> None:
            while not ended.wait(0.05):
                for partition, value in islice(records, PER_TICK):
                    producer.produce(topic, value, partition=partition, on_delivery=written)
                producer.poll(0)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(CLIENT_WITHIN_S)
            assert producer.flush(CLIENT_WITHIN_S) == 0, f"not all of {topic} was written"


#: 20 ticks a second: 1000 records a second, which are 10 s of event time.
PER_TICK = 50


def job_in(said: str) -> str:
    found = re.findall(r"^job ([0-9a-f]{32})$", said, re.MULTILINE)
    assert found, said
    return str(found[-1])
