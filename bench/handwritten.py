"""What is the least: a consumer written by hand with confluent-kafka, for the CPU time of the work.

One process, the contract by one msgspec decode, good events and rejected records to topics in
transactions with the offsets, windows in a dictionary that is written at the end. It is exactly
once for events and rejected records; the windows are lost when it dies, and it can use one core.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from bench.measure import kafka_arguments
from operators.rules.times import epoch_ms, iso_utc_ms
from udfs.ecommerce import EcommerceEvent

WINDOW_MS = 300_000
WITHIN_S = 60
AT_ONCE = 10_000


class Script:
    """Consumer, producer and the windows."""

    def __init__(self, servers: str, topic: str, prefix: str) -> None:
        common = {"bootstrap.servers": servers}
        self._prefix = prefix
        self._consumer = Consumer(
            {
                **common,
                "group.id": prefix,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        self._producer = Producer(
            {
                **common,
                "transactional.id": prefix,
                "compression.type": "lz4",
                "linger.ms": 20,
                "batch.size": 262_144,
                "queue.buffering.max.messages": 1_000_000,
                "message.max.bytes": 8_000_000,
            }
        )
        known = AdminClient(common).list_topics(topic, WITHIN_S).topics[topic].partitions
        self._places = [TopicPartition(topic, number, OFFSET_BEGINNING) for number in known]
        self._decode = msgspec.json.Decoder(EcommerceEvent).decode
        self._encode = msgspec.json.Encoder().encode
        self._windows: dict[tuple[str, int], list[Any]] = {}

    def run(self, interval_s: float) -> None:
        """Until the end of all partitions."""
        self._consumer.assign(self._places)
        self._producer.init_transactions(WITHIN_S)
        self._producer.begin_transaction()
        committed, ended = time.monotonic(), 0
        while ended < len(self._places):
            for message in self._consumer.consume(AT_ONCE, 0.1):
                error = message.error()
                if error is None:
                    self._take(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended += 1
                else:
                    raise SystemExit(str(error))
            self._producer.poll(0)
            if time.monotonic() - committed >= interval_s:
                self._commit()
                self._producer.begin_transaction()
                committed = time.monotonic()
        for (user, start), (total, latest, count) in self._windows.items():
            window = {
                "user_id": user, "window_start": iso_utc_ms(start),
                "window_end": iso_utc_ms(start + WINDOW_MS), "total_value": total,
                "latest_event": iso_utc_ms(latest), "event_count": count,
            }  # fmt: skip
            self._send(f"{self._prefix}-user-windows", self._encode(window))
        self._commit()
        self._consumer.close()

    def _take(self, message: Message) -> None:
        value = message.value() or b""
        try:
            event = self._decode(value)
            ms = epoch_ms(event.timestamp)
            if not math.isfinite(event.price) or ms > (time.time() + 300) * 1000:
                raise ValueError("price or timestamp out of range")
        except Exception as error:
            headers = [
                ("error", str(error)[:200].encode()),
                ("partition", str(message.partition()).encode()),
                ("offset", str(message.offset()).encode()),
            ]
            self._send(f"{self._prefix}-dead-letters", value, headers=headers)
            return
        self._send(f"{self._prefix}-processed-events", value)
        key = event.user_id, ms - ms % WINDOW_MS
        window = self._windows.get(key)
        if window is None:
            self._windows[key] = [event.price, ms, 1]
        else:
            window[0] += event.price
            window[1] = max(window[1], ms)
            window[2] += 1

    def _send(
        self, topic: str, value: bytes, headers: list[tuple[str, bytes]] | None = None
    ) -> None:
        while True:
            try:
                self._producer.produce(topic, value, headers=headers)
            except BufferError:  # what waits to be sent fills the memory
                self._producer.poll(1)
            else:
                return

    def _commit(self) -> None:
        self._producer.send_offsets_to_transaction(
            self._consumer.position(self._consumer.assignment()),
            self._consumer.consumer_group_metadata(),
            WITHIN_S,
        )
        self._producer.commit_transaction(WITHIN_S)


def main() -> int:
    call = kafka_arguments(__doc__).parse_args()
    script = Script(call.servers, call.topic, call.prefix)
    script.run(call.checkpoint_interval_ms / 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
