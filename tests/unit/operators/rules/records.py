"""Records for hypothesis: good ones, and ones with every kind of damage."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from hypothesis import strategies as st

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
NOW_MS = 1_767_268_800_000
SKEW_MS = 300_000

Text = st.SearchStrategy[str]


def as_json(values: st.SearchStrategy[Any]) -> Text:
    """Values as JSON, with and without escapes."""
    return st.builds(json.dumps, values, ensure_ascii=st.booleans())


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
TIMES = st.datetimes(datetime(1, 1, 2), datetime(2025, 12, 31)).map(datetime.isoformat)  # noqa: DTZ001
ZONED_TIMES = st.builds(
    "".join, st.tuples(TIMES, st.sampled_from(["Z", "z", "+00:00", "-0130", "+14:00"]))
)
EVENT_TIMES = TIMES | ZONED_TIMES

GOOD: dict[str, dict[str, Text]] = {
    "udfs.ecommerce:EcommerceEvent": {
        "user_id": as_json(WORDS),
        "product_id": as_json(WORDS),
        "action": as_json(st.sampled_from(["view", "click", "purchase", "add_to_cart"])),
        "price": as_json(st.floats(0, allow_infinity=False) | st.integers(0, 2**70)),
        "timestamp": as_json(EVENT_TIMES),
    },
    "tests.unit.operators.rules.contracts:Reading": {
        "deviceId": as_json(st.from_regex(r"\A[a-z][a-z0-9-]{1,11}\Z")),
        "takenAt": as_json(EVENT_TIMES),
        "sequence": as_json(st.integers(0, 2**63 - 1)),
        "isOk": as_json(st.booleans()),
        "level": as_json(st.sampled_from([1, 2, 3])),
        "humidity": as_json(st.floats(0, 1) | st.integers(0, 1)),
        "temperature": as_json(st.none() | st.floats(-50, 100)),
        "mode": as_json(st.sampled_from(["auto", "manual", None])),
        "note": as_json(st.just("") | WORDS),
        "repairedAt": as_json(st.none() | ZONED_TIMES),
    },
}

NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1.7976931348623159e308", "1e-400"),
    *("0", "-0", "-0.0", "1", "2", "4", "-1", "1.0", "1E2", "0.5", "101", "9" * 30, "9" * 400),
    *("-" + "9" * 400, "9" * 5000, "9223372036854775807", "9223372036854775808"),
    *("-9223372036854775808", "-9223372036854775809", "18446744073709551616", "01", "+1", "1."),
)
TEXTS = (
    *("", " ", "view", "VIEW", "a", "auto", "x" * 13, "NaN", "null", "1", "\ud800", "a\udc00"),
)
TIME_TEXTS = (
    *("2026-01-01T12:05:00Z", "2026-01-01T12:05:00.001Z", "2026-01-01T13:04:59+01:00"),
    *("2999-01-01T00:00:00Z", "2026-01-01", "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00+24:00"),
    *("2025-06-01T24:00:00Z", "2025-06-01T00:00:60Z", "2025-06-01 00:00:00", "tomorrow"),
)
JUNK: Text = (
    st.sampled_from(NUMBERS)
    | as_json(st.sampled_from(TEXTS))
    | as_json(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=5,
        )
    )
)

TIME_FIELDS = {"timestamp", "takenAt", "repairedAt"}
TIME_JUNK: Text = as_json(st.sampled_from(TIME_TEXTS))


@st.composite
def damaged_records(draw: st.DrawFn, path: str) -> bytes:
    """A record of which some fields are absent or hold junk, and others were added."""
    good = GOOD[path]
    hit = draw(st.sets(st.sampled_from([*good]), max_size=4))
    fields = {}
    for name, values in good.items():
        junk = TIME_JUNK if name in TIME_FIELDS and draw(st.booleans()) else JUNK
        raw = draw(junk | st.none()) if name in hit else draw(values)
        if raw is not None:
            fields[name] = raw
    extra = draw(st.dictionaries(st.sampled_from(["x", "y"]), JUNK, max_size=1))
    return join(draw, fields | extra)


@st.composite
def good_records(draw: st.DrawFn, path: str) -> bytes:
    """A record that the contract accepts."""
    return join(draw, {name: draw(values) for name, values in GOOD[path].items()})


def join(draw: st.DrawFn, fields: dict[str, str]) -> bytes:
    """JSON text from the texts of its fields, in any order and with any white space."""
    order = draw(st.permutations([*fields]))
    space = draw(st.sampled_from(["", " ", "\t", "\r\n"]))
    members = (f"{json.dumps(name)}{space}:{space}{fields[name]}" for name in order)
    text = space + "{" + f"{space},{space}".join(members) + space + "}" + space
    return text.encode("utf-8", "surrogatepass")  # ensure_ascii=False leaves lone surrogates


@st.composite
def mutated(draw: st.DrawFn, records: st.SearchStrategy[bytes]) -> bytes:
    """A record with a few bytes cut out, put in or replaced."""
    payload = draw(records)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(payload)))
        end = draw(st.sampled_from([start, start + 1, start + 2, len(payload)]))
        byte = draw(st.sampled_from([b"", b"\xff", b"\0", b'"', b"}", b"[", b"\\", b"\xc3", b"1"]))
        payload = payload[:start] + byte + payload[end:]
    return payload
