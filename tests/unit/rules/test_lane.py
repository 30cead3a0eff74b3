"""A lane, by examples and against a simple model. No clock: every test advances a number."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from operators.rules.backoff import RetryPolicy
from operators.rules.breaker import BreakerPolicy
from operators.rules.failure import Handling
from operators.rules.lane import MOST_HISTORY, Failure, Lane, LanePolicy, Left, Waiting

NOW_MS = 1_700_000_000_000
RETRY = RetryPolicy(max_attempts=3, base_ms=1_000, jitter=0)
CALM = BreakerPolicy(consecutive=0)
BUSY = Failure("http_503", "busy", Handling("transient", retryable=True))
BAD = Failure("http_422", "bad", Handling("data_quality"))
DENIED = Failure("http_401", "who?", Handling("persistent", retryable=True, systemic=True))


def lane(*keys: str, **policy: Any) -> Lane:
    """A lane with an event of each key."""
    policy = {"retry": RETRY, "breaker": CALM, **policy}
    found = Lane(LanePolicy(**policy))
    assert found.accept([(key, key.encode()) for key in keys], NOW_MS) == []
    return found


def numbers(records: list[Waiting]) -> list[int]:
    return [record.number for record in records]


def ways(left: list[Left]) -> list[tuple[int, str]]:
    return [(record.number, disposition) for record, disposition in left]


# --- calls and retries


def test_a_record_is_called_with_once_and_leaves_when_it_is_delivered() -> None:
    found = lane("a")
    assert numbers(found.begin(NOW_MS)) == [0]
    assert found.begin(NOW_MS) == []
    assert ways(found.end(0, None, NOW_MS + 5)) == [(0, "delivered")]
    assert (found.records, found.size_bytes, found.in_flight, found.next_ms()) == ({}, 0, 0, None)


def test_a_transient_failure_is_tried_again_when_it_is_due_and_not_before() -> None:
    found = lane("a")
    found.begin(NOW_MS)
    assert found.end(0, BUSY, NOW_MS) == []
    assert found.next_ms() == NOW_MS + 1_000
    assert found.begin(NOW_MS + 999) == []
    assert numbers(found.begin(NOW_MS + 1_000)) == [0]


def test_when_the_attempts_are_used_up_it_is_a_dead_letter_with_its_history() -> None:
    found, at_ms = lane("a"), NOW_MS
    for wait_ms in (1_000, 2_000):
        found.begin(at_ms)
        assert found.end(0, BUSY, at_ms) == []
        at_ms += wait_ms
    found.begin(at_ms)
    ((record, disposition),) = found.end(0, BUSY, at_ms)
    assert (disposition, record.attempts) == ("exhausted", 3)
    assert [each.at_ms - NOW_MS for each in record.history] == [0, 1_000, 3_000]
    assert record.history[0].error_type == "http_503"


def test_what_cannot_succeed_is_not_tried_again() -> None:
    found = lane("a")
    found.begin(NOW_MS)
    assert ways(found.end(0, BAD, NOW_MS)) == [(0, "refused")]


def test_no_more_calls_are_out_than_allowed() -> None:
    found = lane(*"abcde", calls=2)
    assert numbers(found.begin(NOW_MS)) == [0, 1]
    found.end(1, None, NOW_MS)
    assert numbers(found.begin(NOW_MS)) == [2]


def test_what_the_target_asks_for_is_waited_for() -> None:
    found = lane("a")
    found.begin(NOW_MS)
    found.end(0, BUSY._replace(wait_ms=7_000), NOW_MS)
    assert found.next_ms() == NOW_MS + 7_000


def test_the_history_keeps_the_first_attempt_and_the_last_ones() -> None:
    found, at_ms = lane("a", retry=RetryPolicy(max_attempts=100, cap_ms=1_000)), NOW_MS
    for _ in range(30):
        found.begin(at_ms)
        found.end(0, BUSY, at_ms)
        at_ms += 2_000
    history = found.records[0].history
    assert len(history) == MOST_HISTORY
    assert history[0].at_ms == NOW_MS
    assert history[-1].at_ms == at_ms - 2_000


# --- order


def test_with_order_by_key_followers_wait_and_other_keys_go_on() -> None:
    found = lane("a", "a", "b", "a")
    assert numbers(found.begin(NOW_MS)) == [0, 2]
    found.end(0, BUSY, NOW_MS)
    assert found.begin(NOW_MS) == []
    assert numbers(found.begin(NOW_MS + 1_000)) == [0]
    found.end(0, None, NOW_MS + 1_000)
    assert numbers(found.begin(NOW_MS + 1_000)) == [1]


def test_without_order_nobody_waits_for_a_failed_one() -> None:
    found = lane("a", "a", ordering="none")
    assert numbers(found.begin(NOW_MS)) == [0, 1]


def test_when_one_is_given_up_its_followers_go_on() -> None:
    found = lane("a", "a", "a")
    found.begin(NOW_MS)
    assert ways(found.end(0, BAD, NOW_MS)) == [(0, "refused")]
    assert numbers(found.begin(NOW_MS)) == [1]


def test_or_they_follow_it_and_those_of_other_keys_do_not() -> None:
    found = lane("a", "a", "b", "a", after_dead_letter="follow")
    found.begin(NOW_MS)
    assert ways(found.end(0, BAD, NOW_MS)) == [(0, "refused"), (1, "followed"), (3, "followed")]
    assert list(found.records) == [2]


# --- the breaker

BREAKER = BreakerPolicy(consecutive=2, open_ms=60_000, half_open_ms=10_000)


def opened() -> Lane:
    """Two calls have failed, three more records wait."""
    found = lane(*"abcde", breaker=BREAKER, calls=2)
    found.begin(NOW_MS)
    found.end(0, BUSY, NOW_MS)
    found.end(1, BUSY, NOW_MS)
    return found


def test_while_the_breaker_is_open_nothing_is_called_and_nothing_is_used_up() -> None:
    found = opened()
    assert found.begin(NOW_MS + 59_999) == []
    assert found.next_ms() == NOW_MS + 60_000
    assert [record.attempts for record in found.records.values()] == [1, 1, 0, 0, 0]


def test_a_record_that_waits_is_the_probe_and_a_probe_uses_up_nothing() -> None:
    found, at_ms = opened(), NOW_MS
    for _ in range(10):
        at_ms = found.next_ms() or 0
        (probe,) = found.begin(at_ms)
        before = probe.attempts
        assert found.end(probe.number, BUSY, at_ms) == []
        assert found.records[probe.number].attempts == before
    assert len(found.records) == 5


def test_when_the_probe_succeeds_the_others_follow_a_few_at_a_time() -> None:
    found = opened()
    at_ms = NOW_MS + 60_000
    (probe,) = found.begin(at_ms)
    found.end(probe.number, None, at_ms)
    assert len(found.begin(at_ms)) == 2


def test_a_systemic_failure_opens_it_and_does_not_count() -> None:
    found = lane("a", retry=RetryPolicy(max_attempts=1), breaker=BREAKER)
    found.begin(NOW_MS)
    assert found.end(0, DENIED, NOW_MS) == []
    assert (found.breaker.state, found.records[0].attempts) == ("open", 0)


def test_a_target_that_refuses_records_is_up() -> None:
    found = lane(*"abcd", breaker=BREAKER)
    for record in found.begin(NOW_MS):
        found.end(record.number, BAD, NOW_MS)
    assert found.breaker.state == "closed"


# --- bounds and ends


def test_what_there_is_no_room_for_overflows() -> None:
    found = lane("a", "b", max_records=2)
    assert ways(found.accept([("c", b"c")], NOW_MS)) == [(2, "overflow")]
    sized = Lane(LanePolicy(max_bytes=10))
    assert ways(sized.accept([("a", b"x" * 6), ("b", b"x" * 5), ("c", b"x" * 4)], NOW_MS)) == [
        (1, "overflow")
    ]


def test_an_event_larger_than_the_bound_is_taken_when_it_is_alone() -> None:
    """Else it could never be delivered."""
    found = Lane(LanePolicy(max_bytes=10))
    assert found.accept([("a", b"x" * 11)], NOW_MS) == []


def test_a_record_that_is_too_old_is_given_up_unless_it_is_being_called_with() -> None:
    found = lane("a", "b", max_age_ms=5_000, calls=1)
    found.begin(NOW_MS)
    assert found.next_ms() == NOW_MS + 5_000
    assert found.expire(NOW_MS + 4_999) == []
    assert ways(found.expire(NOW_MS + 5_000)) == [(1, "expired")]
    assert ways(found.end(0, None, NOW_MS + 6_000)) == [(0, "delivered")]


def test_an_old_follower_is_given_up_without_the_one_before_it() -> None:
    found = lane("a", "a", "a", max_age_ms=5_000, after_dead_letter="follow")
    found.begin(NOW_MS)
    assert ways(found.expire(NOW_MS + 5_000)) == [(1, "expired"), (2, "followed")]
    assert ways(found.end(0, None, NOW_MS + 6_000)) == [(0, "delivered")]


def test_at_the_end_all_that_waits_is_flushed() -> None:
    found = lane("a", "a", "b", calls=1)
    found.begin(NOW_MS)
    assert ways(found.flush()) == [(1, "flush_at_end"), (2, "flush_at_end")]
    assert ways(found.end(0, None, NOW_MS)) == [(0, "delivered")]


# --- after a crash


def test_calls_that_were_out_are_made_again_and_do_not_count() -> None:
    found = lane("a", "a", "b")
    found.begin(NOW_MS)
    again = Lane.restored(found.policy, found.breaker, found.next_number, found.records.values())
    assert (again.size_bytes, again.next_number) == (3, 3)
    begun = again.begin(NOW_MS + 1)
    assert [(record.number, record.attempts) for record in begun] == [(0, 0), (2, 0)]


def test_it_is_still_open_for_the_time_that_was_left_and_a_lost_probe_is_made_again() -> None:
    found = opened()
    again = Lane.restored(found.policy, found.breaker, found.next_number, found.records.values())
    assert again.begin(NOW_MS + 59_999) == []
    (probe,) = again.begin(NOW_MS + 60_000)
    once_more = Lane.restored(again.policy, again.breaker, 5, again.records.values())
    assert numbers(once_more.begin(NOW_MS + 60_001)) == [probe.number]


# --- against a model


class AgainstAModel(RuleBasedStateMachine):
    """Any order of arrivals, calls, answers, waits and crashes.

    The model knows only what is promised: who has come and who has left, who is out, and in which
    order those of a key may be called with.
    """

    @initialize(
        ordering=st.sampled_from(["key", "none"]),
        after=st.sampled_from(["go_on", "follow"]),
        calls=st.integers(1, 4),
        max_age_ms=st.sampled_from([0, 20_000]),
    )
    def start(self, ordering: Any, after: Any, calls: int, max_age_ms: int) -> None:
        self.policy = LanePolicy(
            RetryPolicy(max_attempts=3, base_ms=500, budget_ms=30_000),
            BreakerPolicy(consecutive=3, open_ms=1_000, open_cap_ms=4_000, half_open_ms=700),
            ordering,
            after,
            calls,
            max_records=8,
            max_bytes=30,
            max_age_ms=max_age_ms,
        )
        self.lane = Lane(self.policy)
        self.now_ms = NOW_MS
        self.here: dict[int, str] = {}
        self.out: dict[int, int] = {}
        self.counted: defaultdict[int, int] = defaultdict(int)
        self.left: set[int] = set()

    @rule(keys=st.lists(st.sampled_from("abc"), max_size=4), size=st.integers(0, 12))
    def arrive(self, keys: list[str], size: int) -> None:
        first = self.lane.next_number
        overflow = self.lane.accept([(key, b"x" * size) for key in keys], self.now_ms)
        self.here.update(enumerate(keys, first))
        self._leave(overflow)
        assert all(disposition == "overflow" for _, disposition in overflow)

    @rule()
    def begin(self) -> None:
        for record in self.lane.begin(self.now_ms):
            assert record.number in self.here
            assert record.number not in self.out
            assert record.due_ms <= self.now_ms
            if self.policy.ordering == "key":
                before = [n for n, key in self.here.items() if key == record.key]
                assert min(before) == record.number, "not in its order"
            self.out[record.number] = self.now_ms
            assert self.lane.breaker.state != "open"

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100), failure=st.sampled_from([None, None, BUSY, BUSY, BAD, DENIED]))
    def answer(self, which: int, failure: Failure | None) -> None:
        number = sorted(self.out)[which % len(self.out)]
        del self.out[number]
        left = self.lane.end(number, failure, self.now_ms)
        self.counted[number] += failure is BUSY
        dispositions = dict(ways(left))
        if failure is None:
            assert dispositions == {number: "delivered"}
        elif failure is BAD:
            assert dispositions[number] == "refused"
        elif number in dispositions:
            record = left[0].record
            assert dispositions[number] == "exhausted"
            long_since = self.now_ms - record.history[0].at_ms > 20_000
            assert record.attempts >= self.policy.retry.max_attempts or long_since
        for record, _ in left:
            assert record.attempts <= self.counted[record.number]
        self._leave(left)

    @rule(ms=st.sampled_from([1, 300, 1_500, 5_000, 40_000]))
    def wait(self, ms: int) -> None:
        self.now_ms += ms
        expired = self.lane.expire(self.now_ms)
        for record, disposition in expired:
            if disposition == "expired":
                assert record.accepted_ms + self.policy.max_age_ms <= self.now_ms
        self._leave(expired)

    @rule()
    def crash(self) -> None:
        lane = self.lane
        self.lane = Lane.restored(
            self.policy, lane.breaker, lane.next_number, lane.records.values()
        )
        self.out.clear()

    @rule()
    def end_of_input(self) -> None:
        flushed = self.lane.flush()
        assert {record.number for record, _ in flushed} == self.here.keys() - self.out.keys()
        self._leave(flushed)

    def _leave(self, left: list[Left]) -> None:
        for record, _ in left:
            assert record.number not in self.out, "it left while it was out"
            assert record.number not in self.left, "it left twice"
            del self.here[record.number]
            self.left.add(record.number)

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.lane.records.keys() == self.here.keys()
        assert self.lane.in_flight == len(self.out) <= self.policy.calls
        assert self.lane.size_bytes == sum(len(r.event) for r in self.lane.records.values())
        assert len(self.here) <= self.policy.max_records

    @invariant()
    def time_alone_leads_to_a_call_or_an_end(self) -> None:
        """Nothing wedges it: with nobody out, whoever waits is called with in the end."""
        if self.out or not self.here:
            return
        trial = copy.deepcopy(self.lane)
        at_ms = self.now_ms
        for _ in range(4):
            if trial.begin(at_ms) or trial.expire(at_ms):
                return
            next_ms = trial.next_ms()
            assert next_ms is not None, "it would sleep for ever"
            at_ms = max(at_ms, next_ms)
        pytest.fail(f"no call by {at_ms - self.now_ms} ms from now")


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
