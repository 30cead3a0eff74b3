"""Settings that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from flink_jobs.errors import WRONG_CALL
from flink_jobs.settings import SettingsError, load_settings

TARGET = {"delivery.target": "http", "http.url": "http://h/"}


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (
            {"breaker.slow_rate": 0.5, "breaker.slow_ms": 10_001},
            "breaker.slow_ms = 10001: no call takes longer than delivery.timeout_ms (10000)",
        ),
        ({"breaker.slow_rate": 0.5}, "breaker.slow_ms = 60000: no call takes longer"),
        (
            {"delivery.timeout_ms": 60_001},
            "breaker.half_open_ms = 60000: a probe would have failed before its time is over: set",
        ),
        (
            {"retry.budget_ms": 899},
            "retry.budget_ms = 899: is over before the first repeat, which waits for 900 at least",
        ),
        (
            {"delivery.ordering": "none", "delivery.after_dead_letter": "follow"},
            'delivery.after_dead_letter = "follow": needs delivery.ordering = "key"',
        ),
        (
            {"delivery.target": "", "delivery.fallback": "file"},
            'delivery.fallback = "file": needs a delivery.target: without one nothing is delivered',
        ),
        (
            {
                "delivery.target": "",
                "delivery.fallback": "file",
                "delivery.overflow": "fallback",
            },
            'delivery.fallback = "file": needs a delivery.target',
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_so_is_refused_in_a_line(pair: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(None, {**TARGET, **pair}, {})
    message = str(refused.value)
    assert message.startswith(told)
    assert "; change " in message
    assert "\n" not in message
    assert refused.value.exit_code == WRONG_CALL


@pytest.mark.parametrize(
    "pair",
    [
        {},
        # Calls that have run out of time are slow ones too.
        {"breaker.slow_rate": 0.5, "breaker.slow_ms": 10_000},
        {"breaker.slow_ms": 1_000_000},
        {"delivery.timeout_ms": 60_000},
        {"delivery.timeout_ms": 90_000, "breaker.half_open_ms": 90_000},
        {"retry.budget_ms": 900},
        {"retry.budget_ms": 1, "retry.max_attempts": 1},
        {"retry.budget_ms": 1, "retry.jitter": 1.0},
        {"delivery.after_dead_letter": "follow"},
        {"delivery.fallback": "file", "delivery.overflow": "fallback"},
        # Nothing is called, so nothing is contradicted.
        {"delivery.target": "", "delivery.timeout_ms": 90_000, "retry.budget_ms": 1},
    ],
    ids=str,
)
def test_what_goes_together_is_taken(pair: dict[str, Any]) -> None:
    load_settings(None, {**TARGET, **pair}, {})


def test_it_is_said_where_to_change_it() -> None:
    environ = {"BREAKWATER_BREAKER__HALF_OPEN_MS": "5", "BREAKWATER_DELIVERY__TARGET": "http"}
    with pytest.raises(SettingsError, match=r"; change BREAKWATER_BREAKER__HALF_OPEN_MS$"):
        load_settings(None, {"http.url": "http://h/"}, environ)
