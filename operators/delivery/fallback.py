"""The fallback store: events that were not delivered within their budget, to be sent later.

A line is an event as it would be written to processed_events, with one field more, the last one:
`breakwater_key`, the idempotency key that its target has been called with. The record as it came is
not kept, so nothing else could tell the target that it may have had the event already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from pyflink.common import Row
from pyflink.datastream import OutputTag

from operators.batches.events import COORDINATES, EventType, takes_utc
from operators.bridge.steps import packed_type
from operators.bridge.wire import EVENTS, pack_lines
from operators.delivery.parcels import Parcel
from operators.intake.lanes import AT_MS
from operators.rules.contract import Contract
from operators.rules.delivery.lane_records import Disposition
from operators.rules.poison import PoisonRules
from operators.rules.times import epoch_ms
from operators.rules.verdict import Judge
from udfs.targets import Event

#: No event should have a field of this name by itself: those that have one of their own to tell
#: them apart may well call it idempotency_key.
KEY_FIELD: Final = "breakwater_key"
#: What goes there. What a target has refused is bad data, and a dead letter in any case.
UNDELIVERED: Final[frozenset[Disposition]] = frozenset(
    ("exhausted", "expired", "flush_at_end", "followed")
)
FALLBACK_TAG: Final = OutputTag("fallback", packed_type(()))
#: So much of lines makes a row, before they are packed.
_ROW_BYTES: Final = 4_000_000
_NO_LIMIT: Final = 2**62
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class FallbackError(ValueError):
    """The fallback store cannot be used so. The message is one line."""


class Place(NamedTuple):
    """Where the record of an event stands in its source."""

    source_topic: str
    source_partition: int
    source_offset: int


class Stored(NamedTuple):
    """A line of the store.

    Attributes:
        line: the event as it would be written to processed_events, without a newline.
        key: its idempotency key.
        place: where it came from.
        payload: what the contract reads the event from.
        event_key: the contract's key.
        event_ms: event time.
    """

    line: bytes
    key: str
    place: Place
    payload: bytes
    event_key: str
    event_ms: int


def fallback_line(event: Event) -> bytes:
    """An event's line, ended by a newline."""
    return with_key(event.line, event.idempotency_key) + b"\n"


def with_key(line: bytes, key: str) -> bytes:
    """A line of processed_events as one of the store; both without a newline."""
    field = b'"%b":%b}' % (KEY_FIELD.encode(), msgspec.json.encode(key))
    return b"%b,%b" % (line.removesuffix(b"}"), field)


def fallback_rows(lines: Iterable[bytes]) -> Iterator[tuple[OutputTag, Row]]:
    """Lines for the side output."""
    gathered: list[bytes] = []
    size = 0
    for line in lines:
        if gathered and size + len(line) > _ROW_BYTES:
            yield FALLBACK_TAG, Row(lines=pack_lines(b"".join(gathered)))
            gathered, size = [], 0
        gathered.append(line)
        size += len(line)
    if gathered:
        yield FALLBACK_TAG, Row(lines=pack_lines(b"".join(gathered)))


def refuse_contract(contract: Contract) -> None:
    """See that the store has a name for its field.

    Raises:
        FallbackError: the contract has a field of this name.
    """
    if any(column.name == KEY_FIELD for column in contract.columns):
        raise FallbackError(
            f'fallback = "file" adds the field {KEY_FIELD} to each event, and {contract.path} has '
            "one: rename it there"
        )


class FallbackReader:
    """Reads lines of the store back, as events that a target is called with."""

    def __init__(self, contract: Contract) -> None:
        """Take the contract of the events; it may be another one than when they were written."""
        self._event_type = EventType(contract)
        self._judge = Judge(contract, PoisonRules(), _NO_LIMIT, _NO_LIMIT)
        self._fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
        # They are written with a zone, and read without one.
        times = [column for column in contract.columns if column.kind == "datetime"]
        self._naive = [column.name for column in times if not takes_utc(column)]

    def read(self, line: bytes) -> Stored:
        """A line, with its newline or without.

        Raises:
            FallbackError: it is none of the store.
        """
        contract = self._event_type.contract
        try:
            fields: dict[str, Any] = self._fields.decode(line)
            key = msgspec.json.decode(fields.pop(KEY_FIELD), type=str)
            processed = msgspec.json.encode(fields)
            place = Place(*_coordinates(fields))
        except (KeyError, ValueError, RecursionError) as error:
            raise FallbackError(f"is no line of a fallback store: {_missing(error)}") from None
        event_key = _text(fields.get(contract.key))
        event_ms = _ms(fields.get(contract.event_time))
        for name in self._naive:
            fields[name] = _text(fields.get(name)).removesuffix("Z") or None
        payload = msgspec.json.encode(fields)
        return Stored(processed, key, place, payload, event_key, event_ms)

    def parcel(self, lines: Sequence[Stored], now_ms: int) -> StoredParcel:
        """Lines as what a target is called with, their places in this order."""
        return StoredParcel(lines, self._event_type, self._judge, now_ms)


class StoredParcel(Parcel):
    """Events of the store: called with what the job would have called with.

    But for `Event.payload`, which is gone: it is the event as the contract reads it.
    """

    def __init__(
        self, lines: Sequence[Stored], event_type: EventType, judge: Judge, now_ms: int
    ) -> None:
        """Take them."""
        super().__init__(_batch(lines), event_type, judge, now_ms)
        self._stored = lines

    def event(self, place: int, attempt: int) -> Event:
        """An event, see `Parcel.event`."""
        stored = self._stored[place]
        event = super().event(place, attempt)
        return replace(event, line=stored.line, idempotency_key=stored.key)


def _batch(lines: Sequence[Stored]) -> pa.RecordBatch:
    """Rows of `EVENTS`."""
    columns = {
        "payload": [line.payload for line in lines],
        "event_key": [line.event_key for line in lines],
        "event_ms": [line.event_ms for line in lines],
        "place": np.arange(len(lines), dtype=np.int32),
        **{name: [getattr(line.place, name) for line in lines] for name in COORDINATES},
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(len(lines), field.type)
        for field in EVENTS
    ]
    return pa.record_batch(arrays, schema=EVENTS).replace_schema_metadata({AT_MS: b"0"})


def _coordinates(fields: dict[str, Any]) -> tuple[str, int, int]:
    """Taken out of the fields: the contract may refuse what it does not know."""
    topic, partition, offset = (fields.pop(name) for name in COORDINATES)
    return (
        msgspec.json.decode(topic, type=str),
        msgspec.json.decode(partition, type=_Int32),
        msgspec.json.decode(offset, type=_Int64),
    )


def _missing(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _text(raw: Any) -> str:
    """A field that is a text; "" for any other: the contract will say what is wrong with it."""
    try:
        return msgspec.json.decode(raw or b'""', type=str)
    except (ValueError, RecursionError):  # also of what is no UTF-8
        return ""


def _ms(raw: Any) -> int:
    """A time; 0 for what is none."""
    try:
        return epoch_ms(msgspec.convert(_text(raw), datetime))
    except ValueError:
        return 0
