"""Fingerprints: the same fault with other values, and another fault."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.fingerprint import fingerprint, normalised


def prints(*messages: str) -> set[str]:
    return {fingerprint("intake", "schema_error", message) for message in messages}


@pytest.mark.parametrize(
    "messages",
    [
        ("malformed (byte 39)", "malformed (byte 4)"),
        ("took 3.5 ms", "took -2e9 ms"),
        ("no user 'anna'", "no user 'bert x'", "no user ''"),
        ('no user "anna"', 'no user "bert"'),
        (
            "order 123e4567-e89b-12d3-a456-426614174000 gone",
            "order 00000000-0000-0000-0000-000000000000 gone",
        ),
        ("object at 0x7f00ab", "object at 0x1"),
        ("trace 4bf92f3577b34da6 failed", "trace 00f067aa0ba902b7 failed"),
        ("cut\n  here", "cut here ", "cut\there"),
        ("can't read 'a'", "can't read 'b'"),
    ],
)
def test_the_same_fault_with_other_values_has_the_same_print(messages: tuple[str, ...]) -> None:
    assert len(prints(*messages)) == 1


@pytest.mark.parametrize(
    "messages",
    [
        ("price: absent", "user_id: absent"),
        ("price: Expected `float`, got `str`", "price: Expected `float`, got `bool`"),
        ("price: absent", "price: absent; user_id: absent"),
        ("it can't be, it won't do", "it can't go, it won't do"),
        ("the facade failed", "the decade failed"),
    ],
)
def test_another_fault_has_another_print(messages: tuple[str, ...]) -> None:
    assert len(prints(*messages)) == len(messages)


def test_stage_and_error_type_count_as_they_are() -> None:
    assert len({fingerprint(s, e, "m") for s in ("a1", "a2") for e in ("b1", "b2")}) == 4
    assert fingerprint("a", "b", "c") != fingerprint("ab", "", "c")


def test_a_print_does_not_change_by_itself() -> None:
    """If this fails, every fault that was known by its print is a new one: only on purpose."""
    message = "price: Expected `float` >= 0.0; id 'x' at byte 17"
    assert normalised(message) == "price: Expected `float` >= <number>; id <text> at byte <number>"
    assert fingerprint("intake", "invalid_price", message) == "5e90f3321f3e123a"


@given(st.text(), st.text(), st.text())
def test_any_text_has_a_print(stage: str, error_type: str, message: str) -> None:
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(stage, error_type, message))


@given(st.integers(), st.integers(), st.uuids(), st.uuids())
def test_numbers_and_ids_never_count(one: int, other: int, a: UUID, b: UUID) -> None:
    assert len(prints(f"at {one} of {a}", f"at {other} of {b}")) == 1


def test_lone_surrogates_do_not_stop_it() -> None:
    assert prints("\ud800") != prints("\ud801")


def test_only_the_beginning_of_a_huge_message_counts() -> None:
    assert prints("x" * 2000 + "a", "x" * 2000 + "b") == prints("x" * 2000)
