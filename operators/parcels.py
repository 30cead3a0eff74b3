"""The events of a chunk, at hand in the worker: what targets are called with, and what is written.

A chunk's events are in Flink's state as they came; a parcel is what they are read as while some of
them are called with.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from operators.batches import Ints, from_bytes, to_bytes
from operators.events import Events, EventType
from operators.intake import judge_batch
from operators.lanes import AT_MS
from operators.origin import Origin
from operators.records import Records, values_of
from operators.rules.verdict import Judge, Rejection
from udfs.targets import Event

INVALID_ANSWER: Final = "invalid_answer"


class InvalidAnswer(Exception):
    """What a target's answer adds to an event does not fit the contract."""


class Parcel:
    """The events of a chunk.

    Attributes:
        data: as they are in the state.
        at_ms: the instant whose minute they count in.
        records: as they came.
    """

    def __init__(self, data: bytes, event_type: EventType, judge: Judge, now_ms: int) -> None:
        """Read them, and judge them once more: the contract may have become another one."""
        self.data = data
        self._batch = from_bytes(data)
        self._event_type = event_type
        self._judge = judge
        self._now_ms = now_ms
        self.at_ms = int(self._batch.schema.metadata[AT_MS])
        payloads = values_of(self._batch.column("payload"))
        origin = Origin.of_batch(self._batch)
        self.records = Records(origin, payloads, is_bounded=True, batch=self._batch)
        self._places = self._batch.column("place").to_numpy()
        self._enriched: dict[int, bytes] = {}

    def __len__(self) -> int:
        """How many."""
        return len(self.records)

    @property
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

    def event(self, place: int, attempt: int) -> Event:
        """An event, which has no refusal, for a target.

        Args:
            place: which.
            attempt: which attempt it is, from 1.
        """
        row = self.row(place)
        topic, partition = self.records.origin.partition_of(row)
        payload = self.records.payloads[row]
        return Event(
            key=self._batch.column("event_key")[row].as_py(),
            value=self._value(payload),
            payload=payload,
            line=self._lines[int(np.searchsorted(self._rows, row))],
            time_ms=self._batch.column("event_ms")[row].as_py(),
            idempotency_key=hashlib.md5(payload, usedforsecurity=False).hexdigest(),
            source_topic=topic,
            source_partition=partition,
            source_offset=self.records.origin.offsets[row],
            attempt=attempt,
        )

    def enrich(self, place: int, fields: Mapping[str, Any]) -> None:
        """Add what a target has answered to an event.

        Raises:
            InvalidAnswer: the event would not be one of the contract, or one of another key or
                time, which has its place already.
        """
        contract = self._event_type.contract
        fixed = {contract.key, contract.event_time}
        for name in fields:
            if name in fixed or name not in {column.name for column in contract.columns}:
                raise InvalidAnswer(
                    f"the target's answer has {name!r}: it may add fields of the contract, but not "
                    f"its key or time"
                )
        row = self.row(place)
        event = {**msgspec.json.decode(self.records.payloads[row]), **fields}
        payload = msgspec.json.encode(event)
        verdict = self._judge.judge(payload, self._now_ms)
        if isinstance(verdict, Rejection):
            raise InvalidAnswer(f"with the target's answer it is no event: {verdict.message}")
        self._enriched[row] = payload

    def delivered(self, places: Iterable[int]) -> tuple[Records, Ints, Events]:
        """Events as they are written, with what the target has added.

        Args:
            places: which, in order.

        Returns:
            The records, the rows of these among them, and the events.
        """
        rows = np.array([self.row(place) for place in places], np.int64)
        at = np.searchsorted(self._rows, rows)
        events = self._events if len(rows) == len(self._rows) else self._events.only(at)
        if enriched := [(i, row) for i, row in enumerate(rows.tolist()) if row in self._enriched]:
            lines = list(events.lines)
            for i, row in enriched:
                lines[i] = self._event_type.decode(self._enriched[row])
            events = self._event_type.events(lines)
        return self.records, rows, events

    def only(self, places: Iterable[int]) -> bytes:
        """The data of some of them, in order."""
        rows = pa.array([self.row(place) for place in places])
        return to_bytes(self._batch.take(rows), packed=True)

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
