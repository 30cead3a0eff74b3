"""A lane of delivery: which record may be called with when, and what becomes of it.

A lane holds the records of a share of the keys, from when they are accepted until they leave: as
delivered, or as dead letters. It knows neither targets nor clocks: the shell asks it what to call
with (`begin`), tells it what came of each call (`end`), and when to come back (`next_ms`).

What it keeps to:

- each record leaves once;
- with `ordering = "key"` the records of a key are called with one at a time, in their order;
- no call begins before it is due, while the breaker is open, or beyond the bounds;
- an outage uses up no attempts: those that the breaker makes as probes do not count, nor do
  systemic failures, which speak of the target and not of the record.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec

from operators.rules.backoff import RetryPolicy
from operators.rules.breaker import (
    Breaker,
    BreakerPolicy,
    Outcome,
    advance,
    began,
    ended,
    next_change_ms,
    permitted,
)
from operators.rules.failure import Handling

Ordering = Literal["key", "none"]
AfterDeadLetter = Literal["go_on", "follow"]
Disposition = Literal[
    "delivered", "refused", "exhausted", "followed", "expired", "overflow", "flush_at_end"
]
#: Of a record's attempts so many are kept: the first one, and the last ones.
MOST_HISTORY: Final = 10


@dataclass(frozen=True)
class LanePolicy:
    """What a lane goes by.

    Attributes:
        retry: how often, and how far apart.
        breaker: when the target is left alone.
        ordering: "key" keeps the records of a key behind each other.
        after_dead_letter: with ordering by key, whether the followers of a dead letter go on, or
            follow it.
        calls: at a time at most.
        max_records: so many the lane holds, those that are being called with included.
        max_bytes: and so many bytes of events.
        max_age_ms: a record that has been here for so long is given up; 0 for never.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    ordering: Ordering = "key"
    after_dead_letter: AfterDeadLetter = "go_on"
    calls: int = 16
    max_records: int = 10_000
    max_bytes: int = 16_000_000
    max_age_ms: int = 0


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """A call that failed.

    Attributes:
        at_ms: when it ended.
        error_type: as the failure table names it.
        message: what was said.
    """

    at_ms: int
    error_type: str
    message: str


class Waiting(msgspec.Struct, array_like=True):
    """A record on its way.

    Attributes:
        number: its place in the lane: numbers only grow.
        key: the event's key.
        event: what is delivered.
        accepted_ms: since when it is here.
        due_ms: when it may be called with.
        attempts: calls that count against it.
        history: the calls that failed, oldest first; those that do not count too.
    """

    number: int
    key: str
    event: bytes
    accepted_ms: int
    due_ms: int
    attempts: int = 0
    history: tuple[Attempt, ...] = ()


class Failure(NamedTuple):
    """A call that failed, as the failure table sees it."""

    error_type: str
    message: str
    handling: Handling
    wait_ms: int = 0


class Left(NamedTuple):
    """A record that leaves the lane, and how."""

    record: Waiting
    disposition: Disposition


class _Call(NamedTuple):
    began_ms: int
    epoch: int
    is_probe: bool


@dataclass
class Lane:
    """The records of a lane, and its breaker.

    Guarantee: every record that `accept` takes leaves by one `Left`, from one of the methods.
    """

    policy: LanePolicy
    breaker: Breaker = field(default_factory=Breaker)
    next_number: int = 0
    size_bytes: int = 0
    records: dict[int, Waiting] = field(default_factory=dict)
    _calls: dict[int, _Call] = field(default_factory=dict)
    #: (due, number) of what may be called with; what has changed meanwhile is passed over.
    _due: list[tuple[int, int]] = field(default_factory=list)
    _of_key: dict[str, deque[int]] = field(default_factory=dict)

    @classmethod
    def restored(
        cls, policy: LanePolicy, breaker: Breaker, next_number: int, records: Iterable[Waiting]
    ) -> Lane:
        """A lane as it was before a crash.

        Calls that were out then are made again: whether the target has had them nobody knows, so
        they do not count, and probes that were out are no longer waited for.
        """
        lane = cls(policy, msgspec.structs.replace(breaker, in_flight=0), next_number)
        for record in sorted(records, key=lambda record: record.number):
            lane._take(record)
        return lane

    @property
    def in_flight(self) -> int:
        """Calls that are out."""
        return len(self._calls)

    def accept(self, events: Iterable[tuple[str, bytes]], now_ms: int) -> list[Left]:
        """Take events in, in their order.

        Args:
            events: key and event of each.
            now_ms: now.

        Returns:
            Those that there is no room for.
        """
        overflow = []
        for key, event in events:
            record = Waiting(self.next_number, key, event, now_ms, now_ms)
            self.next_number += 1
            if self._has_room(len(event)):
                self._take(record)
            else:
                overflow.append(Left(record, "overflow"))
        return overflow

    def begin(self, now_ms: int) -> list[Waiting]:
        """What to call with now. Each is in flight until `end` is told of it."""
        self.breaker = advance(self.breaker, self.policy.breaker, now_ms)
        room = min(
            self.policy.calls - self.in_flight,
            permitted(self.breaker, self.policy.breaker, self.in_flight),
        )
        begun: list[Waiting] = []
        while len(begun) < room and (record := self._next_due(now_ms)):
            begun.append(record)
            is_probe = self.breaker.state == "half_open"
            self._calls[record.number] = _Call(now_ms, self.breaker.epoch, is_probe)
        self.breaker = began(self.breaker, len(begun), now_ms)
        return begun

    def end(self, number: int, failure: Failure | None, now_ms: int) -> list[Left]:
        """A call has come back.

        Args:
            number: the record's.
            failure: None for a success.
            now_ms: now.

        Returns:
            The records that leave with it: none when it is tried again, several when followers
            follow a dead letter.
        """
        call = self._calls.pop(number)
        record = self.records[number]
        self._tell_breaker(call, failure, now_ms)
        if failure is None:
            return [self._leave(record, "delivered")]
        attempt = Attempt(now_ms, failure.error_type, failure.message)
        record.history = _bounded((*record.history, attempt))
        if not failure.handling.retryable:
            return self._dead(record, "refused")
        if not call.is_probe and not failure.handling.systemic:
            record.attempts += 1
        due_ms = self._next_attempt_ms(record, failure, now_ms)
        if due_ms is None:
            return self._dead(record, "exhausted")
        record.due_ms = due_ms
        heapq.heappush(self._due, (due_ms, number))
        return []

    def expire(self, now_ms: int) -> list[Left]:
        """Records that have been here for too long; one in flight is waited for."""
        if not self.policy.max_age_ms:
            return []
        left: list[Left] = []
        while (oldest := self._oldest()) and oldest.accepted_ms + self.policy.max_age_ms <= now_ms:
            left += self._dead(oldest, "expired")
        return left

    def flush(self) -> list[Left]:
        """The end of the input: all that waits leaves. Calls that are out are waited for first."""
        return [
            self._leave(record, "flush_at_end")
            for record in [*self.records.values()]
            if record.number not in self._calls
        ]

    def next_ms(self) -> int | None:
        """When there is something to do without a call coming back; None for never."""
        times = []
        if self._peek() is not None and self.in_flight < self.policy.calls:
            due_ms = self._due[0][0]
            change_ms = next_change_ms(self.breaker, self.policy.breaker)
            if permitted(self.breaker, self.policy.breaker, self.in_flight) > 0:
                times.append(due_ms)
            elif change_ms is not None:
                times.append(max(due_ms, change_ms) if self.breaker.state == "open" else change_ms)
        if self.policy.max_age_ms and (oldest := self._oldest()):
            times.append(oldest.accepted_ms + self.policy.max_age_ms)
        return min(times, default=None)

    # --- inside

    def _has_room(self, size: int) -> bool:
        # An event larger than all of the room could never be delivered: alone it is taken.
        fits = self.size_bytes + size <= self.policy.max_bytes or not self.records
        return fits and len(self.records) < self.policy.max_records

    def _take(self, record: Waiting) -> None:
        self.records[record.number] = record
        self.size_bytes += len(record.event)
        if self.policy.ordering == "key":
            queue = self._of_key.setdefault(record.key, deque())
            queue.append(record.number)
            if len(queue) > 1:
                return  # it is due when those before it have left
        heapq.heappush(self._due, (record.due_ms, record.number))

    def _peek(self) -> Waiting | None:
        """The record that is due first, among those that may be called with."""
        while self._due:
            due_ms, number = self._due[0]
            record = self.records.get(number)
            if record and record.due_ms == due_ms and number not in self._calls:
                return record
            heapq.heappop(self._due)
        return None

    def _next_due(self, now_ms: int) -> Waiting | None:
        record = self._peek()
        if record is None or record.due_ms > now_ms:
            return None
        heapq.heappop(self._due)
        return record

    def _oldest(self) -> Waiting | None:
        """The record that came first, of those that are not being called with."""
        return next((r for n, r in self.records.items() if n not in self._calls), None)

    def _next_attempt_ms(self, record: Waiting, failure: Failure, now_ms: int) -> int | None:
        first_ms = record.history[0].at_ms
        wait_ms = max(failure.wait_ms, failure.handling.wait_ms)
        key = b"%d:%b" % (record.number, record.key.encode("utf-8", "surrogatepass"))
        return self.policy.retry.next_attempt_ms(key, record.attempts, first_ms, now_ms, wait_ms)

    def _tell_breaker(self, call: _Call, failure: Failure | None, now_ms: int) -> None:
        self.breaker = ended(
            advance(self.breaker, self.policy.breaker, now_ms),
            self.policy.breaker,
            epoch=call.epoch,
            outcome=_outcome(failure),
            took_ms=now_ms - call.began_ms,
            now_ms=now_ms,
            wait_ms=failure.wait_ms if failure else 0,
        )

    def _dead(self, record: Waiting, disposition: Disposition) -> list[Left]:
        left = [self._leave(record, disposition)]
        if self.policy.ordering == "key" and self.policy.after_dead_letter == "follow":
            # Those before it are on their way: an old one can be given up behind them.
            followers = [n for n in self._of_key.get(record.key, ()) if n > record.number]
            left += [self._leave(self.records[number], "followed") for number in followers]
        return left

    def _leave(self, record: Waiting, disposition: Disposition) -> Left:
        del self.records[record.number]
        self.size_bytes -= len(record.event)
        if self.policy.ordering == "key":
            queue = self._of_key[record.key]
            was_first = queue[0] == record.number
            queue.remove(record.number)
            if not queue:
                del self._of_key[record.key]
            elif was_first:
                heapq.heappush(self._due, (self.records[queue[0]].due_ms, queue[0]))
        return Left(record, disposition)


def _outcome(failure: Failure | None) -> Outcome:
    """What a call says of the target. One that refuses a single record has answered: it is up."""
    if failure is None:
        return "success"
    if failure.handling.systemic:
        return "systemic"
    return "failure" if failure.handling.retryable else "success"


def _bounded(history: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    if len(history) <= MOST_HISTORY:
        return history
    return (history[0], *history[1 - MOST_HISTORY :])
