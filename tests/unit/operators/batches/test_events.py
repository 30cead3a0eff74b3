"""Events in columns: values, Arrow, lines and what needs a second look."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.batches.events import (
    Events,
    EventType,
    canonical_times,
    partials_of,
    partials_schema,
)
from operators.rules.contract import Contract, load_contract
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms, iso_utc_ms
from tests.unit.operators.contracts import CLASHING, REWRITING, REWRITTEN
from tests.unit.operators.rules.contracts import ECOMMERCE, READING, Reading
from tests.unit.operators.rules.records import NOW_MS, good_records
from udfs.ecommerce import EcommerceEvent

MINUTE_MS = 60_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
Path = tuple[str, str, str, str]
TYPES = {path: EventType(load_contract(*path)) for path in (ECOMMERCE, READING)}
DECODE = {path: msgspec.json.Decoder(t.contract.type).decode for path, t in TYPES.items()}

any_contract = pytest.mark.parametrize("path", [ECOMMERCE, READING])


def good_payloads(path: Path) -> st.SearchStrategy[list[bytes]]:
    return st.lists(good_records(path[0]), max_size=4)


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


def events_of(event_type: EventType, events: list[Any]) -> Events:
    """Events of the contract's own class as intake holds them."""
    return event_type.events([event_type.line_of(event) for event in events])


def written(event_type: EventType, events: list[Any]) -> list[dict[str, Any]]:
    """The events' lines read back."""
    return written_events(event_type, events_of(event_type, events))


def written_events(event_type: EventType, events: Events) -> list[dict[str, Any]]:
    n = len(events.lines)
    return split(event_type.encoded(events, ["t"] * n, [0] * n, range(n)))


def split(block: bytes) -> list[dict[str, Any]]:
    assert block == b"" or block.endswith(b"\n")
    return [json.loads(line) for line in block.split(b"\n")[:-1]]


# --- columns


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_columns_hold_what_the_records_hold(path: Path, data: st.DataObject) -> None:
    records = data.draw(good_payloads(path))
    event_type = TYPES[path]
    events = event_type.events([event_type.decode(record) for record in records])
    originals = [DECODE[path](record) for record in records]
    for column in event_type.contract.columns:
        values = [getattr(event, column.attribute) for event in originals]
        if column.kind == "datetime":
            expected = [0 if value is None else epoch_ms(value) for value in values]
            assert events.times[column.name].tolist() == expected
        elif column.kind in ("int", "float"):
            assert events.numbers[column.name].type == column.arrow_type
            assert events.numbers[column.name].to_pylist() == values
    assert events.misfits == frozenset()


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_without_some_rows_are_the_events_of_the_others(path: Path, data: st.DataObject) -> None:
    event_type = TYPES[path]
    records = data.draw(good_payloads(path).filter(bool))
    lines = [event_type.decode(record) for record in records]
    out = data.draw(st.lists(st.sampled_from(range(len(lines))), unique=True).map(sorted))
    kept = [line for i, line in enumerate(lines) if i not in out]
    left = event_type.events(lines).without(np.array(out, np.int64))
    expected = event_type.events(kept)
    assert left.lines == expected.lines
    assert {n: t.tolist() for n, t in left.times.items()} == {
        n: t.tolist() for n, t in expected.times.items()
    }
    assert left.numbers == expected.numbers


@any_contract
def test_no_events_are_no_lines_and_no_partials(path: Path) -> None:
    event_type = TYPES[path]
    none = event_type.events([])
    assert event_type.suspects(none, NOW_MS) == set()
    assert event_type.encoded(none, [], [], []) == b""
    columns = event_type.window_columns(none, MINUTE_MS)
    partials = partials_of([columns, columns], event_type.contract)
    assert partials.num_rows == 0
    assert partials.schema.equals(partials_schema(event_type.contract))


# --- lines


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_a_line_is_the_events_fields_and_its_coordinates(path: Path, data: st.DataObject) -> None:
    event_type = TYPES[path]
    records = data.draw(good_payloads(path))
    n = len(records)
    topics = data.draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=n, max_size=n))
    offsets = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n))
    events = event_type.events([event_type.decode(record) for record in records])
    lines = split(event_type.encoded(events, topics, range(n), offsets))
    assert len(lines) == n
    for i, fields in enumerate(lines):
        expected = expected_fields(event_type.contract, DECODE[path](records[i]))
        place = {"source_topic": topics[i], "source_partition": i, "source_offset": offsets[i]}
        assert fields == {**expected, **place}
        assert [*fields] == [*expected, *place]


@any_contract
@settings(max_examples=30)
@given(data=st.data())
def test_an_event_of_the_contracts_class_gives_the_line_that_its_record_gives(
    path: Path, data: st.DataObject
) -> None:
    """The way round by the class and the direct way write the same."""
    event_type = TYPES[path]
    records = data.draw(good_payloads(path))
    direct = event_type.events([event_type.decode(record) for record in records])
    round_about = events_of(event_type, [DECODE[path](record) for record in records])
    assert direct.lines == round_about.lines


def expected_fields(contract: Contract, event: Any) -> dict[str, Any]:
    values = {c.name: getattr(event, c.attribute) for c in contract.columns}
    return {
        name: iso_utc_ms(epoch_ms(value)) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def test_a_record_cannot_say_where_it_came_from() -> None:
    """It may have fields of these names, of any type: they are not looked at."""
    said = b',"source_topic":"lie","source_partition":[{}],"source_offset":1e999}'
    record = b'{"user_id":"u1","product_id":"p","action":"view","price":1,"timestamp":"%s"'
    payload = record % b"2026-01-01T00:00:00.000Z" + said
    event_type = TYPES[ECOMMERCE]
    (line,) = written_events(event_type, event_type.events([event_type.decode(payload)]))
    assert (line["source_topic"], line["source_partition"], line["source_offset"]) == ("t", 0, 0)


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
    lines = written(TYPES[ECOMMERCE], [shop(timestamp=time) for time in times])
    assert [line["timestamp"] for line in lines] == [
        "2026-01-01T00:05:00.000Z",
        "2026-01-01T00:05:00.999Z",
        "2026-01-01T00:05:00.000Z",
        "1969-12-31T23:59:59.999Z",
        "0001-01-01T00:00:00.000Z",
        "9999-12-31T23:59:59.999Z",
    ]


def test_an_absent_value_is_null_in_its_line_and_in_its_column() -> None:
    readings = [sample(), sample(temperature=20.5, mode="auto", repaired_at=NOON)]
    events = events_of(TYPES[READING], readings)
    assert TYPES[READING].suspects(events, NOW_MS) == set()
    assert events.numbers["temperature"].to_pylist() == [None, 20.5]
    assert events.times["repairedAt"].tolist() == [0, NOW_MS]
    first, second = written(TYPES[READING], readings)
    assert (first["temperature"], first["mode"], first["repairedAt"]) == (None, None, None)
    assert (second["mode"], second["repairedAt"]) == ("auto", "2026-01-01T12:00:00.000Z")


def test_lines_of_nothing_but_newlines_in_their_values_stay_one_line() -> None:
    (line,) = written(TYPES[ECOMMERCE], [shop(user_id="a\nb\r\u2028\x0b\x85")])
    assert line["user_id"] == "a\nb\r\u2028\x0b\x85"


def test_a_contract_may_call_its_attributes_as_breakwater_calls_its_own() -> None:
    """The bug it catches: two fields of one name in the line, and every batch fails."""
    event_type = EventType(load_contract(*CLASHING))
    event = event_type.contract.type(key="k", at=NOON, source_topic="mine", source_offset=5, f0=6)
    (line,) = written(event_type, [event])
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


def added_up(event_type: EventType, events: list[Any], window_ms: int) -> list[tuple[Any, ...]]:
    """Key, time in ms, total, count: of the events in two batches."""
    halves = [events_of(event_type, half) for half in (events[::2], events[1::2])]
    columns = [event_type.window_columns(half, window_ms) for half in halves]
    batch = partials_of(columns, event_type.contract)
    assert batch.schema.equals(partials_schema(event_type.contract))
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
    found = added_up(TYPES[ECOMMERCE], events, window_ms)
    assert sorted(found) == sorted(
        (key, max(epoch_ms(e.timestamp) for e in group), sum(e.price for e in group), len(group))
        for (key, _), group in groups.items()
    )


def test_a_sum_of_wide_integers_is_exact_and_does_not_overflow() -> None:
    events = [sample(sequence=2**63 - 1), sample(sequence=2**63 - 1), sample(sequence=1)]
    ((_, _, total, count),) = added_up(TYPES[READING], events, MINUTE_MS)
    assert (int(total), count) == (2**64 - 1, 3)


def test_events_of_a_contract_that_has_no_value_are_only_counted() -> None:
    event_type = EventType(load_contract(*ECOMMERCE[:3]))
    assert added_up(event_type, [shop(), shop()], MINUTE_MS) == [("u1", NOW_MS, None, 2)]


def test_a_value_that_is_absent_adds_nothing_to_the_total() -> None:
    event_type = EventType(load_contract(*READING[:3], "temperature"))
    some = [sample(temperature=20.5), sample(), sample(temperature=0.25)]
    assert added_up(event_type, some, MINUTE_MS) == [("pump-1", NOW_MS, 20.75, 3)]
    assert added_up(event_type, [sample()], MINUTE_MS) == [("pump-1", NOW_MS, None, 1)]


# --- times


DIGITS = st.sampled_from("0123456789")
LIKE_TIMES = st.tuples(
    st.sampled_from(["2026", "0000", "0001", "9999", "2024", "1900"]), *[DIGITS] * 13
).map(
    lambda d: (
        f"{d[0]}-{d[1]}{d[2]}-{d[3]}{d[4]}T{d[5]}{d[6]}:{d[7]}{d[8]}:{d[9]}{d[10]}.{''.join(d[11:])}0Z"
    )
)
TRUE_TIMES = st.integers(MIN_EPOCH_MS, MAX_EPOCH_MS).map(iso_utc_ms)
SPELT_TIMES = st.sampled_from(
    [
        "2026-01-01T00:00:00Z",
        "2026-01-01 00:00:00.5+05:30",
        "2026-01-01t00:00:00.000z",
        "2026-01-01T00:00:00.123456",
        "2024-02-29T23:59:59.999Z",
        "2026-02-29T00:00:00.000Z",
        "2026-06-30T23:59:60.000Z",
        "2026-01-01T24:00:00.000Z",
        "2026-01-01T00:00:00.000+",
        "2026-01-01T00:00:00.00éZ",
        "+026-01-01T00:00:00.000Z",
        "0001-01-01T00:00:00.000Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59.999Z",
        "yesterday",
        "",
    ]
)
TIMES = TRUE_TIMES | LIKE_TIMES | SPELT_TIMES


def read_by_msgspec(text: str) -> int | None:
    """Milliseconds of what is a time to the judge."""
    try:
        ms = epoch_ms(msgspec.convert(text, datetime))
    except msgspec.ValidationError:
        return None
    return ms if MIN_EPOCH_MS <= ms <= MAX_EPOCH_MS else None


@given(st.lists(TIMES, max_size=6))
@example(["2026-02-30T00:00:00.000Z", "2026-02-28T00:00:00.000Z", "x" * 24, "é" * 12])
def test_times_are_read_as_msgspec_reads_them_and_written_as_all_times_are(
    texts: list[str],
) -> None:
    event_type = TYPES[ECOMMERCE]
    record = {"user_id": "u", "product_id": "p", "action": "view", "price": 1.0}
    lines = [
        event_type.decode(msgspec.json.encode({**record, "timestamp": text})) for text in texts
    ]
    events = event_type.events(lines)
    expected = [read_by_msgspec(text) for text in texts]
    refused = event_type.suspects(events, MAX_EPOCH_MS)
    assert refused == {i for i, ms in enumerate(expected) if ms is None}
    good = [i for i, ms in enumerate(expected) if ms is not None]
    assert [int(events.times["timestamp"][i]) for i in good] == [expected[i] for i in good]
    kept = events.without(np.array(sorted(refused), np.int64))
    written_times = [line["timestamp"] for line in written_events(event_type, kept)]
    assert written_times == [iso_utc_ms(expected[i] or 0) for i in good]


@given(st.lists(TRUE_TIMES))
def test_times_as_they_are_written_need_no_second_reading(texts: list[str]) -> None:
    ms, odd = canonical_times(texts)
    assert odd == []
    assert [iso_utc_ms(int(t)) for t in ms] == texts


# --- the second look


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "takenAt": TIMES,
                "sequence": st.integers(0) | st.sampled_from([2**63 - 1, 2**63]),
                "repairedAt": st.none() | TRUE_TIMES,
            }
        ),
        max_size=4,
    )
)
def test_suspects_are_the_events_with_a_value_that_does_not_fit_or_of_the_future(
    readings: list[dict[str, Any]],
) -> None:
    event_type = TYPES[READING]
    fixed = {"deviceId": "pump", "isOk": True, "level": 2, "humidity": 0.5}
    lines = [event_type.decode(msgspec.json.encode({**fixed, **r})) for r in readings]
    naive = set()
    for row, reading in enumerate(readings):
        taken = read_by_msgspec(reading["takenAt"])
        if taken is None or taken > NOW_MS or reading["sequence"] >= 2**63:
            naive.add(row)
    assert event_type.suspects(event_type.events(lines), NOW_MS) == naive


def test_an_event_time_is_suspect_only_after_the_latest() -> None:
    latest = NOON + timedelta(microseconds=999)
    later = NOON + timedelta(milliseconds=1)
    events = events_of(TYPES[ECOMMERCE], [shop(timestamp=latest), shop(timestamp=later)])
    assert TYPES[ECOMMERCE].suspects(events, NOW_MS) == {1}


def test_another_time_of_the_contract_may_be_in_the_future() -> None:
    events = events_of(TYPES[READING], [sample(repaired_at=NOON + timedelta(days=9))])
    assert TYPES[READING].suspects(events, NOW_MS) == set()


@pytest.mark.parametrize("ratio", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_is_suspect(ratio: float) -> None:
    """JSON has none, but a contract's own code may set one."""
    event_type = EventType(load_contract(*REWRITING))
    made = event_type.contract.type
    events = events_of(event_type, [made("a", NOON), made("a", NOON, ratio=ratio)])
    assert event_type.suspects(events, NOW_MS) == {1}


def test_an_integer_beyond_64_bits_is_a_misfit_and_null_and_spoils_no_other() -> None:
    numbers = [2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 0]
    event_type = EventType(load_contract(*REWRITING))
    made = event_type.contract.type
    events = events_of(event_type, [made("a", NOON, n) for n in numbers])
    assert events.misfits == {0, 3}
    assert events.numbers["number"].to_pylist() == [None, 2**63 - 1, -(2**63), None, 0]
    assert event_type.suspects(events, NOW_MS) == {0, 3}
    assert events.without(np.array([0, 3])).misfits == frozenset()


@pytest.mark.parametrize("key", REWRITTEN)
def test_whatever_a_contracts_own_code_sets_is_refused_or_a_suspect(key: str) -> None:
    event_type = EventType(load_contract(*REWRITING))
    record = msgspec.json.encode({"key": key, "at": "2026-01-01T00:00:00Z"})
    try:
        line = event_type.decode(record)
    except Exception:  # any: intake takes it as a failed record
        return
    assert event_type.suspects(event_type.events([line]), NOW_MS) == {0}


# --- which contracts are read directly


@pytest.mark.parametrize(
    ("path", "direct"),
    [
        (ECOMMERCE, True),
        (READING, True),
        (CLASHING, True),
        (REWRITING, False),
        (("tests.unit.operators.rules.contracts:Strict", "key", "at"), False),
        (("tests.unit.operators.contracts:Tagged", "key", "at"), False),
        (("tests.unit.operators.contracts:WithoutZone", "key", "at"), False),
        (("tests.unit.operators.contracts:DefaultTime", "key", "at"), False),
    ],
)
def test_a_contract_with_more_to_it_than_its_fields_is_asked_first(
    path: tuple[str, ...], direct: bool
) -> None:
    contract = load_contract(*path)
    event_type = EventType(contract)
    asked = []

    class Asked(EventType):
        def line_of(self, event: Any) -> Any:
            asked.append(event)
            return super().line_of(event)

    event_type = Asked(contract)
    with contextlib.suppress(Exception):
        event_type.decode(GOOD_RECORDS[path[0]])
    assert bool(asked) is not direct


GOOD_RECORDS = {
    ECOMMERCE[0]: b'{"user_id":"u","product_id":"p","action":"view","price":1,'
    b'"timestamp":"2026-01-01T00:00:00.000Z"}',
    READING[0]: b"{}",
    CLASHING[0]: b"{}",
    REWRITING[0]: b'{"key":"k","at":"2026-01-01T00:00:00.000Z"}',
    "tests.unit.operators.rules.contracts:Strict": b'{"key":"k","at":"2026-01-01T00:00:00.000Z"}',
    "tests.unit.operators.contracts:Tagged": b'{"type":"Tagged","key":"k",'
    b'"at":"2026-01-01T00:00:00.000Z"}',
    "tests.unit.operators.contracts:WithoutZone": b'{"key":"k","at":"2026-01-01T00:00:00.000"}',
    "tests.unit.operators.contracts:DefaultTime": b'{"key":"k","at":"2026-01-01T00:00:00.000Z"}',
}
