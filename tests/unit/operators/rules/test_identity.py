"""What tells events apart."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from operators.rules.identity import DIGEST_BYTES, digest_of

#: As JSON may bring them: lone surrogates included.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)
VALUES = st.none() | st.integers() | TEXTS


def test_without_a_field_it_is_the_checksum_that_envelopes_have() -> None:
    assert digest_of(b"abc", None, "key") == hashlib.md5(b"abc").digest()  # noqa: S324


@given(st.binary(max_size=3), st.binary(max_size=3), VALUES, VALUES, TEXTS, TEXTS)
def test_a_digest_is_the_same_where_key_and_identity_are_and_nowhere_else(
    payload: bytes,
    other_payload: bytes,
    value: str | int | None,
    other_value: str | int | None,
    key: str,
    other_key: str,
) -> None:
    # A field has one type, and an event without one has none of the others' identities.
    if isinstance(value, type(other_value)):
        one, other = (
            digest_of(payload, value, key),
            digest_of(other_payload, other_value, other_key),
        )
        if value is None:
            assert (one == other) == (payload == other_payload)
        else:
            assert (one == other) == ((key, value) == (other_key, other_value))
        assert len(one) == len(other) == DIGEST_BYTES


def test_key_and_identity_are_not_run_together() -> None:
    assert digest_of(b"", "bc", "a") != digest_of(b"", "c", "ab")
