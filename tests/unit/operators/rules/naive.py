"""A second judge, written from the words of the issue with the standard library alone.

It shares no code with the one it checks. It is slow, and wrong about nothing that the strategies in
`records` make: records that name a key of the contract twice are for examples, not for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

ABSENT = object()
RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII
)

Check = Callable[[Any, datetime], str | None]
Found = set[tuple[str, str]]


class SameKeyTwice(Exception):
    """A record that the naive judge does not judge."""


class NonFinite(float):
    """A bare NaN, Infinity or -Infinity in the text."""


# --- fields


def text(value: Any) -> bool:
    return isinstance(value, str)


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def too_big(value: Any) -> bool:
    try:
        return not math.isfinite(float(value))
    except OverflowError:
        return True


def fits_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def instant(value: str) -> tuple[datetime, bool] | None:
    """The time in UTC and whether it had an offset; None when it is no time of the calendar."""
    match = RFC3339.fullmatch(value)
    if not match:
        return None
    *parts, fraction, offset = match.groups()
    micros = int((fraction or "0")[:6].ljust(6, "0"))
    try:
        year, month, day, hour, minute, second = map(int, parts)
        local = datetime(year, month, day, hour, minute, second, micros, timezone.utc)
        return local - shift(offset), offset is not None
    except (ValueError, OverflowError):
        return None


def shift(offset: str | None) -> timedelta:
    if offset is None or offset in "Zz":
        return timedelta()
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError(offset)
    size = timedelta(hours=hours, minutes=minutes)
    return -size if offset[0] == "-" else size


def a_text(value: Any, _: datetime) -> str | None:
    if value in (ABSENT, None, ""):
        return "missing_required"
    return None if text(value) else "schema_error"


def an_action(value: Any, now: datetime) -> str | None:
    wrong = a_text(value, now)
    if wrong:
        return wrong
    return None if value in ("view", "click", "purchase", "add_to_cart") else "unknown_action"


def a_price(value: Any, _: datetime) -> str | None:
    if value is ABSENT or value is None:
        return "invalid_price"
    if not number(value):
        return "schema_error"
    return "invalid_price" if too_big(value) or value < 0 else None


def an_event_time(value: Any, latest: datetime) -> str | None:
    wrong = a_text(value, latest)
    if wrong:
        return wrong
    time = instant(value)
    if time is None:
        return "schema_error"
    return "future_timestamp" if time[0] > latest else None


def a_device(value: Any, now: datetime) -> str | None:
    wrong = a_text(value, now)
    if wrong:
        return wrong
    return None if 2 <= len(value) <= 12 and "a" <= value[0] <= "z" else "invalid_deviceId"


def a_sequence(value: Any, _: datetime) -> str | None:
    if value is ABSENT or value is None:
        return "missing_required"
    if not number(value):
        return "schema_error"
    if isinstance(value, float):
        return "invalid_sequence" if too_big(value) else "schema_error"
    return None if value >= 0 and fits_64_bits(value) else "invalid_sequence"


def a_flag(value: Any, _: datetime) -> str | None:
    if value is ABSENT or value is None:
        return "missing_required"
    return None if isinstance(value, bool) else "schema_error"


def a_level(value: Any, _: datetime) -> str | None:
    if value is ABSENT or value is None:
        return "missing_required"
    if not number(value) or (isinstance(value, float) and not too_big(value)):
        return "schema_error"
    return None if value in (1, 2, 3) else "unknown_level"


def a_humidity(value: Any, _: datetime) -> str | None:
    if value is ABSENT or value is None:
        return "bad_humidity"
    if not number(value):
        return "schema_error"
    return None if 0 <= value <= 1 else "bad_humidity"


def a_temperature(value: Any, _: datetime) -> str | None:
    if value is ABSENT or value is None:
        return None
    if not number(value):
        return "schema_error"
    return None if -50 <= value <= 100 else "invalid_temperature"


def a_mode(value: Any, now: datetime) -> str | None:
    if value is ABSENT or value is None:
        return None
    wrong = a_text(value, now)
    if wrong:
        return wrong
    return None if value in ("auto", "manual") else "unknown_mode"


def a_note(value: Any, _: datetime) -> str | None:
    if value is ABSENT:
        return None
    if value is None:
        return "missing_required"
    return None if text(value) else "schema_error"


def a_repair(value: Any, now: datetime) -> str | None:
    if value is ABSENT or value is None:
        return None
    wrong = a_text(value, now)
    if wrong:
        return wrong
    time = instant(value)
    if time is None:
        return "schema_error"
    return None if time[1] else "invalid_repairedAt"


FIELDS: dict[str, dict[str, Check]] = {
    "udfs.ecommerce:EcommerceEvent": {
        "user_id": a_text,
        "product_id": a_text,
        "action": an_action,
        "price": a_price,
        "timestamp": an_event_time,
    },
    "tests.unit.operators.rules.contracts:Reading": {
        "deviceId": a_device,
        "takenAt": an_event_time,
        "sequence": a_sequence,
        "isOk": a_flag,
        "level": a_level,
        "humidity": a_humidity,
        "temperature": a_temperature,
        "mode": a_mode,
        "note": a_note,
        "repairedAt": a_repair,
    },
}


# --- records


def naive_verdict(
    payload: bytes, path: str, latest: datetime, max_record_bytes: int
) -> tuple[str, Found]:
    """("accepted" or a quarantine reason or "dead_letter", violations as (error type, field))."""
    if not payload.strip():
        return "empty_message", set()
    if len(payload) > max_record_bytes:
        return "oversized", set()
    if 0 in payload:
        return "null_bytes", set()
    fields = FIELDS[path]
    try:
        record = parse(payload, fields)
    except ValueError:
        return "invalid_json", set()
    if not isinstance(record, dict):
        return ("invalid_json" if non_finite(record) else "dead_letter"), {("schema_error", "")}
    if non_finite(record) and not any(non_finite(record.get(name)) for name in fields):
        return "invalid_json", set()
    checked = {(check(record.get(name, ABSENT), latest), name) for name, check in fields.items()}
    found = {(wrong, name) for wrong, name in checked if wrong}
    return ("dead_letter" if found else "accepted"), found


def parse(payload: bytes, fields: dict[str, Check]) -> Any:
    """JSON, with bare literals; ValueError for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs if name in fields]
        if len(names) != len(set(names)):
            raise SameKeyTwice
        return dict(pairs)

    record = json.loads(
        payload.decode(), parse_constant=NonFinite, parse_int=an_int, object_pairs_hook=unique
    )
    json.dumps(record, ensure_ascii=False).encode()  # ValueError for a lone surrogate
    return record


def an_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else math.inf


def non_finite(value: Any) -> bool:
    """Whether a bare literal is in the value, however deep."""
    if isinstance(value, dict):
        return any(map(non_finite, value.values()))
    if isinstance(value, list):
        return any(map(non_finite, value))
    return isinstance(value, NonFinite)
