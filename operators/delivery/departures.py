"""What leaves delivery: its rows, and the books of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from pyflink.common import Row, Types

from operators.batches.events import EventType
from operators.batches.origin import MINUTE_MS
from operators.bridge.steps import BYTES
from operators.bridge.wire import Ints, pack_progress
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.fallback import fallback_line, fallback_rows
from operators.delivery.parcels import Parcel
from operators.intake.outgoing import Accepted, Rejected
from operators.rules.delivery.lane_records import Attempt, Disposition, Left, Whole
from operators.rules.envelope import Tries, envelope_line
from operators.rules.fitting import fitted
from operators.rules.times import iso_utc_ms
from operators.rules.verdict import Rejection

STAGE: Final = "delivery"
#: What has been delivered: as `bridge.ACCEPTED`, and what `bridge.from_lanes` is told of the lane.
DELIVERED: Final = Types.ROW_NAMED(
    ["lines", "progress", "times", "partials", "lane", "status"], [*[BYTES] * 4, Types.INT(), BYTES]
)
#: Among dead letters by type: a user's exception may be called Duplicate, but has no brackets.
_PENDING: Final = "(pending)"
_DUPLICATE: Final = "(duplicate)"
_FALLBACK: Final = "(fallback)"


class Departures:
    """What leaves an operator call, gathered: few large rows, and the books of it."""

    def __init__(self, rules: DeliveryRules, event_type: EventType, now_ms: int) -> None:
        """Nothing yet.

        Args:
            rules: what delivery goes by.
            event_type: of the events.
            now_ms: the time of the envelopes.
        """
        self._rules = rules
        self._event_type = event_type
        self._now_ms = now_ms
        self._date = iso_utc_ms(now_ms)[:10]
        #: Each parcel with the places of what was delivered of it; None for all.
        self._delivered: dict[Parcel, list[int] | None] = {}
        self._rejected = Rejected()
        self._fallback: list[bytes] = []
        #: By minute and source partition: pending, duplicates, what has gone to the fallback store,
        #: and dead letters by type.
        self._counts: defaultdict[tuple[int, str, int], Counter[str]] = defaultdict(Counter)
        self._status = b""
        self._delivered_count = 0
        self._dead_letters = 0

    def arrived(self, parcel: Parcel) -> None:
        """Events have come in: they are pending."""
        self._add(parcel, parcel.tally(), _PENDING, 1)

    def left_out(self, parcel: Parcel, places: Ints) -> None:
        """Some of the events that have come in are duplicates of others."""
        self._add(parcel, parcel.tally(places.tolist()), _DUPLICATE, 1)

    def leave(self, left: Left, parcel: Parcel, last_failure: Attempt | None) -> None:
        """A record has left; of its lane the last failure is known."""
        place = left.record.number - left.chunk
        if left.disposition == "delivered":
            places = self._delivered.setdefault(parcel, [])
            assert places is not None  # noqa: S101 # a chunk leaves as a whole or one by one
            places.append(place)
            self._delivered_count += 1
            return
        record, row = left.record, parcel.row(place)
        self._count(parcel, row)[_PENDING] -= 1
        if self._falls_back(parcel, place, left.disposition):
            return
        reason = record.history[-1] if record.history else last_failure
        self._dead(parcel, row, left.disposition, record.history, reason, record.attempts)

    def leave_whole(self, whole: Whole, parcel: Parcel) -> None:
        """A chunk has been delivered as it came."""
        self._delivered[parcel] = None
        self._delivered_count += whole.size

    def overflow(self, parcel: Parcel, row: int, last_failure: Attempt | None) -> None:
        """There is no room for an event, of a parcel that has all of its own."""
        self._count(parcel, row)[_PENDING] -= 1
        if self._falls_back(parcel, row, "overflow"):
            return
        self._dead(parcel, row, "overflow", (), last_failure, 0)

    @property
    def has_moved(self) -> bool:
        """Whether anything has been delivered or become a dead letter."""
        return bool(self._delivered or self._dead_letters)

    def tell(self, lane: int, status: dict[str, Any]) -> None:
        """What is to be told of a lane, beside how many have left."""
        moved = {"delivered": self._delivered_count, "dead_letters": self._dead_letters}
        self._status = msgspec.json.encode({"lane": lane, **status, **moved})

    def rows(self, lane: int) -> Iterator[Any]:
        """All of it."""
        minutes = defaultdict(list)
        for parcel, places in self._delivered.items():
            minutes[parcel.at_ms // MINUTE_MS].append((parcel, places))
            self._add(parcel, parcel.tally(places), _PENDING, -1)
        for parcels in minutes.values():
            accepted = Accepted(self._event_type, self._rules.window_ms)
            for parcel, places in parcels:
                accepted.add(*parcel.delivered(places), parcel.at_ms)
            (row,) = accepted.rows()
            yield Row(**row.as_dict(), lane=lane, status=b"")
        # Behind its events, all of them: until then the watermark is held back.
        if self._status:
            nothing = {"lines": b"", "progress": pack_progress([]), "times": b"", "partials": b""}
            yield Row(**nothing, lane=lane, status=self._status)
        yield from fallback_rows(self._fallback)
        self._rejected.count([*self._count_lines()])
        yield from self._rejected.rows()

    def _falls_back(self, parcel: Parcel, place: int, disposition: Disposition) -> bool:
        """Write an event to the fallback store, if it goes there."""
        if disposition not in self._rules.to_fallback or parcel.refusal(place):
            return False  # what the contract does not take any more is bad data
        line = fallback_line(parcel.event(place, 1))
        # An envelope is cut to fit its place; a line that does not fit would stop the job.
        if 0 < self._rules.max_envelope_bytes < len(line):
            return False
        self._fallback.append(line)
        self._count(parcel, parcel.row(place))[_FALLBACK] += 1
        return True

    def _add(self, parcel: Parcel, tally: dict[tuple[str, int], int], what: str, sign: int) -> None:
        for (topic, partition), count in tally.items():
            counts = self._counts[parcel.at_ms // MINUTE_MS, topic, partition]
            counts[what] += sign * count

    def _count(self, parcel: Parcel, row: int) -> Counter[str]:
        topic, partition = parcel.records.origin.partition_of(row)
        return self._counts[parcel.at_ms // MINUTE_MS, topic, partition]

    def _count_lines(self) -> Iterator[bytes]:
        for (minute, topic, partition), counts in self._counts.items():
            pending, duplicate = counts.pop(_PENDING, 0), counts.pop(_DUPLICATE, 0)
            fallback = counts.pop(_FALLBACK, 0)
            if pending or duplicate or fallback or counts:
                line = {
                    "minute_ms": minute * MINUTE_MS,
                    "source_topic": topic,
                    "source_partition": partition,
                    "pending": pending,
                    "duplicate": duplicate,
                    "fallback": fallback,
                    "dead_lettered": counts,
                }
                yield msgspec.json.encode(line) + b"\n"

    def _dead(
        self,
        parcel: Parcel,
        row: int,
        disposition: Any,
        history: tuple[Attempt, ...],
        reason: Attempt | None,
        attempts: int,
    ) -> None:
        """Write a dead letter, with the last failure as its reason: its own, or its lane's."""
        error_type = reason.error_type if history and reason else f"delivery_{disposition}"
        message = _why(disposition, history, reason)
        category = reason.category if reason else "transient"
        records = parcel.records
        source = records.source(row)
        first_ms = history[0].at_ms if history else self._now_ms
        tries = Tries(
            category,
            disposition,
            attempts,
            [
                {"at": iso_utc_ms(a.at_ms), "error_type": a.error_type, "error_message": a.message}
                for a in history
            ],
            first_ms,
            history[-1].at_ms if history else self._now_ms,
        )
        payload, metadata = records.payloads[row], records.headers(row)

        def write(payload_limit_bytes: int) -> bytes:
            return envelope_line(
                payload,
                Rejection("dead_letter", error_type, message, ()),
                source,
                contract=self._rules.contract,
                now_ms=self._now_ms,
                stage=STAGE,
                code_version=self._rules.code_version,
                payload_limit_bytes=payload_limit_bytes,
                stacktrace=reason.stacktrace if history and reason else "",
                metadata=metadata,
                tries=tries,
            )

        envelope = fitted(write, len(payload), self._rules.max_envelope_bytes)
        self._rejected.add_dead(envelope, category, self._date, error_type)
        self._count(parcel, row)[error_type] += 1
        self._dead_letters += 1


def _why(disposition: str, history: tuple[Attempt, ...], reason: Attempt | None) -> str:
    """What a person is told of a dead letter."""
    if history and reason:
        return reason.message
    because = {
        "followed": "a record of its key before it has become a dead letter",
        "expired": "it was not its turn within max_age_ms",
        "overflow": "there is no room for it in its lane (max_records, max_bytes)",
        "flush_at_end": "the input ended, and it was not its turn within drain_timeout_ms",
    }[disposition]
    last = f"; the target's last failure: {reason.error_type}: {reason.message}" if reason else ""
    return f"not tried: {because}{last}"
