"""Contracts that break what is behind msgspec's back: only a user's own code can."""

from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec

CLASHING = ("tests.unit.operators.contracts:Clashing", "key", "at")
REWRITING = ("tests.unit.operators.contracts:Rewriting", "key", "at", "number")


class Clashing(
    msgspec.Struct,
    rename={"source_topic": "topic", "source_offset": "offset", "f0": "class", "at": "f1"},
):
    """Its attributes, though not its columns, have names that Breakwater uses itself."""

    key: str
    at: datetime
    source_topic: str
    source_offset: int
    f0: int


class Rewriting(msgspec.Struct):
    """Sets a field to something that its type does not allow, as the record's key says."""

    key: str
    at: datetime
    number: int = 0
    ratio: float = 0.0
    ok: bool = True
    more: int | None = None

    def __post_init__(self) -> None:
        changes: dict[str, tuple[str, Any]] = {
            "text in a number": ("number", "x"),
            "wide number": ("number", 2**63),
            "wide number that may be null": ("more", 2**63),
            "text in a number that may be null": ("more", "x"),
            "text in a ratio": ("ratio", "x"),
            "infinite ratio": ("ratio", float("inf")),
            "number in a text": ("key", 5),
            "bytes in a text": ("key", b"\xff"),
            "lone surrogate": ("key", "\ud800"),
            "null key": ("key", None),
            "null time": ("at", None),
            "text in a time": ("at", "now"),
            "early time": ("at", datetime.fromisoformat("0001-01-01T00:00:00+14:00")),
            "future time": ("at", datetime(2999, 1, 1, tzinfo=timezone.utc)),
            "text in a flag": ("ok", "yes"),
            "null flag": ("ok", None),
        }
        if self.key in changes:
            setattr(self, *changes[self.key])


class Tagged(msgspec.Struct, tag=True):
    """Says in each record what it is."""

    key: str
    at: datetime


class WithoutZone(msgspec.Struct):
    """Its times have no offset."""

    key: str
    at: Annotated[datetime, msgspec.Meta(tz=False)]


class DefaultTime(msgspec.Struct):
    """Its second time has a default."""

    key: str
    at: datetime
    since: datetime = datetime(2026, 1, 1, tzinfo=timezone.utc)


#: Keys of `Rewriting` whose events cannot be written.
REWRITTEN = (
    *("wide number that may be null", "text in a number that may be null"),
    *("text in a number", "wide number", "text in a ratio"),
    *("infinite ratio", "number in a text", "bytes in a text", "lone surrogate", "null key"),
    *("null time", "text in a time", "early time", "future time", "text in a flag", "null flag"),
)


class OnlyViews(msgspec.Struct):
    """The reference contract, but only views are taken."""

    user_id: str
    product_id: str
    action: Literal["view"]
    price: float
    timestamp: datetime


class WithBreakwaterKey(msgspec.Struct):
    """Has a field of the name that the fallback store adds."""

    key: str
    at: datetime
    breakwater_key: str = ""


class WithCurrency(msgspec.Struct):
    """The reference contract, with one field more."""

    user_id: str
    product_id: str
    action: str
    price: float
    timestamp: datetime
    currency: str = "EUR"
