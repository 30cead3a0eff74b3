"""Small Python steps for the tests of the Java operators; workers import them by name."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from pyflink.common import Row
from pyflink.datastream import KeyedProcessFunction, ProcessFunction

from operators.bridge.wire import Progress, from_bytes, pack_lines, pack_progress, to_bytes

WINDOW_MS = 10
AT_MS = 1_767_225_661_234
PARTIALS = pa.schema(
    [
        ("event_key", pa.string()),
        ("event_time", pa.timestamp("ms")),
        ("total_value", pa.float64()),
        ("event_count", pa.int64()),
    ]
)

#: Rows as the Kafka source has them, of payloads.
AS_RECORDS = (
    "SELECT CAST({payload} AS BYTES), CAST(NULL AS BYTES), 't', 0, "
    "CAST(NULL AS MAP<STRING, BYTES>), CAST(0 AS BIGINT), CAST(NULL AS TIMESTAMP_LTZ(3)) "
    "FROM {table}"
)


class Describe(ProcessFunction):  # type: ignore[misc]
    """A batch to one line: its rows' first column."""

    def process_element(self, value: Any, ctx: ProcessFunction.Context) -> Iterable[str]:
        batch = from_bytes(value)
        yield " ".join(payload.decode() for payload in batch.column(0).to_pylist())


class Script(ProcessFunction):  # type: ignore[misc]
    """Element i of a script to a row of `bridge.ACCEPTED`: progress, event times, pause in ms.

    A line is its event's time; the events are added up by window as intake does it. Where there are
    several partitions in the progress the events are dealt out to them.
    """

    def __init__(self, script: list[tuple[list[Progress], list[int], int]]) -> None:
        self._script = script

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[Row]:
        progress, times, pause_ms = self._script[value]
        time.sleep(pause_ms / 1000)
        dealt = np.arange(len(times)) % len(progress)
        windows: dict[int, list[int]] = {}
        for time_ms in times:
            windows.setdefault(time_ms // WINDOW_MS, []).append(time_ms)
        partials = pa.record_batch(
            [
                pa.array(["u"] * len(windows), pa.string()),
                pa.array([max(w) for w in windows.values()], pa.int64()).cast(pa.timestamp("ms")),
                pa.array([1.0 * len(w) for w in windows.values()], pa.float64()),
                pa.array([len(w) for w in windows.values()], pa.int64()),
            ],
            schema=PARTIALS,
        )
        yield Row(
            lines=pack_lines(b"".join(b"%d\n" % t for t in times)),
            progress=pack_progress(progress, AT_MS, dealt if len(progress) > 1 else None),
            times=struct.pack(f">{len(times)}q", *times),
            partials=to_bytes(partials),
        )


class Play(ProcessFunction):  # type: ignore[misc]
    """Element i to the i-th of some bytes."""

    def __init__(self, blocks: list[bytes], pause_ms: int = 0) -> None:
        self._blocks = blocks
        self._pause_ms = pause_ms

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[bytes]:
        time.sleep(self._pause_ms / 1000)
        yield self._blocks[value]


class Origins(ProcessFunction):  # type: ignore[misc]
    """Where a worker gets our packages from."""

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[str]:
        import flink_jobs
        import operators
        import sql
        import udfs

        for package in (flink_jobs, operators, sql, udfs):
            yield str(package.__file__)


class Digests(ProcessFunction):  # type: ignore[misc]
    """Element i of a script to a row of `lanes.LANED`: lane's key, name, digests, pause before it.

    Of the name are made progress and events, which deduplication does not look at.
    """

    def __init__(self, script: list[tuple[int, bytes, list[bytes], int]]) -> None:
        self._script = script

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterable[Row]:
        lane, name, digests, pause_ms = self._script[value]
        time.sleep(pause_ms / 1000)
        yield Row(lane, Row(name, name + b" events", b"".join(digests)))


class Places(KeyedProcessFunction):  # type: ignore[misc]
    """What comes of those rows to text: lane's key, progress, events, places of duplicates."""

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterable[str]:
        places = struct.unpack(f">{len(value[2]) // 4}i", value[2])
        yield repr((ctx.get_current_key(), value[0], value[1], places))
