"""Accepted events in columns: what the windows compute on, and the lines that are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.rules.contract import Column, Contract
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS

COORDINATES: Final = ("source_topic", "source_partition", "source_offset")


@dataclass(frozen=True)
class Columns:
    """Decoded events in columns, as Python values and as Arrow.

    Attributes:
        contract: theirs.
        values: column name to values, as the contract decoded them.
        arrow: the same as Arrow; times in ms UTC.
        misfits: rows with a value that its column cannot hold, which is null there: an integer
            beyond 64 bits, or what the contract's own code has set against its types.
    """

    contract: Contract
    values: dict[str, list[Any]]
    arrow: dict[str, pa.Array]
    misfits: frozenset[int]

    def suspects(self, latest_ms: int) -> set[int]:
        """Rows that decoded but need the second look: not finite, out of range, in the future."""
        rows = set(self.misfits)
        for column in self.contract.columns:
            array = self.arrow[column.name]
            if column.kind == "float":
                rows.update(_where(~np.isfinite(_filled(array))))
            elif column.kind == "datetime":
                limit = latest_ms if column.name == self.contract.event_time else MAX_EPOCH_MS
                ms = _filled(array.cast(pa.int64()))
                rows.update(_where((ms < MIN_EPOCH_MS) | (ms > limit)))
        return rows

    def event_ms(self) -> npt.NDArray[np.int64]:
        """The events' times in ms."""
        times: npt.NDArray[np.int64] = (
            self.arrow[self.contract.event_time].cast(pa.int64()).to_numpy()
        )
        return times

    def take(self, rows: list[int]) -> Columns:
        """The same columns with only these rows."""
        index = pa.array(rows, pa.int64())
        return Columns(
            self.contract,
            {name: [values[row] for row in rows] for name, values in self.values.items()},
            {name: array.take(index) for name, array in self.arrow.items()},
            frozenset(),
        )


class EventColumns:
    """Turns events of one contract into Arrow columns and JSON lines, whole batches at a time."""

    def __init__(self, contract: Contract) -> None:
        """Derive the line from the contract."""
        self.contract = contract
        names = [*(column.name for column in contract.columns), *COORDINATES]
        fields = {f"f{i}": name for i, name in enumerate(names)}
        self._line = msgspec.defstruct(
            "ProcessedEvent", [(field, Any) for field in fields], rename=fields, gc=False
        )
        self._encode_lines = msgspec.json.Encoder().encode_lines

    def columns(self, events: Sequence[Any]) -> Columns:
        """The events' values in columns. Never raises: what does not fit is null and a suspect."""
        values = {
            column.name: list(map(attrgetter(column.attribute), events))
            for column in self.contract.columns
        }
        misfits: set[int] = set()
        arrow = {
            column.name: _arrow(column, values[column.name], misfits)
            for column in self.contract.columns
        }
        return Columns(self.contract, values, arrow, frozenset(misfits))

    def lines(
        self,
        columns: Columns,
        topics: list[str],
        partitions: list[int],
        offsets: list[int],
    ) -> bytes:
        """The events and where they came from as JSON lines, each ended by a newline."""
        fields = [
            iso_utc_ms_column(columns.arrow[c.name])
            if c.kind == "datetime"
            else columns.values[c.name]
            for c in self.contract.columns
        ]
        return self._encode_lines(list(map(self._line, *fields, topics, partitions, offsets)))

    def partials(self, columns: Columns, window_ms: int) -> pa.RecordBatch:
        """The events added up by key and tumbling window: rows of `partials_schema`.

        What the windows add up is then some rows a key and batch, not one an event. A partial's
        time is its latest event's, so it falls into the same window as all of them.
        """
        contract, schema = self.contract, partials_schema(self.contract)
        ms = columns.event_ms()
        total = schema.field("total_value").type
        value = (
            columns.arrow[contract.value].cast(total)
            if contract.value
            else pa.nulls(len(ms), total)
        )
        table = pa.table(
            {
                "key": columns.arrow[contract.key],
                "window": np.floor_divide(ms, window_ms),
                "time": ms,
                "value": value,
            }
        )
        sums = table.group_by(["key", "window"], use_threads=False).aggregate(
            [("time", "max"), ("value", "sum"), ("time", "count")]
        )
        arrays = [sums.column(name) for name in ("key", "time_max", "value_sum", "time_count")]
        cast = [a.combine_chunks().cast(t) for a, t in zip(arrays, schema.types, strict=True)]
        return pa.record_batch(cast, schema=schema)


def partials_schema(contract: Contract) -> pa.Schema:
    """Key, time of the latest event, total of the values (null without any), number of events."""
    is_int = contract.value is not None and contract.column(contract.value).kind == "int"
    return pa.schema(
        [
            ("event_key", pa.string()),
            ("event_time", pa.timestamp("ms")),
            # Sums of 64-bit integers need more than 64 bits.
            ("total_value", pa.decimal128(38, 0) if is_int else pa.float64()),
            ("event_count", pa.int64()),
        ]
    )


def _arrow(column: Column, values: list[Any], misfits: set[int]) -> pa.Array:
    """A column as Arrow; what does not fit is null and among the misfits."""
    try:
        array = _converted(column, values)
    except MemoryError:
        raise
    except Exception:  # whatever it is: find the values that it is about
        fits = [_fits(column, value) for value in values]
        kept = [value if fit else None for value, fit in zip(values, fits, strict=True)]
        array = _converted(column, kept)
        misfits.update(row for row, fit in enumerate(fits) if not fit)
    if array.null_count and not column.optional:
        misfits.update(_where(array.is_null().to_numpy(zero_copy_only=False)))
    return array


def _converted(column: Column, values: list[Any]) -> pa.Array:
    """Values as Arrow; times cut to milliseconds, those without offset read as UTC."""
    if column.kind != "datetime":
        return pa.array(values, column.arrow_type)
    micros = pa.array(values, pa.timestamp("us", "UTC")).cast(pa.int64())
    millis = np.floor_divide(_filled(micros), 1000)
    mask = micros.is_null().to_numpy(zero_copy_only=False) if micros.null_count else None
    return pa.array(millis, pa.int64(), mask=mask).cast(column.arrow_type)


def _fits(column: Column, value: Any) -> bool:
    try:
        _converted(column, [value])
    except MemoryError:
        raise
    except Exception:  # as above
        return False
    return True


def iso_utc_ms_column(times: pa.Array) -> list[str | None]:
    """Times (ms) as ISO-8601 UTC with milliseconds: `rules.times.iso_utc_ms` for a whole column."""
    millis = _filled(times.cast(pa.int64())).astype("datetime64[ms]")
    texts: list[str | None] = np.datetime_as_string(millis, unit="ms", timezone="UTC").tolist()
    if times.null_count:
        return [
            text if valid else None
            for text, valid in zip(texts, times.is_valid().to_pylist(), strict=True)
        ]
    return texts


def _filled(array: pa.Array) -> npt.NDArray[Any]:
    filled: npt.NDArray[Any] = (array.fill_null(0) if array.null_count else array).to_numpy()
    return filled


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]
