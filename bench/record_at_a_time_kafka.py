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
from pyflink.table import StreamTableEnvironment

from bench.jvm_sql import kafka_environment, statements_of
from bench.measure import kafka_arguments
from bench.plain import run_statements
from bench.record_at_a_time import BUNDLE_SIZE, add_views, prepare_process, python_options


def main() -> int:
    call = kafka_arguments(__doc__).parse_args()
    work = Path(tempfile.mkdtemp(prefix="record-at-a-time-"))
    try:
        prepare_process(work)
        (work / "ready").mkdir()
        env = kafka_environment(call, work, python_options(BUNDLE_SIZE))
        run_to_the_end(env, call, work / "ready")
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
    add_views(tables, lines, ready)
    run_statements(tables, statements_of(Path(__file__).with_suffix(".sql"), call))


if __name__ == "__main__":
    # What lies in __main__ is pickled into the workers with all it refers to (T6).
    from bench.record_at_a_time_kafka import main as imported_main

    sys.exit(imported_main())
