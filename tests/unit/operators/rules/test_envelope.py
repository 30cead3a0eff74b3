"""The envelope: every field in its place, the original bytes back, whatever they are."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.rules import envelope
from operators.rules.contract import load_contract
from operators.rules.envelope import DeadLetter, Source, envelope_line
from operators.rules.fingerprint import fingerprint
from operators.rules.poison import PoisonPattern, PoisonRules
from operators.rules.verdict import Judge, Rejection, Violation
from tests.unit.operators.rules.contracts import ECOMMERCE, READING
from tests.unit.operators.rules.records import NOW_MS, SKEW_MS, damaged_records, mutated

SHOP = load_contract(*ECOMMERCE)
PRICE = Violation("invalid_price", "price", "-1", "price: Expected `float` >= 0.0")
DEAD = Rejection("dead_letter", "invalid_price", PRICE.message, (PRICE,))
POISON = Rejection("quarantine", "invalid_json", "not JSON: malformed (byte 3)")
SOURCE = Source("ecommerce-events", 3, 17, timestamp_ms=1_767_225_600_123, key=b"u1")

DESIGN_FIELDS = [
    "original_message",
    "encoding",
    "error_type",
    "error_message",
    "error_stacktrace",
    "failure_category",
    "violations",
    "processing_attempts",
    "attempts",
    "first_failure_time",
    "last_failure_time",
    "source_topic",
    "source_partition",
    "source_offset",
    "source_timestamp",
    "key",
    "processing_stage",
    "message_checksum",
    "fingerprint",
    "disposition",
    "replay_count",
    "code_version",
    "contract_version",
    "metadata",
    "message_bytes",
    "message_truncated",
]


def line_of(
    payload: bytes = b"{}",
    rejection: Rejection = DEAD,
    source: Source = SOURCE,
    contract: Any = SHOP,
    **options: Any,
) -> bytes:
    defaults = {
        "now_ms": NOW_MS,
        "stage": "intake",
        "code_version": "0.1.0",
        "payload_limit_bytes": 1000,
    }
    return envelope_line(payload, rejection, source, contract, **{**defaults, **options})


def letter_of(*args: Any, **options: Any) -> dict[str, Any]:
    letter = json.loads(line_of(*args, **options))
    assert isinstance(letter, dict)
    return letter


def original(letter: dict[str, Any]) -> bytes:
    text: str = letter["original_message"]
    return text.encode() if letter["encoding"] == "utf-8" else base64.b64decode(text)


def test_a_dead_letter_holds_every_field_in_the_order_of_the_design() -> None:
    payload = b'{"price":-1}'
    letter = letter_of(payload)
    assert letter == {
        "original_message": '{"price":-1}',
        "encoding": "utf-8",
        "error_type": "invalid_price",
        "error_message": "price: Expected `float` >= 0.0",
        "error_stacktrace": "",
        "failure_category": "data_quality",
        "violations": [
            {
                "error_type": "invalid_price",
                "field": "price",
                "value": "-1",
                "message": "price: Expected `float` >= 0.0",
            }
        ],
        "processing_attempts": 1,
        "attempts": [],
        "first_failure_time": "2026-01-01T12:00:00.000Z",
        "last_failure_time": "2026-01-01T12:00:00.000Z",
        "source_topic": "ecommerce-events",
        "source_partition": 3,
        "source_offset": 17,
        "source_timestamp": "2026-01-01T00:00:00.123Z",
        "key": "u1",
        "processing_stage": "intake",
        "message_checksum": hashlib.md5(payload).hexdigest(),  # noqa: S324 - a checksum
        "fingerprint": fingerprint("intake", "invalid_price", PRICE.message),
        "disposition": "dq_rule",
        "replay_count": 0,
        "code_version": "0.1.0",
        "contract_version": SHOP.version,
        "metadata": {},
        "message_bytes": 12,
        "message_truncated": False,
        "has_schema_error": False,
        "has_missing_required": False,
        "has_invalid_price": True,
        "has_unknown_action": False,
    }
    assert [*letter][: len(DESIGN_FIELDS)] == DESIGN_FIELDS
    assert [*DeadLetter.__struct_fields__] == DESIGN_FIELDS


def test_an_envelope_reads_back_as_a_dead_letter() -> None:
    letter = msgspec.json.decode(line_of(), type=DeadLetter)
    assert letter.error_type == "invalid_price"
    assert letter.violations == [PRICE]


def test_quarantine_has_the_same_envelope_with_its_own_disposition() -> None:
    letter = letter_of(b"{", POISON)
    assert (letter["disposition"], letter["error_type"]) == ("poison", "invalid_json")
    assert not any(value for name, value in letter.items() if name.startswith("has_"))
    assert [*letter] == [*letter_of()]


def test_the_flags_are_those_of_the_contract_and_say_all_that_applies() -> None:
    future = Violation("future_timestamp", "takenAt", "", "")
    found = (Violation("bad_humidity", "humidity", "", ""), future)
    letter = letter_of(
        rejection=Rejection("dead_letter", "bad_humidity", "", found),
        contract=load_contract(*READING),
    )
    flags = {name: value for name, value in letter.items() if name.startswith("has_")}
    assert [name for name, value in flags.items() if value] == ["has_bad_humidity"]
    assert "has_future_timestamp" not in flags
    assert "has_unknown_level" in flags


def test_what_a_source_does_not_know_is_null() -> None:
    letter = letter_of(source=Source("events/a.jsonl", 0, 0))
    assert (letter["source_timestamp"], letter["key"]) == (None, None)


@pytest.mark.parametrize("timestamp_ms", [2**63 - 1, -(2**63), 253_402_300_800_000])
def test_a_source_time_outside_the_calendar_is_no_time(timestamp_ms: int) -> None:
    assert letter_of(source=Source("t", 0, 0, timestamp_ms))["source_timestamp"] is None


def test_a_source_time_before_1970_is_a_time() -> None:
    time = letter_of(source=Source("t", 0, 0, -1))["source_timestamp"]
    assert time == "1969-12-31T23:59:59.999Z"


# --- the payload


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [
        (b"", "utf-8"),
        (b"\0", "utf-8"),
        ('"ü\u2028\n\x7f'.encode(), "utf-8"),
        (b"\xff{}", "base64"),
        (b"\xed\xa0\x80", "base64"),
        (b"cut \xc3", "base64"),
    ],
)
def test_bytes_that_are_not_utf8_are_in_base64(payload: bytes, encoding: str) -> None:
    letter = letter_of(payload, POISON)
    assert letter["encoding"] == encoding
    assert original(letter) == payload


@pytest.mark.parametrize(("size", "truncated"), [(999, False), (1000, False), (1001, True)])
def test_a_payload_is_cut_from_the_first_byte_too_many(size: int, truncated: bool) -> None:
    payload = b"x" * size
    letter = letter_of(payload, POISON)
    assert letter["message_truncated"] is truncated
    assert letter["message_bytes"] == size
    assert original(letter) == payload[:1000]
    assert letter["message_checksum"] == hashlib.md5(payload).hexdigest()  # noqa: S324 - a checksum


@pytest.mark.parametrize("limit", [3, 4, 5, 6])
def test_a_cut_moves_back_over_a_character_that_it_would_split(limit: int) -> None:
    letter = letter_of("ab😀cd".encode(), payload_limit_bytes=limit)
    expected = "ab😀" if limit == 6 else "ab"
    assert (letter["encoding"], letter["original_message"]) == ("utf-8", expected)
    assert letter["message_truncated"] is True


def test_a_payload_that_was_bad_before_the_cut_is_in_base64() -> None:
    letter = letter_of(b"\xff" + b"x" * 20, payload_limit_bytes=10)
    assert letter["encoding"] == "base64"
    assert original(letter) == b"\xff" + b"x" * 9


def test_of_a_payload_that_the_reader_has_cut_the_whole_is_told() -> None:
    checksum = "d41d8cd98f00b204e9800998ecf8427e"
    letter = letter_of("ü".encode()[:1], payload_bytes=50_000_000, full_checksum=checksum)
    assert letter["message_bytes"] == 50_000_000
    assert letter["message_checksum"] == checksum
    assert letter["message_truncated"] is True
    assert (letter["encoding"], letter["original_message"]) == ("utf-8", "")
    assert letter_of(b"short", payload_bytes=6)["message_truncated"] is True


# --- bounds


def test_texts_are_bounded() -> None:
    rejection = Rejection("dead_letter", "invalid_price", "m" * 9000, (PRICE,) * 80)
    source = Source("t" * 9000, 0, 0, key=b"k" * 9000)
    metadata = {f"{i:02}" * 1500: "v" * 9000 for i in range(80)}
    letter = letter_of(
        rejection=rejection, source=source, stacktrace="s" * 90_000, metadata=metadata
    )
    assert len(letter["error_message"]) == envelope.MAX_ERROR_MESSAGE_CHARS
    assert len(letter["error_stacktrace"]) == envelope.MAX_STACKTRACE_CHARS
    assert len(letter["violations"]) == envelope.MAX_VIOLATIONS
    assert len(letter["source_topic"]) == envelope.MAX_TOPIC_CHARS
    assert len(letter["key"]) == envelope.MAX_KEY_CHARS
    assert letter["metadata"]
    for name, text in letter["metadata"].items():
        assert len(name) == len(text) == envelope.MAX_METADATA_CHARS


def test_metadata_are_bounded_by_what_they_are_in_json() -> None:
    """The bug it catches: headers of control characters alone do not fit the smallest topic."""
    metadata = {f"h{i}": "\x01" * envelope.MAX_METADATA_CHARS for i in range(50)}
    kept = letter_of(metadata=metadata)["metadata"]
    assert list(kept.items()) == list(metadata.items())[: len(kept)]
    assert 0 < len(json.dumps(kept)) <= envelope.MAX_METADATA_BYTES
    short = {f"h{i}": "v" for i in range(80)}
    assert len(letter_of(metadata=short)["metadata"]) == envelope.MAX_METADATA_ENTRIES


def test_a_key_that_is_not_utf8_is_escaped() -> None:
    assert letter_of(source=Source("t", 0, 0, key=b"a\xff"))["key"] == "a\\xff"


def test_a_path_that_is_not_utf8_can_be_written() -> None:
    assert letter_of(source=Source("a\udcff.jsonl", 0, 0))["source_topic"] == "a\\udcff.jsonl"


# --- any bytes at all

JUDGE = Judge(
    SHOP, PoisonRules((PoisonPattern(r"\xc3", "odd"),), frozenset({"invalid_price"})), 500, SKEW_MS
)
PAYLOADS = st.binary(max_size=300) | mutated(damaged_records(ECOMMERCE[0]))
TEXTS = st.text(st.characters(), max_size=20)


@settings(max_examples=200, deadline=None)
@given(PAYLOADS, st.integers(0, 2000))
def test_any_rejected_bytes_give_one_line_of_json_and_come_back(payload: bytes, limit: int) -> None:
    verdict = JUDGE.judge(payload, NOW_MS)
    rejection = verdict if isinstance(verdict, Rejection) else POISON
    line = line_of(payload, rejection, payload_limit_bytes=limit)
    assert b"\n" not in line
    letter = json.loads(line)
    assert msgspec.json.decode(line, type=DeadLetter).error_type == rejection.error_type
    assert letter["message_bytes"] == len(payload)
    assert letter["message_truncated"] is (len(payload) > limit)
    kept = original(letter)
    if letter["message_truncated"]:
        assert payload.startswith(kept)
        assert limit - 3 <= len(kept) <= limit
    else:
        assert kept == payload


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.none() | st.binary(max_size=20), st.dictionaries(TEXTS, TEXTS))
def test_any_texts_can_be_written(
    message: str, topic: str, stack: str, key: bytes | None, metadata: dict[str, str]
) -> None:
    line = line_of(
        rejection=Rejection("quarantine", "reason", message),
        source=Source(topic, 0, 2**63 - 1, key=key),
        stacktrace=stack,
        metadata=metadata,
    )
    assert b"\n" not in line
    assert json.loads(line)["error_type"] == "reason"
