"""The user's own rules for poison: records that can never succeed as they are.

Two kinds, both from the `[poison]` table of the settings: regular expressions over the raw bytes,
each with the reason it stands for, and names of violations that are to be quarantined instead of
dead-lettered.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

_REASON = re.compile(r"[a-z0-9_]{1,100}")
_TAKEN = frozenset({"empty_message", "null_bytes", "invalid_json", "oversized", "unreadable"})


class PoisonError(ValueError):
    """A poison rule that cannot be used. The message is one line: which, why, what to do."""


@dataclass(frozen=True)
class PoisonPattern:
    """A regular expression, and the reason it stands for.

    The expression is searched in the raw bytes of a record, before anything is decoded: `.` is one
    byte, and a character outside ASCII is its UTF-8 bytes. It runs on every record, so nested
    repeats such as `(a+)+` can cost more than everything else together.

    Attributes:
        pattern: Python's `re` syntax.
        reason: Name of the quarantine folder, `a-z`, `0-9` and `_`, and none of Breakwater's own.

    Raises:
        PoisonError: The pattern does not compile, or the reason cannot name a folder.
    """

    pattern: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse at start what would fail at the first record."""
        if not _REASON.fullmatch(self.reason):
            raise PoisonError(
                f"pattern {self.pattern!r} has reason {self.reason!r}: "
                "use 1 to 100 of a-z, 0-9 and _"
            )
        if self.reason in _TAKEN:
            raise PoisonError(
                f"pattern {self.pattern!r} has reason {self.reason!r}, which has a meaning of its "
                "own: give it another name"
            )
        _ = self.compiled

    @functools.cached_property
    def compiled(self) -> re.Pattern[bytes]:
        """The expression, compiled once."""
        try:
            return re.compile(self.pattern.encode())
        except re.error as error:
            where = "" if error.pos is None else f" at position {error.pos}"
            reason = f"{error.msg}{where}"
        except (ValueError, OverflowError, RecursionError) as error:
            reason = str(error)
        raise PoisonError(
            f"pattern {self.pattern!r} is not a regular expression: {reason}; correct it"
        )


@dataclass(frozen=True)
class PoisonRules:
    """All of the user's rules. Holds only rules that work; picklable.

    Attributes:
        patterns: Tried in this order; the first that matches gives the reason.
        violations: Error types that make a record poison instead of a dead letter.
    """

    patterns: tuple[PoisonPattern, ...] = ()
    violations: frozenset[str] = frozenset()

    @property
    def has_patterns(self) -> bool:
        """Whether `match` can find anything: lets a fast path skip it."""
        return bool(self.patterns)

    def match(self, payload: bytes) -> PoisonPattern | None:
        """Find the first pattern that matches anywhere in the payload."""
        for pattern in self.patterns:
            if pattern.compiled.search(payload):
                return pattern
        return None

    def check(self, error_types: Iterable[str]) -> None:
        """Check the names of violations against the error types that a contract knows.

        Args:
            error_types: `Contract.error_types`.

        Raises:
            PoisonError: A name is not among them; the message names the nearest that is.
        """
        known = list(error_types)
        for name in sorted(self.violations.difference(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise PoisonError(f"violation {name!r} is not an error type: {hint}")
