"""Poison rules: what matches, and what is refused at start."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.poison import PoisonError, PoisonPattern, PoisonRules

KNOWN = ("schema_error", "missing_required", "invalid_price")
TEST_DATA = PoisonPattern(r'"user_id":"test-', "test_data")
ANY_USER = PoisonPattern("user", "any_user")


def test_the_first_pattern_that_matches_wins() -> None:
    payload = b'{"user_id":"test-1"}'
    assert PoisonRules((TEST_DATA, ANY_USER)).match(payload) is TEST_DATA
    assert PoisonRules((ANY_USER, TEST_DATA)).match(payload) is ANY_USER


def test_a_record_that_nothing_matches_is_left_alone() -> None:
    assert PoisonRules((TEST_DATA,)).match(b'{"user_id":"u1"}') is None
    assert PoisonRules().match(b"anything") is None


def test_without_patterns_matching_can_be_skipped() -> None:
    assert PoisonRules((TEST_DATA,)).has_patterns
    assert not PoisonRules(violations=frozenset({"schema_error"})).has_patterns


def test_a_pattern_is_searched_anywhere_in_the_raw_bytes() -> None:
    assert PoisonRules((PoisonPattern(r"\xff\xfe", "utf16"),)).match(b"{\xff\xfe}")
    assert PoisonRules((PoisonPattern("ü", "umlaut"),)).match("tür".encode())
    assert PoisonRules((PoisonPattern("(?i)TEST", "test"),)).match(b"a test")


@given(st.binary(max_size=200))
def test_any_bytes_can_be_matched(payload: bytes) -> None:
    found = PoisonRules((PoisonPattern(r"[\x80-\xff]", "high"),)).match(payload)
    assert (found is not None) == any(byte >= 0x80 for byte in payload)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"pattern '\(' is not a regular expression: .*unterminated subpattern at position 0"),
        ("ab[c", "unterminated character set at position 2"),
        ("*", "nothing to repeat at position 0"),
        (r"\u0041", "bad escape"),
        ("a{2,1}", "min repeat greater than max repeat at position"),
        ("a{99999999999}", "the repetition number is too large"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_a_pattern_that_does_not_compile_is_refused_with_its_place(
    pattern: str, message: str
) -> None:
    with pytest.raises(PoisonError, match=message) as caught:
        PoisonPattern(pattern, "reason")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "reason", ["", "Test", "two words", "../etc", "a/b", "a\n", "ü", "a" * 101]
)
def test_a_reason_that_cannot_name_a_folder_is_refused(reason: str) -> None:
    with pytest.raises(PoisonError, match="use 1 to 100 of a-z, 0-9 and _"):
        PoisonPattern("x", reason)


@pytest.mark.parametrize("reason", ["oversized", "unreadable", "invalid_json"])
def test_a_reason_of_our_own_is_refused(reason: str) -> None:
    with pytest.raises(PoisonError, match="a meaning of its own"):
        PoisonPattern("x", reason)


def test_a_violation_that_the_contract_knows_is_taken() -> None:
    PoisonRules(violations=frozenset(KNOWN)).check(KNOWN)


def test_a_violation_that_nobody_knows_is_refused_with_the_nearest() -> None:
    rules = PoisonRules(violations=frozenset({"schema_error", "invalid_prise"}))
    with pytest.raises(PoisonError, match=r"'invalid_prise' .* did you mean 'invalid_price'\?"):
        rules.check(KNOWN)
    with pytest.raises(PoisonError, match="known are schema_error, missing_required"):
        PoisonRules(violations=frozenset({"zzz"})).check(KNOWN)


def test_rules_survive_the_way_to_a_worker() -> None:
    rules = PoisonRules((TEST_DATA,), frozenset({"schema_error"}))
    loaded = pickle.loads(pickle.dumps(rules))  # noqa: S301 - our own bytes
    assert loaded == rules
    assert loaded.match(b'"user_id":"test-') == TEST_DATA


def test_rules_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TEST_DATA.reason = "other"  # type: ignore[misc]
