"""What the settings make of deduplication."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from flink_jobs.settings import Settings, load_settings
from flink_jobs.settings.types import DAY_MS
from flink_jobs.wiring.rules import delivery_rules, intake_rules
from operators.rules.delivery.lane_records import LanePolicy
from operators.targets.function import FunctionTarget
from operators.targets.nothing import NoTarget


def settings(**call: object) -> Settings:
    return load_settings(None, {name.replace("__", "."): each for name, each in call.items()}, {})


def test_it_is_off_by_default() -> None:
    assert delivery_rules(settings()) is None
    assert delivery_rules(settings(deduplicate__ttl_ms=5_000)) is None
    with_target = delivery_rules(settings(delivery__target="builtins:print"))
    assert with_target
    assert with_target.duplicates_ttl_ms == 0


def test_it_works_with_a_target_as_the_settings_have_it() -> None:
    plain = delivery_rules(settings(delivery__target="builtins:print", delivery__max_records=7))
    rules = delivery_rules(
        settings(
            delivery__target="builtins:print", delivery__max_records=7, deduplicate__enabled=True
        )
    )
    assert plain
    assert rules
    assert rules.duplicates_ttl_ms == DAY_MS
    assert isinstance(rules.target(), FunctionTarget)
    assert rules.policy == plain.policy
    assert rules.policy.max_records == 7


def test_without_a_target_all_events_are_taken_at_once_whatever_is_set_of_delivery() -> None:
    rules = delivery_rules(
        settings(
            deduplicate__enabled=True,
            deduplicate__ttl_ms=5_000,
            delivery__lanes=3,
            delivery__max_records=1,
            delivery__max_bytes=1_000,
            breaker__forced="open",
        )
    )
    assert rules
    assert (rules.duplicates_ttl_ms, rules.lanes) == (5_000, 3)
    assert rules.policy.breaker == LanePolicy().breaker
    # A row that intake hands on may be large: none of it may be an overflow.
    assert min(rules.policy.max_records, rules.policy.max_bytes) > 10**12
    target = pickle.loads(pickle.dumps(rules.target))()  # noqa: S301 - our own bytes
    assert isinstance(target, NoTarget)
    assert target.keeps_order
    assert asyncio.run(target.deliver([])) == []


@pytest.mark.parametrize("name", ["", "product_id"])
def test_the_contract_of_intake_and_of_delivery_has_the_identity(name: str) -> None:
    call = settings(deduplicate__enabled=True, contract__identity=name)
    rules = delivery_rules(call)
    assert rules
    assert rules.contract.identity == intake_rules(call).contract.identity == (name or None)
