"""A lane of delivery: which record may be called with when, and what becomes of it.

A lane holds the records of a share of the keys, from when they are accepted until they leave: as
delivered, or as dead letters. It knows neither targets nor clocks, nor what the records hold: the
shell asks it what to call with (`begin`), tells it what came of each call (`end`), and when to come
back (`next_ms`).

Records arrive in chunks. A chunk that has arrived is a number and a size: only when there is room
to call are its records looked at one by one (`open`). So a backlog of hours, behind a target that
is down, costs next to nothing here; the records themselves are in Flink's state.

What it keeps to:

- each record leaves once;
- with `ordering = "key"` the records of a key are called with one at a time, in their order;
- no call begins before it is due, while the breaker is open, or beyond the bounds;
- an outage uses up no attempts: probes do not count, nor does what opens the breaker or comes back
  when it is open, nor do systemic failures, which speak of the target and not of the record.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice
from typing import Final

import msgspec

from operators.rules.delivery.breaker import (
    Breaker,
    Outcome,
    advance,
    began,
    called_off,
    ended,
    next_change_ms,
    permitted,
    tried_early,
)
from operators.rules.delivery.lane_records import (
    MOST_AT_ONCE,
    MOST_HISTORY,
    Attempt,
    Call,
    Chunk,
    Disposition,
    Failure,
    Head,
    LanePolicy,
    Left,
    Waiting,
    Want,
    Whole,
)

_NO_TIME: Final = 2**63 - 1


class Lane:
    """The records of a lane, and its breaker.

    Guarantee: every record that `accept` takes leaves by one `Left`, from one of the methods.
    """

    def __init__(
        self, policy: LanePolicy, head: Head | None = None, chunks: Iterable[Chunk] = ()
    ) -> None:
        """A new lane, or one as it was before a crash.

        Calls that were out then are made again: whether the target has had them nobody knows, so
        they do not count, and probes that were out are no longer waited for.
        """
        self.policy = policy
        self.head = head or Head()
        self.head.breaker = msgspec.structs.replace(self.head.breaker, in_flight=0)
        self.chunks: dict[int, Chunk] = {}
        self.count = 0
        self.size_bytes = 0
        #: Chunks that have changed since the shell has last saved them.
        self.changed: set[int] = set()
        self._firsts: list[int] = []
        self._unopened: deque[int] = deque()
        self._calls: dict[int, Call] = {}
        self._out: set[int] = set()
        #: Heaps of what may be called with by itself: nothing of its key is before it. What is due
        #: is ready, by number; the rest is parked, by when it is due. Either may hold one that has
        #: left or is out, or one twice: `_record` and its due time tell.
        self._ready: list[int] = []
        self._parked: list[tuple[int, int]] = []
        #: Records that were due when the events of their chunk were not at hand.
        self._unloaded: defaultdict[int, set[int]] = defaultdict(set)
        #: Records that have failed, as they first did, and when the time budget of each is over.
        self._budgets: OrderedDict[int, int] = OrderedDict()
        #: Chunks that are being called with as they have come, and one that cannot be.
        self._whole: set[int] = set()
        self._mixed: int | None = None
        self._of_key: dict[str, list[int]] = {}
        for chunk in sorted(chunks, key=lambda chunk: chunk.first):
            self._add(chunk)
            for record in (chunk.records or {}).values():
                self._queue(record)
        self._limit(
            record for chunk in self.chunks.values() for record in (chunk.records or {}).values()
        )

    # --- what the shell asks

    @property
    def breaker(self) -> Breaker:
        """Its state now."""
        return self.head.breaker

    @property
    def in_flight(self) -> int:
        """Calls that are out."""
        return len(self._calls)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to keep: no record, and a breaker that knows nothing."""
        quiet = self.breaker.state == "closed" and not self.breaker.failures + self.breaker.limit
        return not self.count and quiet and not self.breaker.open_ms

    @property
    def fullness(self) -> float:
        """How much of its room is taken: 1 is all of it."""
        return max(self.count / self.policy.max_records, self.size_bytes / self.policy.max_bytes)

    def room(self, sizes: Sequence[int]) -> int:
        """How many of these events there is room for, from the first on."""
        room = max(0, self.policy.max_records - self.count)
        fits = bisect_right(list(accumulate(sizes)), self.policy.max_bytes - self.size_bytes)
        # An event larger than all of the room could never be delivered: alone it is taken.
        return min(len(sizes), room, max(fits, not self.count))

    def accept(self, sizes: Sequence[int], event_ms: int, now_ms: int) -> Chunk:
        """Take a chunk in, for which there is room.

        Args:
            sizes: of its events, in their order.
            event_ms: the oldest event time among them.
            now_ms: now.
        """
        chunk = Chunk(self.head.next_number, len(sizes), sum(sizes), now_ms, event_ms)
        self.head.next_number += chunk.count
        self._add(chunk)
        self.changed.add(chunk.first)
        return chunk

    def wanted(self, now_ms: int, has: Callable[[int], bool] = lambda _: True) -> Want | None:
        """A chunk whose events are needed now, because there is room to call with them, or time.

        Args:
            now_ms: now.
            has: whether the events of a chunk are at hand.
        """
        self._promote(now_ms)
        if self._unloaded:
            return Want(min(self._unloaded), to_open=False)
        waiting = list(islice(self._unopened, self.policy.calls + 1))
        if not waiting or (self.policy.ordering == "key" and waiting[0] in self._whole):
            return None  # those behind it must not be looked at yet
        waiting = [first for first in waiting if first not in self._whole]
        if waiting and (self._mixed == waiting[0] or self._is_old(waiting[0], now_ms)):
            return Want(waiting[0], to_open=True)
        if self.policy.batch > 1 and self.breaker.state == "closed":
            ahead = waiting[:1] if self.policy.ordering == "key" else waiting
            return next((Want(first, to_open=False) for first in ahead if not has(first)), None)
        # While it is open one is enough that may tell whether the target is well.
        callable_soon = self.breaker.state != "open" or self._fresh() is None
        if waiting and callable_soon and len(self._ready) < self.policy.window:
            return Want(waiting[0], to_open=True)
        return None

    def open(self, first: int, keys: Sequence[str], sizes: Sequence[int]) -> list[Left]:
        """Look at a chunk's records one by one.

        Args:
            first: the chunk.
            keys: of its events.
            sizes: their sizes.

        Returns:
            Those that follow a dead letter.
        """
        chunk = self.chunks[first]
        self._unopened.remove(first)
        if self._mixed == first:
            self._mixed = None
        chunk.records = {}
        for number, (key, size) in enumerate(zip(keys, sizes, strict=True), first):
            chunk.records[number] = Waiting(number, key, size, chunk.accepted_ms)
        records = [*chunk.records.values()]
        for record in records:
            self._queue(record)
        follow = self.head.follow
        followers = [
            self._leave(record, "followed")
            for record in records
            if record.number < follow.get(record.key, 0)
        ]
        self._forget_followed()
        return followers

    def chunk_of(self, number: int) -> Chunk:
        """The chunk that a record is of."""
        return self.chunks[self._firsts[bisect_right(self._firsts, number) - 1]]

    def loaded(self, first: int) -> None:
        """The events of an opened chunk are at hand again."""
        for number in self._unloaded.pop(first, ()):
            if record := self._record(number):
                heapq.heappush(self._parked, (record.due_ms, number))

    def begin(
        self,
        now_ms: int,
        has: Callable[[int], bool] = lambda _: True,
        keys: Callable[[int], Sequence[str]] | None = None,
    ) -> Call | None:
        """What to call with now. It is in flight until `end` is told of it.

        Args:
            now_ms: now.
            has: whether the events of a chunk are at hand; what is due and is not, is `wanted`.
            keys: of the events of a chunk that is at hand; None if no chunk may be called with as
                it has come.
        """
        self.head.breaker = advance(self.breaker, self.policy.breaker, now_ms)
        self._promote(now_ms)
        if self.in_flight < self.policy.calls and self._is_of_one_key and self._fresh():
            self.head.breaker = tried_early(self.breaker, self.policy.breaker, now_ms)
        free = permitted(self.breaker, self.policy.breaker, self.in_flight)
        if self.in_flight >= self.policy.calls or free < 1:
            return None
        records: list[Waiting] = []
        followers: list[int] = []
        # Probes are made with one record: a batch would tell no more.
        size = self.policy.batch if self.breaker.state == "closed" else 1
        while len(records) < size:
            if self.breaker.state == "half_open":
                record = self._probe(now_ms, has)
            else:
                record = self._next_due(now_ms, has, followers)
            if record is None:
                break
            records.append(record)
            self._out.add(record.number)
            if self.policy.keeps_order:
                self._let_follow(record, followers)
        chunk = None if records or keys is None else self._whole_chunk(has, keys)
        if not records and chunk is None:
            return None
        number, size = (chunk.first, chunk.count) if chunk else (records[0].number, len(records))
        is_probe = self.breaker.state == "half_open"
        whole = chunk.first if chunk else None
        call = Call(number, records, whole, size, now_ms, self.breaker.epoch, is_probe)
        self._calls[number] = call
        self.head.breaker = began(self.breaker, 1, now_ms)
        return call

    def end(
        self,
        number: int,
        failures: Sequence[Failure | None],
        now_ms: int,
        look: Callable[[int], tuple[Sequence[str], Sequence[int]]] | None = None,
    ) -> list[Left | Whole]:
        """A call has come back.

        Args:
            number: of the call.
            failures: of each of its records; None for a success.
            now_ms: now.
            look: keys and sizes of a chunk's events, if chunks were called with as they came.

        Returns:
            The records that leave with it: none when it is tried again, several when followers
            follow a dead letter; or the chunk.
        """
        call = self._calls.pop(number)
        for record in call.records:
            self._out.discard(record.number)
        left: list[Left | Whole] = []
        records = call.records
        keys: Sequence[str] = [record.key for record in records]
        if call.chunk is not None:
            self._whole.discard(call.chunk)
            if not any(failures):
                self._tell_breaker(call, failures, keys, now_ms)
                return [self._leave_whole(call.chunk)]
            assert look is not None  # noqa: S101 # who lets chunks be called with, has them
            keys, sizes = look(call.chunk)
        self._tell_breaker(call, failures, keys, now_ms)
        if call.chunk is not None:
            left += self.open(call.chunk, keys, sizes)
            chunk = self.chunks.get(call.chunk)
            records = list((chunk.records or {}).values()) if chunk else []
            failures = [failures[record.number - call.chunk] for record in records]
        results = list(zip(records, failures, strict=True))
        left += [self._leave(record, "delivered") for record, failure in results if failure is None]
        for record, failure in results:
            # One that has followed a dead letter of its call is gone.
            if failure and self._record(record.number):
                left += self._failed(call, record, failure, now_ms)
        return left

    def expire(self, now_ms: int) -> list[Left]:
        """Records that have been here for too long; those in flight are waited for.

        Not many at once: their events are needed. If there are more, `next_ms` is now.
        """
        left: list[Left] = []
        while len(left) < MOST_AT_ONCE and (budget := self._next_budget()):
            number, ends_ms = budget
            record = self._record(number)
            if ends_ms > now_ms or record is None:
                break
            left += self._dead(record, "exhausted")
        if not self.policy.max_age_ms:
            return left
        for chunk in [*self.chunks.values()]:
            if chunk.accepted_ms + self.policy.max_age_ms > now_ms:
                break
            for record in [*(chunk.records or {}).values()]:
                if len(left) >= MOST_AT_ONCE:
                    return left
                if record.number not in self._out and record.number in (chunk.records or ()):
                    left += self._dead(record, "expired")
        return left

    def flush(self) -> list[Left]:
        """The end of the input: what is opened and waits leaves; calls that are out do not.

        Not many at once: their events are needed. It is to be asked until nothing is left.
        """
        waiting = (
            record
            for chunk in self.chunks.values()
            for record in (chunk.records or {}).values()
            if record.number not in self._out
        )
        return [self._leave(record, "flush_at_end") for record in [*islice(waiting, MOST_AT_ONCE)]]

    def is_resting(self, first: int, until_ms: int) -> bool:
        """Whether no record of a chunk is out, or may be called with until then."""
        records = self.chunks[first].records
        if records is None:
            ahead = islice(self._unopened, self.policy.calls + 1)
            is_next = self.policy.batch > 1 and self.breaker.state == "closed" and first in ahead
            return not is_next and first not in self._whole
        return all(
            record.number not in self._out
            and (record.due_ms > until_ms or not self._is_next(record))
            for record in records.values()
        )

    def next_ms(self) -> int | None:
        """When there is something to do without a call coming back; None for never."""
        times = []
        if (self._peek() is not None or self._unopened) and self.in_flight < self.policy.calls:
            is_ready = bool(self._ready) or self._mixed is not None
            due_ms = self._parked[0][0] if self._parked and not is_ready else 0
            change_ms = next_change_ms(self.breaker, self.policy.breaker)
            may_be_early = self._is_of_one_key and self._fresh(with_next=True) is not None
            if may_be_early or permitted(self.breaker, self.policy.breaker, self.in_flight) > 0:
                times.append(due_ms)
            elif change_ms is not None:
                times.append(max(due_ms, change_ms) if self.breaker.state == "open" else change_ms)
        if budget := self._next_budget():
            times.append(budget[1])
        oldest_ms = self._oldest_ms() if self.policy.max_age_ms else None
        if oldest_ms is not None:
            times.append(oldest_ms + self.policy.max_age_ms)
        return min(times, default=None)

    def held_ms(self, now_ms: int) -> int | None:
        """The event time that the watermark must not pass yet; None if it need not wait.

        It waits for the first call with a record, not for those after a failure: and while the
        breaker is not closed, when nobody knows how long that may be, for `hold_ms` at most.
        """
        held = _NO_TIME
        is_well = self.breaker.state == "closed"
        for chunk in self.chunks.values():
            holds = is_well or now_ms < chunk.accepted_ms + self.policy.hold_ms
            if holds and chunk.event_ms < held and self._has_first_calls(chunk):
                held = chunk.event_ms
        return None if held == _NO_TIME else held

    def hold_ends_ms(self, now_ms: int) -> int | None:
        """When `held_ms` becomes another one by time alone; None for never."""
        if self.breaker.state == "closed":
            return None
        ends = (chunk.accepted_ms + self.policy.hold_ms for chunk in self.chunks.values())
        return next((end_ms for end_ms in ends if end_ms > now_ms), None)

    def held_back(self, first: int) -> int:
        """How many records of a chunk wait for a retry: their own, or that of one before them."""
        records = (self.chunks[first].records or {}).values() if first in self.chunks else ()
        return sum(map(self._is_held_back, records))

    def saved(self) -> None:
        """All that has changed has been saved."""
        self.changed.clear()

    # --- inside

    def _oldest_ms(self) -> int | None:
        """When the oldest record was accepted, of those that are not out."""
        for chunk in self.chunks.values():
            is_out = chunk.first in self._whole
            if chunk.records is not None:
                is_out = self._out.issuperset(chunk.records)
            if not is_out:
                return chunk.accepted_ms
        return None

    def _is_old(self, first: int, now_ms: int) -> bool:
        age_ms = self.policy.max_age_ms
        if not age_ms or self.chunks[first].accepted_ms + age_ms > now_ms:
            return False
        # Those before it are to leave first: else all of a backlog would be brought at once.
        before = (len(c.records or ()) for c in self.chunks.values() if c.first < first)
        return sum(islice(before, MOST_AT_ONCE)) < MOST_AT_ONCE

    def _has_first_calls(self, chunk: Chunk) -> bool:
        """Whether a record's first call is out, or would be made by and by."""
        return chunk.records is None or not all(map(self._is_held_back, chunk.records.values()))

    def _is_held_back(self, record: Waiting) -> bool:
        """Whether it waits for a retry: its own, or that of one before it."""
        if record.first_failure_ms or self.policy.ordering == "none":
            return bool(record.first_failure_ms)
        first = self._of_key[record.key][0]
        return bool((self.chunk_of(first).records or {})[first].first_failure_ms)

    def _add(self, chunk: Chunk) -> None:
        self.chunks[chunk.first] = chunk
        self._firsts.append(chunk.first)
        self.count += len(chunk)
        self.size_bytes += chunk.size_bytes
        if chunk.records is None:
            self._unopened.append(chunk.first)

    def _whole_chunk(
        self, has: Callable[[int], bool], keys: Callable[[int], Sequence[str]]
    ) -> Chunk | None:
        """A chunk that may be called with as it has come: nothing of it need be known for that."""
        if self.breaker.state != "closed" or self._mixed is not None:
            return None
        for first in self._unopened:
            if first in self._whole:
                if self.policy.ordering == "key":
                    return None  # those behind it must not overtake it
                continue
            chunk = self.chunks[first]
            if not has(first):
                return None
            if chunk.count > self.policy.batch or self._is_mixed(first, keys):
                self._mixed = first
                return None
            self._whole.add(first)
            return chunk
        return None

    def _is_mixed(self, first: int, keys: Callable[[int], Sequence[str]]) -> bool:
        """Whether records of the chunk must wait for others, so that they have to be told apart."""
        if self.policy.ordering == "none":
            return False
        of_chunk = keys(first)
        if not self.policy.keeps_order and len(set(of_chunk)) < len(of_chunk):
            return True
        return not (
            self._of_key.keys().isdisjoint(of_chunk)
            and self.head.follow.keys().isdisjoint(of_chunk)
        )

    def _leave_whole(self, first: int) -> Whole:
        chunk = self.chunks.pop(first)
        self._firsts.remove(first)
        self._unopened.remove(first)
        self._forget_followed()
        self.count -= chunk.count
        self.size_bytes -= chunk.size_bytes
        self.changed.add(first)
        return Whole(first, chunk.count)

    def _queue(self, record: Waiting) -> None:
        if self.policy.ordering == "key":
            queue = self._of_key.setdefault(record.key, [])
            queue.append(record.number)
            if len(queue) > 1:
                return  # it is due when those before it have left
        heapq.heappush(self._parked, (record.due_ms, record.number))

    def _limit(self, records: Iterable[Waiting]) -> None:
        """See to it that time budgets end, also while nothing is called with."""
        if budget_ms := self.policy.retry.budget_ms:
            failed = sorted((r.first_failure_ms, r.number) for r in records if r.first_failure_ms)
            self._budgets.update((number, at_ms + budget_ms) for at_ms, number in failed)

    def _next_budget(self) -> tuple[int, int] | None:
        """The record whose time budget is over first, and when; not of those that are out."""
        return next((each for each in self._budgets.items() if each[0] not in self._out), None)

    def _forget_followed(self) -> None:
        """Of a dead letter only chunks follow that had come before it, and are not opened yet."""
        follow, oldest = self.head.follow, self._unopened[0] if self._unopened else _NO_TIME
        while follow and follow[key := next(iter(follow))] <= oldest:
            del follow[key]

    def _is_next(self, record: Waiting) -> bool:
        return self.policy.ordering == "none" or self._of_key[record.key][0] == record.number

    def _record(self, number: int) -> Waiting | None:
        """A record that is here and not out."""
        if number in self._out or not self._firsts or number < self._firsts[0]:
            return None
        return (self.chunk_of(number).records or {}).get(number)

    def _peek(self) -> Waiting | None:
        """The record that is due first, among those that may be called with."""
        while self._ready:
            if record := self._record(self._ready[0]):
                return record
            heapq.heappop(self._ready)
        while self._parked:
            due_ms, number = self._parked[0]
            record = self._record(number)
            if record and record.due_ms == due_ms:
                return record
            heapq.heappop(self._parked)
        return None

    def _promote(self, now_ms: int) -> None:
        """What is due by now is ready."""
        while self._parked and self._parked[0][0] <= now_ms:
            due_ms, number = heapq.heappop(self._parked)
            record = self._record(number)
            if record and record.due_ms == due_ms:
                heapq.heappush(self._ready, number)

    def _next_due(
        self, now_ms: int, has: Callable[[int], bool], followers: list[int]
    ) -> Waiting | None:
        """What is ready, or follows one of its key in the same call."""
        while self._ready or followers:
            may_follow = bool(followers) and (not self._ready or followers[0] < self._ready[0])
            record = self._record(heapq.heappop(followers if may_follow else self._ready))
            if record is None or record.due_ms > now_ms:
                continue
            first = self.chunk_of(record.number).first
            if has(first):
                return record
            if not may_follow:
                self._unloaded[first].add(record.number)
        return None

    def _probe(self, now_ms: int, has: Callable[[int], bool]) -> Waiting | None:
        """What to try the target out with: the record whose last failure is the longest ago.

        Else one that fails whatever the target does would be the probe each time, and as probes do
        not count nobody would ever come to an end.
        """
        ready = {number: self._record(number) for number in self._ready}
        due = [record for record in ready.values() if record and record.due_ms <= now_ms]
        if not due:
            return None
        record = min(
            due, key=lambda each: (self._has_failed(each), _last_failure_ms(each), each.number)
        )
        self._ready = [number for number, each in ready.items() if each and each is not record]
        heapq.heapify(self._ready)
        first = self.chunk_of(record.number).first
        if has(first):
            return record
        self._unloaded[first].add(record.number)
        return None

    def _let_follow(self, record: Waiting, followers: list[int]) -> None:
        """Let the next one of its key into the same call."""
        if self.policy.ordering == "key":
            queue = self._of_key[record.key]
            at = queue.index(record.number) + 1
            if at < len(queue):
                heapq.heappush(followers, queue[at])

    def _failed(self, call: Call, record: Waiting, failure: Failure, now_ms: int) -> list[Left]:
        self.changed.add(self.chunk_of(record.number).first)
        if failure.untried:
            self._park(record)
            return []
        attempt = Attempt(
            now_ms,
            failure.error_type,
            failure.message,
            failure.handling.category,
            failure.stacktrace,
        )
        # Of others it is only told what the target has said.
        self.head.last_failure = msgspec.structs.replace(attempt, stacktrace="")
        record.history = _bounded((*record.history, attempt))
        if not record.first_failure_ms:
            record.first_failure_ms = now_ms
            self._limit([record])
        if not failure.handling.retryable:
            return self._dead(record, "refused")
        # What opens the breaker, or comes back when it is open, is taken for an outage; but one
        # that is held closed does not save anything from it.
        is_outage = call.is_probe or failure.handling.systemic or self.breaker.state != "closed"
        if not is_outage or self.policy.breaker.forced == "closed":
            record.attempts += 1
        due_ms = self._next_attempt_ms(record, failure, now_ms)
        if due_ms is None:
            return self._dead(record, "exhausted")
        record.due_ms = due_ms
        self._park(record)
        return []

    def _park(self, record: Waiting) -> None:
        if self._is_next(record):
            heapq.heappush(self._parked, (record.due_ms, record.number))

    def _next_attempt_ms(self, record: Waiting, failure: Failure, now_ms: int) -> int | None:
        wait_ms = max(failure.wait_ms, failure.handling.wait_ms)
        key = b"%d:%b" % (record.number, record.key.encode("utf-8", "surrogatepass"))
        return self.policy.retry.next_attempt_ms(
            key, record.attempts, record.first_failure_ms, now_ms, wait_ms
        )

    def _tell_breaker(
        self, call: Call, failures: Sequence[Failure | None], keys: Sequence[str], now_ms: int
    ) -> None:
        before = advance(self.breaker, self.policy.breaker, now_ms)
        if all(failure and failure.uncalled for failure in failures):
            self.head.breaker = called_off(before, epoch=call.epoch)
            return
        outcome = _outcome(failures)
        wait_ms = max(failure.wait_ms if failure else 0 for failure in failures)
        self.head.breaker = ended(
            before,
            self.policy.breaker,
            epoch=call.epoch,
            outcome=outcome,
            took_ms=now_ms - call.began_ms,
            now_ms=now_ms,
            wait_ms=wait_ms,
        )
        self.head.failing_keys = self._failing(call, before, outcome, keys, wait_ms)

    def _failing(
        self, call: Call, before: Breaker, outcome: Outcome, keys: Sequence[str], wait_ms: int
    ) -> tuple[str, ...]:
        """Which keys the failures in a row are of, that open the breaker or have opened it.

        None once something has spoken of the target: a success, a systemic failure, a wait that it
        has asked for, or its share of failures.
        """
        known, is_of_now = self.head.failing_keys, call.epoch == before.epoch
        if outcome == "success":
            return () if is_of_now else known
        if outcome == "systemic" or wait_ms:
            return ()
        if before.state == "closed" and self.breaker.state == "open":
            in_a_row = before.failures + 1 >= self.policy.breaker.consecutive > 0
            known, keys = (known, keys) if in_a_row else ((), ())
        elif not known and not (is_of_now and before.state == "closed"):
            return ()  # a late one tells of more keys, but begins nothing
        return tuple(dict.fromkeys((*known, *keys)))[:2]

    @property
    def _is_of_one_key(self) -> bool:
        """Whether the breaker is open, and all that has opened it is of one key.

        A key whose calls always fail says little of the target, where nothing else is called: a
        record of another one is to try it out at once.
        """
        is_open = self.breaker.state == "open" and not self.policy.breaker.forced
        return is_open and len(self.head.failing_keys) == 1

    def _fresh(self, *, with_next: bool = False) -> Waiting | None:
        """A record that is ready, or the next to be, that has not failed, nor has its key."""
        numbers = [*self._ready, *([self._parked[0][1]] if with_next and self._parked else [])]
        ready = (self._record(number) for number in numbers)
        return next((r for r in ready if r and not self._has_failed(r)), None)

    def _has_failed(self, record: Waiting) -> bool:
        return bool(record.first_failure_ms) or record.key in self.head.failing_keys

    def _dead(self, record: Waiting, disposition: Disposition) -> list[Left]:
        left = [self._leave(record, disposition)]
        if self.policy.ordering == "key" and self.policy.after_dead_letter == "follow":
            # Those before it are on their way: an old one can be given up behind them.
            followers = [n for n in self._of_key.get(record.key, ()) if n > record.number]
            left += [
                self._leave(follower, "followed")
                for number in followers
                if (follower := self._record(number)) is not None
            ]
            if self._unopened:
                self.head.follow.pop(record.key, None)  # the oldest stand first
                self.head.follow[record.key] = self.head.next_number
        return left

    def _leave(self, record: Waiting, disposition: Disposition) -> Left:
        chunk = self.chunk_of(record.number)
        assert chunk.records is not None  # noqa: S101 # a record is of an opened chunk
        del chunk.records[record.number]
        chunk.size_bytes -= record.size_bytes
        self.count -= 1
        self.size_bytes -= record.size_bytes
        self._budgets.pop(record.number, None)
        self.changed.add(chunk.first)
        if not chunk.records:
            del self.chunks[chunk.first]
            self._firsts.remove(chunk.first)
            self._unloaded.pop(chunk.first, None)
        if self.policy.ordering == "key":
            self._leave_queue(record)
        return Left(record, disposition, chunk.first)

    def _leave_queue(self, record: Waiting) -> None:
        queue = self._of_key[record.key]
        was_first = queue[0] == record.number
        queue.remove(record.number)
        if not queue:
            del self._of_key[record.key]
        elif was_first and (follower := self._record(queue[0])) is not None:
            heapq.heappush(self._parked, (follower.due_ms, follower.number))


def _last_failure_ms(record: Waiting) -> int:
    return record.history[-1].at_ms if record.history else 0


def _outcome(failures: Sequence[Failure | None]) -> Outcome:
    """What a call says of the target. One that refuses a single record has answered: it is up."""
    if any(failure and failure.handling.systemic for failure in failures):
        return "systemic"
    answered = any(
        failure is None or not (failure.handling.retryable or failure.untried or failure.uncalled)
        for failure in failures
    )
    return "success" if answered else "failure"


def _bounded(history: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    if len(history) <= MOST_HISTORY:
        return history
    return (history[0], *history[1 - MOST_HISTORY :])
