"""The verdict: examples of each rule, then any bytes at all against a second, naive judge."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from operators.rules.contract import load_contract
from operators.rules.poison import PoisonPattern, PoisonRules
from operators.rules.verdict import (
    MAX_MESSAGE_CHARS,
    MAX_VALUE_CHARS,
    Judge,
    Rejection,
    Violation,
    bounded_text,
)
from tests.unit.operators.rules.contracts import ECOMMERCE, READING
from tests.unit.operators.rules.naive import SameKeyTwice, naive_verdict
from tests.unit.operators.rules.records import (
    NOW,
    NOW_MS,
    SKEW_MS,
    damaged_records,
    good_records,
    mutated,
)
from udfs.ecommerce import EcommerceEvent

MAX_RECORD_BYTES = 10_000
WORDY = ("tests.unit.operators.rules.contracts:Wordy", "key", "at")
STRICT = ("tests.unit.operators.rules.contracts:Strict", "key", "at")
QUARANTINE_REASONS = {"empty_message", "oversized", "null_bytes", "invalid_json"}

thorough = settings(max_examples=200, deadline=None)


def judge_of(arguments: tuple[str, ...], poison: PoisonRules | None = None) -> Judge:
    return Judge(load_contract(*arguments), poison or PoisonRules(), MAX_RECORD_BYTES, SKEW_MS)


SHOP = judge_of(ECOMMERCE)
JUDGES = {ECOMMERCE: SHOP, READING: judge_of(READING), STRICT: judge_of(STRICT)}
EVENT = {
    "user_id": "u1",
    "product_id": "p1",
    "action": "view",
    "price": 1.5,
    "timestamp": "2026-01-01T11:00:00.5Z",
}
SAMPLE = {
    "deviceId": "pump-1",
    "takenAt": "2026-01-01T11:00:00Z",
    "sequence": 1,
    "isOk": True,
    "level": 1,
    "humidity": 0.5,
}


class Raw(str):
    """A value that is JSON already."""


def record(base: Mapping[str, Any] = EVENT, **changes: Any) -> bytes:
    """The JSON of a good record with some fields changed; `...` leaves one out."""
    fields = {name: value for name, value in {**base, **changes}.items() if value is not ...}
    texts = (
        f"{json.dumps(name)}:{value if isinstance(value, Raw) else json.dumps(value)}"
        for name, value in fields.items()
    )
    return ("{" + ",".join(texts) + "}").encode()


def rejected(payload: bytes, judge: Judge = SHOP, payload_bytes: int | None = None) -> Rejection:
    verdict = judge.judge(payload, NOW_MS, payload_bytes)
    assert isinstance(verdict, Rejection)
    return verdict


def types_of(rejection: Rejection) -> list[str]:
    return [violation.error_type for violation in rejection.violations]


# --- accepted


def test_a_good_record_is_an_event() -> None:
    time = datetime(2026, 1, 1, 11, 0, 0, 500_000, timezone.utc)
    event = EcommerceEvent("u1", "p1", "view", 1.5, time)
    assert SHOP.judge(record(), NOW_MS) == event
    assert SHOP.explain(record(), NOW_MS) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"price": 0},
        {"price": Raw("-0.0")},
        {"price": Raw("1e-999")},
        {"price": 2**70},
        {"user_id": " "},
        {"user_id": "\u0000"},
        {"timestamp": "2026-01-01T11:00:00"},
        {"timestamp": "2026-01-01T12:05:00.000Z"},
        {"timestamp": "2026-01-01T12:05:00.000999Z"},
        {"timestamp": "0001-01-01T00:00:00Z"},
        {"more": {"deep": [1, None, "x"]}},
        {"more": Raw("1e999")},
        {"more": Raw("9" * 5000)},
        {"more": "NaN"},
    ],
)
def test_what_the_contract_allows_is_accepted(changes: dict[str, Any]) -> None:
    assert isinstance(SHOP.judge(record(**changes), NOW_MS), EcommerceEvent)


def test_a_key_may_be_written_with_escapes_and_the_last_of_two_wins() -> None:
    payload = record()[:-1] + b',"pri\\u0063e":7}'
    event = SHOP.judge(payload, NOW_MS)
    assert isinstance(event, EcommerceEvent)
    assert event.price == 7


# --- quarantined unread


@pytest.mark.parametrize("payload", [b"", b" ", b"\t\r\n", b" " * (MAX_RECORD_BYTES + 1)])
def test_nothing_or_only_white_space_is_an_empty_message(payload: bytes) -> None:
    assert rejected(payload) == Rejection("quarantine", "empty_message", "the record is empty")


def test_a_record_is_oversized_from_the_first_byte_too_many() -> None:
    fits = record(more="x" * (MAX_RECORD_BYTES - len(record(more=""))))
    assert len(fits) == MAX_RECORD_BYTES
    assert isinstance(SHOP.judge(fits, NOW_MS), EcommerceEvent)
    assert rejected(fits + b" ").error_type == "oversized"


def test_a_record_that_the_reader_has_cut_is_judged_by_its_full_length() -> None:
    rejection = rejected(record(), payload_bytes=50_000_000)
    assert rejection.error_type == "oversized"
    assert "50000000 bytes" in rejection.message
    assert rejected(b"   ", payload_bytes=50_000_000).error_type == "oversized"
    assert isinstance(SHOP.judge(record(), NOW_MS, len(record())), EcommerceEvent)


@pytest.mark.parametrize("payload", [b"\0", record() + b"\0", record().replace(b"u1", b"u\0")])
def test_a_raw_null_byte_is_named_as_such(payload: bytes) -> None:
    assert rejected(payload).error_type == "null_bytes"


def test_the_rules_for_unread_records_come_in_their_order() -> None:
    poison = PoisonRules((PoisonPattern(".", "everything"),))
    judge = judge_of(ECOMMERCE, poison)
    assert rejected(b" ", judge).error_type == "empty_message"
    assert rejected(b"\0" * (MAX_RECORD_BYTES + 1), judge).error_type == "oversized"
    assert rejected(b"\0x", judge).error_type == "null_bytes"
    assert rejected(b"\xff", judge).error_type == "everything"


def test_a_pattern_quarantines_even_a_good_record() -> None:
    judge = judge_of(ECOMMERCE, PoisonRules((PoisonPattern('"u[0-9]"', "test_user"),)))
    rejection = rejected(record(), judge)
    assert (rejection.kind, rejection.error_type) == ("quarantine", "test_user")
    assert isinstance(judge.judge(record(user_id="anna"), NOW_MS), EcommerceEvent)


# --- not JSON


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        record()[:-1],
        b"[1",
        b"[1}",
        b'"text',
        b"hello",
        b"{} {}",
        record() + b"x",
        b"\xff",
        b"\xef\xbb\xbf" + record(),
        record(user_id="\ud800"),
        record(more="\ud800"),
        record().replace(b"u1", b"\xff"),
        record(more="x").replace(b'"x"', b'"\xff"'),
        record(more="x").replace(b'"more"', b'"\xff"'),
        record(price=-1, more="x").replace(b'"x"', b'"\xff"'),
        record().replace(b"u1", b"\xed\xa0\x80"),
        record(user_id="a").replace(b'"a"', b'"a\x01"'),
        record(price=Raw("01")),
        record(price=Raw("+1")),
        record(price=Raw(".5")),
        record(price=Raw("nan")),
        record(price=Raw("-NaN")),
        record(price=Raw("1NaN")),
        record(price=Raw("NaNs")),
        record(price=Raw("NaN5")),
        record(price=Raw("1Infinity")),
        record(price=Raw("Infinity5")),
        record(price=Raw("NaN.NaN")),
        record(price=Raw("NaN NaN")),
        b"NaN",
        b"[NaN]",
        b"{NaN:1}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'"' * 9_999,
        b'\\"' * 4_999 + b"NaN",
    ],
)
def test_what_is_not_json_is_quarantined(payload: bytes) -> None:
    judge = Judge(load_contract(*ECOMMERCE), PoisonRules(), 10**6, SKEW_MS)
    rejection = rejected(payload, judge)
    assert (rejection.kind, rejection.error_type) == ("quarantine", "invalid_json")
    assert rejection.violations == ()


@pytest.mark.parametrize("name", ["user_id", "more", "price"])
@pytest.mark.parametrize("open_bracket", ["[", '{"a":'])
def test_a_value_nested_too_deep_is_quarantined_wherever_it_is(
    name: str, open_bracket: str
) -> None:
    judge = Judge(load_contract(*ECOMMERCE), PoisonRules(), 10**7, SKEW_MS)
    close = "]" if open_bracket == "[" else "}"
    value = Raw(open_bracket * 50_000 + "1" + close * 50_000)
    assert rejected(record({**EVENT, name: value}), judge).error_type == "invalid_json"


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_a_bare_literal_that_no_field_of_ours_holds_is_not_json(literal: str) -> None:
    payload = record(more=Raw(literal))
    assert rejected(payload).error_type == "invalid_json"
    assert rejected(record(price=-1, more=Raw(literal))).error_type == "invalid_json"


def test_what_looks_like_our_stand_in_for_a_literal_does_no_harm() -> None:
    assert rejected(record(user_id="1e99999990", more=Raw("NaN"))).error_type == "invalid_json"


# --- the contract


@pytest.mark.parametrize(
    ("changes", "error_type", "field", "value"),
    [
        ({"user_id": ...}, "missing_required", "user_id", ""),
        ({"product_id": None}, "missing_required", "product_id", "null"),
        ({"user_id": ""}, "missing_required", "user_id", '""'),
        ({"action": ""}, "missing_required", "action", '""'),
        ({"timestamp": ""}, "missing_required", "timestamp", '""'),
        ({"timestamp": None}, "missing_required", "timestamp", "null"),
        ({"price": ...}, "invalid_price", "price", ""),
        ({"price": None}, "invalid_price", "price", "null"),
        ({"price": -0.01}, "invalid_price", "price", "-0.01"),
        ({"price": Raw("NaN")}, "invalid_price", "price", "NaN"),
        ({"price": Raw("Infinity")}, "invalid_price", "price", "Infinity"),
        ({"price": Raw("-Infinity")}, "invalid_price", "price", "-Infinity"),
        ({"price": Raw("1e999")}, "invalid_price", "price", "1e999"),
        ({"price": Raw("-1e999")}, "invalid_price", "price", "-1e999"),
        ({"price": "1.5"}, "schema_error", "price", '"1.5"'),
        ({"price": ""}, "schema_error", "price", '""'),
        ({"price": True}, "schema_error", "price", "true"),
        ({"price": [1]}, "schema_error", "price", "[1]"),
        ({"price": Raw('{"a": NaN}')}, "schema_error", "price", '{"a": NaN}'),
        ({"user_id": 1}, "schema_error", "user_id", "1"),
        ({"user_id": Raw("NaN")}, "schema_error", "user_id", "NaN"),
        ({"user_id": Raw("1e999")}, "schema_error", "user_id", "1e999"),
        ({"action": "buy"}, "unknown_action", "action", '"buy"'),
        ({"action": " "}, "unknown_action", "action", '" "'),
        ({"action": 1}, "schema_error", "action", "1"),
        ({"timestamp": 1767268800}, "schema_error", "timestamp", "1767268800"),
        ({"timestamp": "now"}, "schema_error", "timestamp", '"now"'),
        ({"timestamp": "2026-02-30T00:00:00Z"}, "schema_error", "timestamp", None),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "schema_error", "timestamp", None),
        ({"timestamp": "9999-12-31T23:59:59-14:00"}, "schema_error", "timestamp", None),
        ({"timestamp": "2026-01-01T12:05:00.001Z"}, "future_timestamp", "timestamp", None),
        ({"timestamp": "2026-01-01T12:05:01"}, "future_timestamp", "timestamp", None),
        ({"timestamp": "2026-01-01T13:05:01+01:00"}, "future_timestamp", "timestamp", None),
    ],
)
def test_each_thing_that_can_be_wrong_has_its_name(
    changes: dict[str, Any], error_type: str, field: str, value: str | None
) -> None:
    rejection = rejected(record(**changes))
    assert (rejection.kind, rejection.error_type) == ("dead_letter", error_type)
    (violation,) = rejection.violations
    assert (violation.error_type, violation.field) == (error_type, field)
    if value is not None:
        assert violation.value == value
    assert rejection.message == violation.message
    assert violation.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("changes", "error_type", "field"),
    [
        ({"sequence": 2**63}, "invalid_sequence", "sequence"),
        ({"sequence": Raw("9" * 400)}, "invalid_sequence", "sequence"),
        ({"sequence": Raw("9" * 5000)}, "invalid_sequence", "sequence"),
        ({"sequence": Raw("1e999")}, "invalid_sequence", "sequence"),
        ({"sequence": Raw("NaN")}, "invalid_sequence", "sequence"),
        ({"sequence": -1}, "invalid_sequence", "sequence"),
        ({"sequence": 1.5}, "schema_error", "sequence"),
        ({"sequence": 1.0}, "schema_error", "sequence"),
        ({"sequence": False}, "schema_error", "sequence"),
        ({"isOk": 1}, "schema_error", "isOk"),
        ({"isOk": ...}, "missing_required", "isOk"),
        ({"is_ok": True, "isOk": ...}, "missing_required", "isOk"),
        ({"level": 4}, "unknown_level", "level"),
        ({"level": "1"}, "schema_error", "level"),
        ({"level": None}, "missing_required", "level"),
        ({"deviceId": "X1"}, "invalid_deviceId", "deviceId"),
        ({"deviceId": "x"}, "invalid_deviceId", "deviceId"),
        ({"deviceId": "x" * 13}, "invalid_deviceId", "deviceId"),
        ({"deviceId": ""}, "missing_required", "deviceId"),
        ({"humidity": ...}, "bad_humidity", "humidity"),
        ({"humidity": 2}, "bad_humidity", "humidity"),
        ({"humidity": "wet"}, "schema_error", "humidity"),
        ({"temperature": 101}, "invalid_temperature", "temperature"),
        ({"temperature": Raw("NaN")}, "invalid_temperature", "temperature"),
        ({"mode": "off"}, "unknown_mode", "mode"),
        ({"mode": ""}, "missing_required", "mode"),
        ({"note": None}, "missing_required", "note"),
        ({"repairedAt": "2025-01-01T00:00:00"}, "invalid_repairedAt", "repairedAt"),
        ({"repairedAt": "0001-01-01T00:00:00+01:00"}, "schema_error", "repairedAt"),
        ({"takenAt": "2027-01-01T00:00:00Z"}, "future_timestamp", "takenAt"),
    ],
)
def test_another_contract_is_judged_by_the_same_rules(
    changes: dict[str, Any], error_type: str, field: str
) -> None:
    (violation,) = rejected(record(SAMPLE, **changes), JUDGES[READING]).violations
    assert (violation.error_type, violation.field) == (error_type, field)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": None, "mode": None, "repairedAt": None},
        {"temperature": -50, "mode": "auto", "repairedAt": "2999-01-01T00:00:00Z", "note": ""},
        {"sequence": 2**63 - 1},
    ],
)
def test_another_contract_accepts_what_it_allows(changes: dict[str, Any]) -> None:
    assert not isinstance(JUDGES[READING].judge(record(SAMPLE, **changes), NOW_MS), Rejection)


@pytest.mark.parametrize("payload", [b"[1]", b"[]", b'"text"', b"1", b"null", b"true", b"1e999"])
def test_json_that_is_not_an_object_is_a_schema_error_of_the_whole(payload: bytes) -> None:
    rejection = rejected(payload)
    assert (rejection.kind, rejection.error_type) == ("dead_letter", "schema_error")
    assert [(v.field, v.value) for v in rejection.violations] == [("", payload.decode())]


def test_all_violations_are_named_and_the_first_in_precedence_names_the_record() -> None:
    payload = record(
        user_id=None, product_id=7, action="x", price=Raw("NaN"), timestamp="2027-01-01T00:00:00Z"
    )
    rejection = rejected(payload)
    assert rejection.error_type == "schema_error"
    assert types_of(rejection) == [
        "schema_error",
        "missing_required",
        "invalid_price",
        "unknown_action",
        "future_timestamp",
    ]
    assert rejection.message.startswith("product_id: Expected `str`, got `int`; user_id: null; ")


def test_the_order_of_the_fields_in_the_json_does_not_matter() -> None:
    bad = {**EVENT, "price": -1, "user_id": "", "action": 3}
    turned = dict(reversed(bad.items()))
    assert rejected(record(bad)) == rejected(record(turned))


def test_a_violation_that_the_user_calls_poison_is_quarantined_with_its_name() -> None:
    judge = judge_of(ECOMMERCE, PoisonRules(violations=frozenset({"invalid_price"})))
    rejection = rejected(record(price=-1, user_id=7), judge)
    assert (rejection.kind, rejection.error_type) == ("quarantine", "invalid_price")
    assert types_of(rejection) == ["schema_error", "invalid_price"]
    assert rejected(record(user_id=7), judge).kind == "dead_letter"


def test_precedence_decides_between_two_poisonous_violations() -> None:
    poison = PoisonRules(violations=frozenset({"unknown_action", "missing_required"}))
    judge = judge_of(ECOMMERCE, poison)
    assert rejected(record(action="x", user_id=""), judge).error_type == "missing_required"


def test_a_long_value_is_cut_in_its_violation() -> None:
    (violation,) = rejected(record(price="x" * 300)).violations
    assert len(violation.value) == MAX_VALUE_CHARS
    assert violation.value.endswith("…")


def test_a_long_value_may_be_cut_inside_a_character() -> None:
    for shift in ("", "x", "xx", "xxx"):
        payload = record(price=Raw(f'"{shift}{"😀" * 300}"'))
        (violation,) = rejected(payload).violations
        assert violation.value == f'"{shift}{"😀" * 300}'[: MAX_VALUE_CHARS - 1] + "…"


def test_long_messages_are_cut() -> None:
    rejection = rejected(
        record({"key": "k", "at": "2026-01-01T00:00:00Z", "one": "x", "two": "y"}), judge_of(WORDY)
    )
    assert [len(v.message) for v in rejection.violations] == [MAX_MESSAGE_CHARS] * 2
    assert len(rejection.message) == MAX_MESSAGE_CHARS


def test_a_long_pattern_is_cut_in_the_message() -> None:
    poison = PoisonRules((PoisonPattern("view" + "|x" * 2000, "views"),))
    assert len(rejected(record(), judge_of(ECOMMERCE, poison)).message) == MAX_MESSAGE_CHARS


def test_a_message_names_no_value_so_that_fingerprints_agree() -> None:
    one, other = rejected(record(action="one")), rejected(record(action='it\'s "other"'))
    assert one.message == other.message


# --- rules of the Struct itself


@dataclass(frozen=True)
class StrictCase:
    changes: dict[str, Any]
    message: str


@pytest.mark.parametrize(
    "case",
    [
        StrictCase({"low": 2}, "low is above high"),
        StrictCase({"more": 1}, "Object contains unknown field `more`"),
        StrictCase({"key": "boom"}, "KeyError: 'boom'"),
        StrictCase({"key": "dumb"}, "Speechless: it cannot say why"),
        StrictCase({"key": "far"}, "the event does not fit its columns"),
        StrictCase({"key": "wrong"}, "TypeError: must be real number, not str"),
    ],
    ids=lambda case: case.message,
)
def test_what_no_field_explains_is_one_schema_error(case: StrictCase) -> None:
    payload = record({"key": "k", "at": "2026-01-01T00:00:00Z"}, **case.changes)
    rejection = rejected(payload, JUDGES[STRICT])
    assert rejection.error_type == "schema_error"
    assert rejection.violations == (Violation("schema_error", "", "", case.message),)


def test_each_value_of_a_key_that_comes_twice_has_to_be_good() -> None:
    rejection = rejected(b'{"price":-1,' + record()[1:])
    assert rejection.error_type == "schema_error"
    assert rejection.message == "Expected `float` >= 0.0 - at `$.price`"


def test_a_refusal_leaves_nothing_for_the_garbage_collector() -> None:
    """An exception whose traceback holds its own frame is freed by a walk through all objects."""
    rejected(b"[", JUDGES[STRICT])
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            rejected(b'{"key":1}', JUDGES[STRICT])
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_running_out_of_memory_is_not_a_verdict() -> None:
    """The infrastructure has failed, not the record: Flink has to restart the job."""

    def no_memory(_: bytes) -> msgspec.Struct:
        raise MemoryError

    judge = judge_of(ECOMMERCE)
    judge.decode = no_memory
    with pytest.raises(MemoryError):
        judge.judge(record(), NOW_MS)


# --- any bytes at all

PATHS = st.sampled_from([ECOMMERCE, READING])
RECORDS = PATHS.flatmap(lambda arguments: damaged_records(arguments[0]))
ANYTHING = st.binary(max_size=300) | mutated(RECORDS)


@thorough
@given(ANYTHING, st.sampled_from([ECOMMERCE, READING, STRICT]), st.integers(0, 2**42))
def test_any_bytes_have_exactly_one_verdict(
    payload: bytes, arguments: tuple[str, ...], now_ms: int
) -> None:
    judge, contract = JUDGES[arguments], load_contract(*arguments)
    verdict = judge.judge(payload, now_ms)
    assert judge.judge(payload, now_ms) == verdict
    if not isinstance(verdict, Rejection):
        assert isinstance(verdict, contract.type)
        assert judge.explain(payload, now_ms) is None
        return
    assert judge.explain(payload, now_ms) == verdict
    known = contract.error_types
    if verdict.kind == "quarantine":
        assert verdict.error_type in QUARANTINE_REASONS
        assert not verdict.violations
    else:
        ranks = [known.index(name) for name in types_of(verdict)]
        assert ranks == sorted(ranks)
        assert types_of(verdict)[0] == verdict.error_type
    assert len(verdict.message) <= MAX_MESSAGE_CHARS
    assert all(len(v.value) <= MAX_VALUE_CHARS for v in verdict.violations)
    msgspec.json.encode(verdict)  # no text in it is one that cannot be written


@thorough
@given(PATHS.flatmap(lambda a: st.tuples(st.just(a), good_records(a[0]))))
def test_any_good_record_is_accepted_unchanged(case: tuple[tuple[str, ...], bytes]) -> None:
    arguments, payload = case
    assume(len(payload) <= MAX_RECORD_BYTES)
    event = JUDGES[arguments].judge(payload, NOW_MS)
    assert not isinstance(event, Rejection)
    sent, kept = json.loads(payload), json.loads(msgspec.json.encode(event))
    for column in load_contract(*arguments).columns:
        value, default = kept[column.name], None if column.name != "note" else ""
        expected = sent.get(column.name, default)
        if column.kind == "datetime" and value is not None:
            assert parsed(value) == parsed(expected)
        elif column.kind == "float" and value is not None:
            assert value == float(expected)  # an integer beyond 2**53 is the nearest double
        else:
            assert value == expected


def parsed(text: str) -> datetime:
    return msgspec.json.decode(json.dumps(text), type=datetime)


@thorough
@given(PATHS.flatmap(lambda a: st.tuples(st.just(a), mutated(damaged_records(a[0])))))
def test_a_naive_judge_comes_to_the_same_verdict(case: tuple[tuple[str, ...], bytes]) -> None:
    arguments, payload = case
    latest = NOW + timedelta(milliseconds=SKEW_MS + 1) - timedelta(microseconds=1)
    try:
        kind, found = naive_verdict(payload, arguments[0], latest, MAX_RECORD_BYTES)
    except SameKeyTwice:
        assume(False)
    verdict = JUDGES[arguments].judge(payload, NOW_MS)
    if not isinstance(verdict, Rejection):
        assert kind == "accepted"
    elif verdict.kind == "quarantine":
        assert kind == verdict.error_type
    else:
        assert kind == "dead_letter"
        assert {(v.error_type, v.field) for v in verdict.violations} == found


# --- small parts


@given(st.text(st.characters(), max_size=20), st.integers(1, 30))
def test_bounded_text_is_bounded_and_can_be_written(text: str, limit: int) -> None:
    bounded = bounded_text(text, limit)
    assert len(bounded) <= limit
    bounded.encode()


def test_bounded_text_says_that_it_was_cut() -> None:
    assert bounded_text("abcdef", 6) == "abcdef"
    assert bounded_text("abcdefg", 6) == "abcde…"
    assert bounded_text("a\ud800", 10) == "a\\ud800"
    assert bounded_text("a\ud800", 4) == "a\\ud"
