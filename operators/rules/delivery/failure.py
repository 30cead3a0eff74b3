"""The one table that says what kind of failure an error is. Everything else asks it.

The category decides what is done about a failure: a transient one is retried, a persistent one is
not, one of data quality waits for its data to be mended, one of infrastructure stops the work until
the infrastructure is back. It also names the queue of a dead letter.

Of records the table knows error types, of calls to a target the class of an exception (or of what
caused it), the status of an HTTP answer and the SQLSTATE of a database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, get_args

from operators.rules.times import epoch_ms

FailureCategory = Literal["transient", "persistent", "data_quality", "infrastructure"]
CATEGORIES: Final[tuple[FailureCategory, ...]] = get_args(FailureCategory)

DATA_QUALITY: Final = "data_quality"

_CATEGORIES: dict[str, FailureCategory] = {
    "schema_error": DATA_QUALITY,
    "missing_required": DATA_QUALITY,
    "future_timestamp": DATA_QUALITY,
    "empty_message": DATA_QUALITY,
    "oversized": DATA_QUALITY,
    "null_bytes": DATA_QUALITY,
    "invalid_json": DATA_QUALITY,
}
_QUEUES: dict[FailureCategory, str] = {
    "transient": "transient",
    "persistent": "persistent",
    "data_quality": "data_quality",
    "infrastructure": "infrastructure",
}


def category_of(error_type: str) -> FailureCategory:
    """Look an error type up.

    Args:
        error_type: Any error type or quarantine reason.

    Returns:
        Its category. A name that is not in the table comes from a user's contract
        (`invalid_price`, `unknown_action`) or from a poison pattern, and so speaks of the data.
    """
    return _CATEGORIES.get(error_type, DATA_QUALITY)


def queue_of(category: FailureCategory) -> str:
    """Name the dead-letter queue of a category: the `queue=` folder of the output."""
    return _QUEUES[category]


# --- calls to a target ----------------------------------------------------------------------------


class FailureError(ValueError):
    """An entry of the table that cannot be used. The message is one line: which, and why."""


@dataclass(frozen=True)
class Handling:
    """What is done about a failed call.

    Attributes:
        category: names the queue, if it comes to a dead letter.
        retryable: whether the same call may succeed later.
        systemic: it speaks of the target as a whole, and not of this record: the breaker opens at
            once, and the record is tried again when it lets it.
        wait_ms: so long at least before the next attempt.
    """

    category: FailureCategory
    retryable: bool = False
    systemic: bool = False
    wait_ms: int = 0


_TRANSIENT: Final = Handling("transient", retryable=True)
_PERSISTENT: Final = Handling("persistent")
_DATA: Final = Handling("data_quality")
#: Wrong credentials, a missing table: nothing is wrong with the record, so it is not given up.
_REFUSED: Final = Handling("persistent", retryable=True, systemic=True)

#: By name: `http_503` before `http_5xx`, `sqlstate_40001` before `sqlstate_40`, a class before the
#: classes that it is derived from.
_CALLS: Final[dict[str, Handling]] = {
    "http_5xx": _TRANSIENT,
    "http_501": _PERSISTENT,  # the method is not known there, and will not be
    "http_505": _PERSISTENT,
    "http_408": _TRANSIENT,
    "http_425": _TRANSIENT,
    "http_429": _TRANSIENT,
    "http_400": _DATA,
    "http_404": _DATA,
    "http_413": _DATA,
    "http_422": _DATA,
    "http_401": _REFUSED,
    "http_403": _REFUSED,
    "sqlstate_08": _TRANSIENT,  # the connection
    "sqlstate_25": _TRANSIENT,  # a server that only reads: after a failover, for a while
    "sqlstate_40": _TRANSIENT,  # the transaction was rolled back: serialization, deadlock
    "sqlstate_53": _TRANSIENT,  # no room, too many connections
    "sqlstate_55": _TRANSIENT,  # a lock, something in use
    "sqlstate_57": _TRANSIENT,  # shut down, cancelled
    "sqlstate_58": _TRANSIENT,  # its disk
    "sqlstate_21": _DATA,  # two rows for one
    "sqlstate_22": _DATA,  # a value does not fit
    "sqlstate_23": _DATA,  # a constraint
    "sqlstate_44": _DATA,  # a view's check
    "sqlstate_54": _DATA,  # too large
    "sqlstate_P0": _DATA,  # a trigger that refuses the row
    "sqlstate_28": _REFUSED,  # the login
    "sqlstate_3D": _REFUSED,  # no such database
    "sqlstate_3F": _REFUSED,  # no such schema
    "sqlstate_0A": _REFUSED,  # it knows no such statement
    "sqlstate_42": _REFUSED,  # no such table or column, no right to it
    "builtins.TimeoutError": _TRANSIENT,
    "asyncio.exceptions.TimeoutError": _TRANSIENT,  # Python 3.10: a class of its own
    "concurrent.futures._base.TimeoutError": _TRANSIENT,
    "builtins.ConnectionError": _TRANSIENT,
    "socket.gaierror": _TRANSIENT,
    "httpx.TransportError": _TRANSIENT,
    "httpx.UnsupportedProtocol": _PERSISTENT,
    "httpx.LocalProtocolError": _PERSISTENT,  # what was to be sent is none
    "psycopg.OperationalError": _TRANSIENT,  # without a SQLSTATE: the server is not there
}
_NAMES: Final = re.compile(
    r"http_[1-5](\d\d|xx)|sqlstate_[0-9A-Z]{2}([0-9A-Z]{3})?|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"
)
_MOST_CAUSES: Final = 10
_LONGEST_WAIT_MS: Final = 86_400_000


@dataclass(frozen=True)
class FailureTable:
    """The table, with the user's own entries before ours.

    Attributes:
        entries: by `http_NNN`, `http_Nxx`, `sqlstate_XXXXX`, `sqlstate_XX`, or the full name of an
            exception's class.

    Raises:
        FailureError: A name is none of these, or a wait is negative.
    """

    entries: Mapping[str, Handling] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse at start what would never be found."""
        for name, handling in self.entries.items():
            if not _NAMES.fullmatch(name):
                raise FailureError(
                    f"failure {name!r}: use http_503, http_5xx, sqlstate_23505, sqlstate_23, or "
                    "the full name of an exception's class, as package.module.Class"
                )
            if handling.wait_ms < 0:
                raise FailureError(f"failure {name!r}: wait_ms must be 0 or more")

    def of_status(self, status: int) -> Handling | None:
        """Look an HTTP status up.

        Returns:
            What is done about it; persistent if it is not known; None below 300, a success.
        """
        if status < 300:
            return None
        return self._find(f"http_{status}", f"http_{status // 100}xx") or _PERSISTENT

    def of_sqlstate(self, state: str) -> Handling:
        """Look a SQLSTATE up: by all of it, then by its class, the first two characters."""
        return self._find(f"sqlstate_{state}", f"sqlstate_{state[:2]}") or _PERSISTENT

    def of_exception(self, error: BaseException) -> tuple[str, Handling]:
        """Look an exception up, and if it is not known what caused it.

        An exception that carries an HTTP status (`response.status_code`, as httpx's has it) or a
        SQLSTATE (`sqlstate`, as psycopg's has it) is looked up by that. The user's entry for a
        class comes first.

        Returns:
            The error type, and what is done. An exception that nothing is known of is persistent:
            nobody can say that the same call would succeed later.
        """
        for each in _causes(error):
            if found := self._of_class(type(each), self.entries):
                return _snake(type(each).__name__), found
            if found_as := self._of_code(each):
                return found_as
            if found := self._of_class(type(each), _CALLS):
                return _snake(type(each).__name__), found
        return _snake(type(error).__name__), _PERSISTENT

    def _find(self, *names: str) -> Handling | None:
        for entries in (self.entries, _CALLS):
            for name in names:
                if name in entries:
                    return entries[name]
        return None

    def _of_code(self, error: BaseException) -> tuple[str, Handling] | None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int) and (handling := self.of_status(status)):
            return f"http_{status}", handling
        state: Any = getattr(error, "sqlstate", None)
        if isinstance(state, str) and state:
            return f"sqlstate_{state}", self.of_sqlstate(state)
        return None

    def _of_class(self, kind: type, entries: Mapping[str, Handling]) -> Handling | None:
        for each in kind.__mro__:
            found = entries.get(f"{each.__module__}.{each.__qualname__}")
            # A package shows its classes under its own name, wherever they are defined.
            found = found or entries.get(f"{each.__module__.partition('.')[0]}.{each.__qualname__}")
            if found:
                return found
        return None


def retry_after_ms(value: str | None, now_ms: int) -> int:
    """What a Retry-After header asks for (RFC 9110, 10.2.3): seconds, or an HTTP date.

    Returns:
        Milliseconds from now, a day at most; 0 if there is none, it has passed or makes no sense.
    """
    if not value:
        return 0
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(int(text[:10]) * 1000, _LONGEST_WAIT_MS)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return 0
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0, min(epoch_ms(date) - now_ms, _LONGEST_WAIT_MS))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what it was raised from, outermost first."""
    each: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if each is None:
            return
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _snake(name: str) -> str:
    """A class's name as an error type: folders and topics are named by it."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9_]", "_", words.lower())[:100]
