"""Instants: milliseconds since 1970 inside, ISO-8601 UTC with milliseconds outside."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive on purpose: naive values are read as UTC
_EPOCH_UTC = _EPOCH.replace(tzinfo=timezone.utc)

MIN_EPOCH_MS = -62_135_596_800_000
"""0001-01-01T00:00:00.000Z, the first instant that a date column can hold."""
MAX_EPOCH_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z, the last one."""


def epoch_ms(value: datetime) -> int:
    """Turn a datetime into milliseconds since 1970-01-01T00:00:00Z.

    Digits below a millisecond are cut towards the past, also before 1970.

    Args:
        value: With an offset, or without one: then it is read as UTC.

    Returns:
        Milliseconds. May lie outside `MIN_EPOCH_MS`..`MAX_EPOCH_MS`: the first hours of year 1 in a
        zone ahead of UTC are in year 0. Never raises for such a value.
    """
    start = _EPOCH if value.utcoffset() is None else _EPOCH_UTC
    delta = value - start
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000


def iso_utc_ms(epoch_ms: int) -> str:
    """Write an instant as every output of Breakwater does: `2026-01-01T00:05:00.000Z`.

    Args:
        epoch_ms: Milliseconds since 1970, negative before it.

    Returns:
        ISO-8601 in UTC, always 24 characters, so that text order is time order.

    Raises:
        ValueError: The instant is outside the years 1 to 9999.
    """
    if not MIN_EPOCH_MS <= epoch_ms <= MAX_EPOCH_MS:
        raise ValueError(f"{epoch_ms} ms is outside the years 1 to 9999")
    instant = _EPOCH + timedelta(milliseconds=epoch_ms)
    return instant.isoformat(timespec="milliseconds") + "Z"
