"""A folder of the fallback store for the tests, and a service that writes down what it is sent."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flink_jobs.settings import load_settings
from flink_jobs.wiring.rules import delivery_rules
from operators.delivery.delivery_rules import DeliveryRules
from udfs.targets import Event, NotTried, Outcome

SOON = {
    "retry.base_ms": 1, "retry.cap_ms": 5, "retry.max_attempts": 3, "breaker.consecutive": 0,
}  # fmt: skip


def line(product: str, user: str = "u", **changes: Any) -> str:
    """A line of the store; its key is made of the product."""
    event = {
        "user_id": user, "product_id": product, "action": "view", "price": 1.5,
        "timestamp": "2026-01-01T11:00:00.000Z", "source_topic": "t", "source_partition": 3,
        "source_offset": 17, "breakwater_key": f"key-{product}", **changes,
    }  # fmt: skip
    return json.dumps({k: v for k, v in event.items() if v is not None}, separators=(",", ":"))


def write_part(folder: Path, name: str, lines: Iterable[str]) -> Path:
    """A part as a run commits it."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / name
    part.write_text("".join(f"{each}\n" for each in lines))
    return part


def rules(target: str, **settings: Any) -> DeliveryRules:
    """What the job's settings would make of delivery."""
    call = {"delivery.target": target, **SOON, **settings}
    found = delivery_rules(load_settings(None, call, {}))
    assert found
    return found


def reasons(folder: Path) -> list[dict[str, Any]]:
    """What undelivered.ndjson says."""
    path = folder / "undelivered.ndjson"
    return [json.loads(each) for each in path.read_text().splitlines()] if path.exists() else []


def once_each(keys: Iterable[str]) -> bool:
    """Whether no key is there twice."""
    return not [key for key, count in Counter(keys).items() if count > 1]


class Service:
    """What a test has told the functions below, and what they were called with."""

    answers: dict[str, list[Any]]
    events: list[Event]
    at_s: list[float]
    calls: list[int]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.answers, self.events, self.at_s, self.calls = {}, [], [], []

    @property
    def products(self) -> list[str]:
        return [event.value.product_id for event in self.events]


SERVICE = Service()


async def take(event: Event) -> Any:
    SERVICE.events.append(event)
    SERVICE.at_s.append(time.monotonic())
    answers = SERVICE.answers.get(event.value.product_id)
    answer = answers.pop(0) if answers else None
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def take_many(events: list[Event]) -> list[Outcome]:
    SERVICE.calls.append(len(events))
    return [await outcome_of(event) for event in events]


async def outcome_of(event: Event) -> Outcome:
    try:
        return await take(event)  # type: ignore[no-any-return]
    except Exception as error:  # of any kind: it is the event's outcome
        return error


async def take_in_order(events: list[Event]) -> list[Outcome]:
    SERVICE.calls.append(len(events))
    outcomes: list[Outcome] = []
    failed: set[str] = set()
    for event in events:
        outcomes.append(NotTried() if event.key in failed else await outcome_of(event))
        if isinstance(outcomes[-1], BaseException):
            failed.add(event.key)
    return outcomes


take_in_order.keeps_order = True  # type: ignore[attr-defined]
