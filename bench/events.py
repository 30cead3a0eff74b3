"""The input of the measurements, made once and kept."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from flink_jobs.generate import generate

DATA = Path(__file__).resolve().parent / "data"
BAD_RATE, USERS = 0.02, 1000
_START = datetime(2026, 1, 1, tzinfo=timezone.utc)
_DISORDER_S, _SEED = 300, 42


def events_file(n: int, *, users: int = USERS, bad_rate: float = BAD_RATE) -> Path:
    """A file of so many events."""
    DATA.mkdir(exist_ok=True)
    path = DATA / f"events-{n}-{users}-{bad_rate:g}.jsonl"
    if not path.exists():
        generate(n, bad_rate, _DISORDER_S, users, _SEED, _START, path)
    return path
