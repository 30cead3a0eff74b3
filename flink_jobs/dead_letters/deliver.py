"""Sending what stands in a folder of the fallback store to the target, outside of any job."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from flink_jobs.dead_letters.fallback_folder import (
    DELIVERED,
    TO_SEND,
    UNDELIVERED,
    FallbackFolder,
    Part,
)
from flink_jobs.errors import UserError
from operators.delivery.courier import Courier, Round
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.fallback import (
    FallbackError,
    FallbackReader,
    Stored,
    StoredParcel,
    with_key,
)
from operators.rules.delivery.breaker import next_change_ms
from operators.rules.delivery.lane import Lane
from operators.rules.delivery.lane_records import Attempt, Left, Whole
from operators.rules.delivery.pace import Pace
from operators.rules.times import iso_utc_ms

#: Lines that are taken in together, where the target does not ask for more in a call.
_CHUNK_LINES: Final = 100
_CHUNK_BYTES: Final = 1_000_000
#: And so much of all of them is held at most: here they are in memory, and not in Flink's state.
_MOST_BYTES: Final = 16_000_000
#: So often it looks whether it is to stop, and shows how far it is.
_LOOK_EVERY_MS: Final = 200
#: A target that takes nothing for so long is left for another call.
GIVE_UP_AFTER_MS: Final = 600_000
_NO_LINE: Final = "not_a_fallback_line"


@dataclass(frozen=True)
class Sent:
    """What has become of a folder's events.

    Attributes:
        events: how many there are.
        before: delivered by former commands.
        delivered: by this one.
        undelivered: by the error's type, of former commands too.
        left: still to be sent.
        wall_s: how long it took.
        state: of the breaker: "closed", "open", "half_open".
        wait_ms: until something is tried again, while the breaker is open.
        gave_up: whether it has ended because nothing could be delivered any more.
    """

    events: int
    before: int = 0
    delivered: int = 0
    undelivered: Counter[str] = field(default_factory=Counter)
    left: int = 0
    wall_s: float = 0.0
    state: str = "closed"
    wait_ms: int = 0
    gave_up: bool = False

    @property
    def is_done(self) -> bool:
        """Whether all has been delivered."""
        return not self.left and not self.undelivered.total()

    def to_dict(self) -> dict[str, Any]:
        """For a program."""
        return {
            "events": self.events,
            "delivered_before": self.before,
            "delivered": self.delivered,
            "undelivered": dict(sorted(self.undelivered.items())),
            "left": self.left,
            "gave_up": self.gave_up,
            "wall_time_s": round(self.wall_s, 1),
            "events_per_s": round(self.delivered / self.wall_s) if self.wall_s > 0 else 0,
        }


def deliver_folder(
    folder: FallbackFolder,
    rules: DeliveryRules,
    *,
    pace: Pace,
    stop: Callable[[], bool],
    give_up_after_ms: int = GIVE_UP_AFTER_MS,
    show: Callable[[Sent], None] = lambda _: None,
) -> Sent:
    """Send what is to be sent, until nothing is, it is to stop, or nothing gets through.

    By delivery's own rules, with one lane for all: retries, breaker, order and failures are as in
    the job, and so is what the target is called with. But nothing expires: to wait is what the
    events are here for. So while the target is down this waits with them, but not for ever.

    Guarantee: what has been written down as delivered is not sent again. What was being sent when
    the command was killed is sent again, with the same idempotency key.

    Args:
        folder: which the caller has claimed.
        rules: what delivery goes by.
        pace: how fast.
        stop: whether to end: no call is begun any more, and those that are out are waited for.
        give_up_after_ms: it ends so too when nothing has become of any event for so long.
        show: is told how far it is, a few times a second.

    Raises:
        UserError: the target cannot be used.
        OSError: the folder cannot be read and written; `FallbackFolder.claim` puts it in one line.
    """
    now_ms = _clock()
    with closing(_Sending(folder, rules, now_ms, pace, give_up_after_ms)) as sending:
        if sending.sent().left:
            courier = Courier(
                rules.target(),
                rules.failures,
                timeout_ms=rules.timeout_ms,
                calls=rules.calls_per_worker,
                now_ms=now_ms,
                pace=pace,
                came_back=sending.came_back,
            )
            with closing(courier):
                _open(courier)
                sending.run(courier, stop, show)
        return sending.sent()


def _clock() -> Callable[[], int]:
    """Milliseconds since 1970 that never go back: nothing waits for a clock that was put right."""
    since_s = time.time() - time.monotonic()
    return lambda: int((since_s + time.monotonic()) * 1000)


def _open(courier: Courier) -> None:
    try:
        courier.open()
    except Exception as error:  # of any kind: the target is a user's
        said = str(error) or type(error).__name__
        raise UserError(f"the target cannot be used: {said}") from error


@dataclass
class _Batch:
    """Lines that go into the lane together, and which of their part's they are."""

    part: Part
    numbers: list[int]
    stored: list[Stored]
    parcel: StoredParcel


class _Sending:
    """What one command does."""

    def __init__(
        self,
        folder: FallbackFolder,
        rules: DeliveryRules,
        now_ms: Callable[[], int],
        pace: Pace,
        give_up_after_ms: int,
    ) -> None:
        self._folder = folder
        self._rules = rules
        self._now_ms = now_ms
        self._pace = pace
        self._give_up_after_ms = give_up_after_ms
        self._began_ms = self._moved_ms = now_ms()
        self._gave_up = False
        self._reader = FallbackReader(rules.contract)
        self._parts = folder.parts()
        self._before = self._count(DELIVERED)
        self._reasons = folder.reasons()
        self._reasons["unknown"] += self._count(UNDELIVERED) - self._reasons.total()
        # One lane has all the calls; and an event must not expire while it waits for its turn.
        calls, most_bytes = rules.calls_per_worker, min(rules.policy.max_bytes, _MOST_BYTES)
        policy = replace(rules.policy, calls=calls, max_age_ms=0, max_bytes=most_bytes)
        self._lane = Lane(policy)
        self._round = Round(self._lane)
        self._batches: dict[int, _Batch] = {}
        self._fault: OSError | None = None
        self._to_take_in = self._read()
        self._next = next(self._to_take_in, None)

    def close(self) -> None:
        """Let go of the marks' files."""
        for part in self._parts:
            part.close()

    def sent(self) -> Sent:
        """How far it is."""
        now_ms, breaker = self._now_ms(), self._lane.breaker
        change_ms = next_change_ms(breaker, self._lane.policy.breaker)
        return Sent(
            events=sum(len(part.marks) for part in self._parts),
            before=self._before,
            delivered=self._count(DELIVERED) - self._before,
            undelivered=+self._reasons,
            left=self._count(TO_SEND),
            wall_s=(now_ms - self._began_ms) / 1000,
            state=breaker.state,
            wait_ms=max(0, change_ms - now_ms) if breaker.state == "open" and change_ms else 0,
            gave_up=self._gave_up and bool(self._count(TO_SEND)),
        )

    def _count(self, mark: int) -> int:
        return sum(part.count(mark) for part in self._parts)

    def run(self, courier: Courier, stop: Callable[[], bool], show: Callable[[Sent], None]) -> None:
        """Until nothing is to be sent, it is to stop, or nothing gets through."""
        next_show_ms = 0
        with courier.locked():
            while self._lane.count or self._next:
                self._gave_up = self._is_stuck()
                if self._gave_up or stop():
                    self._end(courier)
                    return
                self._take_in()
                self._look()
                self._settle()
                courier.start(self._round)
                now_ms = self._now_ms()
                if now_ms >= next_show_ms:
                    show(self.sent())
                    next_show_ms = now_ms + _LOOK_EVERY_MS
                courier.wait(self._has_work, _LOOK_EVERY_MS)
                self._raise_fault()

    def _has_work(self) -> bool:
        """Whether there is something to do but to wait."""
        lane = self._lane
        return (
            not lane.count
            or self._fault is not None
            or (self._next is not None and self._fits(self._next))
            or lane.wanted(self._now_ms(), self._round.has) is not None
        )

    def _is_stuck(self) -> bool:
        """Whether nothing has become of any event for too long, through the target's fault."""
        now_ms = self._now_ms()
        if self._lane.breaker.state == "closed" and self._pace.free_ms > now_ms:
            self._moved_ms = now_ms  # it is the rate that is waited for
        return now_ms - self._moved_ms >= self._give_up_after_ms

    def came_back(self) -> None:
        """Write down at once what has become of a call: the command may be killed at any moment."""
        try:
            self._settle()
        except OSError as error:  # for the thread that is waited for
            self._fault = error

    def _raise_fault(self) -> None:
        if self._fault:
            raise self._fault

    def _end(self, courier: Courier) -> None:
        """Begin no call any more; wait for those that are out, as long as they may take."""
        courier.stop(self._round)
        until_ms = self._now_ms() + self._rules.timeout_ms + _LOOK_EVERY_MS
        while self._lane.in_flight and self._now_ms() < until_ms:
            courier.wait(lambda: not self._lane.in_flight, _LOOK_EVERY_MS)
            self._raise_fault()

    # --- into the lane

    def _read(self) -> Iterator[_Batch]:
        """What is to be sent, in batches that fit into the lane when it is empty."""
        policy = self._lane.policy
        most = min(policy.batch if policy.batch > 1 else _CHUNK_LINES, policy.max_records)
        most_bytes = min(_CHUNK_BYTES, policy.max_bytes)
        for part in self._parts:
            numbers: list[int] = []
            stored: list[Stored] = []
            size = 0
            for number, line in part.to_send():
                try:
                    event = self._reader.read(line)
                except FallbackError as error:
                    self._refuse(part, number, line, error)
                    continue
                size += len(event.payload)
                if stored and (len(stored) == most or size > most_bytes):
                    yield self._batch(part, numbers, stored)
                    numbers, stored, size = [], [], len(event.payload)
                numbers.append(number)
                stored.append(event)
            if stored:
                yield self._batch(part, numbers, stored)

    def _batch(self, part: Part, numbers: list[int], stored: list[Stored]) -> _Batch:
        parcel = self._reader.parcel(stored, self._now_ms())
        parcel.judge()
        return _Batch(part, numbers, stored, parcel)

    def _take_in(self) -> None:
        """As much as there is room for."""
        while self._next is not None:
            batch = self._next
            if not self._fits(batch):
                return
            parcel = batch.parcel
            chunk = self._lane.accept(parcel.sizes, parcel.event_ms, self._now_ms())
            self._round.parcels[chunk.first] = parcel
            self._batches[chunk.first] = batch
            self._next = next(self._to_take_in, None)

    def _fits(self, batch: _Batch) -> bool:
        return self._lane.room(batch.parcel.sizes) == len(batch.numbers)

    def _look(self) -> None:
        """Bring what the lane wants: all of it is at hand."""
        lane = self._lane
        while (want := lane.wanted(self._now_ms(), self._round.has)) is not None:
            parcel = self._round.parcels[want.chunk]
            if want.to_open:
                self._round.left += lane.open(want.chunk, parcel.keys, parcel.sizes)
            else:
                lane.loaded(want.chunk)
        self._round.left += lane.expire(self._now_ms())

    # --- out of it

    def _settle(self) -> None:
        """Write down what has left."""
        left, self._round.left = self._round.left, []
        if left:
            self._moved_ms = self._now_ms()
        delivered: dict[int, list[int]] = defaultdict(list)
        undelivered: list[Left] = []
        for each in left:
            numbers = self._batches[each.chunk].numbers
            if isinstance(each, Whole):
                delivered[each.chunk] += numbers
            elif each.disposition == "delivered":
                delivered[each.chunk].append(numbers[each.record.number - each.chunk])
            else:
                undelivered.append(each)
        for first, numbers in delivered.items():
            self._batches[first].part.mark(numbers, DELIVERED)
        self._write_down(undelivered)
        for first in self._lane.changed - self._lane.chunks.keys():
            del self._batches[first], self._round.parcels[first]
        self._lane.saved()

    def _write_down(self, undelivered: list[Left]) -> None:
        self._folder.add_undelivered(map(self._why, undelivered))
        for left in undelivered:
            batch = self._batches[left.chunk]
            batch.part.mark([batch.numbers[left.record.number - left.chunk]], UNDELIVERED)

    def _why(self, left: Left) -> dict[str, Any]:
        """A line of undelivered.ndjson."""
        batch, place = self._batches[left.chunk], left.record.number - left.chunk
        stored, history = batch.stored[place], left.record.history
        if history:
            error_type, message = history[-1].error_type, history[-1].message
        else:
            error_type = f"delivery_{left.disposition}"
            message = "not tried: an event of its key before it was not delivered"
        self._reasons[error_type] += 1
        return {
            **_place(batch.part, batch.numbers[place]),
            "disposition": left.disposition,
            "error_type": error_type,
            "error_message": message,
            "processing_attempts": left.record.attempts,
            "attempts": [_attempt(attempt) for attempt in history],
            "event": msgspec.Raw(with_key(stored.line, stored.key)),
        }

    def _refuse(self, part: Part, number: int, line: bytes, error: FallbackError) -> None:
        """A line that is none."""
        self._reasons[_NO_LINE] += 1
        why = {
            **_place(part, number),
            "disposition": "refused",
            "error_type": _NO_LINE,
            "error_message": f"line {number + 1} of {part.path.name} {error}",
            "processing_attempts": 0,
            "attempts": [],
            "event": line.decode("utf-8", "replace").rstrip("\n"),
        }
        self._folder.add_undelivered([why])
        part.mark([number], UNDELIVERED)


def _place(part: Part, number: int) -> dict[str, Any]:
    return {"part": part.path.name, "line": number + 1}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": iso_utc_ms(attempt.at_ms),
        "error_type": attempt.error_type,
        "error_message": attempt.message,
    }
