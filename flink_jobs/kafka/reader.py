"""What is committed in the topics of a Kafka cluster, read in a JVM of this command's.

The same client, properties and login as the job's; the loop over the records runs in Java.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyflink.util.java_utils import add_jars_to_context_class_loader

from flink_jobs.kafka.admin import SHADED, KafkaAdmin, KafkaError
from flink_jobs.kafka.jars import Jar
from operators.bridge.steps import topic_reader
from operators.rules.offsets import Gap

_PATIENCE_MS: Final = 30_000
_BYTES: Final = f"{SHADED}.common.serialization.ByteArrayDeserializer"


class Topics:
    """A connection to a cluster, for what is in its topics. See `connected`."""

    def __init__(self, admin: KafkaAdmin, reader: Any) -> None:
        """Take the two clients."""
        self.admin = admin
        self._reader = reader

    def ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """The first offset, and the one behind what is committed, by partition."""
        numbers = self.admin.partitions(topic)
        begin = self.admin.offsets(topic, numbers, "earliest")
        end = self.admin.offsets(topic, numbers, "latest")
        return {number: (begin[number], end[number]) for number in numbers}

    def lines(self, topic: str, partition: int, begin: int, end: int) -> Iterator[bytes]:
        """The values at the offsets from begin to before end."""
        with _explained():
            self._reader.seek(topic, partition, begin)
        while True:
            with _explained():
                block = self._reader.lines(end)
            if not block:
                return
            yield from bytes(block).split(b"\n")

    def count(self, topic: str, partition: int, gaps: list[Gap]) -> list[int]:
        """How many records there are in each gap; the gaps are in order."""
        packed = b"".join(struct.pack(">qq", gap.first, gap.last) for gap in gaps)
        with _explained():
            counted = bytes(self._reader.count(topic, partition, packed))
        return [found for (found,) in struct.iter_unpack(">q", counted)]


@contextmanager
def connected(properties: Mapping[str, str], jar: Jar) -> Iterator[Topics]:
    """Connect to a cluster; the Java process must be there.

    Args:
        properties: client properties, with `bootstrap.servers`.
        jar: the Kafka connector.

    Raises:
        KafkaError: no broker answers, or the login is refused.
    """
    # Also one in Flink's lib folder: it may be another Flink's than that of this process.
    add_jars_to_context_class_loader([jar.url])
    consumer = {
        **properties,
        "isolation.level": "read_committed",
        "enable.auto.commit": "false",
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": "false",
        "key.deserializer": _BYTES,
        "value.deserializer": _BYTES,
    }
    consumer.pop("group.id", None)
    with KafkaAdmin(properties) as admin:
        with _explained():
            reader = topic_reader(consumer, _PATIENCE_MS)
        try:
            yield Topics(admin, reader)
        finally:
            reader.close()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Py4JJavaError as error:
        fault = error.java_exception
        raise KafkaError(
            f"kafka.bootstrap_servers or kafka.properties: reading failed ({fault.toString()})"
        ) from error
