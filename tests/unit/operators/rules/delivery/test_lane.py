"""A lane, by examples and against a simple model. No clock: every test advances a number."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from operators.rules.delivery.backoff import RetryPolicy
from operators.rules.delivery.breaker import BreakerPolicy
from operators.rules.delivery.failure import Handling
from operators.rules.delivery.lane import Lane
from operators.rules.delivery.lane_records import (
    MOST_AT_ONCE,
    MOST_HISTORY,
    Chunk,
    Failure,
    Head,
    LanePolicy,
    Left,
    Waiting,
    Want,
    Whole,
)

NOW_MS = 1_700_000_000_000
RETRY = RetryPolicy(max_attempts=3, base_ms=1_000, jitter=0)
CALM = BreakerPolicy(consecutive=0)
BUSY = Failure("http_503", "busy", Handling("transient", retryable=True))
BAD = Failure("http_422", "bad", Handling("data_quality"))
UNTRIED = Failure("not_tried", "", Handling("transient"), untried=True)
DENIED = Failure("http_401", "who?", Handling("persistent", retryable=True, systemic=True))


def lane(*keys: str, **policy: Any) -> Lane:
    """A lane with an event of each key, looked at one by one."""
    policy = {"retry": RETRY, "breaker": CALM, **policy}
    found = Lane(LanePolicy(**policy))
    arrive(found, *keys)
    return found


def arrive(found: Lane, *keys: str) -> None:
    chunk = found.accept([1] * len(keys), NOW_MS, NOW_MS)
    assert found.open(chunk.first, keys, [1] * len(keys)) == []


def begin(found: Lane, now_ms: int) -> list[int]:
    """All calls that begin now, of one record each."""
    begun = []
    while call := found.begin(now_ms):
        assert [record.number for record in call.records] == [call.number]
        begun.append(call.number)
    return begun


def end(found: Lane, number: int, failure: Failure | None, now_ms: int) -> list[Left | Whole]:
    return found.end(number, [failure], now_ms)


def record(found: Lane, number: int) -> Waiting:
    return (found.chunk_of(number).records or {})[number]


def here(found: Lane) -> list[int]:
    return [number for chunk in found.chunks.values() for number in chunk.records or {}]


def crashed(found: Lane) -> Lane:
    """The same lane from what is kept of it."""
    kept = msgspec.msgpack.encode((found.head, list(found.chunks.values())))
    head, chunks = msgspec.msgpack.decode(kept, type=tuple[Head, list[Chunk]])
    return Lane(found.policy, head, chunks)


def ways(left: Sequence[Left | Whole]) -> list[tuple[int, str]]:
    return [(each.record.number, each.disposition) for each in left if isinstance(each, Left)]


# --- calls and retries


def test_a_record_is_called_with_once_and_leaves_when_it_is_delivered() -> None:
    found = lane("a")
    assert begin(found, NOW_MS) == [0]
    assert begin(found, NOW_MS) == []
    assert ways(end(found, 0, None, NOW_MS + 5)) == [(0, "delivered")]
    assert (found.chunks, found.count, found.size_bytes, found.in_flight) == ({}, 0, 0, 0)
    assert found.next_ms() is None
    assert found.is_idle


def test_a_transient_failure_is_tried_again_when_it_is_due_and_not_before() -> None:
    found = lane("a")
    begin(found, NOW_MS)
    assert end(found, 0, BUSY, NOW_MS) == []
    assert found.next_ms() == NOW_MS + 1_000
    assert begin(found, NOW_MS + 999) == []
    assert begin(found, NOW_MS + 1_000) == [0]


def test_when_the_attempts_are_used_up_it_is_a_dead_letter_with_its_history() -> None:
    found, at_ms = lane("a"), NOW_MS
    for wait_ms in (1_000, 2_000):
        begin(found, at_ms)
        assert end(found, 0, BUSY, at_ms) == []
        at_ms += wait_ms
    begin(found, at_ms)
    (left,) = end(found, 0, BUSY, at_ms)
    assert isinstance(left, Left)
    gone, disposition, _ = left
    assert (disposition, gone.attempts, gone.first_failure_ms) == ("exhausted", 3, NOW_MS)
    assert [each.at_ms - NOW_MS for each in gone.history] == [0, 1_000, 3_000]
    assert gone.history[0].error_type == "http_503"


def test_what_cannot_succeed_is_not_tried_again() -> None:
    found = lane("a")
    begin(found, NOW_MS)
    assert ways(end(found, 0, BAD, NOW_MS)) == [(0, "refused")]


def test_no_more_calls_are_out_than_allowed() -> None:
    found = lane(*"abcde", calls=2)
    assert begin(found, NOW_MS) == [0, 1]
    end(found, 1, None, NOW_MS)
    assert begin(found, NOW_MS) == [2]


def test_what_the_target_asks_for_is_waited_for() -> None:
    found = lane("a")
    begin(found, NOW_MS)
    end(found, 0, BUSY._replace(wait_ms=7_000), NOW_MS)
    assert found.next_ms() == NOW_MS + 7_000


def test_the_history_keeps_the_first_attempt_and_the_last_ones() -> None:
    found, at_ms = lane("a", retry=RetryPolicy(max_attempts=100, cap_ms=1_000)), NOW_MS
    for _ in range(30):
        begin(found, at_ms)
        end(found, 0, BUSY, at_ms)
        at_ms += 2_000
    history = record(found, 0).history
    assert len(history) == MOST_HISTORY
    assert history[0].at_ms == NOW_MS
    assert history[-1].at_ms == at_ms - 2_000


# --- several records in a call


def test_a_call_takes_as_many_as_it_may_and_one_of_each_key() -> None:
    found = lane("a", "a", "b", "c", batch=2)
    call = found.begin(NOW_MS)
    assert call
    assert [each.number for each in call.records] == [0, 2]
    assert ways(found.end(0, [None, BAD], NOW_MS)) == [(0, "delivered"), (2, "refused")]


def test_a_target_that_keeps_the_order_gets_several_of_a_key() -> None:
    found = lane("a", "b", "a", "a", batch=3, keeps_order=True)
    call = found.begin(NOW_MS)
    assert call
    assert [each.number for each in call.records] == [0, 1, 2]
    # The fourth may not overtake those before it in a call beside theirs.
    assert found.begin(NOW_MS) is None
    assert ways(found.end(0, [BUSY, None, UNTRIED], NOW_MS)) == [(1, "delivered")]
    assert (record(found, 0).attempts, record(found, 2).attempts) == (1, 0)
    assert found.begin(NOW_MS) is None
    call = found.begin(NOW_MS + 1_000)
    assert call
    assert [each.number for each in call.records] == [0, 2, 3]


@pytest.mark.parametrize("failures", [[BUSY, BUSY], [BUSY, UNTRIED], [DENIED, UNTRIED]])
def test_nor_may_it_be_the_probe_before_the_one_that_it_follows(failures: list[Failure]) -> None:
    breaker = BreakerPolicy(consecutive=1, open_ms=1_000, open_factor=1)
    found = lane("a", "a", "a", breaker=breaker, batch=2, keeps_order=True)
    at_ms = NOW_MS
    call = found.begin(at_ms)
    assert call
    found.end(call.number, failures, at_ms)
    for _ in range(3):
        at_ms += 10_000
        assert begin(found, at_ms) == [0]
        end(found, 0, BUSY, at_ms)


def test_those_behind_a_dead_letter_in_the_same_call_follow_it() -> None:
    found = lane("a", "a", "a", batch=2, keeps_order=True, after_dead_letter="follow")
    found.begin(NOW_MS)
    left = found.end(0, [BAD, UNTRIED], NOW_MS)
    assert ways(left) == [(0, "refused"), (1, "followed"), (2, "followed")]


def test_a_probe_is_one_record() -> None:
    found = lane(*"abc", batch=3, breaker=BreakerPolicy(consecutive=1))
    found.begin(NOW_MS)
    found.end(0, [BUSY] * 3, NOW_MS)
    call = found.begin(NOW_MS + 60_000)
    assert call
    assert call.is_probe
    assert len(call.records) == 1


def test_a_call_of_which_one_record_is_taken_has_been_answered() -> None:
    found = lane(*"abc", batch=3, breaker=BreakerPolicy(consecutive=1))
    found.begin(NOW_MS)
    found.end(0, [BUSY, None, BUSY], NOW_MS)
    assert found.breaker.state == "closed"


def with_chunks(*chunks: str, **policy: Any) -> Lane:
    policy = {"retry": RETRY, "breaker": CALM, "batch": 4, "keeps_order": True, **policy}
    found = Lane(LanePolicy(**policy))
    for keys in chunks:
        found.accept([1] * len(keys), NOW_MS, NOW_MS)
    return found


def looks(*chunks: str) -> Any:
    """What a shell has at hand of chunks of such keys."""
    at, first = {}, 0
    for keys in chunks:
        at[first] = list(keys)
        first += len(keys)
    return at.__getitem__, lambda first: (at[first], [1] * len(at[first]))


def test_a_chunk_whose_records_need_not_be_told_apart_is_called_with_as_it_came() -> None:
    found = with_chunks("aba", "c")
    keys, look = looks("aba", "c")
    call = found.begin(NOW_MS, lambda _: True, keys)
    assert call
    assert (call.chunk, call.size, call.records) == (0, 3, [])
    # The next one would overtake it.
    assert found.begin(NOW_MS, lambda _: True, keys) is None
    assert found.end(0, [None] * 3, NOW_MS, look) == [Whole(0, 3)]
    assert (found.count, found.size_bytes, [*found.chunks]) == (1, 1, [3])


def test_without_order_chunks_are_called_with_beside_each_other() -> None:
    found = with_chunks("aba", "c", ordering="none")
    keys, _ = looks("aba", "c")
    calls = [found.begin(NOW_MS, lambda _: True, keys) for _ in range(3)]
    assert [call.chunk if call else None for call in calls] == [0, 3, None]


def test_a_chunk_is_looked_into_when_one_of_its_records_has_failed() -> None:
    found = with_chunks("abc")
    keys, look = looks("abc")
    found.begin(NOW_MS, lambda _: True, keys)
    assert ways(found.end(0, [None, BUSY, None], NOW_MS, look)) == [
        (0, "delivered"),
        (2, "delivered"),
    ]
    assert here(found) == [1]
    assert record(found, 1).attempts == 1


@pytest.mark.parametrize("keeps_order", [True, False])
def test_a_chunk_with_a_key_that_waits_is_looked_into_first(keeps_order: bool) -> None:
    found = with_chunks("ab", "ca", "cc", keeps_order=keeps_order)
    keys, look = looks("ab", "ca", "cc")
    found.begin(NOW_MS, lambda _: True, keys)
    found.end(0, [BUSY, None], NOW_MS, look)
    assert found.begin(NOW_MS, lambda _: True, keys) is None
    assert found.wanted(NOW_MS) == (2, True)
    found.open(2, *look(2))
    call = found.begin(NOW_MS, lambda _: True, keys)
    assert call
    assert [each.number for each in call.records] == [2]
    # Also one with a key twice, for a target that does not keep the order.
    found.end(2, [None], NOW_MS)
    call = found.begin(NOW_MS, lambda _: True, keys)
    assert (call.chunk if call else None) == (4 if keeps_order else None)


# --- order


def test_with_order_by_key_followers_wait_and_other_keys_go_on() -> None:
    found = lane("a", "a", "b", "a")
    assert begin(found, NOW_MS) == [0, 2]
    end(found, 0, BUSY, NOW_MS)
    assert begin(found, NOW_MS) == []
    assert begin(found, NOW_MS + 1_000) == [0]
    end(found, 0, None, NOW_MS + 1_000)
    assert begin(found, NOW_MS + 1_000) == [1]


def test_without_order_nobody_waits_for_a_failed_one() -> None:
    assert begin(lane("a", "a", ordering="none"), NOW_MS) == [0, 1]


def test_when_one_is_given_up_its_followers_go_on() -> None:
    found = lane("a", "a", "a")
    begin(found, NOW_MS)
    assert ways(end(found, 0, BAD, NOW_MS)) == [(0, "refused")]
    assert begin(found, NOW_MS) == [1]


def test_or_they_follow_it_and_those_of_other_keys_do_not() -> None:
    found = lane("a", "a", "b", "a", after_dead_letter="follow")
    begin(found, NOW_MS)
    assert ways(end(found, 0, BAD, NOW_MS)) == [(0, "refused"), (1, "followed"), (3, "followed")]
    assert here(found) == [2]


def test_those_of_a_chunk_that_is_not_open_yet_follow_too_and_later_ones_do_not() -> None:
    found = lane("a", after_dead_letter="follow")
    waiting = found.accept([1, 1], NOW_MS, NOW_MS)
    begin(found, NOW_MS)
    end(found, 0, BAD, NOW_MS)
    found = crashed(found)
    later = found.accept([1], NOW_MS, NOW_MS)
    assert ways(found.open(waiting.first, ["b", "a"], [1, 1])) == [(2, "followed")]
    assert found.open(later.first, ["a"], [1]) == []
    assert here(found) == [1, 3]


def test_of_dead_letters_only_those_are_remembered_that_somebody_may_follow() -> None:
    """Else, while there is always a backlog, each key would be remembered for ever."""
    found = Lane(LanePolicy(RETRY, CALM, after_dead_letter="follow", calls=1))
    for number in range(100):
        found.accept([1], NOW_MS, NOW_MS)
        # There is always one behind it that is not looked at yet.
        if number == 0:
            found.accept([1], NOW_MS, NOW_MS)
        found.open(number, [f"k{number}"], [1])
        (called,) = begin(found, NOW_MS)
        assert ways(end(found, called, BAD, NOW_MS)) == [(number, "refused")]
        assert len(found.head.follow) <= 2


# --- the breaker

BREAKER = BreakerPolicy(consecutive=2, open_ms=60_000, half_open_ms=10_000)


def opened() -> Lane:
    """Two calls have failed, three more records wait."""
    found = lane(*"abcde", breaker=BREAKER, calls=2)
    begin(found, NOW_MS)
    end(found, 0, BUSY, NOW_MS)
    end(found, 1, BUSY, NOW_MS)
    return found


def test_while_the_breaker_is_open_nothing_is_called_and_nothing_is_used_up() -> None:
    found = opened()
    assert begin(found, NOW_MS + 59_999) == []
    assert found.next_ms() == NOW_MS + 60_000
    assert [record(found, number).attempts for number in range(5)] == [1, 0, 0, 0, 0]
    assert not found.is_idle


def test_a_record_that_waits_is_the_probe_and_a_probe_uses_up_nothing() -> None:
    found, at_ms = opened(), NOW_MS
    for _ in range(10):
        at_ms = found.next_ms() or 0
        (probe,) = begin(found, at_ms)
        before = record(found, probe).attempts
        assert end(found, probe, BUSY, at_ms) == []
        assert record(found, probe).attempts == before
    assert found.count == 5


def test_one_that_fails_whatever_the_target_does_is_not_the_probe_for_ever() -> None:
    found = opened()
    at_ms = NOW_MS
    while found.count and at_ms < NOW_MS + 3_600_000:
        for number in begin(found, at_ms):
            end(found, number, BUSY if number == 0 else None, at_ms)
        at_ms = max(at_ms + 1, found.next_ms() or 0)
    assert found.count == 0, "it has kept the others from being called with"
    assert found.head.last_failure


ONE_KEY = BreakerPolicy(consecutive=3, open_ms=60_000, half_open_ms=10_000)


def opened_by_one_key() -> Lane:
    """Three records of a key have failed, and nothing else was called with."""
    found = lane("a", "a", "a", "a", breaker=ONE_KEY, ordering="none", calls=3)
    for number in begin(found, NOW_MS):
        end(found, number, BUSY, NOW_MS)
    assert found.breaker.state == "open"
    return found


def test_what_one_key_has_opened_another_one_tries_at_once() -> None:
    """A key that always fails says little of the target: the others do not wait for it."""
    for found in (opened_by_one_key(), crashed(opened_by_one_key())):
        assert begin(found, NOW_MS + 1) == []
        assert found.next_ms() == NOW_MS + 60_000
        arrive(found, "b", "c", "d")
        assert (found.next_ms() or 0) <= NOW_MS
        (probe,) = begin(found, NOW_MS + 1)
        assert record(found, probe).key == "b"
        end(found, probe, None, NOW_MS + 2)
        assert found.breaker.state == "closed"
        assert len(begin(found, NOW_MS + 2)) == 3, "as if it had never been open"


def test_and_if_that_fails_too_it_is_open_as_for_the_first_time() -> None:
    found = opened_by_one_key()
    arrive(found, "b", "c")
    (probe,) = begin(found, NOW_MS + 1)
    end(found, probe, BUSY, NOW_MS + 2)
    assert record(found, probe).attempts == 0
    assert begin(found, NOW_MS + 60_001) == []
    assert found.next_ms() == NOW_MS + 60_002
    assert len(begin(found, NOW_MS + 60_002)) == 1


def test_what_a_share_of_failures_has_opened_is_tried_when_its_time_has_come() -> None:
    rate = BreakerPolicy(consecutive=0, failure_rate=0.5, min_calls=4, window_calls=10)
    found = lane("a", "b", "a", "c", "d", breaker=rate, ordering="none", calls=4)
    failures = [BUSY, None, BUSY, None]
    for number, failure in zip(begin(found, NOW_MS), failures, strict=True):
        end(found, number, failure, NOW_MS)
    assert found.breaker.state == "open"
    assert begin(found, NOW_MS + 1) == []


@pytest.mark.parametrize("calls", [1, 2])
def test_what_speaks_of_the_target_is_not_doubted(calls: int) -> None:
    found = lane(*"abcde", breaker=ONE_KEY, calls=calls)
    at_ms = NOW_MS
    for _ in range(2):  # the second one is a probe's
        for number in begin(found, at_ms):
            end(found, number, DENIED, at_ms)
        assert found.breaker.state == "open"
        assert begin(found, at_ms + 1) == []
        at_ms = found.next_ms() or 0
    assert at_ms == NOW_MS + 60_000 + 120_000


def test_nor_is_what_the_target_has_asked_for() -> None:
    found = lane("a", "a", "a", breaker=ONE_KEY, ordering="none", calls=3)
    for number in begin(found, NOW_MS):
        end(found, number, BUSY._replace(wait_ms=600_000), NOW_MS)
    arrive(found, "b")
    assert begin(found, NOW_MS + 1) == []


def test_when_the_probe_succeeds_the_others_follow_a_few_at_a_time() -> None:
    found = opened()
    at_ms = NOW_MS + 60_000
    (probe,) = begin(found, at_ms)
    end(found, probe, None, at_ms)
    assert len(begin(found, at_ms)) == 2


def test_a_probe_that_was_never_made_is_none() -> None:
    """The contract refuses the record: nothing is known of the target, and the next one probes."""
    found = opened()
    at_ms = NOW_MS + 60_000
    (probe,) = begin(found, at_ms)
    assert ways(end(found, probe, BAD._replace(uncalled=True), at_ms)) == [(probe, "refused")]
    assert found.breaker.state == "half_open"
    assert len(begin(found, at_ms)) == 1


def test_a_systemic_failure_opens_it_and_does_not_count() -> None:
    found = lane("a", retry=RetryPolicy(max_attempts=1), breaker=BREAKER)
    begin(found, NOW_MS)
    assert end(found, 0, DENIED, NOW_MS) == []
    assert (found.breaker.state, record(found, 0).attempts) == ("open", 0)


def test_a_target_that_refuses_records_is_up() -> None:
    found = lane(*"abcd", breaker=BREAKER)
    for number in begin(found, NOW_MS):
        end(found, number, BAD, NOW_MS)
    assert found.breaker.state == "closed"


# --- bounds and ends


def test_there_is_room_for_so_many_records_and_bytes() -> None:
    found = lane("a", "b", max_records=5, max_bytes=20)
    assert found.room([1, 1, 1, 1]) == 3
    assert found.room([10, 8, 1]) == 2
    assert found.room([19]) == 0


def test_an_event_larger_than_the_bound_is_taken_when_it_is_alone() -> None:
    """Else it could never be delivered."""
    assert Lane(LanePolicy(max_bytes=10)).room([11, 1]) == 1


def test_a_record_that_is_too_old_is_given_up_unless_it_is_being_called_with() -> None:
    found = lane("a", "b", max_age_ms=5_000, calls=1)
    begin(found, NOW_MS)
    assert found.next_ms() == NOW_MS + 5_000
    assert found.expire(NOW_MS + 4_999) == []
    assert ways(found.expire(NOW_MS + 5_000)) == [(1, "expired")]
    assert ways(end(found, 0, None, NOW_MS + 6_000)) == [(0, "delivered")]


def test_the_time_budget_is_over_also_behind_a_breaker_that_is_open() -> None:
    retry = RetryPolicy(max_attempts=9, base_ms=1_000, jitter=0, budget_ms=5_000)
    found = lane("a", "a", retry=retry, breaker=BreakerPolicy(consecutive=1), calls=1)
    begin(found, NOW_MS)
    end(found, 0, BUSY, NOW_MS)
    assert found.breaker.state == "open"
    for each in (found, crashed(found)):
        assert each.next_ms() == NOW_MS + 5_000
        assert each.expire(NOW_MS + 4_999) == []
        assert ways(each.expire(NOW_MS + 5_000)) == [(0, "exhausted")]
        assert here(each) == [1]


def test_one_that_is_being_called_with_has_its_time_budget_looked_at_when_it_is_back() -> None:
    retry = RetryPolicy(max_attempts=9, base_ms=1_000, jitter=0, budget_ms=5_000)
    found = lane("a", retry=retry)
    begin(found, NOW_MS)
    end(found, 0, BUSY, NOW_MS)
    begin(found, NOW_MS + 1_000)
    assert found.next_ms() is None
    assert found.expire(NOW_MS + 9_000) == []
    assert ways(end(found, 0, BUSY, NOW_MS + 9_000)) == [(0, "exhausted")]


def test_of_an_old_backlog_not_much_is_looked_into_at_once() -> None:
    policy = LanePolicy(RETRY, BreakerPolicy(consecutive=1), max_age_ms=10_000, max_records=99_999)
    found = Lane(policy)
    for _ in range(90):
        found.accept([1] * MOST_AT_ONCE, NOW_MS, NOW_MS)
    for gone in range(1, 4):
        opened = 0
        while want := found.wanted(NOW_MS + 10_000):
            keys = [f"{want.chunk}-{i}" for i in range(MOST_AT_ONCE)]
            found.open(want.chunk, keys, [1] * MOST_AT_ONCE)
            opened += MOST_AT_ONCE
        assert opened <= MOST_AT_ONCE
        assert len(found.expire(NOW_MS + 10_000)) == MOST_AT_ONCE
        assert found.count == (90 - gone) * MOST_AT_ONCE
        assert (found.next_ms() or 0) <= NOW_MS + 10_000


def test_not_many_are_given_up_at_once() -> None:
    many = MOST_AT_ONCE + 1
    found = lane(*map(str, range(many)), max_age_ms=5_000, calls=1, max_records=many)
    assert len(found.expire(NOW_MS + 5_000)) == MOST_AT_ONCE
    assert (found.next_ms() or 0) <= NOW_MS + 5_000
    assert len(found.expire(NOW_MS + 5_000)) == 1
    found = lane(*map(str, range(many)), max_records=many)
    assert [len(found.flush()) for _ in range(3)] == [MOST_AT_ONCE, 1, 0]


def test_with_a_breaker_that_is_held_closed_a_systemic_failure_counts() -> None:
    """Else such a record would be tried for ever: nothing opens that could wait for the target."""
    found = lane("a", breaker=BreakerPolicy(forced="closed"))
    at_ms = NOW_MS
    while found.count and at_ms < NOW_MS + 100_000:
        begin(found, at_ms)
        left = end(found, 0, DENIED, at_ms)
        at_ms += 10_000
    assert ways(left) == [(0, "exhausted")]


def test_an_old_follower_is_given_up_without_the_one_before_it() -> None:
    found = lane("a", "a", "a", max_age_ms=5_000, after_dead_letter="follow")
    begin(found, NOW_MS)
    assert ways(found.expire(NOW_MS + 5_000)) == [(1, "expired"), (2, "followed")]
    assert ways(end(found, 0, None, NOW_MS + 6_000)) == [(0, "delivered")]


def test_at_the_end_all_that_waits_is_flushed() -> None:
    found = lane("a", "a", "b", calls=1)
    begin(found, NOW_MS)
    assert ways(found.flush()) == [(1, "flush_at_end"), (2, "flush_at_end")]
    assert ways(end(found, 0, None, NOW_MS)) == [(0, "delivered")]


# --- chunks


def test_a_chunk_is_looked_at_only_when_there_is_room_to_call() -> None:
    found = Lane(LanePolicy(RETRY, BREAKER, calls=2))
    many = found.policy.window
    for _ in range(3):
        found.accept([1] * many, NOW_MS, NOW_MS)
    assert found.wanted(NOW_MS) == (0, True)
    assert found.next_ms() is not None
    found.open(0, [str(i) for i in range(many)], [1] * many)
    assert found.wanted(NOW_MS) is None
    for number in begin(found, NOW_MS):
        end(found, number, None, NOW_MS)
    assert found.wanted(NOW_MS) == (many, True)


def test_while_the_breaker_is_open_one_record_is_kept_at_hand_to_probe_with() -> None:
    found = Lane(LanePolicy(RETRY, BreakerPolicy(consecutive=1)))
    found.accept([1], NOW_MS, NOW_MS)
    found.accept([1], NOW_MS, NOW_MS)
    found.accept([1], NOW_MS, NOW_MS)
    found.open(0, ["a"], [1])
    begin(found, NOW_MS)
    end(found, 0, BUSY, NOW_MS)
    assert found.wanted(NOW_MS + 1) == (1, True)
    found.open(1, ["b"], [1])
    assert found.wanted(NOW_MS + 1) is None


def test_what_is_due_and_not_at_hand_is_wanted_and_called_with_when_it_is() -> None:
    found = crashed(lane("a", "b"))
    assert found.begin(NOW_MS, lambda first: False) is None
    assert found.wanted(NOW_MS) == (0, False)
    found.loaded(0)
    assert begin(found, NOW_MS) == [0, 1]


def test_an_old_chunk_is_looked_at_even_if_there_is_no_room_to_call() -> None:
    found = lane("a", "b", calls=1, max_age_ms=5_000, breaker=BreakerPolicy(consecutive=1))
    found.accept([1], NOW_MS, NOW_MS)
    begin(found, NOW_MS)
    end(found, 0, BUSY, NOW_MS)
    end(found, *begin(found, NOW_MS), BUSY, NOW_MS)
    found.open(2, ["c"], [1])
    found.accept([1], NOW_MS, NOW_MS)
    assert found.wanted(NOW_MS) is None
    assert found.wanted(NOW_MS + 5_000) == (3, True)
    assert found.next_ms() == NOW_MS + 5_000


def test_the_watermark_waits_for_first_calls_and_not_for_retries() -> None:
    found = Lane(LanePolicy(RETRY, CALM))
    found.accept([1, 1], NOW_MS - 50, NOW_MS)
    found.accept([1], NOW_MS - 40, NOW_MS)
    assert found.held_ms(NOW_MS + 10**9) == NOW_MS - 50
    found.open(0, ["a", "a"], [1, 1])
    found.open(2, ["b"], [1])
    begin(found, NOW_MS)
    assert found.held_ms(NOW_MS) == NOW_MS - 50
    end(found, 0, BUSY, NOW_MS)
    assert found.held_ms(NOW_MS) == NOW_MS - 40
    end(found, 2, None, NOW_MS)
    assert found.held_ms(NOW_MS) is None


def test_it_waits_for_those_too_that_are_behind_one_that_is_well() -> None:
    found = Lane(LanePolicy(RETRY, CALM))
    for at_ms in (NOW_MS - 40, NOW_MS - 50):
        chunk = found.accept([1], at_ms, NOW_MS)
        found.open(chunk.first, ["a"], [1])
    begin(found, NOW_MS)
    assert found.held_ms(NOW_MS) == NOW_MS - 50
    end(found, 0, BUSY, NOW_MS)
    assert found.held_ms(NOW_MS) is None, "who is behind a retry may be late"


def test_behind_an_open_breaker_it_waits_no_longer_than_it_is_told() -> None:
    found = Lane(LanePolicy(RETRY, BreakerPolicy(consecutive=1), hold_ms=1_000))
    found.accept([1], NOW_MS - 50, NOW_MS)
    found.accept([1], NOW_MS - 40, NOW_MS + 500)
    found.open(0, ["a"], [1])
    begin(found, NOW_MS)
    assert found.hold_ends_ms(NOW_MS) is None
    end(found, 0, BUSY, NOW_MS)
    assert found.hold_ends_ms(NOW_MS) == NOW_MS + 1_000
    assert found.held_ms(NOW_MS + 1_499) == NOW_MS - 40
    assert found.hold_ends_ms(NOW_MS + 1_499) == NOW_MS + 1_500
    assert found.held_ms(NOW_MS + 1_500) is None


# --- after a crash


def test_calls_that_were_out_are_made_again_and_do_not_count() -> None:
    found = lane("a", "a", "b")
    begin(found, NOW_MS)
    again = crashed(found)
    assert (again.size_bytes, again.count, again.head.next_number) == (3, 3, 3)
    assert begin(again, NOW_MS + 1) == [0, 2]
    assert record(again, 0).attempts == 0


def test_it_is_still_open_for_the_time_that_was_left_and_a_lost_probe_is_made_again() -> None:
    again = crashed(opened())
    assert begin(again, NOW_MS + 59_999) == []
    (probe,) = begin(again, NOW_MS + 60_000)
    assert begin(crashed(again), NOW_MS + 60_001) == [probe]


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
        batch=st.integers(1, 3),
        keeps_order=st.booleans(),
        max_age_ms=st.sampled_from([0, 20_000]),
    )
    def start(
        self,
        ordering: Any,
        after: Any,
        calls: int,
        batch: int,
        keeps_order: bool,
        max_age_ms: int,
    ) -> None:
        self.policy = LanePolicy(
            RetryPolicy(max_attempts=3, base_ms=500, budget_ms=30_000),
            BreakerPolicy(consecutive=3, open_ms=1_000, open_cap_ms=4_000, half_open_ms=700),
            ordering,
            after,
            calls,
            batch,
            keeps_order,
            max_records=8,
            max_bytes=30,
            max_age_ms=max_age_ms,
        )
        self.lane = Lane(self.policy)
        self.now_ms = NOW_MS
        self.here: dict[int, str] = {}
        self.keys: dict[int, str] = {}
        self.counts: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.at_hand: set[int] = set()
        self.out: dict[int, int] = {}
        self.calls: dict[int, list[int]] = {}
        self.counted: defaultdict[int, int] = defaultdict(int)

    @rule(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=4), size=st.integers(0, 12))
    def arrive(self, keys: list[str], size: int) -> None:
        fits = self.lane.room([size] * len(keys))
        assert len(self.here) + fits <= self.policy.max_records
        if fits:
            chunk = self.lane.accept([size] * fits, self.now_ms, self.now_ms)
            self.counts[chunk.first] = fits
            self.here.update(enumerate(keys[:fits], chunk.first))
            self.keys.update(enumerate(keys[:fits], chunk.first))
            self.sizes.update(dict.fromkeys(range(chunk.first, chunk.first + fits), size))

    @rule()
    def look(self) -> None:
        """As the shell does: what is wanted is opened or loaded."""
        for _ in range(20):
            want = self.lane.wanted(self.now_ms, self.at_hand.__contains__)
            if want is None:
                return
            self._bring(self.lane, want, self._leave)
        pytest.fail("something is wanted for ever")

    def _bring(self, lane: Lane, want: Want, leave: Any) -> None:
        self.at_hand.add(want.chunk)
        if want.to_open:
            followers = lane.open(want.chunk, *self._look_into(want.chunk))
            assert self.policy.after_dead_letter == "follow" or not followers
            leave(followers)
        else:
            lane.loaded(want.chunk)

    def _look_into(self, first: int) -> tuple[list[str], list[int]]:
        assert first in self.at_hand
        numbers = range(first, first + self.counts[first])
        return [self.keys[n] for n in numbers], [self.sizes[n] for n in numbers]

    @rule()
    def begin(self) -> None:
        has, keys = self.at_hand.__contains__, None
        if self.policy.batch > 1:
            keys = lambda first: self._look_into(first)[0]  # noqa: E731
        while call := self.lane.begin(self.now_ms, has, keys):
            assert self.lane.breaker.state != "open"
            numbers = [record.number for record in call.records]
            if call.chunk is not None:
                assert not numbers
                assert self.lane.breaker.state == "closed"
                numbers = [*range(call.chunk, call.chunk + call.size)]
            assert len(numbers) == call.size <= self.policy.batch
            assert all(record.due_ms <= self.now_ms for record in call.records)
            assert all(self.here[record.number] == record.key for record in call.records)
            for number in numbers:
                assert number not in self.out
                assert self.lane.chunk_of(number).first in self.at_hand
                key = self.here[number]
                before = [n for n, other in self.here.items() if other == key and n < number]
                if self.policy.ordering == "key" and self.policy.keeps_order:
                    assert all(self.out.get(n) == call.number for n in before), "not in its order"
                elif self.policy.ordering == "key":
                    assert not before, "not in its order"
                self.out[number] = call.number
            self.calls[call.number] = numbers

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 100), data=st.data())
    def answer(self, which: int, data: Any) -> None:
        number = sorted(self.calls)[which % len(self.calls)]
        called = self.calls.pop(number)
        failures: dict[int, Failure | None] = {}
        for each in called:
            del self.out[each]
            before = [n for n in failures if self.here[n] == self.here[each]]
            if self.policy.ordering == "key" and any(failures[n] for n in before):
                failures[each] = UNTRIED
            else:
                failures[each] = data.draw(st.sampled_from([None, None, BUSY, BUSY, BAD, DENIED]))
        left: list[Left] = []
        for each_left in self.lane.end(number, [*failures.values()], self.now_ms, self._look_into):
            if isinstance(each_left, Whole):
                assert called == [*range(each_left.chunk, each_left.chunk + each_left.size)]
                assert not any(failures.values())
                for each in called:
                    del self.here[each]
                return
            left.append(each_left)
        found = dict(ways(left))
        for each, failure in failures.items():
            self.counted[each] += failure is BUSY
            if failure is None:
                assert found[each] == "delivered"
            elif failure is BAD:
                assert found[each] == "refused"
            elif failure is UNTRIED or failure is DENIED:
                assert found.get(each) in (None, "followed", "exhausted")
        for record, disposition, _ in left:
            assert record.attempts <= self.counted[record.number]
            if disposition == "exhausted":
                long_since = self.now_ms - record.first_failure_ms > 20_000
                assert record.attempts >= self.policy.retry.max_attempts or long_since
        self._leave(left)

    @rule(probes=st.integers(1, 4))
    def outage(self, probes: int) -> None:
        """The target is down for so long that its breaker is probed."""
        for _ in range(probes):
            self.look()
            self.begin()
            for number in sorted(self.calls):
                called = self.calls.pop(number)
                for each in called:
                    del self.out[each]
                    self.counted[each] += 1
                failures = [BUSY] * len(called)
                left = self.lane.end(number, failures, self.now_ms, self._look_into)
                assert "delivered" not in dict(ways(left)).values()
                self._leave([each for each in left if isinstance(each, Left)])
            self.put_away()
            self.wait(1_500)

    @rule(ms=st.sampled_from([1, 300, 1_500, 5_000, 40_000]))
    def wait(self, ms: int) -> None:
        self.now_ms += ms
        expired = self.lane.expire(self.now_ms)
        for record, disposition, _ in expired:
            if disposition == "expired":
                assert record.number in self.here
        self._leave(expired)
        budget_ms = self.policy.retry.budget_ms
        for number in set(here(self.lane)) - self.out.keys():
            first_ms = (self.lane.chunk_of(number).records or {})[number].first_failure_ms
            assert not first_ms or self.now_ms < first_ms + budget_ms, "beyond its budget"

    @rule()
    def crash(self) -> None:
        self.lane = crashed(self.lane)
        self.out.clear()
        self.calls.clear()
        self.at_hand.clear()

    @rule()
    def put_away(self) -> None:
        """The shell lets go of events that nobody is being called with."""
        self.at_hand = {
            first
            for first in self.at_hand & self.lane.chunks.keys()
            if not self.lane.is_resting(first, self.now_ms)
        }
        assert {self.lane.chunk_of(number).first for number in self.out} <= self.at_hand

    @rule()
    def end_of_input(self) -> None:
        opened = set(here(self.lane))
        flushed = self.lane.flush()
        assert {record.number for record, *_ in flushed} == opened - self.out.keys()
        self._leave(flushed)

    def _leave(self, left: list[Left]) -> None:
        for record, *_ in left:
            assert record.number not in self.out, "it left while it was out"
            del self.here[record.number]  # or it left twice

    @invariant()
    def nobody_is_lost(self) -> None:
        numbers = [
            number
            for chunk in self.lane.chunks.values()
            for number in (
                range(chunk.first, chunk.first + chunk.count)
                if chunk.records is None
                else chunk.records
            )
        ]
        assert numbers == sorted(self.here)
        assert self.lane.count == len(numbers) <= self.policy.max_records
        assert self.lane.in_flight == len(self.calls) <= self.policy.calls
        assert self.lane.size_bytes == sum(self.sizes[number] for number in self.here)

    @invariant()
    def time_alone_leads_to_a_call_or_an_end(self) -> None:
        """Nothing wedges it: with nobody out, whoever waits is called with in the end."""
        if self.out or not self.here:
            return
        trial, at_ms, at_hand = copy.deepcopy(self.lane), self.now_ms, set(self.at_hand)
        followed: list[Left] = []
        has, keys = self.at_hand.__contains__, None
        if self.policy.batch > 1:
            keys = lambda first: self._look_into(first)[0]  # noqa: E731
        for _ in range(30):
            want = trial.wanted(at_ms, has)
            if want is not None:
                self._bring(trial, want, followed.extend)
            elif followed or trial.begin(at_ms, has, keys) or trial.expire(at_ms):
                break
            elif trial.wanted(at_ms, has) is None:
                next_ms = trial.next_ms()
                assert next_ms is not None, "it would sleep for ever"
                at_ms = max(at_ms, next_ms)
        else:
            pytest.fail(f"no call by {at_ms - self.now_ms} ms from now")
        self.at_hand = at_hand


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
