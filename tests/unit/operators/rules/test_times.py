"""Instants: both directions, the edges of the calendar, and cut digits."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms, iso_utc_ms

UTC = timezone.utc
OFFSETS = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda m: timezone(timedelta(minutes=m)))


class NoOffset(tzinfo):
    """A zone that does not know its offset, which Python treats as none."""

    def utcoffset(self, dt: datetime | None) -> None:
        return None

    def dst(self, dt: datetime | None) -> None:
        return None

    def tzname(self, dt: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_767_225_900_000, "2026-01-01T00:05:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (MIN_EPOCH_MS, "0001-01-01T00:00:00.000Z"),
        (MAX_EPOCH_MS, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_an_instant_is_written_with_milliseconds_and_z(ms: int, text: str) -> None:
    assert iso_utc_ms(ms) == text


@pytest.mark.parametrize("ms", [MIN_EPOCH_MS - 1, MAX_EPOCH_MS + 1, 2**63, -(2**63)])
def test_an_instant_outside_the_calendar_cannot_be_written(ms: int) -> None:
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        iso_utc_ms(ms)


@given(st.integers(MIN_EPOCH_MS, MAX_EPOCH_MS))
def test_what_is_written_reads_back_as_the_same_instant(ms: int) -> None:
    text = iso_utc_ms(ms)
    assert len(text) == 24
    assert epoch_ms(datetime.fromisoformat(text.replace("Z", "+00:00"))) == ms


@given(st.integers(MIN_EPOCH_MS, MAX_EPOCH_MS), st.integers(MIN_EPOCH_MS, MAX_EPOCH_MS))
def test_text_order_is_time_order(one: int, other: int) -> None:
    assert (iso_utc_ms(one) < iso_utc_ms(other)) == (one < other)


@given(st.datetimes())
def test_a_time_without_offset_is_utc(value: datetime) -> None:
    assert epoch_ms(value) == epoch_ms(value.replace(tzinfo=UTC))
    assert epoch_ms(value) == epoch_ms(value.replace(tzinfo=NoOffset()))


@given(st.datetimes(), OFFSETS)
def test_any_time_with_any_offset_has_an_instant(value: datetime, zone: timezone) -> None:
    offset = zone.utcoffset(None)
    microseconds = (value - datetime(1970, 1, 1) - offset) // timedelta(microseconds=1)  # noqa: DTZ001
    assert epoch_ms(value.replace(tzinfo=zone)) == microseconds // 1000


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (datetime(1970, 1, 1, 0, 0, 0, 1999, UTC), 1),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), -1),
        (datetime(1969, 12, 31, 23, 59, 59, 998_001, UTC), -2),
    ],
)
def test_digits_below_a_millisecond_are_cut_towards_the_past(value: datetime, ms: int) -> None:
    assert epoch_ms(value) == ms


def test_the_edges_of_the_calendar_can_be_crossed_by_an_offset() -> None:
    ahead, behind = timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))
    assert epoch_ms(datetime.min.replace(tzinfo=ahead)) == MIN_EPOCH_MS - 14 * 3_600_000
    assert epoch_ms(datetime.max.replace(tzinfo=behind)) == MAX_EPOCH_MS + 14 * 3_600_000
    assert epoch_ms(datetime.min.replace(tzinfo=UTC)) == MIN_EPOCH_MS
    assert epoch_ms(datetime.max.replace(tzinfo=UTC)) == MAX_EPOCH_MS
