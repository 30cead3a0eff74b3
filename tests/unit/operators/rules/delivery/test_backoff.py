"""Backoff: when a failed attempt is made again, and when no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.delivery.backoff import RetryError, RetryPolicy

KEY = b"t/0/17"
KEYS = st.binary(max_size=30)
ATTEMPTS = st.integers(1, 10_000)
POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 50),
    base_ms=st.integers(1, 1_000_000),
    factor=st.floats(1, 100),
    cap_ms=st.integers(1_000_000, 10**9),
    jitter=st.floats(0, 0.99),
    budget_ms=st.just(0) | st.integers(1, 10**9),
)


def test_without_a_spread_each_delay_is_twice_the_one_before_up_to_the_cap() -> None:
    policy = RetryPolicy(base_ms=1_000, factor=2, cap_ms=6_000, jitter=0)
    assert [policy.delay_ms(KEY, n) for n in range(1, 6)] == [1_000, 2_000, 4_000, 6_000, 6_000]


@given(POLICIES, KEYS, ATTEMPTS)
def test_a_delay_is_spread_by_the_jitter_and_no_more(
    policy: RetryPolicy, key: bytes, attempts: int
) -> None:
    middle = RetryPolicy(
        base_ms=policy.base_ms, factor=policy.factor, cap_ms=policy.cap_ms, jitter=0
    )
    wanted, found = middle.delay_ms(key, attempts), policy.delay_ms(key, attempts)
    assert abs(found - wanted) <= policy.jitter * wanted + 1
    assert found >= 1


def test_records_that_failed_together_come_back_spread_over_the_whole_of_it() -> None:
    policy = RetryPolicy(base_ms=10_000, jitter=0.1)
    delays = [policy.delay_ms(b"%d" % n, 1) for n in range(1_000)]
    assert min(delays) < 9_100
    assert max(delays) > 10_900
    assert abs(sum(delays) / len(delays) - 10_000) < 60


@given(POLICIES, KEYS, ATTEMPTS)
def test_a_replay_schedules_the_same(policy: RetryPolicy, key: bytes, attempts: int) -> None:
    assert policy.delay_ms(key, attempts) == policy.delay_ms(key, attempts)


def test_attempts_of_one_record_are_spread_differently() -> None:
    policy = RetryPolicy(factor=1, jitter=0.5)
    assert len({policy.delay_ms(KEY, n) for n in range(1, 6)}) == 5


def test_the_budget_counts_from_the_first_failure() -> None:
    policy = RetryPolicy(base_ms=1_000, jitter=0, budget_ms=10_000)
    assert policy.next_attempt_ms(KEY, 1, first_failure_ms=0, now_ms=9_000) == 10_000
    assert policy.next_attempt_ms(KEY, 1, first_failure_ms=0, now_ms=9_001) is None


@given(POLICIES, KEYS, st.integers(1, 60), st.integers(0, 10**9), st.integers(0, 10**9))
def test_it_ends_with_the_attempts_or_the_budget_and_not_before(
    policy: RetryPolicy, key: bytes, attempts: int, since_ms: int, wait_ms: int
) -> None:
    first_ms = 1_700_000_000_000
    now_ms = first_ms + since_ms
    due_ms = policy.next_attempt_ms(key, attempts, first_ms, now_ms, wait_ms)
    wanted_ms = now_ms + max(policy.delay_ms(key, attempts), wait_ms)
    over = policy.budget_ms > 0 and wanted_ms - first_ms > policy.budget_ms
    if attempts >= policy.max_attempts or over:
        assert due_ms is None
    else:
        assert due_ms == wanted_ms


def test_one_attempt_means_no_retry() -> None:
    assert RetryPolicy(max_attempts=1).next_attempt_ms(KEY, 1, 0, 0) is None


def test_what_the_target_asks_for_counts_where_it_is_longer() -> None:
    policy = RetryPolicy(base_ms=1_000, jitter=0)
    assert policy.next_attempt_ms(KEY, 1, 0, 0, wait_ms=30_000) == 30_000
    assert policy.next_attempt_ms(KEY, 1, 0, 0, wait_ms=10) == 1_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_attempts": 0}, "max_attempts = 0: must be 1 or more"),
        ({"base_ms": 0}, "base_ms = 0: must be above 0"),
        ({"base_ms": 10, "cap_ms": 9}, "not above cap_ms = 9"),
        ({"factor": 0.5}, "factor = 0.5: must be 1 or more"),
        ({"jitter": 1.1}, "jitter = 1.1: must be from 0 to 1"),
        ({"budget_ms": -1}, "budget_ms = -1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(RetryError, match=message):
        RetryPolicy(**values)  # type: ignore[arg-type]
