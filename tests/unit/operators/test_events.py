"""Events in columns: values, Arrow, lines and what needs a second look."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.events import Columns, EventColumns, iso_utc_ms_column, partials_schema
from operators.rules.contract import Contract, load_contract, misfit
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms, iso_utc_ms
from tests.unit.operators.contracts import CLASHING, REWRITING, REWRITTEN
from tests.unit.rules.contracts import ECOMMERCE, READING, Reading
from tests.unit.rules.records import NOW_MS, good_records
from udfs.ecommerce import EcommerceEvent

MINUTE_MS = 60_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
Path = tuple[str, str, str, str]
COLUMNS = {path: EventColumns(load_contract(*path)) for path in (ECOMMERCE, READING)}
DECODE = {path: msgspec.json.Decoder(c.contract.type).decode for path, c in COLUMNS.items()}

any_contract = pytest.mark.parametrize("path", [ECOMMERCE, READING])


def good_events(path: Path) -> st.SearchStrategy[list[Any]]:
    return st.lists(good_records(path[0]).map(DECODE[path]), max_size=4)


def shop(price: Any = 1.5, timestamp: Any = NOON, user_id: Any = "u1") -> EcommerceEvent:
    return EcommerceEvent(user_id, "p1", "view", price, timestamp)


def sample(**changes: Any) -> Reading:
    fields = {
        "device_id": "pump-1",
        "taken_at": NOON,
        "sequence": 1,
        "is_ok": True,
        "level": 2,
        "humidity": 0.5,
    }
    return Reading(**{**fields, **changes})


def written(columns: EventColumns, events: list[Any]) -> list[dict[str, Any]]:
    """The events' lines read back."""
    return written_columns(columns, columns.columns(events))


def written_columns(columns: EventColumns, made: Columns) -> list[dict[str, Any]]:
    n = len(made.event_ms())
    return split(columns.lines(made, ["t"] * n, [0] * n, [*range(n)]))


def split(block: bytes) -> list[dict[str, Any]]:
    assert block == b"" or block.endswith(b"\n")
    return [json.loads(line) for line in block.split(b"\n")[:-1]]


# --- values and Arrow


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_columns_hold_what_the_events_hold(path: Path, data: st.DataObject) -> None:
    events = data.draw(good_events(path))
    columns = COLUMNS[path].columns(events)
    for column in COLUMNS[path].contract.columns:
        values = [getattr(event, column.attribute) for event in events]
        arrow = columns.arrow[column.name]
        assert columns.values[column.name] == values
        assert arrow.type == column.arrow_type
        if column.kind == "datetime":
            values = [None if value is None else epoch_ms(value) for value in values]
            arrow = arrow.cast(pa.int64())
        assert arrow.to_pylist() == values
    assert columns.misfits == frozenset()


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_taken_rows_are_the_columns_of_those_events(path: Path, data: st.DataObject) -> None:
    events = data.draw(good_events(path).filter(bool))
    rows = data.draw(st.lists(st.sampled_from(range(len(events))), unique=True).map(sorted))
    taken = COLUMNS[path].columns(events).take(rows)
    assert taken == COLUMNS[path].columns([events[row] for row in rows])


@any_contract
def test_no_events_are_no_lines_and_no_partials(path: Path) -> None:
    none = COLUMNS[path].columns([])
    assert none.suspects(NOW_MS) == set()
    assert COLUMNS[path].lines(none, [], [], []) == b""
    partials = COLUMNS[path].partials(none, MINUTE_MS)
    assert partials.num_rows == 0
    assert partials.schema.equals(partials_schema(COLUMNS[path].contract))


# --- lines


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_a_line_is_the_events_fields_and_its_coordinates(path: Path, data: st.DataObject) -> None:
    contract = COLUMNS[path].contract
    events = data.draw(good_events(path))
    n = len(events)
    topics = data.draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=n, max_size=n))
    offsets = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n))
    columns = COLUMNS[path].columns(events)
    lines = split(COLUMNS[path].lines(columns, topics, [*range(n)], offsets))
    assert len(lines) == n
    for i, fields in enumerate(lines):
        expected = expected_fields(contract, events[i])
        place = {"source_topic": topics[i], "source_partition": i, "source_offset": offsets[i]}
        assert fields == {**expected, **place}
        assert [*fields] == [*expected, *place]


def expected_fields(contract: Contract, event: Any) -> dict[str, Any]:
    values = {c.name: getattr(event, c.attribute) for c in contract.columns}
    return {
        name: iso_utc_ms(epoch_ms(value)) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def test_the_times_of_a_line_are_utc_with_milliseconds() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    times = [
        datetime(2026, 1, 1, 0, 5),  # noqa: DTZ001 - what a record without an offset gives
        datetime(2026, 1, 1, 0, 5, 0, 999_999, timezone.utc),
        datetime(2026, 1, 1, 5, 35, tzinfo=east),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, timezone.utc),
        datetime(1, 1, 1, tzinfo=timezone.utc),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, timezone.utc),
    ]
    lines = written(COLUMNS[ECOMMERCE], [shop(timestamp=time) for time in times])
    assert [line["timestamp"] for line in lines] == [
        "2026-01-01T00:05:00.000Z",
        "2026-01-01T00:05:00.999Z",
        "2026-01-01T00:05:00.000Z",
        "1969-12-31T23:59:59.999Z",
        "0001-01-01T00:00:00.000Z",
        "9999-12-31T23:59:59.999Z",
    ]


def test_an_absent_value_is_null_in_its_line_and_in_its_column() -> None:
    events = [sample(), sample(temperature=20.5, mode="auto", repaired_at=NOON)]
    columns = COLUMNS[READING].columns(events)
    assert columns.suspects(NOW_MS) == set()
    for name, value in (("temperature", 20.5), ("mode", "auto")):
        assert columns.arrow[name].to_pylist() == [None, value]
    assert columns.arrow["repairedAt"].cast(pa.int64()).to_pylist() == [None, NOW_MS]
    first, second = written(COLUMNS[READING], events)
    assert (first["temperature"], first["mode"], first["repairedAt"]) == (None, None, None)
    assert second["repairedAt"] == "2026-01-01T12:00:00.000Z"


def test_lines_of_nothing_but_newlines_in_their_values_stay_one_line() -> None:
    (line,) = written(COLUMNS[ECOMMERCE], [shop(user_id="a\nb\r\u2028\x0b\x85")])
    assert line["user_id"] == "a\nb\r\u2028\x0b\x85"


def test_a_contract_may_call_its_attributes_as_breakwater_calls_its_own() -> None:
    """The bug it catches: two fields of one name in the line, and every batch fails."""
    columns = EventColumns(load_contract(*CLASHING))
    event = columns.contract.type(key="k", at=NOON, source_topic="mine", source_offset=5, f0=6)
    (line,) = written(columns, [event])
    assert line == {
        "key": "k",
        "f1": "2026-01-01T12:00:00.000Z",
        "topic": "mine",
        "offset": 5,
        "class": 6,
        "source_topic": "t",
        "source_partition": 0,
        "source_offset": 0,
    }


# --- partials


def partials_of(columns: EventColumns, events: list[Any], window_ms: int) -> list[tuple[Any, ...]]:
    """Key, time in ms, total, count: one by one."""
    batch = columns.partials(columns.columns(events), window_ms)
    assert batch.schema.equals(partials_schema(columns.contract))
    times = batch.column("event_time").cast(pa.int64()).to_pylist()
    keys, totals = batch.column("event_key").to_pylist(), batch.column("total_value").to_pylist()
    return list(zip(keys, times, totals, batch.column("event_count").to_pylist(), strict=True))


MINUTES = st.integers(-200_000, 200_000).map(lambda ms: EPOCH + timedelta(milliseconds=ms))


@given(
    st.lists(
        st.builds(
            shop,
            price=st.integers(0, 2**40).map(float),
            timestamp=MINUTES,
            user_id=st.sampled_from(["u1", "u2", "\0", "é"]),
        ),
        max_size=12,
    ),
    st.sampled_from([1, 999, MINUTE_MS, 300_000]),
)
def test_partials_are_the_events_added_up_by_key_and_window(
    events: list[EcommerceEvent], window_ms: int
) -> None:
    groups: dict[tuple[str, int], list[EcommerceEvent]] = {}
    for event in events:
        groups.setdefault((event.user_id, epoch_ms(event.timestamp) // window_ms), []).append(event)
    found = partials_of(COLUMNS[ECOMMERCE], events, window_ms)
    assert sorted(found) == sorted(
        (key, max(epoch_ms(e.timestamp) for e in group), sum(e.price for e in group), len(group))
        for (key, _), group in groups.items()
    )


def test_a_sum_of_wide_integers_is_exact_and_does_not_overflow() -> None:
    events = [sample(sequence=2**63 - 1), sample(sequence=2**63 - 1), sample(sequence=1)]
    ((_, _, total, count),) = partials_of(COLUMNS[READING], events, MINUTE_MS)
    assert (int(total), count) == (2**64 - 1, 3)


def test_events_of_a_contract_that_has_no_value_are_only_counted() -> None:
    columns = EventColumns(load_contract(*ECOMMERCE[:3]))
    assert partials_of(columns, [shop(), shop()], MINUTE_MS) == [("u1", NOW_MS, None, 2)]


def test_a_value_that_is_absent_adds_nothing_to_the_total() -> None:
    columns = EventColumns(load_contract(*READING[:3], "temperature"))
    some = [sample(temperature=20.5), sample(), sample(temperature=0.25)]
    assert partials_of(columns, some, MINUTE_MS) == [("pump-1", NOW_MS, 20.75, 3)]
    assert partials_of(columns, [sample()], MINUTE_MS) == [("pump-1", NOW_MS, None, 1)]


# --- times


@given(st.lists(st.none() | st.integers(MIN_EPOCH_MS, MAX_EPOCH_MS)))
def test_a_column_of_times_is_written_like_each_of_them(times: list[int | None]) -> None:
    column = pa.array(times, pa.int64()).cast(pa.timestamp("ms"))
    expected = [None if ms is None else iso_utc_ms(ms) for ms in times]
    assert iso_utc_ms_column(column) == expected


@pytest.mark.parametrize("ms", [MIN_EPOCH_MS, -1, 0, 999, MAX_EPOCH_MS])
def test_the_edges_of_the_calendar_are_written_like_any_time(ms: int) -> None:
    assert iso_utc_ms_column(pa.array([ms], pa.timestamp("ms"))) == [iso_utc_ms(ms)]


# --- the second look


OFFSETS = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda m: timezone(timedelta(minutes=m)))
ANY_TIMES = st.datetimes(timezones=st.none() | OFFSETS) | st.sampled_from(
    [
        datetime.fromisoformat("0001-01-01T00:00:00+14:00"),
        datetime.fromisoformat("9999-12-31T23:59:59-14:00"),
        NOON,
        NOON + timedelta(microseconds=999),
        NOON + timedelta(milliseconds=1),
    ]
)
WIDE_INTS = st.integers() | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1])


@given(
    st.lists(
        st.builds(
            sample,
            taken_at=ANY_TIMES,
            sequence=WIDE_INTS,
            humidity=st.floats(),
            temperature=st.none() | st.floats(),
            repaired_at=st.none() | ANY_TIMES,
        ),
        max_size=4,
    )
)
def test_suspects_are_the_events_with_a_value_that_does_not_fit_or_of_the_future(
    events: list[Reading],
) -> None:
    columns = COLUMNS[READING].columns(events)
    naive = {
        row
        for row, event in enumerate(events)
        if epoch_ms(event.taken_at) > NOW_MS
        or any(
            misfit(column, getattr(event, column.attribute))
            for column in COLUMNS[READING].contract.columns
        )
    }
    assert columns.suspects(NOW_MS) == naive


def test_an_event_time_is_suspect_only_after_the_latest() -> None:
    latest = NOON + timedelta(microseconds=999)
    later = NOON + timedelta(milliseconds=1)
    columns = COLUMNS[ECOMMERCE].columns([shop(timestamp=latest), shop(timestamp=later)])
    assert columns.suspects(NOW_MS) == {1}


def test_another_time_of_the_contract_may_be_in_the_future() -> None:
    event = sample(repaired_at=NOON + timedelta(days=9))
    assert COLUMNS[READING].columns([event]).suspects(NOW_MS) == set()


@pytest.mark.parametrize("price", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_is_suspect(price: float) -> None:
    assert COLUMNS[ECOMMERCE].columns([shop(), shop(price)]).suspects(NOW_MS) == {1}


def test_an_integer_beyond_64_bits_is_a_misfit_and_null_and_spoils_no_other() -> None:
    numbers = [2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 0]
    columns = COLUMNS[READING].columns([sample(sequence=n) for n in numbers])
    assert columns.misfits == {0, 3}
    assert columns.arrow["sequence"].to_pylist() == [None, 2**63 - 1, -(2**63), None, 0]
    assert columns.values["sequence"] == numbers
    assert columns.suspects(NOW_MS) == {0, 3}
    assert columns.take([1, 2, 4]).misfits == frozenset()


@pytest.mark.parametrize("key", REWRITTEN)
def test_whatever_a_contracts_own_code_sets_is_a_suspect_and_no_exception(key: str) -> None:
    columns = EventColumns(load_contract(*REWRITING))
    event = columns.contract.type
    made = columns.columns([event("a", NOON), event(key, NOON), event("b", NOON)])
    assert made.suspects(NOW_MS) == {1}
    kept = made.take([0, 2])
    assert [line["key"] for line in written_columns(columns, kept)] == ["a", "b"]
