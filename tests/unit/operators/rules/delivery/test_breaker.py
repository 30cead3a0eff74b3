"""The breaker, by examples and against a simple model. No clock: every test advances a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from operators.rules.delivery.breaker import (
    RAMPED_UP,
    Breaker,
    BreakerError,
    BreakerPolicy,
    Outcome,
    advance,
    began,
    ended,
    next_change_ms,
    permitted,
)

NOW_MS = 1_700_000_000_000
OPEN_MS = 60_000
POLICY = BreakerPolicy(consecutive=3, open_ms=OPEN_MS, open_cap_ms=200_000, half_open_ms=10_000)
FAST_MS = 5


def called(
    breaker: Breaker,
    *outcomes: Outcome,
    policy: BreakerPolicy = POLICY,
    at_ms: int = NOW_MS,
    took_ms: int = FAST_MS,
    wait_ms: int = 0,
) -> Breaker:
    """Calls, one after the other, all at one instant."""
    for outcome in outcomes:
        breaker = began(advance(breaker, policy, at_ms), 1, at_ms)
        breaker = ended(
            breaker,
            policy,
            epoch=breaker.epoch,
            outcome=outcome,
            took_ms=took_ms,
            now_ms=at_ms,
            wait_ms=wait_ms,
        )
    return breaker


def opened(policy: BreakerPolicy = POLICY) -> Breaker:
    return called(Breaker(), *["failure"] * policy.consecutive, policy=policy)


def half_open(policy: BreakerPolicy = POLICY) -> Breaker:
    return advance(opened(policy), policy, NOW_MS + OPEN_MS)


# --- opening


def test_it_opens_on_failures_in_a_row() -> None:
    assert called(Breaker(), "failure", "failure").state == "closed"
    assert called(Breaker(), "failure", "failure", "failure").state == "open"


def test_a_success_in_between_begins_the_count_anew() -> None:
    assert (
        called(Breaker(), "failure", "failure", "success", "failure", "failure").state == "closed"
    )


def test_a_systemic_failure_opens_it_at_once() -> None:
    assert called(Breaker(), "systemic").state == "open"


def rated(**values: Any) -> BreakerPolicy:
    return BreakerPolicy(consecutive=0, window_calls=10, min_calls=4, open_ms=OPEN_MS, **values)


def test_it_opens_on_a_failure_rate_once_there_are_enough_calls() -> None:
    policy = rated(failure_rate=0.5)
    assert called(Breaker(), "failure", "failure", "failure", policy=policy).state == "closed"
    mixed: list[Outcome] = ["success", "failure", "success"]
    assert called(Breaker(), *mixed, policy=policy).state == "closed"
    assert called(Breaker(), *mixed, "failure", policy=policy).state == "open"


def test_it_opens_on_a_slow_call_rate_though_all_succeed() -> None:
    policy = rated(slow_rate=0.5, slow_ms=100)
    fast = called(Breaker(), "success", "success", policy=policy, took_ms=99)
    assert called(fast, "success", policy=policy, took_ms=100).state == "closed"
    assert called(fast, "success", "success", policy=policy, took_ms=100).state == "open"


def test_a_window_of_calls_forgets_the_oldest() -> None:
    policy = rated(failure_rate=0.5)
    breaker = called(Breaker(), "failure", *["success"] * 30, policy=policy)
    assert sum(piece.calls for piece in breaker.window) <= 10
    assert sum(piece.failures for piece in breaker.window) == 0
    assert called(breaker, *["failure"] * 4, policy=policy).state == "closed"
    assert called(breaker, *["failure"] * 5, policy=policy).state == "open"


@pytest.mark.parametrize("calls", [1, 9, 10, 19, 25, 38, 95, 100])
def test_a_window_of_calls_holds_as_many_as_are_asked_for(calls: int) -> None:
    """The bug it catches: of 25 it holds 24 at most, and with min_calls = 25 it never opens."""
    policy = BreakerPolicy(
        consecutive=0, slow_rate=1, slow_ms=1, window_calls=calls, min_calls=calls
    )
    held = [Breaker()]
    for _ in range(3 * calls):
        held.append(called(held[-1], "success", policy=policy, took_ms=0))
    counts = [sum(piece.calls for piece in breaker.window) for breaker in held]
    assert max(counts) == calls
    assert counts[: calls + 1] == [*range(calls + 1)]
    assert min(counts[calls:]) > calls - max(1, calls // 10)
    slow = called(Breaker(), *["success"] * (calls - 1), policy=policy, took_ms=1)
    assert slow.state == "closed"
    assert called(slow, "success", policy=policy, took_ms=1).state == "open"


def test_a_window_of_a_savepoint_with_a_longer_one_is_cut() -> None:
    long, short = (
        rated(failure_rate=1.0),
        BreakerPolicy(consecutive=0, failure_rate=1.0, window_calls=4, min_calls=4),
    )
    kept = called(Breaker(), *["success"] * 10, policy=long)
    assert sum(piece.calls for piece in called(kept, "success", policy=short).window) <= 4


def test_a_window_of_time_forgets_what_is_older() -> None:
    policy = BreakerPolicy(
        consecutive=0, failure_rate=0.5, window_calls=0, window_ms=10_000, min_calls=4
    )
    breaker = called(Breaker(), "failure", "failure", "failure", policy=policy)
    later = NOW_MS + 10_000
    assert called(breaker, "failure", policy=policy, at_ms=NOW_MS + 8_000).state == "open"
    assert called(breaker, "failure", policy=policy, at_ms=later).state == "closed"
    assert len(called(breaker, "success", policy=policy, at_ms=later).window) == 1


def test_without_rates_no_window_is_kept() -> None:
    assert called(Breaker(), "failure", "success").window == ()


# --- open


def test_while_it_is_open_nothing_may_begin() -> None:
    breaker = advance(opened(), POLICY, NOW_MS + OPEN_MS - 1)
    assert breaker.state == "open"
    assert permitted(breaker, POLICY, 0) == 0
    assert next_change_ms(breaker, POLICY) == NOW_MS + OPEN_MS


def test_a_call_from_before_it_opened_changes_nothing() -> None:
    breaker = opened()
    late = ended(
        breaker, POLICY, epoch=breaker.epoch - 1, outcome="success", took_ms=1, now_ms=NOW_MS
    )
    assert late == breaker


def test_it_stays_open_for_as_long_as_the_target_asks() -> None:
    breaker = called(Breaker(), "systemic", wait_ms=500_000)
    assert next_change_ms(breaker, POLICY) == NOW_MS + 500_000


def test_it_is_open_for_longer_each_time_up_to_the_cap() -> None:
    breaker, at_ms, found = opened(), NOW_MS, []
    for _ in range(4):
        found.append(breaker.open_ms)
        at_ms += breaker.open_ms
        breaker = called(breaker, "failure", at_ms=at_ms)
    assert found == [60_000, 120_000, 200_000, 200_000]


# --- half open


def test_when_the_time_is_over_it_lets_probes_through_and_no_more() -> None:
    policy = BreakerPolicy(consecutive=3, open_ms=OPEN_MS, probes=2)
    breaker = half_open(policy)
    assert permitted(breaker, policy, 0) == 2
    breaker = began(breaker, 2, NOW_MS + OPEN_MS)
    assert permitted(breaker, policy, 2) == 0


def test_probes_that_succeed_close_it_and_it_ramps_up() -> None:
    policy = BreakerPolicy(consecutive=3, open_ms=OPEN_MS, probes=2)
    at_ms = NOW_MS + OPEN_MS
    once = called(half_open(policy), "success", policy=policy, at_ms=at_ms)
    assert once.state == "half_open"
    assert permitted(once, policy, 0) == 1
    closed = called(once, "success", policy=policy, at_ms=at_ms)
    assert (closed.state, permitted(closed, policy, 0), permitted(closed, policy, 3)) == (
        "closed", 4, 1,
    )  # fmt: skip
    ramped = called(closed, *["success"] * RAMPED_UP, policy=policy, at_ms=at_ms)
    assert (ramped.limit, ramped.open_ms) == (0, 0)
    assert permitted(ramped, policy, 10_000) > 10_000


def test_a_failure_while_it_ramps_up_halves_what_may_be_out() -> None:
    closed = called(half_open(), "success", *["success"] * 8, at_ms=NOW_MS + OPEN_MS)
    assert closed.limit == 10
    assert called(closed, "failure", at_ms=NOW_MS + OPEN_MS).limit == 5


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker = called(half_open(), "failure", at_ms=NOW_MS + OPEN_MS)
    assert (breaker.state, breaker.since_ms) == ("open", NOW_MS + OPEN_MS)


def test_a_probe_that_never_comes_back_does_not_wedge_it() -> None:
    at_ms = NOW_MS + OPEN_MS + 5
    breaker = began(half_open(), 1, at_ms)
    assert advance(breaker, POLICY, at_ms + 9_999).state == "half_open"
    assert advance(breaker, POLICY, at_ms + 10_000).state == "open"


def test_half_open_without_a_record_to_probe_with_it_waits() -> None:
    breaker = half_open()
    assert next_change_ms(breaker, POLICY) is None
    assert advance(breaker, POLICY, NOW_MS + 10**9) == breaker


# --- by hand


def test_it_can_be_held_open_and_closed() -> None:
    held = BreakerPolicy(forced="open")
    breaker = advance(Breaker(), held, NOW_MS)
    assert permitted(breaker, held, 0) == 0
    assert advance(breaker, held, NOW_MS + 10**9).state == "open"
    shut = BreakerPolicy(consecutive=1, forced="closed")
    breaker = advance(opened(), shut, NOW_MS)
    assert called(breaker, "failure", "systemic", policy=shut).state == "closed"
    assert permitted(breaker, shut, 10**6) > 0


def test_when_it_is_no_longer_held_open_it_probes() -> None:
    breaker = advance(Breaker(), BreakerPolicy(forced="open"), NOW_MS)
    assert advance(breaker, POLICY, NOW_MS + 1).state == "half_open"


# --- as state


def test_it_comes_back_from_its_bytes_with_the_time_that_was_left() -> None:
    policy = rated(failure_rate=0.9)
    for breaker in (Breaker(), opened(), half_open(), called(Breaker(), "failure", policy=policy)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(breaker), type=Breaker) == breaker


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window_calls": 0}, "window_calls or window_ms"),
        ({"window_ms": 5}, "window_calls or window_ms"),
        ({"min_calls": 101}, "min_calls = 101: the window has only 100 calls"),
        ({"failure_rate": 1.1}, "failure_rate = 1.1: must be from 0 to 1"),
        ({"probes": 0}, "probes = 0: must be 1 or more"),
        ({"half_open_ms": 0}, "half_open_ms = 0"),
        ({"consecutive": -1}, "must not be negative"),
        ({"open_cap_ms": 1}, "open_cap_ms not below open_ms"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BreakerError, match=message):
        BreakerPolicy(**values)


# --- against a model


@dataclass
class Call:
    epoch: int
    began_ms: int


class AgainstAModel(RuleBasedStateMachine):
    """Any order of calls, answers and waits.

    The model knows only what is promised: nothing begins while it is open, and it is open for its
    time; the failures that count open it, and nothing else does; no more probes are out than
    allowed; and time alone always leads to a call that may begin.
    """

    policy = BreakerPolicy(
        consecutive=3, open_ms=1_000, open_cap_ms=4_000, probes=2, half_open_ms=500
    )

    @initialize()
    def begin(self) -> None:
        self.breaker = Breaker()
        self.now_ms = 0
        self.out: list[Call] = []
        self.in_a_row = 0
        self.opened_ms: int | None = None
        self.probes_out = 0

    @rule(ms=st.integers(0, 3_000))
    def wait(self, ms: int) -> None:
        self.now_ms += ms
        before = self.breaker
        self.breaker = advance(before, self.policy, self.now_ms)
        if before.state == "open" and self.breaker.state == "half_open":
            assert self.opened_ms is not None
            assert self.now_ms >= self.opened_ms + before.open_ms
            self.probes_out = 0
        if before.state == "half_open" and self.breaker.state == "open":
            assert self.probes_out, "it gave up without a probe"
            self.opened_ms = self.now_ms

    @precondition(lambda self: permitted(self.breaker, self.policy, len(self.out)) > 0)
    @rule()
    def call(self) -> None:
        assert self.breaker.state != "open"
        self.breaker = began(self.breaker, 1, self.now_ms)
        self.out.append(Call(self.breaker.epoch, self.now_ms))
        self.probes_out += self.breaker.state == "half_open"

    @precondition(lambda self: self.out)
    @rule(
        which=st.integers(0, 10**6),
        outcome=st.sampled_from(["success", "failure", "systemic"]),
    )
    def answer(self, which: int, outcome: Outcome) -> None:
        call = self.out.pop(which % len(self.out))
        before = self.breaker
        self.breaker = ended(
            before,
            self.policy,
            epoch=call.epoch,
            outcome=outcome,
            took_ms=self.now_ms - call.began_ms,
            now_ms=self.now_ms,
        )
        if call.epoch != before.epoch:
            assert self.breaker == before, "an old call has changed it"
            return
        self._counted(before, outcome)

    def _counted(self, before: Breaker, outcome: Outcome) -> None:
        self.in_a_row = 0 if outcome == "success" else self.in_a_row + 1
        if before.state == "half_open":
            self.probes_out -= 1
            opens = outcome != "success"
        else:
            opens = outcome == "systemic" or self.in_a_row >= self.policy.consecutive
        assert (self.breaker.state == "open") is opens
        if self.breaker.epoch != before.epoch:
            self.in_a_row = 0
        if opens:
            self.opened_ms = self.now_ms

    @invariant()
    def no_more_probes_are_out_than_allowed(self) -> None:
        if self.breaker.state == "half_open":
            assert self.probes_out <= self.policy.probes

    @invariant()
    def time_alone_leads_to_a_call(self) -> None:
        breaker, now_ms = self.breaker, self.now_ms
        for _ in range(3):
            if permitted(breaker, self.policy, 0) > 0:
                return
            due_ms = next_change_ms(breaker, self.policy)
            assert due_ms is not None, "it is stuck"
            assert due_ms - now_ms <= self.policy.open_cap_ms
            now_ms = max(now_ms, due_ms)
            breaker = advance(breaker, self.policy, now_ms)
        raise AssertionError("it does not come back")


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
