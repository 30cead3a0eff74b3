"""What the settings make of delivery."""

from __future__ import annotations

import pytest

from flink_jobs.settings import SettingsError, load_settings
from tests.unit.flink_jobs.dead_letters.stored import rules

POSTGRES = {"postgres.table": "public.events"}


@pytest.mark.parametrize(
    ("target", "calls", "connections", "at_a_time"),
    [
        ("postgres", 64, 4, 4),
        ("postgres", 3, 4, 3),
        ("http", 64, 4, 64),
        ("tests.unit.flink_jobs.dead_letters.stored:take", 64, 4, 64),
    ],
)
def test_no_more_calls_are_made_than_there_are_connections_for(
    target: str, calls: int, connections: int, at_a_time: int
) -> None:
    """Else they wait for one, and that is part of the time in which a call to Postgres must end."""
    call = {"delivery.calls_per_worker": calls, "postgres.connections": connections}
    made = rules(target, **POSTGRES, **call, **{"http.url": "http://h/"})
    assert made.calls_per_worker == at_a_time


@pytest.mark.parametrize("name", ["prize", "user_id", "timestamp", "product_id"])
def test_an_answer_that_could_add_nothing_is_refused_at_start(name: str) -> None:
    """The bug it catches: each event becomes a dead letter (invalid_answer)."""
    call = {"delivery.target": "http", "http.url": "http://h/", "contract.identity": "product_id"}
    told = (
        rf"http.answer_fields: '{name}' cannot be added: use fields of the contract, but not its "
        "key, time or identity: action, price$"
    )
    with pytest.raises(SettingsError, match=told):
        load_settings(None, {**call, "http.answer_fields": ("price", name)}, {})
    assert load_settings(None, {**call, "http.answer_fields": ("price", "action")}, {})
