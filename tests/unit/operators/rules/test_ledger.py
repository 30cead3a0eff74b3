"""The books: adding up, balancing, comparing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.ledger import (
    Counts,
    LedgerError,
    differences,
    from_rows,
    imbalances,
    read_book,
)
from operators.rules.offsets import Span

GOOD = Counts(
    received=20,
    processed=10,
    dead_lettered={"schema_error": 2, "invalid_price": 1},
    quarantined={"invalid_json": 3},
    duplicate=3,
    pending=1,
    windowed=8,
    late=2,
)
FILES = Counts(
    processed=10,
    dead_lettered={"invalid_price": 1, "schema_error": 2},
    quarantined={"invalid_json": 3},
    windowed=8,
    late=2,
)
NUMBERS = st.integers(0, 1000)
BY_NAME = st.dictionaries(st.sampled_from(["a", "b", "c"]), NUMBERS)
COUNTS = st.builds(
    Counts, NUMBERS, NUMBERS, BY_NAME, BY_NAME, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS
)


def changed(counts: Counts, **changes: object) -> Counts:
    return Counts(**{**vars(counts), **changes})


def test_books_that_balance_have_nothing_to_say() -> None:
    assert imbalances(GOOD) == []
    assert imbalances(Counts()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"received": 21},
        {"dead_lettered": {"schema_error": 2}},
        {"quarantined": {}},
        {"duplicate": 0},
        {"pending": 0},
        {"fallback": 1},
    ],
)
def test_a_record_that_is_nowhere_or_twice_is_an_imbalance(changes: dict[str, object]) -> None:
    (sentence,) = imbalances(changed(GOOD, **changes))
    assert sentence.startswith("received 2")


def test_an_imbalance_is_told_with_its_numbers() -> None:
    rest = "+ pending 1 = 20 (5 too few)"
    assert imbalances(changed(GOOD, received=25)) == [
        f"received 25, but processed 10 + dead-lettered 3 + quarantined 3 + duplicate 3 {rest}"
    ]
    assert imbalances(changed(GOOD, late=3)) == [
        "processed 10, but windowed 8 + late 3 = 11 (1 too many)"
    ]


def test_what_is_in_the_fallback_store_is_accounted_for_and_told() -> None:
    stored = changed(GOOD, received=24, fallback=4)
    assert imbalances(stored) == []
    (sentence,) = imbalances(changed(stored, fallback=3))
    assert sentence.endswith("+ pending 1 + fallback 3 = 23 (1 too few)")
    assert differences(stored, changed(FILES, fallback=4)) == []


def test_both_equations_are_checked() -> None:
    assert len(imbalances(changed(GOOD, processed=11))) == 2


def test_files_that_hold_what_was_counted_do_not_differ() -> None:
    assert differences(GOOD, FILES) == []


def off(line: str, counted: int, held: int, by: str) -> str:
    return f"{line}: the stream counted {counted}, the output files hold {held} ({by})"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"windowed": 7}, [off("windowed", 8, 7, "1 too few")]),
        ({"late": 4}, [off("late", 2, 4, "2 too many")]),
        (
            {"fallback": 2},
            [off("received", 20, 22, "2 too many"), off("fallback", 0, 2, "2 too many")],
        ),
        (
            {"processed": 9},
            [off("received", 20, 19, "1 too few"), off("processed", 10, 9, "1 too few")],
        ),
        (
            {"dead_lettered": {"invalid_price": 3}},
            [
                off("dead_lettered.invalid_price", 1, 3, "2 too many"),
                off("dead_lettered.schema_error", 2, 0, "2 too few"),
            ],
        ),
        (
            {"quarantined": {"oversized": 3}},
            [
                off("quarantined.invalid_json", 3, 0, "3 too few"),
                off("quarantined.oversized", 0, 3, "3 too many"),
            ],
        ),
    ],
)
def test_each_line_that_is_off_is_told_with_both_numbers(
    changes: dict[str, object], lines: list[str]
) -> None:
    assert differences(GOOD, changed(FILES, **changes)) == lines


def test_what_was_received_is_compared_with_the_sum_of_the_files() -> None:
    assert differences(changed(GOOD, received=19), FILES) == [
        "received: the stream counted 19, the output files hold 20 (1 too many)"
    ]
    assert differences(GOOD, changed(FILES, received=5, duplicate=5, pending=5)) == []


@given(COUNTS, COUNTS, COUNTS)
def test_adding_books_does_not_depend_on_the_order(a: Counts, b: Counts, c: Counts) -> None:
    assert (a + b) + c == c + (b + a)
    assert (a + b).received == a.received + b.received
    assert (a + b).accounted == a.accounted + b.accounted
    assert a + Counts() == a


@given(st.lists(COUNTS, max_size=5))
def test_rows_add_up_to_the_sum_of_their_books(books: list[Counts]) -> None:
    rows = [msgspec.json.encode({**vars(book), "shard": 3}) for book in books]
    total = Counts()
    for book in books:
        total = total + book
    assert from_rows(rows) == total


def test_a_row_may_leave_lines_out_and_have_others() -> None:
    rows = [b'{"received":3}', b'{"dead_lettered":{"x":1},"stage":"intake"}', b"{}", b"", b" \n"]
    assert from_rows(rows) == Counts(received=3, dead_lettered={"x": 1}, fallback=0)
    assert from_rows([]) == Counts()


@pytest.mark.parametrize(
    "row",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"received":"3"}',
        b'{"late":1.5}',
        b'{"quarantined":3}',
        b'{"quarantined":{"\xff":3}}',
        b'{"other":' + b"[" * 100_000,
    ],
    ids=lambda row: row[:20],
)
def test_a_row_that_cannot_be_read_is_named(row: bytes) -> None:
    with pytest.raises(LedgerError, match="ledger row 2 cannot be read: "):
        from_rows([b"{}", row])


PLACES = st.tuples(st.sampled_from("ab"), st.integers(0, 2))
MINUTES = st.sampled_from([f"2026-01-01T00:0{m}:00.000Z" for m in range(3)])
ROWS = st.lists(st.tuples(PLACES, MINUTES, COUNTS), max_size=8)


def written(place: tuple[str, int], minute: str, counts: Counts, **more: object) -> bytes:
    coordinates = {"source_topic": place[0], "source_partition": place[1], "minute": minute}
    return msgspec.json.encode({**coordinates, **vars(counts), **more})


@given(ROWS)
def test_a_book_has_the_same_total_by_partition_and_by_minute(
    rows: list[tuple[tuple[str, int], str, Counts]],
) -> None:
    book = read_book(written(*row) for row in rows)
    total = sum((counts for _, _, counts in rows), Counts())
    assert book.total == total == sum(book.by_minute.values(), Counts())
    assert book.by_partition.keys() == {place for place, _, _ in rows}
    assert (book.first_minute(), book.last_minute()) == (
        min((minute for _, minute, _ in rows), default=""),
        max((minute for _, minute, _ in rows), default=""),
    )


@given(ROWS, MINUTES)
def test_rows_up_to_a_minute_can_be_left_aside(
    rows: list[tuple[tuple[str, int], str, Counts]], after: str
) -> None:
    later = [row for row in rows if row[1] > after]
    assert read_book([written(*row) for row in rows], after) == read_book(
        written(*row) for row in later
    )


def test_partitions_that_make_up_for_each_other_do_not_balance() -> None:
    minute = "2026-01-01T00:00:00.000Z"
    rows = [
        written(("t", 0), minute, Counts(received=1)),
        written(("t", 1), minute, Counts(processed=1, windowed=1)),
    ]
    assert imbalances(from_rows(rows)) == []
    assert [s.split(",")[0] for s in read_book(rows).imbalances()] == [
        "t/0: received 1",
        "t/1: received 0",
    ]


def test_offsets_are_spans_but_not_those_of_planned_partitions() -> None:
    minute = "2026-01-01T00:00:00.000Z"
    ends = {"first_offset": 3, "last_offset": 9}
    some = Counts(received=5)
    rows = [
        written(("t", 0), minute, some, **ends),
        written(("t", 0), minute, some, **ends, spans=[[3, 4, 2], [7, 9, 3]]),
        written(("/file", 0), minute, some, **ends, splits=[]),
        written(("t", 1), minute, Counts(late=1)),
    ]
    assert read_book(rows).spans == {("t", 0): [Span(3, 9, 5), Span(3, 4, 2), Span(7, 9, 3)]}


def test_rows_do_not_share_their_books() -> None:
    first = from_rows([b"{}"])
    assert from_rows([b'{"dead_lettered":{"x":1}}', b"{}"]) != first
    assert first == Counts()
