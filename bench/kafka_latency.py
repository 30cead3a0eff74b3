"""The time from append to output: when the broker has a record, and when a reader has its event."""

from __future__ import annotations

import threading
import time

import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from bench.kafka_load import Load, go_on, running, wait_for
from bench.kafka_setup import PARTITIONS, Place

STARTS_WITHIN_S, ARRIVES_WITHIN_S = 120, 120
WARM_UP_S = 30
LEVELS = ("read_uncommitted", "read_committed")


class Arrivals(threading.Thread):
    """Reads the processed events and notes when each came."""

    def __init__(self, servers: str, topic: str, level: str) -> None:
        super().__init__(daemon=True)
        self.ms: dict[tuple[int, int], float] = {}
        self._ends = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "log_level": 0,
                "group.id": "unused",
                "isolation.level": level,
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        self._consumer.assign(
            [TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)]
        )

    def run(self) -> None:
        decode = msgspec.json.decode
        while not self._ends.is_set():
            messages = self._consumer.consume(1000, 0.01)
            now = time.time() * 1000
            for message in messages:
                if message.error() is None:
                    event = decode(message.value())
                    self.ms.setdefault((event["source_partition"], event["source_offset"]), now)

    def stop(self) -> None:
        self._ends.set()
        self.join()
        self._consumer.close()


def latency(here: Place, rate: int, seconds: int) -> None:
    servers, topic, prefix = here.broker.bootstrap_servers, "latency", "latency-out"
    here.topics.create(topic, PARTITIONS, message_timestamp_type="LogAppendTime")
    output = f"{prefix}-processed-events"
    here.topics.create(output, PARTITIONS)
    arrivals = [Arrivals(servers, output, level) for level in LEVELS]
    load = Load(servers, topic, rate)
    with running(here, topic, prefix) as job:
        for each in (*arrivals, load):
            each.start()
        committed = arrivals[1].ms
        wait_for("a first committed event", lambda: committed, job, STARTS_WITHIN_S)
        go_on(job, WARM_UP_S)
        load.remember()
        go_on(job, seconds)
        load.stop()
        wait_for(
            "the last event's commit",
            lambda: all(load.appended.keys() <= each.ms.keys() for each in arrivals),
            job,
            ARRIVES_WITHIN_S,
        )
    for each in arrivals:
        each.stop()
    print(
        f"\nFrom append to output, {rate:,} events/s for {seconds} s after {WARM_UP_S} s of "
        f"warming up, checkpoints every {here.checkpoint_interval_ms} ms, "
        f"{len(load.appended):,} events:\n"
    )
    print("| reader | p50 ms | p99 ms | max ms |")
    print("|---|---|---|---|")
    for level, each in zip(LEVELS, arrivals, strict=True):
        took = [each.ms[place] - ms for place, ms in load.appended.items()]
        p50, p99 = np.percentile(took, [50, 99])
        print(f"| {level} | {p50:,.0f} | {p99:,.0f} | {max(took):,.0f} |", flush=True)
    here.remove(prefix)
