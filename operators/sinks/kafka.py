"""Exactly-once Kafka sinks: one record a line, in transactions that end with the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyflink.datastream.connectors import Sink
from pyflink.datastream.data_stream import DataStream
from pyflink.java_gateway import get_gateway

from operators.bridge.steps import kafka_lines, kafka_records, kafka_values
from operators.sinks.files import Output, Sinks

ENVELOPES: Final = ("dead_letters", "quarantine")
#: All the memory that a producer has, by Kafka's default: it refuses what is longer.
BUFFER_MEMORY_BYTES: Final = 33_554_432
#: Producers that write many small records want larger batches than Kafka's defaults; what waits is
#: sent with the checkpoint in any case.
_TUNING: Final = {
    "linger.ms": "20",
    "batch.size": "262144",
    "compression.type": "lz4",
    # A topic's own limit counts, up to these: the start looks at all, and envelopes are cut to it.
    "max.request.size": str(BUFFER_MEMORY_BYTES),
    "buffer.memory": str(BUFFER_MEMORY_BYTES),
    # A task that fails while the broker is away waits so long for each of its sinks, one after the
    # other; Flink ends the TaskManager when that takes three minutes (task.cancellation.timeout).
    "max.block.ms": "30000",
}


@dataclass(frozen=True)
class KafkaSinks(Sinks):
    """Topics, one or several an output.

    Guarantee: exactly once for readers with `isolation.level=read_committed`. Records are written
    in transactions that are committed when the checkpoint that holds them is complete; what was
    open when the job died is committed or aborted by the job that goes on from the checkpoint,
    which has the same transactional ids. A transaction that stays open for longer than its timeout
    is aborted by the broker: a job that is down for longer than that after a checkpoint loses what
    this checkpoint was to commit. Other readers see aborted records too.

    Attributes:
        properties: client properties, with `bootstrap.servers`.
        topics: name of the topic by output; ``{queue}`` and the like stand for a partition's name.
        transactional_id_prefix: the job's; each sink appends its name.
        transaction_timeout_ms: see above.
    """

    properties: Mapping[str, str]
    topics: Mapping[str, str]
    transactional_id_prefix: str
    transaction_timeout_ms: int

    def max_request_bytes(self) -> int:
        """The longest record that the producers send.

        Raises:
            ValueError: a property is no number.
        """
        properties = self._producer_properties()
        return min(int(properties[name]) for name in ("max.request.size", "buffer.memory"))

    def _prepared(self, output: Output) -> DataStream:
        """One record a line."""
        return kafka_lines(
            output.rows,
            output.row,
            uid=f"{output.name}-records",
            topic=self.topics[output.name],
            names=output.partition_by,
            envelopes=output.name in ENVELOPES,
            parallelism=output.parallelism,
        )

    def _sink(self, output: Output) -> Sink:
        """The topics of the output's name."""
        jvm = get_gateway().jvm
        kafka = jvm.org.apache.flink.connector.kafka.sink
        builder = (
            kafka.KafkaSink.builder()
            .setRecordSerializer(
                (kafka_records if output.name in ENVELOPES else kafka_values)(
                    self.topics[output.name]
                )
            )
            .setDeliveryGuarantee(
                jvm.org.apache.flink.connector.base.DeliveryGuarantee.EXACTLY_ONCE
            )
            .setTransactionalIdPrefix(f"{self.transactional_id_prefix}-{output.name}")
            # A fixed set of ids: with a new one a checkpoint the broker would remember millions.
            .setTransactionNamingStrategy(kafka.TransactionNamingStrategy.POOLING)
        )
        for key, value in self._producer_properties().items():
            builder.setProperty(key, value)
        return Sink(builder.build())

    def _producer_properties(self) -> dict[str, str]:
        return {
            **_TUNING,
            **self.properties,
            "transaction.timeout.ms": str(self.transaction_timeout_ms),
        }
