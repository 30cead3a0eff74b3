"""Records as every source hands them over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from operators.batches.records import PIECE_BYTES, PIECE_RECORDS, BatchReader, Oddity, Records
from operators.bridge.wire import RECORDS, SplitMark, to_bytes
from operators.rules.splits import Lines, Oversized

MARK = SplitMark("/in/a", 3, last=False)


def test_lines_become_records_of_their_file() -> None:
    records = Records.of_lines(Lines([0, 5], [b"abcd", b""]), MARK)
    assert records.origin.mark == MARK
    assert records.payloads == [b"abcd", b""]
    assert records.origin.offsets == [0, 5]
    assert [records.origin.partition_of(row) for row in (0, 1)] == [("/in/a", 0)] * 2
    assert records.odd == {}
    assert (records.key(0), records.timestamp_ms(0)) == (None, None)


def test_an_oversized_line_keeps_its_full_length_and_checksum() -> None:
    lines = Lines([0, 3, 900], [b"a", b"bcd", b"e"], {1: Oversized(890, "c" * 32)})
    assert Records.of_lines(lines, MARK).odd == {1: Oddity(890, "c" * 32)}


def test_what_cannot_be_read_is_one_record_with_its_reason_and_place() -> None:
    records = Records.unreadable(7, b"half", "cut", MARK)
    assert (records.origin.offsets, records.payloads) == ([7], [b"half"])
    assert records.odd == {0: Oddity(fault="cut")}


def test_a_batch_of_rows_becomes_the_records_that_it_holds() -> None:
    place = {"source_topic": "/in/a", "source_partition": 0}
    rows: list[dict[str, Any]] = [
        {
            **place,
            "source_offset": 4,
            "payload": b"x",
            "key": b"k",
            "source_timestamp": 9,
            "headers": [("trace", b"t"), ("none", None), ("odd", b"\xff")],
        },
        {**place, "source_offset": 5, "payload": None},
        {**place, "source_offset": 6, "payload": b"y", "payload_bytes": 8, "checksum": "s"},
        {**place, "source_offset": 8, "payload": b"", "fault": "torn"},
    ]
    (records,) = BatchReader().read(to_bytes(pa.RecordBatch.from_pylist(rows, RECORDS)))
    assert records.origin.mark is None
    assert records.origin.partitions == [("/in/a", 0)]
    assert records.origin.offsets == [4, 5, 6, 8]
    assert records.payloads == [b"x", b"", b"y", b""]
    assert records.odd == {2: Oddity(8, "s"), 3: Oddity(fault="torn")}
    assert [records.key(row) for row in (0, 1)] == [b"k", None]
    assert records.headers(0) == {"header.trace": "t", "header.none": "", "header.odd": "\\xff"}
    assert records.headers(1) == {}
    assert [records.timestamp_ms(row) for row in (0, 1)] == [9, None]


def test_rows_keep_their_partition_however_they_are_mixed() -> None:
    places = [("b", 1), ("b", 1), ("a", 2), ("b", 1), ("b", 0), ("a", 2), ("a", 2)]
    rows = [
        {
            "source_topic": topic,
            "source_partition": partition,
            "source_offset": offset,
            "payload": None if offset == 4 else b"x" * offset,
        }
        for offset, (topic, partition) in enumerate(places)
    ]
    (records,) = BatchReader().read(to_bytes(pa.RecordBatch.from_pylist(rows, RECORDS)))
    assert [records.origin.partition_of(row) for row in range(len(rows))] == places
    assert records.payloads == [b"", b"x", b"xx", b"xxx", b"", b"x" * 5, b"x" * 6]
    topics, partitions, offsets = records.origin.coordinates(np.array([1, 2, 4, 6]))
    assert list(zip(topics, partitions, offsets, strict=True)) == [
        ("b", 1, 1),
        ("a", 2, 2),
        ("b", 0, 4),
        ("a", 2, 6),
    ]


def test_a_large_batch_comes_in_pieces_that_hold_each_record_once() -> None:
    n = PIECE_RECORDS + 10
    rows: list[dict[str, Any]] = [
        {
            "source_topic": "ab"[offset % 2],
            "source_partition": offset % 3,
            "source_offset": offset,
            "source_timestamp": None if offset % 4 == 0 else offset,
            "payload": None if offset % 5 == 0 else b"%d" % offset,
            "key": None if offset % 3 == 0 else b"k%d" % offset,
            "headers": None if offset % 7 == 0 else [("n", b"%d" % offset)],
            "fault": "torn" if offset == n - 1 else None,
        }
        for offset in range(n)
    ]
    first, last = BatchReader().read(to_bytes(pa.RecordBatch.from_pylist(rows, RECORDS)))
    assert (len(first), len(last)) == (PIECE_RECORDS, 10)
    assert first.origin.offsets + last.origin.offsets == list(range(n))
    assert first.payloads + last.payloads == [row["payload"] or b"" for row in rows]
    for at, row in enumerate(rows[PIECE_RECORDS:]):
        assert last.origin.partition_of(at) == (row["source_topic"], row["source_partition"])
        assert last.key(at) == row["key"]
        assert last.timestamp_ms(at) == row["source_timestamp"]
        assert last.headers(at) == {f"header.{k}": v.decode() for k, v in row["headers"] or []}
    assert (first.odd, last.odd) == ({}, {9: Oddity(fault="torn")})


def test_a_piece_ends_before_it_has_too_many_bytes() -> None:
    sizes = [PIECE_BYTES - 10, 10, 1, 0, PIECE_BYTES, PIECE_BYTES + 1, 5]
    rows = [
        {"source_topic": "t", "source_partition": 0, "source_offset": i, "payload": b"x" * size}
        for i, size in enumerate(sizes)
    ]
    pieces = BatchReader().read(to_bytes(pa.RecordBatch.from_pylist(rows, RECORDS)))
    assert [piece.origin.offsets for piece in pieces] == [[0, 1], [2, 3], [4], [5], [6]]


def test_an_empty_batch_has_no_piece() -> None:
    assert not list(BatchReader().read(to_bytes(pa.RecordBatch.from_pylist([], RECORDS))))
