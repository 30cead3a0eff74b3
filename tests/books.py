"""The books of a run on files, while it goes on and when it has ended."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from flink_jobs.ledger.audit import audit_folder
from flink_jobs.ledger.recount import ledger_rows
from flink_jobs.run_folder.folder import OutputFolder
from operators.rules.ledger import Counts, read_book
from tests.oracle import Expected


def books_so_far(output: Path) -> Counts:
    """The committed books of a run that is going on: they balance whenever somebody looks."""
    book = read_book(ledger_rows(OutputFolder(output)))
    off = book.imbalances()
    assert not off, off
    return book.total


def all_waits(output: Path) -> Counts:
    """The books so far, of a target that has taken nothing: what was accepted is pending."""
    counts = books_so_far(output)
    assert counts.processed == 0, counts
    assert counts.pending > 0, counts
    return counts


def all_is_booked(output: Path, expected: Expected) -> Counts:
    """The books of a run that has ended: they balance, the outputs counted again say the same.

    What intake turns away is as expected; dead letters of delivery come on top.
    """
    audit = audit_folder(output)
    assert audit.balanced, audit.problems
    counts = audit.book.total
    assert counts.received == expected.received, counts
    assert counts.quarantined == Counter(expected.quarantined.values()), counts
    assert counts.dead_lettered.items() >= Counter(expected.dead.values()).items(), counts
    assert (counts.pending, counts.duplicate, counts.fallback) == (0, 0, 0), counts
    return counts
