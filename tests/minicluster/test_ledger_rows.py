"""The rows of the ledger, from lines of counts, on the mini-cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from operators.batches.origin import MAX_SPANS
from operators.bridge.steps import steps as bridge
from operators.sinks.files import FileSinks
from tests.minicluster.steps import AT_MS, Play
from tests.minicluster.test_bridge import gate, numbers, topic
from tests.oracle import rows

pytestmark = pytest.mark.minicluster


def books(env: Any, folder: Path, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that lines of counts become; they are one element, so no checkpoint divides them."""
    block = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    counts = numbers(env, 1).process(Play([block]), bridge.BYTES)
    sinks = FileSinks(folder, 10**9, 10**6, 1000, 10**6, 100)
    sinks.add("ledger", bridge.books(counts, uid="books"), bridge.LINE, parallelism=1)
    env.execute("books")
    return rows(folder / "ledger")


def counted(partition: int, first: int, last: int, minute: int = 0, **more: Any) -> dict[str, Any]:
    """What intake says of a batch."""
    return {
        "minute_ms": AT_MS - AT_MS % 60_000 + minute * 60_000, "source_topic": 't"1"',
        "source_partition": partition, "received": last - first + 1,
        "first_offset": first, "last_offset": last, **more,
    }  # fmt: skip


def test_a_partition_and_minute_has_one_row(committing: Any, tmp_path: Path) -> None:
    dead = {"dead_lettered": {"a": 1, "b": 1}, "quarantined": {}}
    windows = {"processed": 15, "windowed": 13, "late": 2}
    place = {"source_topic": 't"1"', "source_partition": 0}
    found = books(
        committing,
        tmp_path,
        [
            counted(0, 0, 9, **dead),
            counted(1, 5, 5),
            counted(0, 10, 19, dead_lettered={"b": 3}, quarantined={"c": 4}),
            {**place, "minute_ms": AT_MS - AT_MS % 60_000, **windows},
            counted(0, 20, 20, minute=1),
        ],
    )
    none = dict.fromkeys(("duplicate", "pending", "fallback", "windowed", "late", "processed"), 0)
    nothing = {"dead_lettered": {}, "quarantined": {}}
    first, second = "2026-01-01T00:01:00.000Z", "2026-01-01T00:02:00.000Z"
    assert sorted(found, key=lambda row: row["first_offset"]) == [
        {
            "minute": first, **place, **none, **windows, "received": 20,
            "dead_lettered": {"a": 1, "b": 4}, "quarantined": {"c": 4},
            "first_offset": 0, "last_offset": 19,
        },
        {
            "minute": first, **place, "source_partition": 1, **none, **nothing, "received": 1,
            "first_offset": 5, "last_offset": 5,
        },
        {
            "minute": second, **place, **none, **nothing, "received": 1,
            "first_offset": 20, "last_offset": 20,
        },
    ]  # fmt: skip


def test_a_row_names_the_spans_between_gaps_and_the_pieces_that_ended(
    committing: Any, tmp_path: Path
) -> None:
    lines = [
        counted(0, 0, 9),
        counted(0, 11, 19, received=5, spans=[[11, 13, 3], [18, 19, 2]]),
        counted(0, 20, 29),
        counted(1, 0, 9, splits=[0]),
        counted(1, 70, 90, splits=[]),
        {**counted(1, 0, 0), "received": 0, "splits": [3]},
    ]
    one, planned = books(committing, tmp_path, lines)
    assert one["spans"] == [[0, 9, 10], [11, 13, 3], [18, 29, 12]]
    assert (planned["splits"], "spans" in planned) == ([0, 3], False)


def test_spans_are_few_and_lose_no_record(committing: Any, tmp_path: Path) -> None:
    """A topic of one-record transactions: a marker behind every record."""
    (row,) = books(committing, tmp_path, [counted(0, 2 * i, 2 * i) for i in range(1000)])
    assert len(row["spans"]) <= MAX_SPANS
    assert sum(records for _, _, records in row["spans"]) == row["received"] == 1000
    assert all(last - first + 1 == 2 * n - 1 for first, last, n in row["spans"])
    assert (row["first_offset"], row["last_offset"]) == (0, 1998)


def test_books_are_closed_before_the_barrier_and_not_before(
    committing: Any, tmp_path: Path
) -> None:
    """Rows come with checkpoints: fewer than batches, and more than one where there are several."""
    blocks = [b'{"minute_ms":0,"source_topic":"t","source_partition":0,"received":1}\n'] * 40
    counts = numbers(committing, len(blocks)).process(Play(blocks, pause_ms=50), bridge.BYTES)
    sinks = FileSinks(tmp_path, 10**9, 10**6, 1000, 10**6, 100)
    sinks.add("ledger", bridge.books(counts, uid="books"), bridge.LINE, parallelism=1)
    committing.execute("books")
    found = rows(tmp_path / "ledger")
    assert sum(row["received"] for row in found) == 40
    assert 1 < len(found) < 20


def test_the_gate_counts_by_partition(committing: Any, tmp_path: Path) -> None:
    """Of the second batch, dealt out to two partitions, 899 and 909 are late, of one each."""
    both = [*topic("t", 1009), *topic("u", 1009)]
    script = [(both, [1009, 1009], 0), (both, [899, 910, 911, 909, 912], 0)]
    on_time, late = gate(committing, tmp_path, script, [])
    assert (on_time, late) == ([910, 911, 912, 1009, 1009], [899, 909])
    found: Counter[tuple[str, str]] = Counter()
    for row in rows(tmp_path / "counts"):
        assert row["minute"] == "2026-01-01T00:01:00.000Z"
        for name in ("processed", "windowed", "late"):
            found[row["source_topic"], name] += row[name]
    assert found == {
        ("t", "processed"): 4, ("t", "windowed"): 3, ("t", "late"): 1,
        ("u", "processed"): 3, ("u", "windowed"): 2, ("u", "late"): 1,
    }  # fmt: skip
