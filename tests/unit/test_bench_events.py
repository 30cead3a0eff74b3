"""The times that the records of the measurements have in their topics."""

from __future__ import annotations

from bench.events import sent_ms

START_MS = 1_767_225_600_000


def test_a_record_was_sent_at_its_event_time() -> None:
    lines = [
        b'{"user_id":"u","timestamp":"2026-01-01T00:00:00.006Z"}\n',
        b'{"user_id":"u","timestamp":"2026-01-02T03:04:05.678Z"}\n',
    ]
    assert list(sent_ms(lines)) == [START_MS + 6, START_MS + 86_400_000 + 11_045_678]


def test_one_without_a_good_time_was_sent_with_the_one_before() -> None:
    good = b'{"timestamp":"2026-01-01T00:00:01.000Z"}\n'
    bad = (b"\n", b"{", b'{"timestamp":"2999-01-01T00:00:00.000Z"}', good.replace(b"T00", b"T77"))
    assert list(sent_ms([bad[0], good, *bad])) == [START_MS, *[START_MS + 1000] * 5]
