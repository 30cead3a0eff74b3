"""A constant load of events that happen now, and a job that goes on until it is stopped."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from bench.kafka_setup import Place, environ
from flink_jobs.demo.kafka_demo import spread as skewed
from flink_jobs.machine.waiting import wait_a_moment
from operators.rules.times import iso_utc_ms

STOPS_WITHIN_S = 120
TICK_S = 0.01
USERS, PRODUCTS = 1000, 500


class Load(threading.Thread):
    """Writes so many events a second until it is stopped."""

    def __init__(
        self, servers: str, topic: str, rate: int, bad_rate: float = 0.0, users: int = USERS
    ) -> None:
        super().__init__(daemon=True)
        self.appended: dict[tuple[int, int], int] = {}
        self.sent = 0
        # A broker that is away is waited for.
        patient = {
            "message.timeout.ms": 0,
            "queue.buffering.max.messages": 5_000_000,
            "log_level": 0,
        }
        self._producer = Producer({"bootstrap.servers": servers, "linger.ms": 0, **patient})
        self._topic, self._rate, self._bad_every = (
            topic,
            rate,
            round(1 / bad_rate) if bad_rate else 0,
        )
        self._users = users
        self._remember = False
        self._ends = threading.Event()

    def remember(self) -> None:
        """From now on, when the broker has appended which record."""
        self._remember = True

    def stop(self) -> None:
        self._ends.set()
        self.join()
        if self._producer.flush(STOPS_WITHIN_S):
            raise SystemExit("the broker did not take all events")

    def run(self) -> None:
        began, partitions = time.monotonic(), skewed()
        while not self._ends.wait(TICK_S):
            due = int((time.monotonic() - began) * self._rate)
            now = iso_utc_ms(int(time.time() * 1000))
            remember = self._remember  # a record is remembered by when it was written
            for number in range(self.sent, due):
                self._producer.produce(
                    self._topic,
                    self._event(number, now),
                    partition=next(partitions),
                    on_delivery=self._appended if remember else None,
                )
            self.sent = max(self.sent, due)
            self._producer.poll(0)

    def _event(self, number: int, now: str) -> bytes:
        action = "nothing" if self._bad_every and number % self._bad_every == 0 else "view"
        return (
            b'{"user_id":"user_%05d","product_id":"product_%03d","action":"%s","price":%d.5,'
            b'"timestamp":"%s"}'
            % (number % self._users, number % PRODUCTS, action.encode(), number % 300, now.encode())
        )

    def _appended(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.appended[message.partition(), message.offset()] = message.timestamp()[1]


@contextmanager
def running(
    here: Place, topic: str, prefix: str, more: str = ""
) -> Iterator[subprocess.Popen[Any]]:
    """Breakwater's job on a topic, until the caller is done."""
    with started(here, here.settings(prefix, topic, end="never", more=more)) as process:
        yield process


@contextmanager
def started(here: Place, config: Path) -> Iterator[subprocess.Popen[Any]]:
    """Breakwater's job with some settings, until the caller is done."""
    state = state_folder(here)
    shutil.rmtree(state, ignore_errors=True)
    job = ["-m", "flink_jobs.cli", "run", "--config", str(config), "--state", str(state)]
    process = subprocess.Popen([sys.executable, *job], stdout=subprocess.DEVNULL, env=environ())
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOPS_WITHIN_S)


def state_folder(here: Place) -> Path:
    return here.folder / "state"


def wait_for(what: str, condition: Any, process: subprocess.Popen[Any], within_s: float) -> None:
    """Poll until a condition holds; the job must not end before."""
    deadline = time.monotonic() + within_s
    while not condition():
        _refuse_end(process)
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {within_s:g} s: {what}")
        wait_a_moment()


def go_on(process: subprocess.Popen[Any], seconds: float) -> None:
    """Let the job run for so long; it must not end before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _refuse_end(process)
        wait_a_moment()


def _refuse_end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is not None:
        raise SystemExit(f"the job ended with exit code {process.returncode}")
