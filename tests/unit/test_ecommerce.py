"""The reference contract: what it accepts, and that it travels to a worker by its name."""

from __future__ import annotations

import pickle
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from operators.rules.contract import load_contract
from udfs.ecommerce import EcommerceEvent

EVENT: dict[str, Any] = {
    "user_id": "u1",
    "product_id": "p1",
    "action": "purchase",
    "price": 9.99,
    "timestamp": "2026-01-01T00:00:00Z",
}


def decode(**changes: Any) -> EcommerceEvent:
    return msgspec.json.decode(msgspec.json.encode({**EVENT, **changes}), type=EcommerceEvent)


def test_an_event_is_read_as_it_is_written() -> None:
    time = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert decode() == EcommerceEvent("u1", "p1", "purchase", 9.99, time)
    assert msgspec.json.decode(msgspec.json.encode(decode())) == EVENT


@pytest.mark.parametrize("action", ["view", "click", "purchase", "add_to_cart"])
def test_these_are_the_actions(action: str) -> None:
    assert decode(action=action).action == action


@pytest.mark.parametrize(
    "changes",
    [{"user_id": ""}, {"product_id": ""}, {"action": "View"}, {"price": -0.01}, {"price": "1"}],
)
def test_what_is_not_an_event_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(**changes)


def test_it_is_small_and_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        decode().price = 1.0  # type: ignore[misc]
    assert not EcommerceEvent.__struct_config__.gc


def test_it_is_found_by_its_name() -> None:
    contract = load_contract("udfs.ecommerce:EcommerceEvent", "user_id", "timestamp", "price")
    assert pickle.loads(pickle.dumps(contract)).type is EcommerceEvent  # noqa: S301 - our own bytes
