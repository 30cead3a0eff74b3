"""Envelopes are cut to fit, whatever their payload becomes in JSON."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from operators.rules.fitting import fitted
from tests.unit.operators.rules.test_envelope import line_of

BARE = len(line_of(b""))


@given(st.binary(max_size=3000) | st.text(max_size=3000).map(str.encode), st.integers(0, 5000))
def test_what_can_fit_fits_and_what_fits_is_whole(payload: bytes, room: int) -> None:
    limit = BARE + 20 + room
    line = fitted(lambda n: line_of(payload, payload_limit_bytes=n), len(payload), limit)
    assert len(line) <= limit
    row = json.loads(line)
    whole = line_of(payload, payload_limit_bytes=len(payload))
    assert row["message_truncated"] == (len(whole) > limit)
    assert row["message_bytes"] == len(payload)
    assert row["message_checksum"] == json.loads(whole)["message_checksum"]


def test_a_payload_of_control_characters_takes_six_times_its_size() -> None:
    payload = b"\x01" * 1_000_000
    line = fitted(lambda n: line_of(payload, payload_limit_bytes=n), len(payload), 1_000_000)
    assert 900_000 < len(line) <= 1_000_000


def test_without_a_limit_nothing_is_cut() -> None:
    line = fitted(lambda n: line_of(b"x" * 9000, payload_limit_bytes=n), 9000, 0)
    assert len(json.loads(line)["original_message"]) == 9000
