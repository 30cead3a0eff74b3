"""The oracle: what a run must produce, worked out again from the input in plain Python.

It shares no code with Breakwater: its own line splitting, the standard library's JSON parser, its
own rules. It is slow and simple on purpose. `assert_run_is_right` compares a whole output folder.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

ACTIONS = {"view", "click", "purchase", "add_to_cart"}
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?", re.IGNORECASE
)


@dataclass
class Expected:
    """What one set of input files must become."""

    processed: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    lag_ms: dict[tuple[str, int], int] = field(default_factory=dict)
    dead: dict[tuple[str, int], str] = field(default_factory=dict)
    quarantined: dict[tuple[str, int], str] = field(default_factory=dict)
    checksums: dict[tuple[str, int], str] = field(default_factory=dict)

    @property
    def received(self) -> int:
        return len(self.processed) + len(self.dead) + len(self.quarantined)


def expect(paths: list[Path], max_record_bytes: int = 1_048_576) -> Expected:
    """Judge every line of the files."""
    expected = Expected()
    for path in paths:
        newest = -math.inf
        for offset, line in lines_of(path):
            at = (str(path.resolve()), offset)
            kind, what = verdict(line, max_record_bytes)
            if kind == "ok":
                ms = to_ms(what["timestamp"])
                assert ms is not None
                expected.processed[at] = {**what, "timestamp": iso(ms)}
                newest = max(newest, ms)
                expected.lag_ms[at] = int(newest - ms)
            else:
                (expected.dead if kind == "dead" else expected.quarantined)[at] = what
                expected.checksums[at] = hashlib.md5(line).hexdigest()  # noqa: S324
    return expected


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    offset = 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        end = len(data) if end < 0 else end
        line, start = data[offset:end], offset
        if offset == 0 and line.startswith(b"\xef\xbb\xbf"):
            line, start = line[3:], 3
        yield start, line[:-1] if line.endswith(b"\r") else line
        offset = end + 1


def verdict(line: bytes, max_record_bytes: int) -> tuple[str, Any]:
    if not line.strip():
        return "quarantine", "empty_message"
    if len(line) > max_record_bytes:
        return "quarantine", "oversized"
    if b"\0" in line:
        return "quarantine", "null_bytes"
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return "quarantine", "invalid_json"
    return contract(event)


def contract(event: Any) -> tuple[str, Any]:
    if not isinstance(event, dict):
        return "dead", "schema_error"
    found = set()
    for name in ("user_id", "product_id", "action", "timestamp"):
        value = event.get(name)
        if value in (None, ""):
            found.add("missing_required")
        elif not isinstance(value, str) or (name == "timestamp" and to_ms(value) is None):
            found.add("schema_error")
        elif name == "action" and value not in ACTIONS:
            found.add("unknown_action")
        elif name == "timestamp" and (to_ms(value) or 0) > now_ms() + 300_000:
            found.add("future_timestamp")
    price = event.get("price")
    if price is None:
        found.add("invalid_price")
    elif isinstance(price, bool) or not isinstance(price, (int, float)):
        found.add("schema_error")
    elif not math.isfinite(price) or price < 0:
        found.add("invalid_price")
    order = ["schema_error", "missing_required", "invalid_price", "unknown_action"]
    for name in [*order, "future_timestamp"]:
        if name in found:
            return "dead", name
    fields = {name: event[name] for name in ("user_id", "product_id", "action", "timestamp")}
    return "ok", {**fields, "price": float(price)}


def to_ms(text: str) -> int | None:
    found = TIME.fullmatch(text)
    if not found:
        return None
    *numbers, fraction, zone = found.groups()
    try:
        moment = datetime(*map(int, numbers), tzinfo=timezone.utc)  # type: ignore[misc,arg-type]
    except ValueError:
        return None
    micros = round(float(f"0.{fraction or 0}") * 1e6)
    if zone and zone.upper() != "Z":
        sign = -1 if zone[0] == "-" else 1
        moment -= sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[4:]))
    return (moment + timedelta(microseconds=micros) - EPOCH) // timedelta(milliseconds=1)


def iso(ms: int) -> str:
    moment = EPOCH + timedelta(milliseconds=ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def now_ms() -> int:
    return (datetime.now(timezone.utc) - EPOCH) // timedelta(milliseconds=1)


# --- what is there -------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of the committed files below a folder; hidden files are not committed."""
    parts = [p for p in sorted(folder.rglob("*.jsonl")) if not p.name.startswith(".")]
    return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]


def placed_rows(folder: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Rows with the value that their folder's name gives to a key."""
    placed = []
    for part in sorted(folder.rglob("*.jsonl")):
        if not part.name.startswith("."):
            (value,) = (p.split("=", 1)[1] for p in part.parts if p.startswith(f"{key}="))
            placed += [(value, json.loads(line)) for line in part.read_bytes().splitlines()]
    return placed


def at(row: dict[str, Any]) -> tuple[str, int]:
    return row["source_topic"], row["source_offset"]


def windows_of(events: list[dict[str, Any]], size_ms: int) -> dict[tuple[str, str], dict[str, Any]]:
    windows: dict[tuple[str, str], dict[str, Any]] = {}
    sums: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        ms = to_ms(event["timestamp"])
        assert ms is not None
        start = ms - ms % size_ms
        key = event["user_id"], iso(start)
        sums[key].append(event["price"])
        window = windows.setdefault(
            key,
            {
                "user_id": event["user_id"],
                "window_start": iso(start),
                "window_end": iso(start + size_ms),
                "latest_event": event["timestamp"],
                "event_count": 0,
            },
        )
        window["latest_event"] = max(window["latest_event"], event["timestamp"])
        window["event_count"] += 1
    for key, prices in sums.items():
        windows[key]["total_value"] = math.fsum(prices)
    return windows


def assert_run_is_right(
    output: Path, expected: Expected, *, window_ms: int = 300_000, delay_ms: int = 600_000
) -> dict[str, Any]:
    """Compare a whole output folder with what was expected; returns the ledger."""
    late = assert_outputs_are_right(output, expected, window_ms=window_ms, delay_ms=delay_ms)
    ledger: dict[str, Any] = json.loads((output / "ledger.json").read_text())
    assert ledger["balanced"], ledger["problems"]
    assert ledger["received"] == expected.received
    assert ledger["processed"] == len(expected.processed)
    assert ledger["dead_lettered"] == dict(Counter(expected.dead.values()))
    assert ledger["quarantined"] == dict(Counter(expected.quarantined.values()))
    assert ledger["late"] == late
    assert ledger["windowed"] == len(expected.processed) - late
    assert ledger["duplicate"] == ledger["pending"] == 0
    return ledger


def assert_outputs_are_right(
    output: Path, expected: Expected, *, window_ms: int = 300_000, delay_ms: int = 600_000
) -> int:
    """The same without the books; returns how many events were late."""
    processed = rows(output / "processed_events")
    seen = Counter(at(row) for row in processed)
    assert not [a for a, n in seen.items() if n > 1], "an event was written twice"
    assert seen.keys() == expected.processed.keys()
    for row in processed:
        fields = expected.processed[at(row)]
        assert {name: row[name] for name in fields} == fields
        assert row["source_partition"] == 0

    dead = placed_rows(output / "dead_letters", "error_type")
    assert Counter((at(row), kind) for kind, row in dead) == Counter(expected.dead.items())
    poison = placed_rows(output / "quarantine", "reason")
    assert Counter((at(row), kind) for kind, row in poison) == Counter(expected.quarantined.items())
    for kind, row in dead + poison:
        assert row["error_type"] == kind
        assert row["message_checksum"] == expected.checksums[at(row)]

    late = rows(output / "late_events")
    late_at = {at(row) for row in late}
    assert len(late_at) == len(late), "a late event was written twice"
    by_place = {at(row): row for row in processed}
    assert all(by_place[at(row)] == row for row in late)
    for place in late_at:
        assert expected.lag_ms[place] > delay_ms, f"{place} was within the delay, but is late"

    windows = windows_of([row for row in processed if at(row) not in late_at], window_ms)
    found = rows(output / "user_windows")
    keys = Counter((row["user_id"], row["window_start"]) for row in found)
    assert keys == Counter(windows.keys())
    for row in found:
        window = windows[row["user_id"], row["window_start"]]
        assert math.isclose(row.pop("total_value"), window.pop("total_value"), rel_tol=1e-9)
        assert row == window
    return len(late)
