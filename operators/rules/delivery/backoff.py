"""When a failed attempt is made again: exponential backoff, capped, spread, within a budget.

The spread (jitter) comes from a hash of key and attempt, so a replay after a crash schedules the
same times, and records that failed together do not come back together.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

_HASHES: Final = 2**32


class RetryError(ValueError):
    """A retry policy that cannot be used. The message is one line: what is wrong."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how far apart.

    The delay behind attempt n is `base_ms * factor ** (n - 1)`, at most `cap_ms`, as in AWS's
    "Exponential Backoff And Jitter"; it is spread by `jitter` of itself to either side. What the
    target asks for (Retry-After) is kept to where it is longer.

    Attributes:
        max_attempts: calls in all, the first one included.
        base_ms: delay behind the first attempt.
        factor: each delay is so many times the one before.
        cap_ms: no delay is longer, before it is spread; what a target asks for may be.
        jitter: 0.1 spreads by ten per cent to either side.
        budget_ms: no attempt is begun later than this behind the first failure; 0 for no limit.

    Raises:
        RetryError: A value makes no sense.
    """

    max_attempts: int = 5
    base_ms: int = 1_000
    factor: float = 2.0
    cap_ms: int = 3_600_000
    jitter: float = 0.1
    budget_ms: int = 0

    def __post_init__(self) -> None:
        """Refuse at start what would fail at the first retry."""
        if self.max_attempts < 1:
            raise RetryError(f"max_attempts = {self.max_attempts}: must be 1 or more")
        if not 0 < self.base_ms <= self.cap_ms:
            raise RetryError(
                f"base_ms = {self.base_ms}: must be above 0, and not above cap_ms = {self.cap_ms}"
            )
        if self.factor < 1:
            raise RetryError(f"factor = {self.factor}: must be 1 or more")
        if not 0 <= self.jitter <= 1:
            raise RetryError(f"jitter = {self.jitter}: must be from 0 to 1")
        if self.budget_ms < 0:
            raise RetryError(f"budget_ms = {self.budget_ms}: must be 0 (no limit) or more")

    def delay_ms(self, key: bytes, attempts: int) -> int:
        """The delay behind an attempt.

        Args:
            key: what tells records apart; the same for each attempt of a record.
            attempts: attempts so far; 0, when none counts, is as 1.

        Returns:
            Milliseconds, 1 or more.
        """
        # 2.0 ** 1024 is no float: beyond the cap the exponent does not matter.
        steps = min(max(attempts, 1) - 1, 1_000)
        try:
            delay = min(self.base_ms * self.factor**steps, float(self.cap_ms))
        except OverflowError:
            delay = float(self.cap_ms)
        share = zlib.crc32(b"%d:" % attempts + key) / _HASHES  # in [0, 1)
        return max(1, round(delay * (1 + self.jitter * (2 * share - 1))))

    def next_attempt_ms(
        self, key: bytes, attempts: int, first_failure_ms: int, now_ms: int, wait_ms: int = 0
    ) -> int | None:
        """When to try again.

        Args:
            key: as for `delay_ms`.
            attempts: attempts so far that count; all have failed.
            first_failure_ms: when the first of them failed.
            now_ms: when the last of them failed.
            wait_ms: what the target has asked for, 0 if nothing.

        Returns:
            The instant, ms since 1970; None when attempts or budget are used up.
        """
        if attempts >= self.max_attempts:
            return None
        due_ms = now_ms + max(self.delay_ms(key, attempts), wait_ms)
        if self.budget_ms and due_ms > first_failure_ms + self.budget_ms:
            return None
        return due_ms
