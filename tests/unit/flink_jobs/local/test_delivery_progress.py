"""What a person sees of delivery while a run goes on."""

from __future__ import annotations

from flink_jobs.local.delivery_progress import delivery_lines


def test_nothing_is_said_where_there_is_no_delivery() -> None:
    assert delivery_lines({"received": 5}, 4) == ""


def test_how_much_is_where_and_the_breaker_of_each_lane() -> None:
    counters = {
        "received": 5,
        "delivery.delivered": 12_345,
        "delivery.dead_letters": 2,
        "delivery.in_flight": 7,
        "delivery.waiting": 1_000,
        "delivery.open.1": 1,
        "delivery.open.2": 0,
        "delivery.half_open.3": 1,
    }
    assert delivery_lines(counters, 4).splitlines() == [
        "",
        "  12,345 delivered, 2 dead letters, 7 calls in flight, 1,000 events waiting",
        "  breakers ●○●◐ 2 closed, 1 half open, 1 open",
    ]
