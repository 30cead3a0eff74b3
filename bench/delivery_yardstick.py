"""The yardsticks of delivery: each record handed to a no-op coroutine as plain PyFlink does it.

    python bench/delivery_yardstick.py --way async --input events.jsonl --output out

`--way async` is AsyncDataStream (its coroutine does nothing; results as they come). `--way state`
is what a retry needs: a KeyedProcessFunction that writes each record to keyed state, calls, and
takes it out again. Both decode and validate each line, and write it by the same file sink. There
are no windows, no envelopes and no books: they do less than Breakwater does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from pyflink.common import Encoder, Time, Types, WatermarkStrategy
from pyflink.datastream import (
    AsyncDataStream,
    AsyncFunction,
    DataStream,
    KeyedProcessFunction,
    RuntimeContext,
)
from pyflink.datastream.connectors.file_system import FileSink, FileSource, StreamFormat
from pyflink.datastream.state import MapStateDescriptor

from udfs.ecommerce import EcommerceEvent

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from bench.plain import environment

CAPACITY, CHECKPOINT_INTERVAL_MS = 1000, 5000
LANES = 16


def is_good(line: str) -> bool:
    try:
        msgspec.json.decode(line, type=EcommerceEvent)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


class Call(AsyncFunction):  # type: ignore[misc]
    async def async_invoke(self, value: str) -> list[str]:
        return [value]


class Kept(KeyedProcessFunction):  # type: ignore[misc]
    """Writes a record to the state, calls, and takes it out again: as a retry by hand does."""

    def open(self, runtime_context: RuntimeContext) -> None:
        descriptor = MapStateDescriptor("waiting", Types.LONG(), Types.STRING())
        self._waiting = runtime_context.get_map_state(descriptor)
        self._number = 0

    def process_element(self, value: str, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        self._number += 1
        self._waiting.put(self._number, value)
        # The call would be here.
        self._waiting.remove(self._number)
        yield value


def lane(line: str) -> int:
    return len(line) % LANES


def through_async(lines: DataStream) -> DataStream:
    call = AsyncDataStream.unordered_wait(lines, Call(), Time.seconds(10), CAPACITY, Types.STRING())
    return call


def through_state(lines: DataStream) -> DataStream:
    return lines.key_by(lane, Types.INT()).process(Kept(), Types.STRING())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--way", choices=["async", "state"], required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parallelism", type=int, default=2)
    call = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="breakwater-bench-"))
    options = {
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.execution-mode": "process",
    }
    env = environment(work, call.parallelism, CHECKPOINT_INTERVAL_MS, options)
    source = FileSource.for_record_stream_format(
        StreamFormat.text_line_format(), call.input.resolve().as_uri()
    ).build()
    lines = env.from_source(source, WatermarkStrategy.no_watermarks(), "lines")
    good = lines.rebalance().filter(is_good).map(lambda line: line, Types.STRING())
    delivered = through_async(good) if call.way == "async" else through_state(good)
    sink = FileSink.for_row_format(
        str((call.output / "delivered").resolve()), Encoder.simple_string_encoder()
    ).build()
    delivered.sink_to(sink)
    try:
        env.execute(f"delivery by {call.way}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
