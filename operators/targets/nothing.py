"""A target that is none: where events need no service, but what comes with delivery.

For deduplication without a target: the events go the same way, and nothing is called.
"""

from __future__ import annotations

from collections.abc import Sequence

from udfs.targets import Event, Outcome, Target


class NoTarget(Target):
    """Takes everything at once."""

    max_batch = 10_000
    keeps_order = True

    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Take them; nobody looks at them, so none of them is read."""
        return [None] * len(events)
