"""The oracle for topics: what they must hold, from what was sent and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.kafka.jobs import Kafka, Sent
from tests.oracle import iso, to_ms, verdict, windows_of

Place = tuple[str, int, int]
WINDOW_MS = 10_000


@dataclass
class Expected:
    """What the records that were sent must become."""

    processed: dict[Place, dict[str, Any]] = field(default_factory=dict)
    lag_ms: dict[Place, int] = field(default_factory=dict)
    dead: dict[Place, str] = field(default_factory=dict)
    quarantined: dict[Place, str] = field(default_factory=dict)
    checksums: dict[Place, str] = field(default_factory=dict)
    duplicates: set[Place] = field(default_factory=set)

    def leave_out(self, duplicates: set[Place]) -> None:
        """Some of the good ones are duplicates of others."""
        self.duplicates |= duplicates
        for place in duplicates:
            del self.processed[place]

    def refused(self, place: Place, error_type: str, value: bytes) -> None:
        """A good one that its target does not take."""
        del self.processed[place]
        self.dead[place] = error_type
        self.checksums[place] = hashlib.md5(value).hexdigest()  # noqa: S324 # what it is


def expect(sent: list[Sent], max_record_bytes: int = 1_048_576) -> Expected:
    expected = Expected()
    newest: dict[tuple[str, int], int] = {}
    for record in sorted(sent, key=lambda r: (r.topic, r.partition, r.offset)):
        place = record.topic, record.partition, record.offset
        value = record.value or b""
        kind, what = verdict(value, max_record_bytes)
        if kind == "ok":
            ms = to_ms(what["timestamp"])
            assert ms is not None
            expected.processed[place] = {**what, "timestamp": iso(ms)}
            newest[place[:2]] = max(newest.get(place[:2], ms), ms)
            expected.lag_ms[place] = newest[place[:2]] - ms
        else:
            (expected.dead if kind == "dead" else expected.quarantined)[place] = what
            expected.checksums[place] = hashlib.md5(value).hexdigest()  # noqa: S324
    return expected


def place_of(row: dict[str, Any]) -> Place:
    return row["source_topic"], row["source_partition"], row["source_offset"]


#: Whose events only close the windows of all others; their own stay open while a job runs.
CLOSER = "closer"


def all_windows_are_there(kafka: Kafka, expected: Expected) -> bool:
    """Whether a job that goes on has written all that it can; then its output can be compared."""
    late = {place_of(row) for row in kafka.rows("late_events")}
    events = [fields for place, fields in expected.processed.items() if place not in late]
    wanted = [key for key in windows_of(events, WINDOW_MS) if key[0] != CLOSER]
    return len(kafka.output("user_windows")) >= len(wanted) and len(
        kafka.output("processed_events")
    ) >= len(expected.processed)


def assert_topics_are_right(
    kafka: Kafka, expected: Expected, *, window_ms: int = WINDOW_MS, delay_ms: int = 20_000
) -> int:
    """Compare all output topics with what was expected; returns the number of late events."""
    processed = kafka.rows("processed_events")
    assert_once_each(Counter(map(place_of, processed)), Counter(expected.processed), "processed")
    for row in processed:
        fields = expected.processed[place_of(row)]
        assert {name: row[name] for name in fields} == fields
    assert_envelopes(kafka, "dead_letters", expected, expected.dead)
    assert_envelopes(kafka, "quarantine", expected, expected.quarantined)

    late = {place_of(row) for row in kafka.rows("late_events")}
    assert late <= expected.processed.keys()
    too_early = {place for place in late if expected.lag_ms[place] <= delay_ms}
    assert not too_early, f"late, but within the delay: {sorted(too_early)[:3]}"

    windows = windows_of([row for row in processed if place_of(row) not in late], window_ms)
    found = kafka.rows("user_windows")
    still_open = windows.keys() - {(row["user_id"], row["window_start"]) for row in found}
    for user, start in still_open:
        if user == CLOSER:
            del windows[user, start]
    keys = Counter((row["user_id"], row["window_start"]) for row in found)
    assert_once_each(keys, Counter(windows.keys()), "windows")
    for row in found:
        window = windows[row["user_id"], row["window_start"]]
        assert math.isclose(row.pop("total_value"), window.pop("total_value"), rel_tol=1e-9)
        assert row == window
    assert_ledger(kafka, expected, late)
    return len(late)


def assert_once_each(found: Counter[Any], wanted: Counter[Any], what: str) -> None:
    wanted = Counter(dict.fromkeys(wanted, 1))
    assert not found - wanted, f"{what} too often: {list((found - wanted).items())[:3]}"
    assert not wanted - found, f"{what} missing: {list((wanted - found).items())[:3]}"


def assert_envelopes(
    kafka: Kafka, output: str, expected: Expected, kinds: dict[Place, str]
) -> None:
    """Each in its topic, with the checksum as its key, and the headers saying the same."""
    messages = kafka.output(output)
    rows = [json.loads(message.value()) for message in messages]
    assert_once_each(Counter(map(place_of, rows)), Counter(kinds), output)
    for message, row in zip(messages, rows, strict=True):
        place = place_of(row)
        assert row["error_type"] == kinds[place]
        assert row["message_checksum"] == expected.checksums[place] == message.key().decode()
        names = {"dead_letters": f"dlq-{row['failure_category']}"}
        assert message.topic() == kafka.topic(names.get(output, f"quarantine-{row['error_type']}"))
        headers = {name: value.decode() for name, value in message.headers()}
        for name in ("error_type", "error_message", "source_topic", "message_checksum"):
            assert headers[f"breakwater-{name.replace('_', '-')}"] == row[name]
        assert headers["breakwater-source-partition"] == str(place[1])
        assert headers["breakwater-source-offset"] == str(place[2])


def assert_ledger(kafka: Kafka, expected: Expected, late: set[Place]) -> None:
    """The stream's own rows: each equation holds in each row, and they add up by partition."""
    counts: Counter[tuple[str, int, str]] = Counter()
    offsets: Counter[Place] = Counter()
    for row in kafka.rows("ledger"):
        place = row["source_topic"], row["source_partition"]
        rejected = {**row["dead_lettered"], **row["quarantined"]}
        waiting = row["pending"] + row["duplicate"] + row["fallback"]
        assert row["received"] == row["processed"] + sum(rejected.values()) + waiting
        assert row["processed"] == row["windowed"] + row["late"]
        for name in ("processed", "windowed", "late", "duplicate", "pending", "fallback"):
            counts[(*place, name)] += row[name]
        for what, n in rejected.items():
            counts[(*place, what)] += n
        if row["received"] == 0:
            continue  # what has become of those of other rows
        spans = row.get("spans", [[row["first_offset"], row["last_offset"], row["received"]]])
        assert sum(n for _, _, n in spans) == row["received"]
        if all(last - first + 1 == n for first, last, n in spans):
            offsets.update((*place, at) for a, b, _ in spans for at in range(a, b + 1))
    wanted = Counter((*place[:2], "processed") for place in expected.processed)
    wanted.update((*place[:2], "late") for place in late)
    wanted.update((*place[:2], "windowed") for place in expected.processed if place not in late)
    wanted.update((*place[:2], "duplicate") for place in expected.duplicates)
    turned_away = {**expected.dead, **expected.quarantined}
    wanted.update((*place[:2], what) for place, what in turned_away.items())
    assert {what: n for what, n in counts.items() if n} == wanted
    received = [*expected.processed, *turned_away, *expected.duplicates]
    assert_once_each(offsets, Counter(received), "offsets")
