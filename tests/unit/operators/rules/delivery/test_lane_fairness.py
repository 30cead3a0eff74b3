"""What one key whose calls always fail costs the others of its lane. No clock: time is simulated.

The same events are delivered twice, with the same calls: once all are well, once those of one key
fail. What is compared is how long the others wait, from when they are accepted until they leave.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest

from operators.rules.delivery.breaker import BreakerPolicy
from operators.rules.delivery.failure import Handling
from operators.rules.delivery.lane import Failure, Lane, LanePolicy, Left

NOW_MS = 1_700_000_000_000
BAD_KEY = "bad"
BUSY = Failure("http_503", "busy", Handling("transient", retryable=True))
UNKNOWN = Failure("http_404", "nobody", Handling("data_quality"))
FAST_MS, SLOW_MS, TIMEOUT_MS = 10, 60, 10_000
BATCH_MS = 50
#: So long after the last event has come the others have left.
WITHIN_MS = 3_600_000
#: The others may wait longer by so much.
AT_MOST = 1.1


class Traffic(NamedTuple):
    """So many events a second of so many keys, for so long; of them a share is the bad key's."""

    rate: float
    seconds: int
    keys: int = 100
    bad_share: float = 0.02

    def batches(self) -> list[tuple[int, list[str]]]:
        """When they come, and the keys of those that come together."""
        draw = random.Random(1)  # noqa: S311
        every_ms = max(BATCH_MS, round(1000 / self.rate))
        size = round(self.rate * every_ms / 1000)
        at_ms, found = NOW_MS, []
        while at_ms < NOW_MS + self.seconds * 1000:
            found.append((at_ms, [self._key(draw) for _ in range(size)]))
            at_ms += 1 + round(draw.expovariate(1 / every_ms))
        return found

    def _key(self, draw: random.Random) -> str:
        return BAD_KEY if draw.random() < self.bad_share else f"key {draw.randrange(self.keys)}"


class Simulation:
    """A lane with what is around it: events come, calls take their time, and nothing else does."""

    def __init__(self, failure: Failure | None, failing_ms: int, **policy: Any) -> None:
        self.lane = Lane(LanePolicy(**policy))
        self.failure = failure
        self.failing_ms = failing_ms
        self.keys: list[str] = []
        self.came_ms: list[int] = []
        self.waited_ms: dict[int, int] = {}
        self.ends: Counter[tuple[bool, str]] = Counter()
        self.opened = False
        self._calls: list[tuple[int, int]] = []

    def run(self, traffic: Traffic) -> None:
        """Until all have come, and the others have left."""
        for at_ms, keys in traffic.batches():
            self._until(at_ms)
            assert self.lane.room([1] * len(keys)) == len(keys)
            chunk = self.lane.accept([1] * len(keys), at_ms, at_ms)
            assert chunk.first == len(self.keys)
            self.keys += keys
            self.came_ms += [at_ms] * len(keys)
            self._go_on(at_ms)
        self.opened = self.lane.breaker.epoch > 0
        end_ms = at_ms + WITHIN_MS
        while len(self.waited_ms) < len(self.keys) - self.keys.count(BAD_KEY):
            at_ms += BATCH_MS
            assert at_ms < end_ms, "the others do not leave"
            self._until(at_ms)

    def _until(self, end_ms: int) -> None:
        """What happens by then: calls end, and the lane wants to be looked at."""
        while True:
            times = [self._calls[0][0]] if self._calls else []
            times += [ms for ms in [self.lane.next_ms()] if ms is not None]
            now_ms = min(times, default=end_ms)
            if now_ms >= end_ms:
                return
            while self._calls and self._calls[0][0] <= now_ms:
                _, number = heapq.heappop(self._calls)
                for left in self.lane.end(number, [self._failure_of(number)], now_ms):
                    assert isinstance(left, Left)
                    self._leave(left, now_ms)
            self._go_on(now_ms)

    def _leave(self, left: Left, now_ms: int) -> None:
        number, is_bad = left.record.number, left.record.key == BAD_KEY
        self.ends[is_bad, left.disposition] += 1
        if not is_bad:
            self.waited_ms[number] = now_ms - self.came_ms[number]

    def _go_on(self, now_ms: int) -> None:
        lane = self.lane
        while want := lane.wanted(now_ms):
            chunk = lane.chunks[want.chunk]
            keys = self.keys[chunk.first : chunk.first + chunk.count]
            lane.open(chunk.first, keys, [1] * len(keys))
        while call := lane.begin(now_ms):
            takes_ms = FAST_MS + call.number * 7919 % (SLOW_MS - FAST_MS)
            if self._failure_of(call.number):
                takes_ms = max(takes_ms, self.failing_ms)
            heapq.heappush(self._calls, (now_ms + takes_ms, call.number))

    def _failure_of(self, number: int) -> Failure | None:
        return self.failure if self.keys[number] == BAD_KEY else None


def simulated(
    traffic: Traffic, failure: Failure | None = None, failing_ms: int = 0, **policy: Any
) -> Simulation:
    found = Simulation(failure, failing_ms, **policy)
    found.run(traffic)
    return found


def p99_ms(found: Simulation) -> float:
    return float(np.percentile([*found.waited_ms.values()], 99))


BUSY_LANE = Traffic(rate=300, seconds=60)
QUIET_LANE = Traffic(rate=0.5, seconds=3_600, keys=9, bad_share=0.1)


@pytest.mark.parametrize(
    ("failure", "failing_ms"),
    [(BUSY, 0), (BUSY, TIMEOUT_MS), (UNKNOWN, 0)],
    ids=["fails", "hangs", "is refused"],
)
def test_a_key_whose_calls_always_fail_costs_the_others_nothing(
    failure: Failure, failing_ms: int
) -> None:
    clean, found = simulated(BUSY_LANE), simulated(BUSY_LANE, failure, failing_ms)
    assert clean.ends[True, "delivered"] > 100
    assert not found.ends[True, "delivered"], "it did not fail"
    assert found.ends[False, "delivered"] == clean.ends[False, "delivered"] > 10_000
    assert p99_ms(found) <= AT_MOST * p99_ms(clean)
    assert not found.opened


def test_nor_in_a_lane_where_little_else_is_called() -> None:
    clean, found = simulated(QUIET_LANE), simulated(QUIET_LANE, BUSY)
    assert clean.ends[True, "delivered"] > 10
    assert found.ends[False, "delivered"] == clean.ends[False, "delivered"] > 100
    assert p99_ms(found) <= AT_MOST * p99_ms(clean)


def test_the_probe_is_made_with_what_has_not_failed_yet() -> None:
    found = Lane(LanePolicy(breaker=BreakerPolicy(consecutive=1, open_ms=60_000)))
    bad = found.accept([1], NOW_MS, NOW_MS)
    found.open(bad.first, [BAD_KEY], [1])
    call = found.begin(NOW_MS)
    assert call
    found.end(call.number, [BUSY], NOW_MS)
    assert found.breaker.state == "open"
    good = found.accept([1], NOW_MS + 5_000, NOW_MS + 5_000)
    while want := found.wanted(NOW_MS + 60_000):
        found.open(want.chunk, ["good"], [1])
    probe = found.begin(NOW_MS + 60_000)
    assert probe
    assert probe.number == good.first
