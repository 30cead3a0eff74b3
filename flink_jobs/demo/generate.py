"""Demo input: e-commerce events as JSON lines, with every kind of damage that a stream meets.

The same arguments give the same bytes, on every Python from 3.10 to 3.12: only ``random()`` of a
seeded generator is used (Python promises its sequence), whole numbers and no clock. A ``.gz`` file
holds the same lines; its compressed bytes also depend on the zlib of the machine.

Time runs at `EVENTS_PER_S`. An event either stands in order or lags behind, by at most the disorder
that was asked for: for every good line, its timestamp >= the newest before it - disorder. The file
covers [start, start + events / EVENTS_PER_S), so the next file carries on where this one ends.
"""

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from random import Random
from typing import IO, NamedTuple

from flink_jobs.errors import FAILED, WRONG_CALL, UserError

EVENTS_PER_S = 100
OVERSIZED_BYTES = 1_048_576 + 1000  # over the default source.max_record_bytes
# Deeper than the recursion limit of msgspec and json on every Python from 3.10 to 3.12. From 3.12.2
# on that limit is 10 000 in C code, before it was about 1000.
NESTED_LEVELS = 12_000
FUTURE = "2999-01-01T00:00:00.000Z"

_MS_PER_EVENT = 1000 // EVENTS_PER_S
_DISORDERED_SHARE = 0.2
_PRODUCTS = 500
_PRICES_CENTS = 30_000
# Out of 100: most people look, few buy.
_ACTIONS = ("view",) * 70 + ("click",) * 18 + ("add_to_cart",) * 8 + ("purchase",) * 4
_LATEST_YEAR = 2900
# The big ones come seldom, so that the file stays about as large as its good records.
_EVENTS_PER_OVERSIZED = 100_000
_EVENTS_PER_NESTED = 5_000
_CHUNK_BYTES = 1_000_000


class Event(NamedTuple):
    """One good event, every field as it stands between the quotes (price: without)."""

    user_id: str
    product_id: str
    action: str
    price: str
    timestamp: str
    event_id: str

    def line(self) -> bytes:
        """The event as one JSON line, without the newline."""
        return (_LINE % self).encode("ascii")

    def fields(self) -> dict[str, str]:
        """The JSON text of each field, to damage one of them."""
        quoted = {name: f'"{text}"' for name, text in self._asdict().items()}
        return {**quoted, "price": self.price}


_LINE = (
    '{"user_id":"%s","product_id":"%s","action":"%s","price":%s,"timestamp":"%s","event_id":"%s"}'
)


class Damage(NamedTuple):
    """One way for a record to be wrong, and what becomes of it under the reference contract."""

    name: str
    verdict: str
    make: Callable[[Event], bytes]


@dataclass(frozen=True)
class Summary:
    """What was written."""

    lines: int
    bytes: int
    damaged: dict[str, int]
    end: datetime

    @property
    def by_verdict(self) -> dict[str, int]:
        """Damaged records by the error type or quarantine reason that they should get."""
        counts: Counter[str] = Counter()
        for damage in DAMAGES:
            counts[damage.verdict] += self.damaged.get(damage.name, 0)
        return {verdict: count for verdict, count in counts.items() if count}


def generate(
    events: int,
    bad_rate: float,
    disorder_s: float,
    users: int,
    seed: int,
    start: datetime,
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Write exactly `events` lines to `out`, all of them or none.

    Args:
        events: Number of lines; a damaged record counts, an empty line too.
        bad_rate: Share of damaged records, 0 to 1. The kinds take turns, so each comes as often as
            the others, apart from the two big ones.
        disorder_s: No event lags further behind the newest one before it.
        users: Number of users; some come more often than others.
        seed: The same seed gives the same bytes.
        start: Time of the first event; without an offset it is UTC.
        out: The file; ``.gz`` at the end of its name compresses it.
        progress: Told how many lines are done, every megabyte.
    """
    clock = _Clock(_start_ms(start, events), round(disorder_s * 1000))
    damager = _Damager(events, bad_rate)
    lines = _records(events, users, Random(seed).random, clock, damager)  # noqa: S311, demo data
    with _written_whole(out) as file:
        size = _write(lines, file, progress or (lambda _: None))
    end = _at(clock.start_ms + events * _MS_PER_EVENT)
    return Summary(events, size, damager.counts(), end)


# --- good events ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clock:
    start_ms: int
    disorder_ms: int

    def time_ms(self, index: int, random: Callable[[], float]) -> int:
        """The event time of a line: in order, or behind by at most the disorder."""
        elapsed = index * _MS_PER_EVENT + int(random() * _MS_PER_EVENT)
        if random() >= _DISORDERED_SHARE:
            return self.start_ms + elapsed
        # Not before the start: the file before this one ended there.
        furthest = min(self.disorder_ms, elapsed)
        return self.start_ms + elapsed - int(random() * (furthest + 1))


def _event(index: int, users: int, random: Callable[[], float], clock: _Clock) -> Event:
    cents = int(random() * _PRICES_CENTS)
    return Event(
        # The product of two makes low numbers likelier: the first user of 1000 comes 8 times as
        # often as the average one.
        f"user_{int(random() * random() * users):05d}",
        f"product_{int(random() * _PRODUCTS):03d}",
        _ACTIONS[int(random() * 100)],
        f"{cents // 100}.{cents % 100:02d}",
        _iso(clock.time_ms(index, random)),
        str(clock.start_ms // _MS_PER_EVENT + index),
    )


def _iso(epoch_ms: int) -> str:
    second, ms = divmod(epoch_ms, 1000)
    return f"{_iso_second(second)}.{ms:03d}Z"


@lru_cache(maxsize=65_536)
def _iso_second(second: int) -> str:
    return f"{_at(second * 1000):%Y-%m-%dT%H:%M:%S}"


def _at(epoch_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=epoch_ms)


def _start_ms(start: datetime, events: int) -> int:
    aware = start if start.tzinfo else start.replace(tzinfo=timezone.utc)
    start_ms = (aware - _at(0)) // timedelta(milliseconds=1)
    end_ms = start_ms + events * _MS_PER_EVENT
    if (
        start_ms < 0
        or end_ms >= (_at(0).replace(year=_LATEST_YEAR) - _at(0)).total_seconds() * 1000
    ):
        raise UserError(
            f"--start {start.isoformat()} with --events {events}: event times must lie between the "
            f"years 1970 and {_LATEST_YEAR}; choose another start",
            WRONG_CALL,
        )
    return start_ms


# --- damage --------------------------------------------------------------------------------------


def _json(fields: dict[str, str]) -> bytes:
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


def _with(**changed: str) -> Callable[[Event], bytes]:
    """Put other JSON text in the place of some fields."""
    return lambda event: _json({**event.fields(), **changed})


def _without(name: str) -> Callable[[Event], bytes]:
    return lambda event: _json({n: text for n, text in event.fields().items() if n != name})


def _instead(record: bytes) -> Callable[[Event], bytes]:
    return lambda event: record


def _cut(event: Event) -> bytes:
    """The first part of a line, cut at a place that differs from event to event."""
    line = event.line()
    return line[: 1 + int(event.event_id) % (len(line) - 1)]


def _inside_user_id(raw: bytes) -> Callable[[Event], bytes]:
    return lambda event: event.line().replace(b"user_", b"user_" + raw, 1)


def _nested(event: Event) -> bytes:
    return _json({**event.fields(), "nested": "[" * NESTED_LEVELS + "]" * NESTED_LEVELS})


def _oversized(event: Event) -> bytes:
    """A good event but for its size."""
    return _json({**event.fields(), "filler": f'"{"x" * OVERSIZED_BYTES}"'})


def _missing() -> Iterator[Damage]:
    for name in ("user_id", "product_id", "action", "timestamp"):
        yield Damage(f"{name} absent", "missing_required", _without(name))
        yield Damage(f"{name} null", "missing_required", _with(**{name: "null"}))
        yield Damage(f"{name} empty", "missing_required", _with(**{name: '""'}))


def _prices() -> Iterator[Damage]:
    yield Damage("price absent", "invalid_price", _without("price"))
    for text in ("null", "NaN", "Infinity", "-Infinity", "-12.50", "1e999"):
        yield Damage(f"price {text}", "invalid_price", _with(price=text))


def _several() -> Iterator[Damage]:
    """Several violations at once: the first in order of precedence gives the verdict."""
    yield Damage(
        "wrong type, no user_id and a negative price",
        "schema_error",
        _with(product_id="17", user_id="null", price="-1"),
    )
    yield Damage(
        "no user_id, negative price, unknown action and a future time",
        "missing_required",
        _with(user_id='""', price="-1", action='"refund"', timestamp=f'"{FUTURE}"'),
    )
    yield Damage(
        "price NaN and unknown action", "invalid_price", _with(price="NaN", action='"refund"')
    )
    yield Damage(
        "unknown action and a future time",
        "unknown_action",
        _with(action='"refund"', timestamp=f'"{FUTURE}"'),
    )


NESTED = Damage("nested too deep", "invalid_json", _nested)
OVERSIZED = Damage("oversized", "oversized", _oversized)
DAMAGES: tuple[Damage, ...] = (
    Damage("a list", "schema_error", _instead(b'["user_00001","product_001","view",9.99]')),
    Damage("a string", "schema_error", _instead(b'"user_00001"')),
    Damage("a number", "schema_error", _instead(b"42")),
    Damage("null", "schema_error", _instead(b"null")),
    Damage("user_id a number", "schema_error", _with(user_id="1234")),
    Damage("action a list", "schema_error", _with(action='["view"]')),
    Damage("price a string", "schema_error", _with(price='"12.50"')),
    Damage("timestamp a number", "schema_error", _with(timestamp="1767225600")),
    Damage("timestamp not a time", "schema_error", _with(timestamp='"yesterday"')),
    *_missing(),
    *_prices(),
    Damage("action unknown", "unknown_action", _with(action='"refund"')),
    Damage("timestamp in the future", "future_timestamp", _with(timestamp=f'"{FUTURE}"')),
    *_several(),
    Damage("empty line", "empty_message", _instead(b"")),
    Damage("white space", "empty_message", _instead(b"  \t ")),
    Damage("null bytes", "null_bytes", _inside_user_id(b"\x00\x00")),
    Damage("cut off", "invalid_json", _cut),
    Damage("not JSON", "invalid_json", _instead(b"GET /checkout HTTP/1.1 500")),
    Damage("not UTF-8", "invalid_json", _inside_user_id(b"\xff\xfe\xe9")),
    NESTED,
    OVERSIZED,
)


class _Damager:
    """Decides which record is damaged and how; the kinds take turns."""

    def __init__(self, events: int, bad_rate: float) -> None:
        self._bad_rate = bad_rate
        self._damaged: Counter[str] = Counter()
        self._turns = cycle(damage for damage in DAMAGES if damage is not OVERSIZED)
        large = max(1, events // _EVENTS_PER_OVERSIZED)
        enough = bad_rate > 0 and events >= _EVENTS_PER_OVERSIZED // 2
        # A quarter into each stretch: in the first 50 000 events as well.
        self._oversized_at = {
            turn * _EVENTS_PER_OVERSIZED + _EVENTS_PER_OVERSIZED // 4
            for turn in range(large if enough else 0)
        }

    def pick(self, index: int, chance: float) -> Damage | None:
        """The damage of this record, None for a good one."""
        if index in self._oversized_at:
            return self._count(OVERSIZED)
        return self._count(self._next(index)) if chance < self._bad_rate else None

    def counts(self) -> dict[str, int]:
        """How many of each kind so far, in the order of `DAMAGES`."""
        names = [damage.name for damage in DAMAGES]
        return {name: self._damaged[name] for name in names if self._damaged[name]}

    def _next(self, index: int) -> Damage:
        damage = next(self._turns)
        too_many = self._damaged[NESTED.name] * _EVENTS_PER_NESTED > index
        return next(self._turns) if damage is NESTED and too_many else damage

    def _count(self, damage: Damage) -> Damage:
        self._damaged[damage.name] += 1
        return damage


def _records(
    events: int, users: int, random: Callable[[], float], clock: _Clock, damager: _Damager
) -> Iterator[bytes]:
    for index in range(events):
        event = _event(index, users, random, clock)
        damage = damager.pick(index, random())
        yield damage.make(event) if damage else event.line()


# --- the file ------------------------------------------------------------------------------------


def _write(lines: Iterator[bytes], file: IO[bytes], progress: Callable[[int], None]) -> int:
    """Write in big pieces; return the number of bytes (before compression)."""
    chunk, size, done = bytearray(), 0, 0
    for done, line in enumerate(lines, 1):
        chunk += line
        chunk += b"\n"
        if len(chunk) >= _CHUNK_BYTES:
            size += file.write(chunk)
            chunk.clear()
            progress(done)
    size += file.write(chunk)
    progress(done)
    return size


@contextmanager
def _written_whole(out: Path) -> Iterator[IO[bytes]]:
    """Write beside the file and rename at the end: nobody sees half a file."""
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file with --out", WRONG_CALL)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as raw:
            yield from _maybe_compressed(raw, compressed=out.suffix == ".gz")
        part.replace(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{out}: cannot be written ({reason}); choose another --out", FAILED
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()


def _maybe_compressed(raw: IO[bytes], *, compressed: bool) -> Iterator[IO[bytes]]:
    if not compressed:
        yield raw
        return
    # No name and no time in the header: the same bytes every time.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
        yield packed  # type: ignore[misc]
