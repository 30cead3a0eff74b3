"""Targets that do nothing, for bench/delivery.py: what is left is the cost of delivery itself."""

from __future__ import annotations

from collections.abc import Sequence

from udfs.targets import Event


async def batch(events: Sequence[Event]) -> None:
    """Takes whole batches, in their order."""


batch.keeps_order = True  # type: ignore[attr-defined]


async def each(event: Event) -> None:
    """Takes an event a call."""
