"""The main job from Kafka to exactly-once Kafka, written record at a time in plain PyFlink.

Same checks, envelope, windows and late events, and the coordinates of every record, as the job that
it is measured against; source and sinks are tables, and every record crosses to Python and back by
itself. Its windows are, with

- `--windows pyflink`, a KeyedProcessFunction: each event crosses once more for its key, and again
  to its window;
- `--windows sql`, Flink SQL: windows and their state are then Java's alone.

The records come from Flink's Kafka table, which has keys and coordinates (the source of the
DataStream API hands over the value alone, trap T39). It makes the watermark for each partition by
itself, of the time that the producer gave a record: behind Python the partitions are merged, and a
watermark made there drops more than half of a skewed topic's events from their windows (T56). So
this yardstick needs topics whose records have their event's time, which Breakwater does not.

Tuned on two cores, on 2 M events of a skewed topic, start-up (some 15 s) included, one run each, so
a tenth says nothing; before Java had our flags, with which they are 79 and 48 s:

| windows in | as it is | without records in turn to both workers | in thread mode | other |
|---|---|---|---|---|
| PyFlink | 88 s | 109 s | 260 s | textbook 187 s, bundles of 10,000 139 s, fewer crossings 86 s |
| SQL | 51 s | 66 s | 70 s, at parallelism 1 51 s | |

Records in turn lose the order of a partition, which Breakwater keeps. The textbook's way is
`window(TumblingEventTimeWindows).aggregate()`; here one dictionary of a user's open windows is
keyed state, with a timer a window, and a bundle holds all that comes between two checkpoints, as
keyed state is written at its end. With fewer crossings, all that the check says goes through the
keyed step, and nothing beside it, so that PyFlink makes one operator of check and key.

What it leaves out: dead letters are in one topic, those of quarantine in another, with the error's
type as their only header; a record's own headers are not read; nothing is counted. Bytes that are
no UTF-8 pass in fields that the contract does not name, and envelopes cut a payload of over 64 KiB.
What is late is asked of a watermark that is behind that of the windows in SQL, or in PyFlink
stands still for a bundle; the measured topics have no late event.
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
from pyflink.datastream import (
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    StreamExecutionEnvironment,
)
from pyflink.datastream.data_stream import DataStream
from pyflink.datastream.state import ValueStateDescriptor
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

WINDOW_MS = 300_000
#: Of records, as keyed state is written at the end of a bundle.
STATE_BUNDLE_SIZE = 100_000
#: What is not cached is read anew, with a call to Java.
STATE_CACHE_KEYS = 100_000
EVENT = Types.ROW_NAMED(
    [*EVENT_FIELDS, "source_topic", "source_partition", "source_offset"],
    [*EVENT_TYPES, Types.STRING(), Types.INT(), Types.LONG()],
)
LATE = OutputTag("late", EVENT)
REJECTED = Types.ROW_NAMED(["line", "error_type"], [Types.STRING()] * 2)
DEAD_LETTERS, QUARANTINE = OutputTag("dead-letters", REJECTED), OutputTag("quarantine", REJECTED)
WINDOW = Types.ROW_NAMED(
    ["user_id", "end_ms", "total_value", "latest_ms", "event_count"],
    [Types.STRING(), Types.LONG(), Types.DOUBLE(), Types.LONG(), Types.LONG()],
)


class Validate(ProcessFunction):  # type: ignore[misc] # pyflink has no types
    """One row of the table `records` in; an event, a dead letter or a quarantined record out."""

    def open(self, runtime_context: Any) -> None:
        self._contract, self._judge = contract_and_judge()
        self._decode = self._judge.decode

    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        payload, key, topic, partition, offset, sent = value
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


class Windows(KeyedProcessFunction):  # type: ignore[misc] # pyflink has no types
    """An event of a user in; the user's windows out, and events that are late for theirs."""

    def open(self, runtime_context: Any) -> None:
        # By the end of the window: sum, latest event, count.
        of_user = ValueStateDescriptor("windows", Types.PICKLED_BYTE_ARRAY())
        self._windows = runtime_context.get_state(of_user)

    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        price, event_ms = value[3], value[4]
        end_ms = event_ms - event_ms % WINDOW_MS + WINDOW_MS
        timers = ctx.timer_service()
        if timers.current_watermark() >= end_ms - 1:
            yield LATE, value
            return
        windows = self._windows.value() or {}
        if end_ms in windows:
            total, latest_ms, count = windows[end_ms]
            windows[end_ms] = total + price, max(latest_ms, event_ms), count + 1
        else:
            windows[end_ms] = price, event_ms, 1
            timers.register_event_time_timer(end_ms - 1)
        self._windows.update(windows)

    def on_timer(self, timestamp: int, ctx: Any) -> Iterable[Any]:
        windows = self._windows.value()
        total, latest_ms, count = windows.pop(timestamp + 1)
        if windows:
            self._windows.update(windows)
        else:
            self._windows.clear()
        yield Row(ctx.get_current_key(), timestamp + 1, total, latest_ms, count)


def user_of(event: Any) -> Any:
    return event[0]


def main() -> int:
    parser = kafka_arguments(__doc__)
    parser.add_argument("--windows", choices=["pyflink", "sql"], default="pyflink")
    call = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="record-at-a-time-"))
    try:
        prepare_process(work)
        run_to_the_end(kafka_environment(call, work, options(call)), call)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def options(call: argparse.Namespace) -> dict[str, str]:
    if call.windows == "sql":
        return python_options(BUNDLE_SIZE)
    return {
        **python_options(STATE_BUNDLE_SIZE),
        "python.fn-execution.bundle.time": str(2 * call.checkpoint_interval_ms),
        "python.state.cache-size": str(STATE_CACHE_KEYS),
    }


def run_to_the_end(env: StreamExecutionEnvironment, call: argparse.Namespace) -> None:
    tables = StreamTableEnvironment.create(env)
    statements = statements_of(Path(__file__).with_suffix(".sql"), call)
    tables.execute_sql(statements.pop("records"))
    records = tables.to_data_stream(tables.from_path("records")).rebalance()
    events = records.process(Validate(), EVENT).name("validate")
    add_views(tables, events, DEAD_LETTERS, QUARANTINE, "SOURCE_WATERMARK()")
    if call.windows == "pyflink":
        add_windows(tables, events)
    # The views `windows` and `late` are there in both ways.
    others = " by sql" if call.windows == "pyflink" else " by pyflink"
    chosen = {name: text for name, text in statements.items() if not name.endswith(others)}
    run_statements(tables, chosen)


def add_windows(tables: StreamTableEnvironment, events: DataStream) -> None:
    windows = events.key_by(user_of, Types.STRING()).process(Windows(), WINDOW).name("windows")
    late = windows.get_side_output(LATE)
    for name, stream in (("window_rows", windows), ("late_rows", late)):
        tables.create_temporary_view(name, tables.from_data_stream(stream))


if __name__ == "__main__":
    # What lies in __main__ is pickled into the workers with all it refers to (T6).
    from bench.record_at_a_time_kafka import main as imported_main

    sys.exit(imported_main())
