"""What a lane of delivery is told, keeps and hands on: see `operators.rules.delivery.lane`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec

from operators.rules.delivery.backoff import RetryPolicy
from operators.rules.delivery.breaker import Breaker, BreakerPolicy
from operators.rules.delivery.failure import FailureCategory, Handling

Ordering = Literal["key", "none"]
AfterDeadLetter = Literal["go_on", "follow"]
Disposition = Literal[
    "delivered", "refused", "exhausted", "followed", "expired", "overflow", "flush_at_end"
]
#: Of a record's attempts so many are kept: the first one, and the last ones.
MOST_HISTORY: Final = 10
#: Of those that are given up so many leave at once.
MOST_AT_ONCE: Final = 1_000
#: The shell comes by some twenty times a second: so many wait for it to look at a chunk.
_LEAST_WINDOW: Final = 500


@dataclass(frozen=True)
class LanePolicy:
    """What a lane goes by.

    Attributes:
        retry: how often, and how far apart.
        breaker: when the target is left alone.
        ordering: "key" keeps the records of a key behind each other.
        after_dead_letter: with ordering by key, whether the followers of a dead letter go on, or
            follow it.
        calls: at a time at most.
        batch: records in a call at most.
        keeps_order: the target takes several records of a key in one call, and keeps their order.
        max_records: so many the lane holds, those that are being called with included.
        max_bytes: and so many bytes of them.
        max_age_ms: a record that has been here for so long is given up; 0 for never.
        hold_ms: so long does the watermark wait while the breaker is not closed, see `held_ms`.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    ordering: Ordering = "key"
    after_dead_letter: AfterDeadLetter = "go_on"
    calls: int = 16
    batch: int = 1
    keeps_order: bool = False
    max_records: int = 10_000
    max_bytes: int = 16_000_000
    max_age_ms: int = 0
    hold_ms: int = 0

    @property
    def window(self) -> int:
        """So many records that may be called with are kept at hand."""
        return max(2 * self.calls * self.batch, _LEAST_WINDOW)


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """A call that failed.

    Attributes:
        at_ms: when it ended.
        error_type: as the failure table names it.
        message: what was said.
        category: what kind of failure it is.
        stacktrace: of one that nothing is known of; "" else.
    """

    at_ms: int
    error_type: str
    message: str
    category: FailureCategory = "transient"
    stacktrace: str = ""


class Waiting(msgspec.Struct, array_like=True):
    """A record on its way, of a chunk that has been opened.

    Attributes:
        number: its place in the lane: numbers only grow.
        key: the event's key.
        size_bytes: its size.
        due_ms: when it may be called with.
        attempts: calls that count against it.
        first_failure_ms: when the first call failed; 0 if none has.
        history: the calls that failed, oldest first; those that do not count too.
    """

    number: int
    key: str
    size_bytes: int
    due_ms: int
    attempts: int = 0
    first_failure_ms: int = 0
    history: tuple[Attempt, ...] = ()


class Chunk(msgspec.Struct, array_like=True):
    """Records that arrived together.

    Attributes:
        first: number of the first; the next ones' follow it.
        count: how many arrived.
        size_bytes: of those that are still here.
        accepted_ms: since when they are here.
        event_ms: the oldest event time among them.
        records: those that are still here, by number; None while it has not been opened.
    """

    first: int
    count: int
    size_bytes: int
    accepted_ms: int
    event_ms: int
    records: dict[int, Waiting] | None = None

    def __len__(self) -> int:
        """How many records are still here."""
        return self.count if self.records is None else len(self.records)


class Failure(NamedTuple):
    """A call that failed, as the failure table sees it."""

    error_type: str
    message: str
    handling: Handling
    wait_ms: int = 0
    stacktrace: str = ""
    #: Not tried, since one before it in its call had failed: nothing is known.
    untried: bool = False
    #: The record is refused before the target is called with it.
    uncalled: bool = False


class Left(NamedTuple):
    """A record that leaves the lane, how, and the chunk it was of."""

    record: Waiting
    disposition: Disposition
    chunk: int


class Whole(NamedTuple):
    """A chunk that leaves as it has come, delivered."""

    chunk: int
    size: int


class Want(NamedTuple):
    """A chunk whose events are needed: to look into it, or only to have them at hand."""

    chunk: int
    to_open: bool


class Call(NamedTuple):
    """A call that is out.

    Attributes:
        number: of the call: its first record's.
        records: what it is made with; none if it is made with a chunk as it has come.
        chunk: that chunk, else None.
        size: how many records it is made with.
        began_ms: when it began.
        epoch: the breaker's then.
        is_probe: whether the breaker was half open.
    """

    number: int
    records: list[Waiting]
    chunk: int | None
    size: int
    began_ms: int
    epoch: int
    is_probe: bool


class Head(msgspec.Struct, array_like=True):
    """What a lane keeps beside its chunks.

    Attributes:
        breaker: its breaker.
        next_number: of the next record.
        follow: keys with a dead letter that others follow, by the number from which on they do not.
        last_failure: the newest one, for those that are given up without a call of their own.
        failing_keys: of the failures since the last success, two of them at most.
    """

    breaker: Breaker = Breaker()
    next_number: int = 0
    follow: dict[str, int] = {}
    last_failure: Attempt | None = None
    failing_keys: tuple[str, ...] = ()
