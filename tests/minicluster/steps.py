"""Small Python steps for the tests of the Java operators; workers import them by name."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from pyflink.common import Row
from pyflink.datastream import ProcessFunction

from operators.batches import Progress, from_bytes, pack_progress, to_bytes

TIMED = pa.schema([("line", pa.binary()), ("time", pa.timestamp("ms"))])


class Describe(ProcessFunction):  # type: ignore[misc]
    """A batch to one line: when it came (ms), how many rows, and the rows' first column."""

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterable[str]:
        batch = from_bytes(value)
        payloads = [p.decode() for p in batch.column(0).to_pylist()]
        yield f"{int(time.time() * 1000)} {batch.num_rows} {' '.join(payloads)}"


class Script(ProcessFunction):  # type: ignore[misc]
    """Element i of a script to its progress and batch; a pause in ms before it may be given."""

    def __init__(self, script: list[tuple[list[Progress], list[int], int]]) -> None:
        self._script = script

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[Row]:
        progress, times, pause_ms = self._script[value]
        time.sleep(pause_ms / 1000)
        batch = pa.record_batch(
            [
                pa.array([b"%d\n" % t for t in times], pa.binary()),
                pa.array(times, pa.int64()).cast(pa.timestamp("ms")),
            ],
            schema=TIMED,
        )
        yield Row(progress=pack_progress(progress), batch=to_bytes(batch))


class Origins(ProcessFunction):  # type: ignore[misc]
    """Where a worker gets our packages from."""

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[str]:
        import flink_jobs
        import operators
        import sql
        import udfs

        for package in (flink_jobs, operators, sql, udfs):
            yield str(package.__file__)
