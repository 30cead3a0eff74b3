"""Splits, lanes and lines, against the naive way for any files and any cut."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.rules.splits import (
    UNKNOWN_MS,
    FileProgress,
    InputFile,
    LineAssembler,
    Lines,
    ReadPlan,
    Split,
    reading_order,
)
from tests.unit.operators.rules.lines import BOM, LIMITS, MARKED_FILES, Line, as_lines, naive_lines

NOON_MS = 1_767_268_800_000
EVENT_TIMES = st.none() | st.integers(-10, 10)


@st.composite
def file_sets(draw: st.DrawFn, compressed: st.SearchStrategy[bool]) -> tuple[InputFile, ...]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True))
    return tuple(
        InputFile(f"/in/{name}", draw(st.integers(0, 60)), draw(compressed), draw(EVENT_TIMES))
        for name in names
    )


def plans(compressed: st.SearchStrategy[bool]) -> st.SearchStrategy[ReadPlan]:
    return st.builds(ReadPlan, file_sets(compressed), st.integers(1, 70), st.integers(1, 5))


ANY_PLAN = plans(st.booleans())
PLAIN_PLAN = plans(st.just(False))


def runs_of(plan: ReadPlan) -> list[list[Split | None]]:
    """The tickets as Flink hands them out: an equal, unbroken run to each lane."""
    tickets = plan.tickets()
    assert len(tickets) % plan.lanes == 0
    n = len(tickets) // plan.lanes
    return [tickets[i : i + n] for i in range(0, len(tickets), n)]


def dealt(plan: ReadPlan) -> list[list[Split]]:
    return [[split for split in run if split] for run in runs_of(plan)]


# --- tickets


@settings(max_examples=60)
@given(ANY_PLAN)
def test_every_byte_of_every_file_is_in_exactly_one_ticket(plan: ReadPlan) -> None:
    found = Counter(
        (split.file, byte)
        for lane in dealt(plan)
        for split in lane
        for byte in range(split.start, split.end)
    )
    assert found == Counter((file, byte) for file in plan.files for byte in range(file.size))


@settings(max_examples=60)
@given(ANY_PLAN)
def test_a_file_is_cut_into_numbered_pieces_of_the_split_size(plan: ReadPlan) -> None:
    splits = [split for lane in dealt(plan) for split in lane]
    for split in splits:
        # A compressed file's text is several times as long, and a split is to hold as much text.
        step = max(1, plan.split_bytes // 8) if split.file.compressed else plan.split_bytes
        assert split.start == split.ordinal * step
        assert split.end == min(split.start + step, split.file.size)
    assert all(split.start < split.end for split in splits)


@settings(max_examples=60)
@given(ANY_PLAN)
def test_only_the_piece_at_the_end_of_a_file_is_its_last(plan: ReadPlan) -> None:
    last = [split for lane in dealt(plan) for split in lane if split.last_of_file]
    assert Counter(split.file for split in last) == Counter(f for f in plan.files if f.size)
    assert all(split.end == split.file.size for split in last)


@settings(max_examples=60)
@given(ANY_PLAN)
def test_each_lane_has_an_equal_run_of_tickets_that_is_padded_at_its_end(plan: ReadPlan) -> None:
    runs = runs_of(plan)
    assert len(runs) == plan.lanes
    for run in runs:
        assert run
        assert [split is None for split in run] == sorted(split is None for split in run)
    splits = sum(split is not None for run in runs for split in run)
    assert not splits or any(run[-1] for run in runs), "padding that no lane needs"


def test_a_plan_without_anything_to_read_still_has_a_ticket_for_each_lane() -> None:
    empty = InputFile("/in/empty", 0, compressed=False, first_event_ms=None)
    assert ReadPlan((), 10, 3).tickets() == [None] * 3
    assert ReadPlan((empty,), 10, 2).tickets() == [None] * 2


@settings(max_examples=60)
@given(PLAIN_PLAN)
def test_the_pieces_of_plain_files_go_round_the_lanes_in_order(plan: ReadPlan) -> None:
    lanes = dealt(plan)
    pieces = [split for file in plan.files for split in plan.splits(file)]
    for i, piece in enumerate(pieces):
        assert lanes[i % plan.lanes][i // plan.lanes] == piece


@settings(max_examples=60)
@given(ANY_PLAN)
def test_a_compressed_file_stays_in_one_lane_without_a_gap(plan: ReadPlan) -> None:
    lanes = dealt(plan)
    for file in plan.files:
        if file.compressed and file.size:
            (lane,) = [lane for lane in lanes if any(split.file == file for split in lane)]
            assert [name for name, _ in groupby(s.file.path for s in lane)].count(file.path) == 1


@settings(max_examples=60)
@given(ANY_PLAN)
def test_each_lane_reads_files_in_the_plans_order_and_their_pieces_in_order(plan: ReadPlan) -> None:
    for lane in dealt(plan):
        order = [(plan.files.index(split.file), split.ordinal) for split in lane]
        assert order == sorted(order)


def test_plain_files_fill_the_lanes_that_a_compressed_one_has_left_free() -> None:
    packed = InputFile("/in/a.gz", 2, compressed=True, first_event_ms=0)
    plain = InputFile("/in/b", 40, compressed=False, first_event_ms=1)
    lanes = dealt(ReadPlan((packed, plain), 10, 3))
    assert sorted(len(lane) for lane in lanes) == [2, 2, 2]


# --- progress and order


@settings(max_examples=60)
@given(ANY_PLAN)
def test_every_file_with_something_to_read_holds_the_watermark_with_its_tickets(
    plan: ReadPlan,
) -> None:
    tickets = Counter(split.file for lane in dealt(plan) for split in lane)
    assert plan.progress() == [
        FileProgress(
            file.path,
            tickets[file],
            UNKNOWN_MS if file.first_event_ms is None else file.first_event_ms,
        )
        for file in plan.files
        if file.size
    ]


@settings(max_examples=60)
@given(file_sets(st.booleans()), st.randoms(use_true_random=False))
def test_files_are_read_by_their_first_events_time_with_the_unknown_first(
    files: tuple[InputFile, ...], random: object
) -> None:
    shuffled = list(files)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    order = reading_order(shuffled)
    assert sorted(order, key=id) == sorted(files, key=id)
    unknown = [file.path for file in order if file.first_event_ms is None]
    known = [(f.first_event_ms, f.path) for f in order if f.first_event_ms is not None]
    assert [file.path for file in order] == sorted(unknown) + [path for _, path in sorted(known)]


def test_a_first_event_at_the_epoch_is_not_an_unknown_one() -> None:
    at_zero = InputFile("/in/a", 1, compressed=False, first_event_ms=0)
    before = InputFile("/in/b", 1, compressed=False, first_event_ms=-5)
    assert reading_order([at_zero, before]) == (before, at_zero)
    assert ReadPlan((at_zero,), 1, 1).progress() == [FileProgress("/in/a", 1, 0)]


# --- lines


def assembled(
    pieces: list[bytes], offset: int = 0, max_bytes: int = 1000, keep_bytes: int = 100
) -> list[Line]:
    lines = LineAssembler(offset, max_bytes, keep_bytes)
    found = [lines.feed(piece) for piece in pieces]
    at_the_end = lines.open
    found.append(lines.finish())
    assert bool(len(found[-1])) == at_the_end
    assert not lines.open
    return as_lines(found)


@st.composite
def cuts(draw: st.DrawFn) -> list[bytes]:
    """A file in pieces, empty ones among them."""
    data = draw(MARKED_FILES)
    at = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)]


@given(cuts(), LIMITS)
@example([BOM[:1], BOM[1:] + b"abcd\n"], (4, 2))
@example([b"a\r\r\nb\r\r\r\nc\r\n"], (2, 9))
@example([b"\r", b"\n\r", b"\r\n", b"\r"], (0, 0))
def test_any_bytes_in_any_pieces_give_the_lines_of_the_whole(
    pieces: list[bytes], limits: tuple[int, int]
) -> None:
    assert assembled(pieces, 0, *limits) == naive_lines(b"".join(pieces), *limits)


@given(MARKED_FILES, LIMITS)
def test_bytes_that_come_one_by_one_give_the_same_lines(
    data: bytes, limits: tuple[int, int]
) -> None:
    pieces = [data[i : i + 1] for i in range(len(data))]
    assert assembled(pieces, 0, *limits) == naive_lines(data, *limits)


@given(cuts(), st.integers(1, 1000))
def test_in_the_middle_of_a_file_a_byte_order_mark_is_part_of_its_line(
    pieces: list[bytes], offset: int
) -> None:
    whole = naive_lines(b"x" * offset + b"\n" + b"".join(pieces))[1:]
    assert assembled(pieces, offset + 1) == whole


@pytest.mark.parametrize("cut", range(12))
def test_a_carriage_return_before_the_newline_is_cut_wherever_the_pieces_meet(cut: int) -> None:
    data = b"ab\r\n\r\nc\r\rd\r"
    assert assembled([data[:cut], data[cut:]]) == [
        Line(0, b"ab"),
        Line(4, b""),
        Line(6, b"c\r\rd"),
    ]


@pytest.mark.parametrize("cut", range(8))
def test_a_byte_order_mark_is_not_part_of_the_first_line_nor_of_its_length(cut: int) -> None:
    data = BOM + b"abcd\n" + BOM
    found = assembled([data[:cut], data[cut:]], max_bytes=4)
    assert found == [Line(3, b"abcd"), Line(8, BOM)]


def test_the_beginning_of_a_byte_order_mark_is_a_line_like_any_other() -> None:
    assert assembled([BOM[:1], BOM[1:2]]) == [Line(0, BOM[:2])]
    assert assembled([BOM[:1], b"\n"]) == [Line(0, BOM[:1])]


def test_a_byte_order_mark_and_nothing_else_is_an_empty_line() -> None:
    assert assembled([BOM]) == [Line(3, b"")]


def test_an_empty_file_has_no_line_and_an_empty_last_line_is_none() -> None:
    assert assembled([]) == assembled([b""]) == []
    assert assembled([b"a\n"]) == [Line(0, b"a")]
    assert assembled([b"\n"]) == [Line(0, b"")]


def test_a_line_is_oversized_from_the_first_byte_too_many() -> None:
    exact, longer = assembled([b"12345\r\n123456\r\n"], max_bytes=5, keep_bytes=3)
    assert exact == Line(0, b"12345")
    assert longer == Line(7, b"123", 6, "e10adc3949ba59abbe56e057f20f883e")


def test_a_long_line_takes_no_more_memory_than_the_piece_and_the_limits() -> None:
    piece, n = b"x" * 100_000, 300
    lines = LineAssembler(0, max_bytes=1000, keep_bytes=500)
    tracemalloc.start()
    try:
        for _ in range(n):
            assert len(lines.feed(piece)) == 0
        ((offset, payload, size, _),) = as_lines([lines.feed(b"\n")])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (offset, payload, size) == (0, b"x" * 500, n * len(piece))
    assert peak < 4 * len(piece)


def test_lines_of_one_call_do_not_change_with_the_next() -> None:
    lines = LineAssembler(0, 1000, 100)
    first: Lines = lines.feed(b"a\nb")
    lines.feed(b"c\nd\n")
    assert as_lines([first]) == [Line(0, b"a")]
