"""Calls to a target, made on an event loop of their own, beside the operator.

The operator's thread brings a lane's events and comes back for what became of them; in between the
loop makes the calls, retries and waits by itself. So nothing that Flink does waits for a call, and
no retry waits for Flink.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, overload

from operators.delivery.parcels import INVALID_ANSWER, InvalidAnswer, Parcel
from operators.rules.contract import SCHEMA_ERROR
from operators.rules.delivery.failure import FailureTable, Handling, retry_after_ms
from operators.rules.delivery.lane import Lane
from operators.rules.delivery.lane_records import Call, Failure, Left, Whole
from operators.rules.delivery.pace import Pace
from operators.rules.envelope import MAX_STACKTRACE_CHARS
from operators.rules.verdict import bounded_text
from udfs.targets import Event, NotTried, Outcome, Target

_CLOSE_WITHIN_S: Final = 10.0
_STUCK_BEYOND_S: Final = 1.0
_MOST_MESSAGE_CHARS: Final = 300
_DATA: Final = Handling("data_quality")
_PERSISTENT: Final = Handling("persistent")
_UNTRIED: Final = Failure("not_tried", "", Handling("transient", retryable=True), untried=True)
T = TypeVar("T")


@dataclass
class Round:
    """A lane's calls: what is at hand for them, and what has come of them.

    Attributes:
        lane: the lane.
        parcels: the events at hand, by chunk.
        left: records that have left since the operator has last come by.
        took_ms: how long the last call took.
        wake: when the loop looks at it again by itself.
        stopped: whether no call is begun any more.
    """

    lane: Lane
    parcels: dict[int, Parcel] = field(default_factory=dict)
    left: list[Left | Whole] = field(default_factory=list)
    took_ms: int = 0
    wake: asyncio.TimerHandle | None = None
    stopped: bool = False

    def has(self, chunk: int) -> bool:
        """Whether a chunk's events are at hand."""
        return chunk in self.parcels

    def keys(self, chunk: int) -> list[str]:
        """The keys of a chunk that is at hand."""
        return self.parcels[chunk].keys

    def look(self, chunk: int) -> tuple[list[str], list[int]]:
        """Keys and sizes of a chunk that is at hand."""
        return self.parcels[chunk].keys, self.parcels[chunk].sizes

    def called_with(self, call: Call) -> list[tuple[Parcel, int, int]]:
        """Of each record of a call its parcel, its place there, and which attempt it is."""
        if call.chunk is not None:
            parcel = self.parcels[call.chunk]
            return [(parcel, place, 1) for place in range(call.size)]
        found = []
        for record in call.records:
            chunk = self.lane.chunk_of(record.number).first
            found.append((self.parcels[chunk], record.number - chunk, record.attempts + 1))
        return found


class _Events(Sequence[Event]):
    """The events of a call, each made when it is looked at: a target may want none of it."""

    def __init__(self, records: list[tuple[Parcel, int, int]]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, at: int) -> Event: ...

    @overload
    def __getitem__(self, at: slice) -> list[Event]: ...

    def __getitem__(self, at: int | slice) -> Event | list[Event]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        parcel, place, attempt = self._records[at]
        return parcel.event(place, attempt)


class Courier:
    """Makes the calls of all lanes of a worker.

    All of the state that the operator and the loop share is touched under `locked`.
    """

    def __init__(
        self,
        target: Target,
        failures: FailureTable,
        *,
        timeout_ms: int,
        calls: int,
        now_ms: Callable[[], int],
        pace: Pace | None = None,
        came_back: Callable[[], None] = lambda: None,
    ) -> None:
        """Take what is called, and how.

        Args:
            target: what is called.
            failures: decides about what it raises.
            timeout_ms: of a call.
            calls: of all lanes at a time, at most.
            now_ms: the clock.
            pace: how fast they follow each other; None for as fast as can be.
            came_back: is called, locked and on the loop, when a call has come back: for whoever
                cannot wait until the operator comes by. It must not raise.
        """
        self._target = target
        self._failures = failures
        self._timeout_ms = timeout_ms
        self._free = calls
        self._now_ms = now_ms
        self._pace = pace or Pace()
        self._came_back = came_back
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="breakwater-courier", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held_up: dict[int, Round] = {}
        #: Since when the loop is asked to look at a lane; 0 if it has.
        self._asked_s = 0.0

    def open(self) -> None:
        """Start the loop, and let the target get ready. Raises what the target raises."""
        self._thread.start()
        self._await(self._target.open(), self._timeout_ms / 1000 + _CLOSE_WITHIN_S)

    def close(self) -> None:
        """End all calls, let the target go, and end the loop; does not wait for long."""
        if not self._thread.is_alive():
            return
        try:
            self._await(self._end(), _CLOSE_WITHIN_S)
        except Exception as error:  # it is the end in any case
            logging.warning("the target did not close: %r", error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_WITHIN_S)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with all lanes."""
        with self._changed:
            yield

    def start(self, round_: Round) -> None:
        """Let the loop look at a lane, locked: something has been brought."""
        self._asked_s = self._asked_s or time.monotonic()
        self._loop.call_soon_threadsafe(self._pump, round_)

    def check(self) -> None:
        """See, locked, whether the loop still goes round.

        Raises:
            RuntimeError: The target keeps it: no call of any lane comes back any more.
        """
        limit_s = 2 * self._timeout_ms / 1000 + _STUCK_BEYOND_S
        if self._asked_s and time.monotonic() - self._asked_s > limit_s:
            raise RuntimeError(
                f"the target has blocked the event loop for {limit_s:.0f} s: its code must not "
                "wait without await; let it be a plain def, which runs in a thread"
            )

    def stop(self, round_: Round) -> None:
        """Begin no call of a lane any more, locked."""
        round_.stopped = True

    def wait(self, until: Callable[[], bool], timeout_ms: int) -> bool:
        """Wait, locked, until something is so, as calls come back; but not for long."""
        return self._changed.wait_for(until, timeout_ms / 1000)

    # --- on the loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._target.close()

    def _pump(self, round_: Round) -> None:
        """Begin what may be begun, and come back when there is more."""
        with self._changed:
            self._asked_s = 0.0
            lane, now_ms = round_.lane, self._now_ms()
            keys = round_.keys if lane.policy.batch > 1 else None
            while self._free and not round_.stopped and self._pace.free_ms <= now_ms:
                call = lane.begin(now_ms, round_.has, keys)
                if call is None:
                    break
                self._free -= 1
                self._pace.take(call.size, now_ms)
                records = round_.called_with(call)
                task = self._loop.create_task(self._make(round_, call, records))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if not self._free:
                self._held_up[id(round_)] = round_
                return
            next_ms = lane.next_ms()
            if round_.wake:
                round_.wake.cancel()
                round_.wake = None
            if next_ms is not None and (wake_ms := max(next_ms, self._pace.free_ms)) > now_ms:
                delay_s = (wake_ms - now_ms) / 1000
                round_.wake = self._loop.call_later(delay_s, self._pump, round_)

    async def _make(
        self, round_: Round, call: Call, records: list[tuple[Parcel, int, int]]
    ) -> None:
        try:
            failures = await self._failures_of(records)
        except Exception as error:  # of the target's answer, or ours: it must not cost the slot
            failed = _odd_failure(error, self._failures, self._now_ms())
            failures = [failed] * len(records)
        with self._changed:
            now_ms = self._now_ms()
            round_.took_ms = now_ms - call.began_ms
            round_.left += round_.lane.end(call.number, failures, now_ms, round_.look)
            self._free += 1
            self._came_back()
            held_up, self._held_up = self._held_up, {}
            self._changed.notify_all()
        for each in {**held_up, id(round_): round_}.values():
            self._pump(each)

    async def _failures_of(self, records: list[tuple[Parcel, int, int]]) -> list[Failure | None]:
        """Make the call, and say of each record how it has failed, if it has."""
        failures: list[Failure | None] = [None] * len(records)
        good = list(range(len(records)))
        if any(parcel.has_refusals for parcel in {each[0] for each in records}):
            for i, (parcel, place, _) in enumerate(records):
                if why := parcel.refusal(place):
                    told = f"{why.error_type}: {why.message}"
                    failures[i] = Failure(SCHEMA_ERROR, told, _DATA, uncalled=True)
            good = [i for i in good if failures[i] is None]
        if good:
            called = [records[i] for i in good]
            outcomes = await self._outcomes(_Events(called))
            if any(outcome is not None for outcome in outcomes):
                for i, (parcel, place, _), outcome in zip(good, called, outcomes, strict=True):
                    failures[i] = self._failure(parcel, place, outcome)
        return failures

    async def _outcomes(self, events: _Events) -> Sequence[Outcome]:
        """What the target says, or what is to be said for it."""
        task = asyncio.ensure_future(_survived(self._target.deliver(events)))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._timeout_ms / 1000)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            # One that does not heed it must not keep its lane for ever: nobody waits for it.
            task.cancel()
            return [TimeoutError(f"no answer within {self._timeout_ms} ms")] * len(events)
        error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if error is not None:
            return [error] * len(events)
        outcomes = task.result()
        if not isinstance(outcomes, Sequence) or len(outcomes) != len(events):
            told = f"{len(outcomes)}" if isinstance(outcomes, Sequence) else repr(outcomes)[:50]
            wrong = ValueError(f"the target gave {told} outcomes for {len(events)} events")
            return [wrong] * len(events)
        if all(isinstance(outcome, NotTried) for outcome in outcomes):
            return [ValueError("the target has tried none of its events")] * len(events)
        return outcomes

    def _failure(self, parcel: Parcel, place: int, outcome: Outcome) -> Failure | None:
        if outcome is None:
            return None
        if isinstance(outcome, NotTried):
            return _UNTRIED
        if isinstance(outcome, BaseException):
            return failure_of(outcome, self._failures, self._now_ms())
        try:
            parcel.enrich(place, outcome)
        except InvalidAnswer as error:
            return Failure(INVALID_ANSWER, str(error), _DATA)
        except Exception as error:  # not even a mapping of what JSON knows
            return Failure(INVALID_ANSWER, f"the target's answer cannot be used: {error}", _DATA)
        return None


def failure_of(error: BaseException, table: FailureTable, now_ms: int) -> Failure:
    """What a target has raised, as the table sees it."""
    error_type, handling = table.of_exception(error)
    headers = getattr(getattr(error, "response", None), "headers", None)
    asked = headers.get("retry-after") if isinstance(headers, Mapping) else None
    asked_ms = retry_after_ms(asked, now_ms) if isinstance(asked, str) else 0
    said = str(error) or type(error).__name__
    message = bounded_text(" ".join(said.split()), _MOST_MESSAGE_CHARS)
    # Only one that is given up at once has a stack: the others would carry it through the state.
    stack = "" if handling.retryable else "".join(traceback.format_exception(error))
    stack = bounded_text(stack, MAX_STACKTRACE_CHARS)
    return Failure(error_type, message, handling, asked_ms, stack)


def _odd_failure(error: Exception, table: FailureTable, now_ms: int) -> Failure:
    """One that cannot even be looked at: an exception whose text raises another one."""
    try:
        return failure_of(error, table, now_ms)
    except Exception:  # nothing can be said of it but its name
        return Failure(SCHEMA_ERROR, f"cannot be told: {type(error).__name__}", _PERSISTENT)


async def _survived(delivery: Coroutine[Any, Any, T]) -> T:
    """A target that wants to end the process must not end the loop of all lanes."""
    try:
        return await delivery
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"the target has raised {type(error).__name__}") from error
