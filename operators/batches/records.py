"""Records as they came: what a source hands to intake, whatever kind of source it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from operators.batches.origin import Origin
from operators.bridge.wire import SplitMark, from_bytes
from operators.rules.envelope import Source
from operators.rules.splits import Lines

#: Windows and the border are best served with large batches, the worker's memory with small ones:
#: a batch is judged in pieces of so many records and bytes, and handed on as a whole.
PIECE_RECORDS: Final = 8192
PIECE_BYTES: Final = 1_050_000


class Oddity(NamedTuple):
    """What the source has already found about a record.

    Attributes:
        payload_bytes: full length, where the source has cut the payload.
        checksum: md5 of all of it, hex, where the source has cut it.
        fault: why the source could not read the record.
    """

    payload_bytes: int | None = None
    checksum: str | None = None
    fault: str | None = None


NOTHING_ODD: Final = Oddity()


@dataclass(frozen=True)
class Records:
    """A batch of records.

    Attributes:
        origin: where they come from.
        payloads: by row; a tombstone is empty.
        odd: rows that the source has something to say about.
        is_bounded: whether the source has cut those that are too long, so that `odd` has them.
        batch: the rows of `RECORDS` that they are, if they came so: it has their keys and times.
    """

    origin: Origin
    payloads: list[bytes]
    odd: Mapping[int, Oddity] = field(default_factory=dict)
    is_bounded: bool = False
    batch: pa.RecordBatch | None = None

    @classmethod
    def of_batch(cls, batch: pa.RecordBatch, *, is_bounded: bool = False) -> Records:
        """Rows of `RECORDS`."""
        columns = [batch.column(name) for name in Oddity._fields]
        rows = np.unique(np.concatenate([np.flatnonzero(c.is_valid()) for c in columns]))
        odd = {row: Oddity(*(c[row].as_py() for c in columns)) for row in rows.tolist()}
        payloads = values_of(batch.column("payload"))
        return cls(Origin.of_batch(batch), payloads, odd, is_bounded=is_bounded, batch=batch)

    @classmethod
    def of_lines(cls, lines: Lines, mark: SplitMark) -> Records:
        """Lines of a file."""
        odd = {i: Oddity(line.size, line.checksum) for i, line in lines.oversized.items()}
        return cls(Origin.of_split(mark, lines.offsets), lines.payloads, odd, is_bounded=True)

    @classmethod
    def unreadable(cls, offset: int, payload: bytes, fault: str, mark: SplitMark) -> Records:
        """One record that stands for what could not be read of a file from here on."""
        return cls(
            Origin.of_split(mark, [offset]), [payload], {0: Oddity(fault=fault)}, is_bounded=True
        )

    def __len__(self) -> int:
        """How many."""
        return len(self.payloads)

    def source(self, row: int) -> Source:
        """Where a record came from, for its envelope."""
        topic, partition = self.origin.partition_of(row)
        return Source(
            topic=topic,
            partition=partition,
            offset=self.origin.offsets[row],
            timestamp_ms=self.timestamp_ms(row),
            key=self.key(row),
        )

    def key(self, row: int) -> bytes | None:
        """The key of a record, if its source has keys."""
        key: bytes | None = self._value("key", row)
        return key

    def headers(self, row: int) -> dict[str, str]:
        """The headers of a record as metadata of its envelope, if its source has them."""
        return {
            f"header.{name}": (value or b"").decode("utf-8", "backslashreplace")
            for name, value in self._value("headers", row) or ()
        }

    def timestamp_ms(self, row: int) -> int | None:
        """The time that the source gave a record, if any."""
        timestamp_ms: int | None = self._value("source_timestamp", row)
        return timestamp_ms

    def _value(self, name: str, row: int) -> Any:
        column = self._extras.get(name)
        return None if column is None else column[row].as_py()

    @cached_property
    def _extras(self) -> dict[str, pa.Array]:
        """Those of key, time and headers that have a value in any row."""
        if self.batch is None:
            return {}
        columns = {name: self.batch.column(name) for name in ("key", "source_timestamp", "headers")}
        return {name: c for name, c in columns.items() if c.null_count < len(c)}


class Reader(Protocol):
    """Turns an element of a source's stream into records, in the worker that intake runs in."""

    def open(self) -> None:
        """Get ready, once a worker."""

    def read(self, element: Any) -> Iterable[Records]:
        """The element's records."""


def values_of(column: pa.Array) -> list[bytes]:
    """A column of bytes; null is empty. Arrow's own way makes an object of its for each first."""
    _, ends, data = column.buffers()
    if not len(column) or data is None:  # none, or all of them are empty
        return [b""] * len(column)
    bounds = np.frombuffer(ends, np.int32, len(column) + 1, column.offset * 4)
    first = int(bounds[0])
    at = (bounds - first).tolist()
    whole = data.slice(first, at[-1]).to_pybytes()
    values = [whole[begin:end] for begin, end in pairwise(at)]
    if column.null_count:
        for row in np.flatnonzero(column.is_null()):
            values[row] = b""
    return values


class BatchReader:
    """Elements that are batches of `RECORDS` already, as bytes.

    Attributes:
        is_bounded: whether their payloads have been cut at the same limit that intake goes by.
    """

    def __init__(self, *, is_bounded: bool = False) -> None:
        """Take what is known of the batches."""
        self.is_bounded = is_bounded

    def open(self) -> None:
        """Nothing to get ready."""

    def read(self, element: bytes) -> Iterable[Records]:
        """The batch, a piece at a time."""
        batch = from_bytes(element)
        for first, end in pairwise(_cuts(batch)):
            piece = batch.slice(first, end - first)
            yield Records.of_batch(piece, is_bounded=self.is_bounded)


def _cuts(batch: pa.RecordBatch) -> Iterator[int]:
    """Where a batch is cut: a piece ends with its last record or byte, and has one record at least.

    Yields:
        The first row of each piece, and the end of the last one.
    """
    rows = batch.num_rows
    if not rows:
        return
    payload = batch.column("payload")
    ends = np.frombuffer(payload.buffers()[1], np.int32, rows + 1, payload.offset * 4)
    at = 0
    while at < rows:
        yield at
        fits = int(np.searchsorted(ends, ends[at] + PIECE_BYTES, "right")) - 1
        at = min(max(fits, at + 1), at + PIECE_RECORDS, rows)
    yield rows
