"""The yardstick on Kafka: the same work in nothing but Flink SQL, as a good data engineer would.

Kafka in, the good events, the windows and the rejected records to exactly-once topics, with the
same checks, windows, watermark delay, checkpoints and Kafka settings as Breakwater's job.

What SQL cannot do here, and the main job can: a record that is no JSON is dropped without a trace
(`json.ignore-parse-errors`, trap T57); a rejected record is written as it was understood, not as it
came, and with one reason only; what is late is in no output; nothing is counted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from string import Template

from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from bench.measure import kafka_arguments
from bench.plain import environment, named_statements, run_statements
from flink_jobs.kafka.jars import KAFKA, find_jar
from operators.sources.kafka import CONSUMER_TUNING

#: As Breakwater reads.
SOURCE = ", ".join(
    f"'properties.{name}' = '{value}'"
    for name, value in {"isolation.level": "read_committed", **CONSUMER_TUNING}.items()
)
SINK = """'connector' = 'kafka', 'properties.bootstrap.servers' = '{servers}',
  'sink.delivery-guarantee' = 'exactly-once', 'properties.transaction.timeout.ms' = '600000',
  'properties.compression.type' = 'lz4', 'properties.linger.ms' = '20',
  'properties.batch.size' = '262144'"""


def main() -> int:
    call = kafka_arguments(__doc__).parse_args()
    work = Path(tempfile.mkdtemp(prefix="jvm-sql-"))
    try:
        tables = StreamTableEnvironment.create(kafka_environment(call, work, {}))
        run_statements(tables, statements_of(Path(__file__).with_suffix(".sql"), call))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def kafka_environment(
    call: argparse.Namespace, work: Path, options: dict[str, str]
) -> StreamExecutionEnvironment:
    env = environment(work, call.parallelism, call.checkpoint_interval_ms, options)
    env.add_jars(find_jar(KAFKA, call.jars, {}).url)
    return env


def statements_of(path: Path, call: argparse.Namespace) -> dict[str, str]:
    """The statements of a SQL file, by the comment above each."""
    filled = Template(path.read_text()).substitute(
        servers=call.servers,
        topic=call.topic,
        prefix=call.prefix,
        source=SOURCE,
        sink=SINK.format(servers=call.servers),
    )
    return named_statements(filled)


if __name__ == "__main__":
    sys.exit(main())
