"""Contracts for the tests: every kind of field, and names that the target has a use for itself."""

# No `from __future__ import annotations` here: msgspec reads them when the class is made.
from datetime import datetime

import msgspec


class Reading(msgspec.Struct):
    device: str
    at: datetime
    time: str
    count: int
    ok: bool
    degrees: float | None = None
    seen: datetime | None = None
    note: str | None = msgspec.field(default=None, name="the note")


class Numbered(msgspec.Struct):
    event_id: str
    at: datetime
