"""The Kafka source: Flink's own connector reads, and hands over Arrow batches of raw records.

Guarantee: offsets are part of Flink's checkpoints, so each record that is committed to the topics
(`isolation.level=read_committed`) counts once in what the job commits, whatever crashes. The
offsets that are committed to the group are for other people's tools; the job looks at them only
when it starts without a checkpoint and `start` is "committed". Records that Kafka has deleted
before they were read are gone, and the job goes on with the oldest that is left
(`auto.offset.reset`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.data_stream import DataStream
from pyflink.table import DataTypes, Schema, StreamTableEnvironment, TableDescriptor
from pyflink.table.expressions import col
from pyflink.table.types import DataType

from operators.batches.records import BatchReader, Reader
from operators.bridge.steps import kafka_batch
from operators.bridge.wire import RECORDS
from operators.rules.splits import UNKNOWN_MS, FileProgress

Start = Literal["earliest", "latest", "committed", "timestamp"]
End = Literal["never", "latest"]

_START_MODES: Final = {
    "earliest": "earliest-offset",
    "latest": "latest-offset",
    "committed": "group-offsets",
    "timestamp": "timestamp",
}
_END_MODES: Final = {"never": "unbounded", "latest": "latest-offset"}
_COLUMNS: Final = (
    "payload",
    "record_key",
    "topic",
    "partition",
    "headers",
    "offset",
    "timestamp",
)
_DISCOVERY_MS: Final = 30_000
#: The thread that reads hands over so many records at a time: with Kafka's default (500) it wakes
#: the next one for every few. Flink holds some four polls a reader, so more would take a heap of
#: hundreds of megabytes where records have tens of kilobytes.
CONSUMER_TUNING: Final = {"max.poll.records": "2000"}
#: For Marks.java: a topic's partition has no known end; it has records that will be read first, or
#: is known to have none yet.
_OPEN: Final = -1
_EMPTY: Final = -2


@dataclass(frozen=True)
class KafkaBatches:
    """Bounds on batches and payloads.

    Attributes:
        max_records: records in a batch at most.
        max_bytes: bytes in a batch.
        max_age_ms: how long a record waits at most.
        max_record_bytes: a longer payload is oversized, and cut.
        payload_limit_bytes: to this.
    """

    max_records: int
    max_bytes: int
    max_age_ms: int
    max_record_bytes: int
    payload_limit_bytes: int


@dataclass(frozen=True)
class KafkaSource:
    """Topics as a source of batches of records.

    Attributes:
        properties: client properties, with `bootstrap.servers`.
        topics: names; empty when there is a pattern.
        topic_pattern: a regular expression that whole names match; "" when there are names.
        group: the consumer group.
        start: where a job without a checkpoint begins.
        start_timestamp_ms: for "timestamp": the first record at or after it.
        end: "latest" for a run that ends with what is there now.
        limits: bounds on batches and payloads.
        readers: how many subtasks read.
        planned: every partition that is there at the start.
    """

    properties: Mapping[str, str]
    topics: tuple[str, ...]
    topic_pattern: str
    group: str
    start: Start
    start_timestamp_ms: int
    end: End
    limits: KafkaBatches
    readers: int
    planned: tuple[FileProgress, ...]

    @property
    def parallelism(self) -> int:
        """How many subtasks read; those above the number of partitions have nothing to do."""
        return self.readers

    def partitions(self) -> list[FileProgress]:
        """The partitions that are there now: the watermark waits for those with a backlog.

        They are all known to one place, which makes the watermark: a reader knows only its own, and
        which those are changes with the parallelism.
        """
        return list(self.planned)

    def elements(self, env: StreamExecutionEnvironment) -> DataStream:
        """A stream of `RECORDS` batches, as bytes."""
        table_env = StreamTableEnvironment.create(env)
        limits = self.limits
        return kafka_batch(
            table_env,
            # Selected, the metadata are columns like the others, and no row is copied for it.
            table_env.from_descriptor(self._descriptor()).select(*map(col, _COLUMNS)),
            record_type(),
            uid="kafka",
            parallelism=self.readers,
            max_records=limits.max_records,
            max_bytes=limits.max_bytes,
            max_age_ms=limits.max_age_ms,
            max_payload_bytes=limits.max_record_bytes,
            keep_bytes=limits.payload_limit_bytes,
        )

    def reader(self) -> Reader:
        """The batches are made in the JVM, which has cut what is too long."""
        return BatchReader(is_bounded=True)

    def _descriptor(self) -> TableDescriptor:
        builder = TableDescriptor.for_connector("kafka").schema(_table_schema())
        for name, value in self._options().items():
            builder.option(name, value)
        return builder.build()

    def _options(self) -> dict[str, str]:
        options = {
            "value.format": "raw",
            "value.fields-include": "EXCEPT_KEY",
            "key.format": "raw",
            "key.fields": "record_key",
            "scan.startup.mode": _START_MODES[self.start],
            "scan.bounded.mode": _END_MODES[self.end],
            "scan.parallelism": str(self.readers),
            "scan.topic-partition-discovery.interval": f"{_DISCOVERY_MS} ms",
            "properties.auto.offset.reset": "earliest",
            **{f"properties.{name}": value for name, value in CONSUMER_TUNING.items()},
            **{f"properties.{name}": value for name, value in self.properties.items()},
            # What was never committed was never said: this one is not the user's to change.
            "properties.isolation.level": "read_committed",
            "properties.group.id": self.group,
        }
        if self.start == "timestamp":
            options["scan.startup.timestamp-millis"] = str(self.start_timestamp_ms)
        if self.topic_pattern:
            options["topic-pattern"] = self.topic_pattern
        else:
            options["topic"] = ";".join(self.topics)
        return options


def open_partition(topic: str, partition: int) -> FileProgress:
    """A partition that has records to read: the watermark waits for the first of them."""
    return FileProgress(f"{topic}/{partition}", _OPEN, UNKNOWN_MS)


def empty_partition(topic: str, partition: int) -> FileProgress:
    """A partition that has nothing to read yet: it counts from its first record."""
    return FileProgress(f"{topic}/{partition}", _EMPTY, UNKNOWN_MS)


def record_type() -> DataType:
    """The rows of `batches.RECORDS` as Flink has them."""
    types: dict[str, Any] = {
        "binary": DataTypes.BYTES(),
        "string": DataTypes.STRING(),
        "int32": DataTypes.INT(),
        "int64": DataTypes.BIGINT(),
        "map<string, binary>": DataTypes.MAP(DataTypes.STRING().not_null(), DataTypes.BYTES()),
    }
    return DataTypes.ROW([DataTypes.FIELD(f.name, types[str(f.type)]) for f in RECORDS])


def _table_schema() -> Schema:
    """What KafkaBatcher.java takes.

    In the order and with the types that the connector has them: else Flink would copy each row,
    with its texts and its headers, into another one. That some are never null it checks in each
    row, which costs a few comparisons.
    """
    return (
        Schema.new_builder()
        .column("payload", DataTypes.BYTES())
        .column("record_key", DataTypes.BYTES())
        .column_by_metadata("topic", DataTypes.STRING().not_null(), None, True)
        .column_by_metadata("partition", DataTypes.INT().not_null(), None, True)
        .column_by_metadata("offset", DataTypes.BIGINT().not_null(), None, True)
        .column_by_metadata("timestamp", DataTypes.TIMESTAMP_LTZ(3).not_null(), None, True)
        .column_by_metadata(
            "headers",
            DataTypes.MAP(DataTypes.STRING(), DataTypes.BYTES()).not_null(),
            None,
            True,
        )
        .build()
    )
