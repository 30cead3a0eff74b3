"""The input of the measurements, made once and kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from flink_jobs.demo.generate import generate
from operators.rules.times import epoch_ms

DATA = Path(__file__).resolve().parent / "data"
BAD_RATE, USERS = 0.02, 1000
_START = datetime(2026, 1, 1, tzinfo=timezone.utc)
_DISORDER_S, _SEED = 300, 42
_TIME = re.compile(rb'"timestamp":"(2026-01-\d\dT[\d:.]{12})Z"')


def events_file(n: int, *, users: int = USERS, bad_rate: float = BAD_RATE) -> Path:
    """A file of so many events."""
    DATA.mkdir(exist_ok=True)
    path = DATA / f"events-{n}-{users}-{bad_rate:g}.jsonl"
    if not path.exists():
        generate(n, bad_rate, _DISORDER_S, users, _SEED, _START, path)
    return path


def sent_ms(lines: Iterable[bytes]) -> Iterator[int]:
    """When a producer would have sent each record of such a file: at the time of its event.

    One whose time is missing or damaged was sent with the one before it.
    """
    ms = epoch_ms(_START)
    for line in lines:
        if found := _TIME.search(line):
            with suppress(ValueError):  # it looks like a time, and is none
                ms = epoch_ms(datetime.fromisoformat(found[1].decode()))
        yield ms
