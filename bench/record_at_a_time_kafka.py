"""The yardstick of record_at_a_time.py with Kafka in and exactly-once Kafka out.

Same checks, envelope and windows; every record crosses to Python and back by itself.

What plain PyFlink cannot do here, and the main job can: its Kafka source hands over the value alone
(trap T39), so neither topic, partition and offset nor a tombstone reach Python, all dead letters go
to one topic, without headers, and late events are in no output. Its watermark is made behind
Python, where the partitions have been merged: on an uneven topic it drops what is late for the
fastest partition (trap T56). It has the windows of fewer events to write then.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from pyflink.common import WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer, KafkaSource
from pyflink.table import Schema, StreamTableEnvironment

from bench.jvm_sql import environment, run_statements, statements_of
from bench.measure import kafka_arguments
from bench.record_at_a_time import DEAD_LETTERS, EVENT, QUARANTINE, Validate, prepare_process


def main() -> int:
    call = kafka_arguments(__doc__).parse_args()
    work = Path(tempfile.mkdtemp(prefix="record-at-a-time-"))
    try:
        prepare_process(work)
        (work / "ready").mkdir()
        options = {
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
            "python.fn-execution.bundle.size": "10000",
            "python.fn-execution.bundle.time": "1000",
        }
        run_to_the_end(environment(call, work, options), call, work / "ready")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def run_to_the_end(env: StreamExecutionEnvironment, call: argparse.Namespace, ready: Path) -> None:
    tables = StreamTableEnvironment.create(env)
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(call.servers)
        .set_topics(call.topic)
        .set_group_id(call.prefix)
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_bounded(KafkaOffsetsInitializer.latest())
        .set_value_only_deserializer(SimpleStringSchema())
        .set_property("isolation.level", "read_committed")
        .build()
    )
    lines = env.from_source(source, WatermarkStrategy.no_watermarks(), "records")
    events = lines.process(Validate(str(ready)), EVENT).name("validate")
    watermarked = (
        Schema.new_builder()
        .column("user_id", "STRING")
        .column("product_id", "STRING")
        .column("action", "STRING")
        .column("price", "DOUBLE")
        .column("event_ms", "BIGINT")
        .column_by_expression("event_time", "TO_TIMESTAMP_LTZ(event_ms, 3)")
        .watermark("event_time", "event_time - INTERVAL '10' MINUTE")
        .build()
    )
    tables.create_temporary_view("events", tables.from_data_stream(events, watermarked))
    for name, tag in (("rejected_dead", DEAD_LETTERS), ("rejected_poison", QUARANTINE)):
        rejected = tables.from_data_stream(events.get_side_output(tag))
        tables.create_temporary_view(name, rejected)
    run_statements(tables, statements_of(Path(__file__).with_suffix(".sql"), call))


if __name__ == "__main__":
    # What lies in __main__ is pickled into the workers with all it refers to (T6).
    from bench.record_at_a_time_kafka import main as imported_main

    sys.exit(imported_main())
