"""How fast calls may follow each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.rules.delivery.pace import Pace

CALLS = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 50)), min_size=1, max_size=60)


def begun(pace: Pace, calls: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """When each call begins and with how many events, if each is wanted so long after the last."""
    now_ms, times = 1_000_000, []
    for wanted_after_ms, events in calls:
        now_ms = max(now_ms + wanted_after_ms, -int(-pace.free_ms // 1))
        pace.take(events, now_ms)
        times.append((now_ms, events))
    return times


@given(st.sampled_from([0.5, 1, 7, 100, 1000, 40_000]), CALLS)
def test_in_no_time_are_there_more_than_in_it_and_100_ms(
    per_second: float, calls: list[tuple[int, int]]
) -> None:
    times = begun(Pace(per_second), calls)
    for i, (first_ms, _) in enumerate(times):
        events = 0
        for last_ms, more in times[i:]:
            # The last call may be larger than what there is time for.
            assert events <= (last_ms - first_ms + 101) * per_second / 1000
            events += more


@given(st.integers(1, 1000))
def test_who_always_has_something_to_send_sends_as_fast_as_may_be(per_second: int) -> None:
    times = begun(Pace(per_second), [(0, 1)] * 200)
    took_ms = times[-1][0] - times[0][0]
    assert took_ms <= 199 * 1000 / per_second + 1


def test_after_a_pause_there_is_no_flood() -> None:
    pace = Pace(10)
    assert begun(pace, [(0, 1)])
    times = begun(pace, [(3_600_000, 1), (0, 1), (0, 1)])
    assert [at - times[0][0] for at, _ in times] == [0, 0, 100]


@pytest.mark.parametrize("now_ms", [1_000_000, 0, 2_000_000, -5])
def test_without_a_limit_nothing_waits_whatever_the_clock_does(now_ms: int) -> None:
    pace = Pace()
    pace.take(1_000_000, 1_000_000)
    pace.take(1, now_ms)
    assert pace.free_ms <= min(now_ms, 0) or pace.free_ms == 0
