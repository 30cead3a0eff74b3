"""The events of a chunk, at hand in the worker: what targets are called with, and what is written.

A chunk's events are in Flink's state as they came; a parcel is what they are read as while some of
them are called with.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from operators.batches.events import Events, EventType
from operators.batches.origin import Origin
from operators.batches.records import Records, values_of
from operators.bridge.wire import Ints, from_bytes, to_bytes
from operators.intake.intake import judge_batch
from operators.intake.lanes import AT_MS
from operators.rules.verdict import Judge, Rejection
from udfs.targets import Event

INVALID_ANSWER: Final = "invalid_answer"


class InvalidAnswer(Exception):
    """What a target's answer adds to an event does not fit the contract."""


class Parcel:
    """The events of a chunk.

    Attributes:
        at_ms: the instant whose minute they count in.
        records: as they came.
    """

    def __init__(
        self, batch: pa.RecordBatch, event_type: EventType, judge: Judge, now_ms: int
    ) -> None:
        """Take rows of `batches.EVENTS`."""
        self._batch = batch
        self._event_type = event_type
        self._judge = judge
        self._now_ms = now_ms
        self.at_ms = int(batch.schema.metadata[AT_MS])
        payloads = values_of(batch.column("payload"))
        self.records = Records(Origin.of_batch(batch), payloads, is_bounded=True, batch=batch)
        self._places = batch.column("place").to_numpy()
        # By row; what is read of them is judged once more: the contract may be another one now.
        self._enriched: dict[int, bytes] = {}

    @classmethod
    def of_data(cls, data: bytes, event_type: EventType, judge: Judge, now_ms: int) -> Parcel:
        """What `data` has given, or `lanes.Laned`."""
        return cls(from_bytes(data), event_type, judge, now_ms)

    def part(self, begin: int, end: int) -> Parcel:
        """A run of the events as a parcel of its own, with places from 0."""
        if (begin, end) == (0, len(self)):
            return self
        return self._anew(self._batch.slice(begin, end - begin))

    def without(self, places: Ints) -> Parcel:
        """All but some of the events as a parcel of its own, with places from 0."""
        kept = np.delete(np.arange(len(self)), places)
        return self._anew(self._batch.take(pa.array(kept)))

    def _anew(self, batch: pa.RecordBatch) -> Parcel:
        place = pa.array(np.arange(batch.num_rows, dtype=np.int32))
        at = batch.schema.get_field_index("place")
        batch = batch.set_column(at, batch.schema.field(at), place)
        return Parcel(batch, self._event_type, self._judge, self._now_ms)

    @property
    def data(self) -> bytes:
        """All of it, for the state."""
        return to_bytes(self._batch, packed=True)

    def __len__(self) -> int:
        """How many."""
        return len(self.records)

    @functools.cached_property
    def keys(self) -> list[str]:
        """The events' keys."""
        return self._batch.column("event_key").to_pylist()  # type: ignore[no-any-return]

    @property
    def sizes(self) -> list[int]:
        """The events' sizes, as the bounds of a lane count them."""
        return [len(payload) for payload in self.records.payloads]

    @property
    def event_ms(self) -> int:
        """The oldest event time."""
        return int(self._batch.column("event_ms").to_numpy().min())

    def tally(self, places: Iterable[int] | None = None) -> dict[tuple[str, int], int]:
        """How many events there are of each source partition, or how many of these."""
        origin = self.records.origin
        of_row = origin.of_row
        if of_row is None:
            count = len(self) if places is None else len(list(places))
            return {origin.partitions[0]: count}
        rows = of_row if places is None else of_row[[self.row(place) for place in places]]
        counts = np.bincount(rows, minlength=len(origin.partitions)).tolist()
        return dict(zip(origin.partitions, counts, strict=True))

    def row(self, place: int) -> int:
        """Where the event of this place stands now."""
        return int(np.searchsorted(self._places, place))

    def refusal(self, place: int) -> Rejection | None:
        """Why an event is none any more, if the contract has become another one meanwhile."""
        return self._refused.get(self.row(place)) if self._refused else None

    @property
    def has_refusals(self) -> bool:
        """Whether there is a refusal for any of them."""
        return bool(self._refused)

    def event(self, place: int, attempt: int) -> Event:
        """An event, which has no refusal, for a target.

        Args:
            place: which.
            attempt: which attempt it is, from 1.
        """
        row = self.row(place)
        topic, partition = self.records.origin.partition_of(row)
        payload = self.records.payloads[row]
        value = self._value(payload)
        return Event(
            key=self.keys[row],
            value=value,
            payload=payload,
            line=self._lines[int(np.searchsorted(self._rows, row))],
            time_ms=self._batch.column("event_ms")[row].as_py(),
            idempotency_key=self._event_type.idempotency_key(payload, value, self.keys[row]),
            source_topic=topic,
            source_partition=partition,
            source_offset=self.records.origin.offsets[row],
            attempt=attempt,
        )

    def enrich(self, place: int, fields: Mapping[str, Any]) -> None:
        """Add what a target has answered to an event.

        Raises:
            InvalidAnswer: the event would not be one of the contract, or one of another key,
                time or identity, which has its place already.
        """
        for name in fields:
            if name not in self._event_type.contract.answerable:
                raise InvalidAnswer(
                    f"the target's answer has {name!r}: it may add fields of the contract, but not "
                    f"its key, time or identity"
                )
        row = self.row(place)
        event = {**msgspec.json.decode(self.records.payloads[row]), **fields}
        payload = msgspec.json.encode(event)
        verdict = self._judge.judge(payload, self._now_ms)
        if isinstance(verdict, Rejection):
            raise InvalidAnswer(f"with the target's answer it is no event: {verdict.message}")
        self._enriched[row] = payload

    def delivered(self, places: Iterable[int] | None = None) -> tuple[Records, Ints, Events]:
        """Events as they are written, with what the target has added.

        Args:
            places: which; all if None.

        Returns:
            The records, the rows of these among them, and the events.
        """
        rows = self._rows
        if places is not None:
            rows = np.searchsorted(self._places, np.sort(np.fromiter(places, np.int64)))
        at = np.searchsorted(self._rows, rows)
        events = self._events if len(rows) == len(self._rows) else self._events.only(at)
        if self._enriched:
            lines = list(events.lines)
            for i, row in enumerate(rows.tolist()):
                if row in self._enriched:
                    lines[i] = self._event_type.decode(self._enriched[row])
            events = self._event_type.events(lines)
        return self.records, rows, events

    def only(self, places: Iterable[int]) -> bytes:
        """The data of some of them, for the state."""
        rows = pa.array(sorted(self.row(place) for place in places))
        return to_bytes(self._batch.take(rows), packed=True)

    def judge(self) -> None:
        """Read the events now, and not when they are first asked for."""
        _ = self._judged

    @functools.cached_property
    def _judged(self) -> tuple[Ints, Events, dict[int, Rejection]]:
        judged = judge_batch(self.records, self._judge, self._event_type, self._now_ms)
        return judged.rows, judged.events, dict(judged.rejected)

    @property
    def _rows(self) -> Ints:
        return self._judged[0]

    @property
    def _events(self) -> Events:
        return self._judged[1]

    @property
    def _refused(self) -> dict[int, Rejection]:
        return self._judged[2]

    @functools.cached_property
    def _lines(self) -> list[bytes]:
        places = self.records.origin.coordinates(self._rows)
        return self._event_type.encoded(self._events, *places).splitlines()

    @functools.cached_property
    def _value(self) -> Any:
        return msgspec.json.Decoder(self._event_type.contract.type).decode
