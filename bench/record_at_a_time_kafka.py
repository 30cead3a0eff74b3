"""The main job from Kafka to exactly-once Kafka, written record at a time in plain PyFlink.

Same checks, envelope, windows and late events, and the coordinates of every record, as the job that
it is measured against; every record crosses to Python and back by itself.

The records come from Flink's Kafka table, which has keys, coordinates and headers (the source of
the DataStream API hands over the value alone, trap T39). It makes the watermark for each partition
by itself, of the time that the producer gave a record: behind Python the partitions are merged, and
a watermark made there drops more than half of a skewed topic's events from their windows (T56). So
this yardstick needs topics whose records have their event's time, which Breakwater does not.

What it leaves out: dead letters are in one topic, those of quarantine in another, with the error's
type as their only header; a record's headers come along, but not into its envelope; nothing is
counted. Bytes that are no UTF-8 pass in fields that the contract does not name.

It keeps the order of a partition, as the job does: with `rebalance()` before Python it would have
two busy workers, and lose that order; that was not measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyflink.common import Row, Types
from pyflink.datastream import OutputTag, ProcessFunction, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from bench.jvm_sql import kafka_environment, statements_of
from bench.measure import kafka_arguments
from bench.plain import run_statements
from bench.record_at_a_time import (
    BUNDLE_SIZE,
    EVENT_FIELDS,
    EVENT_TYPES,
    MAX_RECORD_BYTES,
    add_views,
    contract_and_judge,
    envelope,
    is_sound,
    prepare_process,
    python_options,
)
from operators.rules.envelope import Source
from operators.rules.times import epoch_ms

EVENT = Types.ROW_NAMED(
    [*EVENT_FIELDS, "source_topic", "source_partition", "source_offset"],
    [*EVENT_TYPES, Types.STRING(), Types.INT(), Types.LONG()],
)
REJECTED = Types.ROW_NAMED(["line", "error_type"], [Types.STRING()] * 2)
DEAD_LETTERS, QUARANTINE = OutputTag("dead-letters", REJECTED), OutputTag("quarantine", REJECTED)


class Validate(ProcessFunction):  # type: ignore[misc] # pyflink has no types
    """One row of the table `records` in; an event, a dead letter or a quarantined record out."""

    def open(self, runtime_context: Any) -> None:
        self._contract, self._judge = contract_and_judge()
        self._decode = self._judge.decode

    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        payload, key, topic, partition, offset, sent, _ = value
        payload = payload or b""
        now_ms = ctx.timer_service().current_processing_time()
        try:
            event: Any = self._decode(payload)
            event_ms = epoch_ms(event.timestamp)
            is_good = is_sound(event.price, event_ms, now_ms) and len(payload) <= MAX_RECORD_BYTES
        except Exception:
            is_good = False
        if is_good:
            fields = event.user_id, event.product_id, event.action, event.price, event_ms
            yield Row(*fields, topic, partition, offset)
        else:
            source = Source(topic, partition, offset, sent.to_epoch_milli(), key)
            why, line = envelope(payload, source, self._contract, self._judge, now_ms)
            tag = QUARANTINE if why.kind == "quarantine" else DEAD_LETTERS
            yield tag, Row(line, why.error_type)


def main() -> int:
    call = kafka_arguments(__doc__).parse_args()
    work = Path(tempfile.mkdtemp(prefix="record-at-a-time-"))
    try:
        prepare_process(work)
        run_to_the_end(kafka_environment(call, work, python_options(BUNDLE_SIZE)), call)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def run_to_the_end(env: StreamExecutionEnvironment, call: argparse.Namespace) -> None:
    tables = StreamTableEnvironment.create(env)
    statements = statements_of(Path(__file__).with_suffix(".sql"), call)
    tables.execute_sql(statements.pop("records"))
    records = tables.to_data_stream(tables.from_path("records"))
    events = records.process(Validate(), EVENT).name("validate")
    add_views(tables, events, DEAD_LETTERS, QUARANTINE, "SOURCE_WATERMARK()")
    run_statements(tables, statements)


if __name__ == "__main__":
    # What lies in __main__ is pickled into the workers with all it refers to (T6).
    from bench.record_at_a_time_kafka import main as imported_main

    sys.exit(imported_main())
