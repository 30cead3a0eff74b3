"""Offsets of a source partition: what was counted, what was left out, what was counted twice.

A row of the ledger says which offsets it has counted as spans. In an unbroken span each offset is
a record; in another one some are not: the row says how many are, not which. Offsets that are in no
span are a gap. A gap is nothing wrong by itself: the markers of transactions, aborted records and
what compaction has removed take offsets too. Only the topic can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """Offsets first to last, of which `records` were records."""

    first: int
    last: int
    records: int

    @property
    def size(self) -> int:
        """How many offsets it reaches over."""
        return self.last - self.first + 1

    @property
    def unbroken(self) -> bool:
        """Whether each of them was a record."""
        return self.records == self.size


class Gap(NamedTuple):
    """Offsets first to last, of which only `counted` are in the ledger."""

    first: int
    last: int
    counted: int

    @property
    def missing(self) -> int:
        """How many of them the ledger does not have."""
        return self.last - self.first + 1 - self.counted


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same offsets in as few spans as possible, in order.

    Unbroken spans that touch or overlap become one; what is in both counts once.
    """
    joined: list[Span] = []
    for span in sorted(spans):
        before = joined[-1] if joined else None
        if before and before.unbroken and span.unbroken and span.first <= before.last + 1:
            last = max(before.last, span.last)
            joined[-1] = Span(before.first, last, last - before.first + 1)
        else:
            joined.append(span)
    return joined


def repeated(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """The ranges of offsets, first to last, that more than one span reaches over."""
    found: list[tuple[int, int]] = []
    reach: int | None = None
    for span in sorted(spans):
        if reach is not None and span.first <= reach:
            last = min(reach, span.last)
            if found and span.first <= found[-1][1] + 1:
                found[-1] = found[-1][0], max(found[-1][1], last)
            else:
                found.append((span.first, last))
        reach = span.last if reach is None else max(reach, span.last)
    return found


def gaps(spans: Iterable[Span], begin: int | None = None) -> list[Gap]:
    """The offsets up to the last span that are not counted, in order.

    Args:
        spans: what was counted.
        begin: where the first span should have begun, at the latest; None when nobody knows.
    """
    found: list[Gap] = []
    joined = merged(spans)
    if not joined:
        return found
    reach = joined[0].first if begin is None else min(begin, joined[0].first)
    for span in joined:
        if span.first > reach:
            found.append(Gap(reach, span.first - 1, 0))
        if not span.unbroken:
            found.append(Gap(span.first, span.last, span.records))
        reach = max(reach, span.last + 1)
    return found


class Finding(NamedTuple):
    """What the topic says of a gap.

    Attributes:
        gap: the offsets.
        there: how many records the topic has there now; None where it cannot be asked any more,
            since it has deleted them.
    """

    gap: Gap
    there: int | None

    @property
    def uncounted(self) -> int:
        """Records that are there, and that the ledger does not have: at least so many."""
        return max(0, (self.there or 0) - self.gap.counted)


def split_at(gap: Gap, begin: int) -> tuple[Gap | None, Gap | None]:
    """The part of a gap before an offset, and the rest; a gap with records in it is not divided.

    One that has records in it, and begins before the offset, is all before it.
    """
    if gap.first >= begin:
        return None, gap
    if gap.last < begin or gap.counted:
        return gap, None
    return Gap(gap.first, begin - 1, 0), Gap(begin, gap.last, 0)
