"""Settings that contradict each other: each may be so, but with the other it cannot do its work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flink_jobs.settings.tables import Settings


class Contradiction(NamedTuple):
    """A setting, and what is wrong with it beside another one, and what would be right."""

    table: str
    name: str
    why: str


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """What cannot be meant so."""
    delivery = settings.delivery
    if not delivery.target:
        if delivery.fallback == "file":
            yield Contradiction(
                "delivery", "fallback", "needs a delivery.target: without one nothing is delivered"
            )
        return  # nothing is called, so nothing else of it counts
    if delivery.after_dead_letter == "follow" and delivery.ordering != "key":
        yield Contradiction(
            "delivery", "after_dead_letter", 'needs delivery.ordering = "key": else nothing follows'
        )
    yield from _times(settings)


def _times(settings: Settings) -> Iterator[Contradiction]:
    breaker, retry, timeout_ms = settings.breaker, settings.retry, settings.delivery.timeout_ms
    # As long as that: those count that have run out of time.
    if breaker.slow_rate and breaker.slow_ms > timeout_ms:
        yield Contradiction(
            "breaker",
            "slow_ms",
            f"no call takes longer than delivery.timeout_ms ({timeout_ms}), so none would be slow "
            "for breaker.slow_rate: set it below that",
        )
    # A target that is slow but well would never be taken up again.
    if breaker.half_open_ms < timeout_ms:
        yield Contradiction(
            "breaker",
            "half_open_ms",
            "a probe would have failed before its time is over: set it to delivery.timeout_ms "
            f"({timeout_ms}) or more",
        )
    first_wait_ms = int(retry.base_ms * (1 - retry.jitter))
    if retry.max_attempts > 1 and 0 < retry.budget_ms < first_wait_ms:
        yield Contradiction(
            "retry",
            "budget_ms",
            f"is over before the first repeat, which waits for {first_wait_ms} at least (base_ms, "
            "jitter): set it above that, or max_attempts to 1",
        )
