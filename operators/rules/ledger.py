"""The books: each record that came in is somewhere, and only once.

    received  = processed + dead-lettered + quarantined + duplicate + pending + fallback
    processed = windowed + late

The stream counts as it runs; afterwards the output files are counted again on their own. Both are
`Counts`, and what is off is said in sentences with both numbers. The stream's own rows are one a
source partition, minute of processing and checkpoint; `Book` has them added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final

import msgspec

from operators.rules.offsets import Span

#: Form of the stream's own rows: those of another one cannot be added to them. A number that is
#: absent reads as 0, so one more is no other form.
ROWS_VERSION: Final = 2


class LedgerError(ValueError):
    """A row of the ledger that cannot be read. The message is one line that names it."""


@dataclass(frozen=True)
class Counts:
    """What became of the records.

    Attributes:
        received: Records that came in.
        processed: Accepted and written.
        dead_lettered: By error type.
        quarantined: By reason.
        duplicate: Seen before and left out.
        pending: Not decided yet.
        windowed: Processed, and counted in a window.
        late: Processed after their window had closed.
        fallback: Not delivered within their budget, and written to the fallback store.
    """

    received: int = 0
    processed: int = 0
    dead_lettered: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    duplicate: int = 0
    pending: int = 0
    windowed: int = 0
    late: int = 0
    fallback: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add two books line by line."""
        return Counts(
            received=self.received + other.received,
            processed=self.processed + other.processed,
            dead_lettered=_sum(self.dead_lettered, other.dead_lettered),
            quarantined=_sum(self.quarantined, other.quarantined),
            duplicate=self.duplicate + other.duplicate,
            pending=self.pending + other.pending,
            windowed=self.windowed + other.windowed,
            late=self.late + other.late,
            fallback=self.fallback + other.fallback,
        )

    @property
    def accounted(self) -> int:
        """Records that are somewhere: the right side of the first equation."""
        rejected = sum(self.dead_lettered.values()) + sum(self.quarantined.values())
        return self.processed + rejected + self.duplicate + self.pending + self.fallback


def imbalances(counts: Counts) -> list[str]:
    """Say where the books do not balance.

    Returns:
        A sentence with its numbers for each equation that does not hold; empty when both do.
    """
    found = []
    if counts.received != counts.accounted:
        dead, quarantined = sum(counts.dead_lettered.values()), sum(counts.quarantined.values())
        fallback = f" + fallback {counts.fallback}" if counts.fallback else ""
        found.append(
            f"received {counts.received}, but processed {counts.processed} + dead-lettered {dead}"
            f" + quarantined {quarantined} + duplicate {counts.duplicate}"
            f" + pending {counts.pending}{fallback} = {counts.accounted}"
            f" ({_off(counts.accounted - counts.received)})"
        )
    in_windows = counts.windowed + counts.late
    if counts.processed != in_windows:
        found.append(
            f"processed {counts.processed}, but windowed {counts.windowed} + late {counts.late}"
            f" = {in_windows} ({_off(in_windows - counts.processed)})"
        )
    return found


def differences(streamed: Counts, recounted: Counts) -> list[str]:
    """Compare what the stream counted with what the output files hold.

    Files cannot tell what was received, was a duplicate or is pending: so what was received is
    compared with the sum of what the files hold and of the stream's own duplicates and pending.

    Args:
        streamed: The stream's count.
        recounted: The files' count; its `received`, `duplicate` and `pending` are not looked at.

    Returns:
        A sentence with both numbers for each line that differs; empty when none does.
    """
    in_files = recounted.accounted - recounted.duplicate - recounted.pending
    lines = [
        ("received", streamed.received, in_files + streamed.duplicate + streamed.pending),
        ("processed", streamed.processed, recounted.processed),
        *_pairs("dead_lettered", streamed.dead_lettered, recounted.dead_lettered),
        *_pairs("quarantined", streamed.quarantined, recounted.quarantined),
        ("windowed", streamed.windowed, recounted.windowed),
        ("late", streamed.late, recounted.late),
        ("fallback", streamed.fallback, recounted.fallback),
    ]
    return [
        f"{name}: the stream counted {counted}, the output files hold {held}"
        f" ({_off(held - counted)})"
        for name, counted, held in lines
        if counted != held
    ]


Partition = tuple[str, int]


@dataclass
class Book:
    """All rows of the ledger, added up.

    Attributes:
        by_partition: by source topic and partition.
        by_minute: by minute of processing, as the rows write it.
        spans: the offsets that the rows of a partition have counted; none of a planned partition,
            whose offsets are bytes.
    """

    by_partition: dict[Partition, Counts] = field(default_factory=dict)
    by_minute: dict[str, Counts] = field(default_factory=dict)
    spans: dict[Partition, list[Span]] = field(default_factory=dict)

    @property
    def total(self) -> Counts:
        """Of all partitions."""
        return sum(self.by_partition.values(), Counts())

    def imbalances(self) -> list[str]:
        """A sentence for each partition and equation that does not hold."""
        return [
            f"{topic}/{number}: {sentence}"
            for (topic, number), counts in sorted(self.by_partition.items())
            for sentence in imbalances(counts)
        ]

    def first_minute(self) -> str:
        """The oldest minute that there is a row of; "" when there is none."""
        return min(self.by_minute, default="")

    def last_minute(self) -> str:
        """The newest one."""
        return max(self.by_minute, default="")


class _Row(msgspec.Struct):
    """A row as written."""

    minute: str = ""
    source_topic: str = ""
    source_partition: int = 0
    received: int = 0
    processed: int = 0
    dead_lettered: dict[str, int] = {}
    quarantined: dict[str, int] = {}
    duplicate: int = 0
    pending: int = 0
    windowed: int = 0
    late: int = 0
    fallback: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    spans: list[Span] | None = None
    splits: list[int] | None = None


_decode_row = msgspec.json.Decoder(_Row).decode
_COUNTS: Final = tuple(each.name for each in fields(Counts))


def from_rows(rows: Iterable[bytes]) -> Counts:
    """Add up the rows that the stream wrote, see `read_book`."""
    return read_book(rows).total


def read_book(rows: Iterable[bytes], after: str = "") -> Book:
    """Add up the rows that the stream wrote.

    Args:
        rows: JSON objects, e.g. `{"minute": "2026-01-01T00:05:00.000Z", "source_topic": "t",
            "source_partition": 0, "received": 3, "processed": 2, "dead_lettered":
            {"schema_error": 1}, "windowed": 2, "first_offset": 0, "last_offset": 2}`. A line that
            is absent counts 0; lines of other names and empty rows are ignored.
        after: leave the rows of this minute and those before it out; "" for none.

    Raises:
        LedgerError: A row is not such an object; the message says which, counted from 1.
    """
    book = Book()
    for number, line in enumerate(rows, 1):
        if line.strip():
            row = _read_row(number, line)
            if row.minute > after or not after:
                _add_row(book, row)
    return book


def _read_row(number: int, line: bytes) -> _Row:
    try:
        return _decode_row(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LedgerError(f"ledger row {number} cannot be read: {error}") from error


def _add_row(book: Book, row: _Row) -> None:
    counts = Counts(**{name: getattr(row, name) for name in _COUNTS})
    place = row.source_topic, row.source_partition
    book.by_partition[place] = book.by_partition.get(place, Counts()) + counts
    book.by_minute[row.minute] = book.by_minute.get(row.minute, Counts()) + counts
    if row.splits is None and row.first_offset is not None and row.last_offset is not None:
        # Without spans there is no gap.
        spans = row.spans or [Span(row.first_offset, row.last_offset, row.received)]
        book.spans.setdefault(place, []).extend(spans)


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Add counts by name; a name stays even at 0."""
    total = Counter(one)
    total.update(other)
    return dict(total)


def _pairs(
    group: str, counted: Mapping[str, int], held: Mapping[str, int]
) -> list[tuple[str, int, int]]:
    """Both numbers of each name that either side knows."""
    names = sorted({*counted, *held})
    return [(f"{group}.{name}", counted.get(name, 0), held.get(name, 0)) for name in names]


def _off(difference: int) -> str:
    """By how much a line is off."""
    return f"{abs(difference)} too {'many' if difference > 0 else 'few'}"
