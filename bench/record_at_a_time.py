"""The yardstick: the main job, written record at a time as a good data engineer would in PyFlink.

Same input, same checks (the contract by one msgspec decode, every violation named only for a record
that fails), same envelope, same windows in Flink SQL, same two-phase-commit file sinks, checkpoints
every 5 s, worker processes. Only the way differs: every line crosses to Python and back by itself.

    python bench/record_at_a_time.py --input events.jsonl --output out --parallelism 2

prints one JSON object: what was counted, wall time, time until the first record was processed. CPU
time is taken from outside, by bench/main_job.py, for both programs in the same way.

Tuned on two cores shared with other work, 300 000 to 500 000 events, mostly one run each (+-15 %).
Kept: bundles of 10 000 (1000 cost a fifth more CPU, 50 000 gained nothing), chaining (a quarter
more CPU without), lines spread over all workers (29 s against 37 s), columns to SQL and its
JSON format (about a tenth less CPU than lines encoded in Python), object reuse (no difference).
Breakwater's flags for Java (serial collector, room for young objects, with and without the second
compiler) gained nothing here: 65.9 and 65.0 s without start-up for 2 M events, against 64.0 and
40.3 s.

What plain PyFlink cannot do here, and the main job can: a text source does not say where a line
came from, so source_topic, source_partition and source_offset are null (in envelopes empty, 0 and
-1); it decodes the text in the JVM, so bytes that are not UTF-8 arrive as replacement characters
and pass; a window drops a late event that the filter for late_events, which looks at the watermark
a shuffle earlier, may not yet have called late.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from pyflink.common import Row, Types, WatermarkStrategy
from pyflink.datastream import OutputTag, ProcessFunction, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSource, StreamFormat
from pyflink.datastream.data_stream import DataStream
from pyflink.table import Schema, StreamTableEnvironment

from operators.rules.contract import Contract, load_contract
from operators.rules.delivery.failure import category_of, queue_of
from operators.rules.envelope import Source, envelope_line
from operators.rules.poison import PoisonRules
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms, iso_utc_ms
from operators.rules.verdict import Judge, Rejection

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from bench.plain import environment, named_statements, run_statements

STARTED = time.time()
ROOT = Path(__file__).resolve().parent.parent
BUNDLE_SIZE, CHECKPOINT_INTERVAL_MS = 10_000, 5000
MAX_RECORD_BYTES = 1_048_576
MAX_FUTURE_SKEW_MS = 300_000
PAYLOAD_LIMIT_BYTES = 65_536
ROLLING = (
    "'sink.rolling-policy.file-size' = '128MB', 'sink.rolling-policy.rollover-interval' = '1 min'"
)
OUTPUTS = ("processed_events", "late_events", "dead_letters", "quarantine", "user_windows")

EVENT_FIELDS = ["user_id", "product_id", "action", "price", "event_ms"]
EVENT_TYPES = [Types.STRING(), Types.STRING(), Types.STRING(), Types.DOUBLE(), Types.LONG()]
EVENT = Types.ROW_NAMED(EVENT_FIELDS, EVENT_TYPES)
DEAD_LETTERS = OutputTag(
    "dead-letters",
    Types.ROW_NAMED(["line", "queue", "date", "error_type"], [Types.STRING()] * 4),
)
QUARANTINE = OutputTag(
    "quarantine", Types.ROW_NAMED(["line", "reason"], [Types.STRING(), Types.STRING()])
)


class Validate(ProcessFunction):  # type: ignore[misc] # pyflink has no types
    """One line in; an event, a dead letter or a quarantined record out."""

    def __init__(self, ready_folder: str) -> None:
        self._ready_folder = ready_folder

    def open(self, runtime_context: Any) -> None:
        self._contract, self._judge = contract_and_judge()
        self._decode: Any = self._judge.decode  # takes text as well as bytes
        self._ready = Path(self._ready_folder, str(runtime_context.get_index_of_this_subtask()))
        self._seen_one = False

    def process_element(self, value: str, ctx: Any) -> Iterable[Any]:
        if not self._seen_one:
            self._seen_one = True
            self._ready.write_text(str(time.time()))
        now_ms = ctx.timer_service().current_processing_time()
        try:
            event = self._decode(value)
            event_ms = epoch_ms(event.timestamp)
        except Exception:
            yield self._rejected(value.encode(), now_ms)
            return
        if not self._sound(value, event.price, event_ms, now_ms):
            yield self._rejected(value.encode(), now_ms)
            return
        yield Row(
            user_id=event.user_id,
            product_id=event.product_id,
            action=event.action,
            price=event.price,
            event_ms=event_ms,
        )

    def _sound(self, value: str, price: float, event_ms: int, now_ms: int) -> bool:
        return is_sound(price, event_ms, now_ms) and (
            4 * len(value) <= MAX_RECORD_BYTES or len(value.encode()) <= MAX_RECORD_BYTES
        )

    def _rejected(self, payload: bytes, now_ms: int) -> tuple[OutputTag, Row]:
        source = Source(topic="", partition=0, offset=-1)
        why, line = envelope(payload, source, self._contract, self._judge, now_ms)
        if why.kind == "quarantine":
            return QUARANTINE, Row(line=line, reason=why.error_type)
        queue = queue_of(category_of(why.error_type))
        date = iso_utc_ms(now_ms)[:10]
        return DEAD_LETTERS, Row(line=line, queue=queue, date=date, error_type=why.error_type)


def contract_and_judge() -> tuple[Contract, Judge]:
    contract = load_contract("udfs.ecommerce:EcommerceEvent", "user_id", "timestamp")
    return contract, Judge(contract, PoisonRules(), MAX_RECORD_BYTES, MAX_FUTURE_SKEW_MS)


def is_sound(price: float, event_ms: int, now_ms: int) -> bool:
    """What the decoder does not see."""
    latest_ms = min(MAX_EPOCH_MS, now_ms + MAX_FUTURE_SKEW_MS)
    return math.isfinite(price) and MIN_EPOCH_MS <= event_ms <= latest_ms


def envelope(
    payload: bytes, source: Source, contract: Contract, judge: Judge, now_ms: int
) -> tuple[Rejection, str]:
    """Why a record is turned away, and its envelope."""
    why = judge.judge(payload, now_ms)
    if not isinstance(why, Rejection):
        raise AssertionError(f"the two looks disagree on {payload[:200]!r}")
    line = envelope_line(
        payload,
        why,
        source,
        contract,
        now_ms=now_ms,
        stage="intake",
        code_version="bench",
        payload_limit_bytes=PAYLOAD_LIMIT_BYTES,
    )
    return why, line.decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--input", type=Path, required=True, help="JSON lines: a file or a folder")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--bundle-size", type=int, default=BUNDLE_SIZE)
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="any Flink option"
    )
    parser.add_argument("--no-rebalance", action="store_true")
    call = parser.parse_args()
    if call.output.exists():
        parser.error(f"--output {call.output} is there already")
    work = Path(tempfile.mkdtemp(prefix="record-at-a-time-"))
    try:
        print(json.dumps(measure(call, work)))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def measure(call: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the job and say what it took."""
    prepare_process(work)
    (work / "ready").mkdir()
    options = dict(option.split("=", 1) for option in call.set)
    options = {**python_options(call.bundle_size), **options}
    env = environment(work, call.parallelism, CHECKPOINT_INTERVAL_MS, options)
    run_to_the_end(env, call.input, call.output, work / "ready", not call.no_rebalance)
    wall_s = time.time() - STARTED
    ready = [float(file.read_text()) for file in (work / "ready").iterdir()]
    counts = {name: count_lines(call.output / name) for name in OUTPUTS}
    accounted = counts["processed_events"] + counts["dead_letters"] + counts["quarantine"]
    return {
        "records": count_lines(call.input),
        "accounted_for": accounted,
        "wall_s": round(wall_s, 2),
        "ready_s": round(min(ready) - STARTED, 2) if ready else None,
        **counts,
    }


def prepare_process(work: Path) -> None:
    """What Flink reads from the environment: real worker processes (T1), a folder of our own."""
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112 # Flink's spelling
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["TMPDIR"] = str(work)
    os.environ["JVM_ARGS"] = f"{os.environ.get('JVM_ARGS', '')} -Djava.io.tmpdir={work}"
    tempfile.tempdir = str(work)


def python_options(bundle_size: int) -> dict[str, str]:
    """The Flink options of a job with Python steps."""
    return {
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.fn-execution.bundle.size": str(bundle_size),
        "python.fn-execution.bundle.time": "1000",
    }


def run_to_the_end(
    env: StreamExecutionEnvironment, source: Path, output: Path, ready: Path, rebalance: bool
) -> None:
    """Lines to events, rejected records to their sinks, events to windows."""
    tables = StreamTableEnvironment.create(env)
    files = FileSource.for_record_stream_format(
        StreamFormat.text_line_format(), source.resolve().as_uri()
    )
    lines = env.from_source(files.build(), WatermarkStrategy.no_watermarks(), "lines")
    # One file is one split, read by one subtask: without this one worker would do all the work.
    lines = lines.rebalance() if rebalance else lines
    events = lines.process(Validate(str(ready)), EVENT).name("validate")
    watermark = "event_time - INTERVAL '10' MINUTE"
    add_views(tables, events, DEAD_LETTERS, QUARANTINE, watermark)
    run_statements(tables, statements_of(output))


def add_views(
    tables: StreamTableEnvironment,
    events: DataStream,
    dead_letters: OutputTag,
    quarantine: OutputTag,
    watermark: str,
) -> None:
    """Validated records to what the statements read: events, and what is turned away."""
    # The other columns are those of the stream.
    watermarked = (
        Schema.new_builder()
        .column_by_expression("event_time", "TO_TIMESTAMP_LTZ(event_ms, 3)")
        .watermark("event_time", watermark)
        .build()
    )
    tables.create_temporary_view("events", tables.from_data_stream(events, watermarked))
    for name, tag in (("rejected_dead", dead_letters), ("rejected_poison", quarantine)):
        rejected = tables.from_data_stream(events.get_side_output(tag))
        tables.create_temporary_view(name, rejected)


def statements_of(output: Path) -> dict[str, str]:
    """The statements of the SQL file beside this one, by the comment above each."""
    text = Path(__file__).with_suffix(".sql").read_text()
    filled = Template(text).substitute(output=output.resolve().as_uri(), rolling=ROLLING)
    return named_statements(filled)


def count_lines(path: Path) -> int:
    """Lines of a file, or of all finished files below a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return sum(1 for _ in file)
    visible = (f for f in path.rglob("*") if f.is_file() and not f.name.startswith((".", "_")))
    return sum(map(count_lines, visible))


if __name__ == "__main__":
    # What lies in __main__ is pickled into the workers with all it refers to (T6); they import
    # this file by its name instead.
    from bench.record_at_a_time import main as imported_main

    sys.exit(imported_main())
