"""A circuit breaker: a target that is down is left alone, and taken up again with care.

The states are those of Nygard's "Release It!", with the rates of resilience4j: CLOSED lets calls
through, OPEN none, HALF_OPEN a few probes. It is a value: each function takes one and an instant,
and gives the next one. So it can stand in Flink's keyed state, where it survives a restart with
the time that was left, and a test needs no clock.

    CLOSED --failures--> OPEN --open time is over--> HALF_OPEN --probes succeed--> CLOSED, ramping
                          ^                              |
                          +------- a probe fails, or none comes back in time -------+

While it is open no attempt is made, so none is used up: an outage burns no retries. Results of
calls that were begun before the present state (`Breaker.epoch`) change nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

State = Literal["closed", "open", "half_open"]
Forced = Literal["", "open", "closed"]
Outcome = Literal["success", "failure", "systemic"]

#: A window of time is kept in so many pieces.
_PIECES: Final = 10
_UNLIMITED: Final = 2**31 - 1
#: From so many calls at a time on nothing is held back any more: the caller has its own limit.
RAMPED_UP: Final = 256


class BreakerError(ValueError):
    """A breaker that cannot be used. The message is one line: what is wrong."""


@dataclass(frozen=True)
class BreakerPolicy:
    """When it opens, for how long, and how it comes back.

    Attributes:
        consecutive: opens after so many failures in a row; 0 for never.
        failure_rate: opens when so large a share of the window's calls fails; 0 for never.
        slow_rate: opens when so large a share of them is slow; 0 for never.
        slow_ms: a call is slow that takes so long.
        window_calls: the window holds the last so many calls; 0 for a window of time.
        window_ms: the window holds the calls of the last so many ms; 0 for a window of calls.
        min_calls: rates say nothing below so many calls in the window.
        open_ms: how long it stays open at first.
        open_factor: each time it opens again before it has ramped up, so many times as long.
        open_cap_ms: no longer than this.
        probes: calls at a time while it is half open, and successes that close it.
        half_open_ms: probes that have not come back after so long count as failed.
        forced: "open" or "closed" hold it there, whatever happens.

    Raises:
        BreakerError: A value makes no sense.
    """

    consecutive: int = 5
    failure_rate: float = 0.0
    slow_rate: float = 0.0
    slow_ms: int = 60_000
    window_calls: int = 100
    window_ms: int = 0
    min_calls: int = 20
    open_ms: int = 60_000
    open_factor: float = 2.0
    open_cap_ms: int = 600_000
    probes: int = 1
    half_open_ms: int = 60_000
    forced: Forced = ""

    def __post_init__(self) -> None:
        """Refuse at start what could never open, never close, or wait for ever."""
        if bool(self.window_calls) == bool(self.window_ms):
            raise BreakerError("window_calls or window_ms: set one of them above 0, the other to 0")
        if self.window_calls and self.min_calls > self.window_calls:
            raise BreakerError(
                f"min_calls = {self.min_calls}: the window has only {self.window_calls} calls"
            )
        for name in ("failure_rate", "slow_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise BreakerError(f"{name} = {getattr(self, name)}: must be from 0 to 1")
        for name in ("min_calls", "open_ms", "probes", "half_open_ms"):
            if getattr(self, name) < 1:
                raise BreakerError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.consecutive < 0 or self.window_calls < 0 or self.window_ms < 0:
            raise BreakerError("consecutive, window_calls and window_ms: must not be negative")
        if self.open_factor < 1 or self.open_cap_ms < self.open_ms:
            raise BreakerError("open_factor must be 1 or more, open_cap_ms not below open_ms")


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The calls of a piece of the window.

    Attributes:
        since_ms: when it begins; of a window of calls when its first call ended.
        calls: how many have ended.
        failures: how many of them failed.
        slow: how many of them were slow.
    """

    since_ms: int
    calls: int = 0
    failures: int = 0
    slow: int = 0


class Breaker(msgspec.Struct, frozen=True, array_like=True):
    """The state of a breaker.

    Attributes:
        state: closed, open or half open.
        since_ms: when it became so.
        epoch: counts the changes of state; a call remembers the one it was begun in.
        failures: in a row.
        open_ms: how long it is open, or was last; 0 once it has ramped up.
        in_flight: probes that are out.
        successes: probes that came back well.
        limit: calls at a time while it ramps up; 0 for no limit.
        window: the pieces of the window, oldest first.
    """

    state: State = "closed"
    since_ms: int = 0
    epoch: int = 0
    failures: int = 0
    open_ms: int = 0
    in_flight: int = 0
    successes: int = 0
    limit: int = 0
    window: tuple[Piece, ...] = ()


def advance(breaker: Breaker, policy: BreakerPolicy, now_ms: int) -> Breaker:
    """What has become of it by now: time alone half opens it, or ends a wait for probes."""
    if policy.forced:
        wanted: State = policy.forced
        return breaker if breaker.state == wanted else _turned(breaker, wanted, now_ms)
    due_ms = next_change_ms(breaker, policy)
    if due_ms is None or now_ms < due_ms:
        return breaker
    if breaker.state == "open":
        return _turned(breaker, "half_open", now_ms)
    return _opened(breaker, policy, now_ms)


def next_change_ms(breaker: Breaker, policy: BreakerPolicy) -> int | None:
    """When `advance` changes it without a call; None for never."""
    if policy.forced or breaker.state == "closed":
        return None
    if breaker.state == "open":
        return breaker.since_ms + breaker.open_ms
    # Without a probe out there is nothing to wait for.
    return breaker.since_ms + policy.half_open_ms if breaker.in_flight else None


def permitted(breaker: Breaker, policy: BreakerPolicy, in_flight: int) -> int:
    """How many calls may begin now.

    Args:
        breaker: as `advance` gave it.
        policy: its policy.
        in_flight: calls that are out, of whatever epoch.
    """
    if breaker.state == "open":
        return 0
    if breaker.state == "half_open":
        return max(0, policy.probes - breaker.in_flight - breaker.successes)
    return max(0, breaker.limit - in_flight) if breaker.limit else _UNLIMITED


def began(breaker: Breaker, calls: int, now_ms: int) -> Breaker:
    """Calls begin, no more than `permitted`. The wait for probes counts from the first of them."""
    if breaker.state != "half_open" or not calls:
        return breaker
    since_ms = breaker.since_ms if breaker.in_flight else now_ms
    return msgspec.structs.replace(breaker, in_flight=breaker.in_flight + calls, since_ms=since_ms)


def tried_early(breaker: Breaker, policy: BreakerPolicy, now_ms: int) -> Breaker:
    """Half open before its time: the caller doubts that what has failed speaks of the target.

    If the probe succeeds it is as if it had never opened; else it is open as for the first time.
    """
    if policy.forced or breaker.state != "open":
        return breaker
    return msgspec.structs.replace(_turned(breaker, "half_open", now_ms), open_ms=0)


def called_off(breaker: Breaker, *, epoch: int) -> Breaker:
    """A call that had begun, in an epoch, was not made: it says nothing of the target."""
    if epoch != breaker.epoch or breaker.state != "half_open":
        return breaker
    return msgspec.structs.replace(breaker, in_flight=max(0, breaker.in_flight - 1))


def ended(
    breaker: Breaker,
    policy: BreakerPolicy,
    *,
    epoch: int,
    outcome: Outcome,
    took_ms: int,
    now_ms: int,
    wait_ms: int = 0,
) -> Breaker:
    """A call has ended.

    Args:
        breaker: as `advance` gave it.
        policy: its policy.
        epoch: the breaker's, when the call began.
        outcome: a systemic failure speaks of the target as a whole, and opens at once. What speaks
            of the record alone (a 404) is a success here: the target has answered.
        took_ms: how long it took.
        now_ms: when it ended.
        wait_ms: what the target has asked for (Retry-After): it stays open for as long at least.
    """
    if epoch != breaker.epoch or policy.forced or breaker.state == "open":
        return breaker
    if outcome == "systemic":
        return _opened(breaker, policy, now_ms, wait_ms)
    if breaker.state == "half_open":
        return _probe_ended(breaker, policy, outcome == "success", now_ms, wait_ms)
    counted = _counted(breaker, policy, outcome == "failure", took_ms >= policy.slow_ms, now_ms)
    if _must_open(counted, policy):
        return _opened(counted, policy, now_ms, wait_ms)
    return _ramped(counted, outcome == "success")


def _probe_ended(
    breaker: Breaker, policy: BreakerPolicy, success: bool, now_ms: int, wait_ms: int
) -> Breaker:
    if not success:
        return _opened(breaker, policy, now_ms, wait_ms)
    successes = breaker.successes + 1
    if successes < policy.probes:
        return msgspec.structs.replace(
            breaker, in_flight=breaker.in_flight - 1, successes=successes
        )
    limit = 2 * policy.probes if breaker.open_ms else 0  # see tried_early
    return msgspec.structs.replace(_turned(breaker, "closed", now_ms), limit=limit)


def _ramped(breaker: Breaker, success: bool) -> Breaker:
    """As TCP begins: each success allows one more, so what is out doubles; a failure halves it."""
    if not breaker.limit:
        return breaker
    limit = breaker.limit + 1 if success else max(1, breaker.limit // 2)
    if limit >= RAMPED_UP:
        return msgspec.structs.replace(breaker, limit=0, open_ms=0)
    return msgspec.structs.replace(breaker, limit=limit)


def _must_open(breaker: Breaker, policy: BreakerPolicy) -> bool:
    if policy.consecutive and breaker.failures >= policy.consecutive:
        return True
    calls = sum(piece.calls for piece in breaker.window)
    if calls < policy.min_calls:
        return False
    failures = sum(piece.failures for piece in breaker.window)
    slow = sum(piece.slow for piece in breaker.window)
    return bool(
        (policy.failure_rate and failures >= policy.failure_rate * calls)
        or (policy.slow_rate and slow >= policy.slow_rate * calls)
    )


def _counted(
    breaker: Breaker, policy: BreakerPolicy, failed: bool, slow: bool, now_ms: int
) -> Breaker:
    failures = breaker.failures + 1 if failed else 0
    window = (
        _window(breaker.window, policy, failed, slow, now_ms)
        if policy.failure_rate or policy.slow_rate
        else ()
    )
    return msgspec.structs.replace(breaker, failures=failures, window=window)


def _window(
    window: tuple[Piece, ...], policy: BreakerPolicy, failed: bool, slow: bool, now_ms: int
) -> tuple[Piece, ...]:
    """The window with one more call. It forgets a tenth at a time, as resilience4j's does."""
    if policy.window_ms:
        length_ms = max(1, policy.window_ms // _PIECES)
        since_ms = now_ms - now_ms % length_ms
        kept = tuple(p for p in window if p.since_ms > now_ms - policy.window_ms)
        last = kept[-1] if kept and kept[-1].since_ms == since_ms else None
    else:
        kept, since_ms = window, now_ms
        # As many as it may hold, `min_calls` may be just that; and not a call more.
        while sum(piece.calls for piece in kept) >= policy.window_calls:
            kept = kept[1:]
        size = max(1, policy.window_calls // _PIECES)
        last = kept[-1] if kept and kept[-1].calls < size else None
    head = kept[:-1] if last else kept
    piece = last or Piece(since_ms)
    return (
        *head,
        Piece(piece.since_ms, piece.calls + 1, piece.failures + failed, piece.slow + slow),
    )


def _opened(breaker: Breaker, policy: BreakerPolicy, now_ms: int, wait_ms: int = 0) -> Breaker:
    grown = int(breaker.open_ms * policy.open_factor)  # 0 if it was well since
    open_ms = min(max(grown, policy.open_ms), policy.open_cap_ms)
    return msgspec.structs.replace(_turned(breaker, "open", now_ms), open_ms=max(open_ms, wait_ms))


def _turned(breaker: Breaker, state: State, now_ms: int) -> Breaker:
    return Breaker(state, now_ms, breaker.epoch + 1, open_ms=breaker.open_ms)
