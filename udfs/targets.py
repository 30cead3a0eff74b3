"""What a target is: the service, database or function that delivery hands events to.

A target takes a batch of events and says of each what became of it. It is called at least once for
each event: after a crash, and after a call whose answer did not come in time, again with the same
`Event.idempotency_key`. Whatever it raises or reports goes through the failure table; it need not
(and should not) retry by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What became of an event: None, it is delivered; a mapping, it is delivered and the answer adds
#: these fields to the event; an exception, it is not.
Outcome = None | Mapping[str, Any] | BaseException

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


def variable_shown(name: str) -> str:
    """A variable's name for a message; people also write the secret itself in its place."""
    return name if _VARIABLE.fullmatch(name) else "(not shown: it may be the secret itself)"


class TargetError(ValueError):
    """A target that cannot be used. The message is one line: which, what is wrong, what to do."""


class NotTried(Exception):  # an outcome, not a fault
    """The event was not tried, because one before it in its call had failed.

    For targets with `keeps_order`: it says nothing of the event, nor of the target.
    """


@dataclass(frozen=True)
class Event:
    """An event on its way to a target.

    Attributes:
        key: the contract's key.
        value: the event, an object of the contract's class.
        payload: the record as it came.
        line: the event as it is written to processed_events: JSON, without a newline.
        time_ms: event time, ms since 1970.
        idempotency_key: the same each time this event is called with, whatever happens between.
        source_topic: topic, or path of the file.
        source_partition: partition; 0 for a file.
        source_offset: offset.
        attempt: 1 for the first call that counts.
    """

    key: str
    value: Any
    payload: bytes
    line: bytes
    time_ms: int
    idempotency_key: str
    source_topic: str
    source_partition: int
    source_offset: int
    attempt: int


class Target:
    """The protocol. All of it runs on one event loop, in the worker; it must not block the loop.

    Attributes:
        max_batch: so many events in a call at most.
        keeps_order: whether a call may hold several events of one key: then the target handles
            them in order, and reports those behind a failed one of the same key as `NotTried`.
    """

    max_batch: int = 1
    keeps_order: bool = False

    async def open(self) -> None:
        """Get ready, once a worker. What it raises fails the job: say in one line what to do."""

    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Hand the events over.

        Args:
            events: one to `max_batch`.

        Returns:
            An outcome each, in the same order.

        Raises:
            Exception: of any kind: none of the events has been delivered, as far as is known.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of everything."""
