"""Offsets as spans: gaps and repeats, against sets of single offsets."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.offsets import Finding, Gap, Span, gaps, merged, repeated, split_at

OFFSETS = st.sets(st.integers(0, 60), max_size=50)


def unbroken(offsets: set[int]) -> list[Span]:
    """One span a run of offsets."""
    runs = []
    for _, run in groupby(enumerate(sorted(offsets)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        runs.append(Span(numbers[0], numbers[-1], len(numbers)))
    return runs


@st.composite
def rows(draw: st.DrawFn) -> tuple[set[int], list[Span]]:
    """Offsets as the rows of a ledger have them: cut anywhere, in any order, some coalesced."""
    counted = draw(OFFSETS)
    cuts = draw(st.sets(st.integers(0, 60)))
    spans = [
        Span(*ends, ends[1] - ends[0] + 1) for run in unbroken(counted) for ends in cut(run, cuts)
    ]
    if spans and draw(st.booleans()):
        at = draw(st.integers(0, len(spans) - 1))
        end = draw(st.integers(at, len(spans) - 1))
        together = spans[at : end + 1]
        spans[at : end + 1] = [
            Span(together[0].first, together[-1].last, sum(span.records for span in together))
        ]
    return counted, draw(st.permutations(spans))


def cut(span: Span, cuts: set[int]) -> list[tuple[int, int]]:
    edges = [span.first, *sorted(c for c in cuts if span.first < c <= span.last), span.last + 1]
    return [(a, b - 1) for a, b in pairwise(edges)]


@given(rows(), st.integers(0, 10) | st.none())
def test_gaps_are_all_that_is_not_counted_up_to_the_last(
    case: tuple[set[int], list[Span]], before: int | None
) -> None:
    counted, spans = case
    first = min(counted, default=0) - (before or 0)
    found = gaps(spans, None if before is None else first)
    missing = set(range(first, max(counted, default=first - 1) + 1)) - counted
    assert sum(gap.missing for gap in found) == len(missing)
    for gap in found:
        inside = [at for at in counted if gap.first <= at <= gap.last]
        assert gap.counted == len(inside)
    covered = {at for gap in found for at in range(gap.first, gap.last + 1)}
    assert missing <= covered
    assert [gap.first for gap in found] == sorted(gap.first for gap in found)


@given(rows())
def test_what_was_counted_once_is_not_called_repeated(case: tuple[set[int], list[Span]]) -> None:
    assert repeated(case[1]) == []


@given(OFFSETS, OFFSETS, st.randoms())
def test_what_two_rows_have_is_repeated(one: set[int], other: set[int], random: object) -> None:
    spans = unbroken(one) + unbroken(other)
    random.shuffle(spans)  # type: ignore[attr-defined]
    found = {at for first, last in repeated(spans) for at in range(first, last + 1)}
    assert found == one & other


@given(rows())
def test_merging_changes_no_offset(case: tuple[set[int], list[Span]]) -> None:
    counted, spans = case
    joined = merged(spans)
    assert sum(span.records for span in joined) == len(counted)
    assert gaps(joined) == gaps(spans)
    assert joined == merged(joined)
    assert len(joined) <= len(spans)


def test_a_hole_is_between_rows_before_them_and_within_one() -> None:
    spans = [Span(20, 29, 10), Span(0, 9, 10), Span(30, 39, 4)]
    assert gaps(spans) == [Gap(10, 19, 0), Gap(30, 39, 4)]
    assert gaps([Span(5, 9, 5)], 2) == [Gap(2, 4, 0)]
    assert gaps([Span(5, 9, 5)], 7) == []
    # The topic begins later by now than what was counted of it.
    assert gaps([Span(0, 4, 5), Span(8, 9, 2)], 6) == [Gap(5, 7, 0)]
    assert gaps([], 7) == []


@pytest.mark.parametrize(
    ("begin", "parts"),
    [
        (0, (None, Gap(5, 9, 0))),
        (5, (None, Gap(5, 9, 0))),
        (6, (Gap(5, 5, 0), Gap(6, 9, 0))),
        (9, (Gap(5, 8, 0), Gap(9, 9, 0))),
        (10, (Gap(5, 9, 0), None)),
    ],
)
def test_a_gap_is_divided_where_the_topic_begins(
    begin: int, parts: tuple[Gap | None, Gap | None]
) -> None:
    assert split_at(Gap(5, 9, 0), begin) == parts


def test_a_gap_with_records_in_it_is_not_divided() -> None:
    assert split_at(Gap(5, 9, 2), 7) == (Gap(5, 9, 2), None)
    assert split_at(Gap(5, 9, 2), 5) == (None, Gap(5, 9, 2))


def test_what_the_topic_has_beyond_what_was_counted_is_uncounted() -> None:
    assert Finding(Gap(5, 9, 2), 2).uncounted == 0
    assert Finding(Gap(5, 9, 2), 1).uncounted == 0  # compacted since
    assert Finding(Gap(5, 9, 2), 3).uncounted == 1
    assert Finding(Gap(5, 9, 0), None).uncounted == 0
