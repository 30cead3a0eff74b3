"""Contracts that the tests load by name, as a user's would be. `Reading` is nothing like a shop."""

# ruff: noqa: UP007, UP045 - both spellings of Optional and Union are tested

from datetime import datetime
from typing import Annotated, Any, Literal, NewType, Optional, Union

import msgspec
from msgspec import Meta

ECOMMERCE = ("udfs.ecommerce:EcommerceEvent", "user_id", "timestamp", "price")
READING = ("tests.unit.operators.rules.contracts:Reading", "deviceId", "takenAt", "sequence")

Celsius = NewType("Celsius", float)


class Reading(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What a sensor sends: every supported type, defaults, and other names in the JSON."""

    device_id: Annotated[str, Meta(min_length=2, max_length=12, pattern="^[a-z]")]
    taken_at: datetime
    sequence: Annotated[int, Meta(ge=0)]
    is_ok: bool
    level: Literal[1, 2, 3]
    humidity: Annotated[float, Meta(ge=0, le=1, extra={"error_type": "bad_humidity"})]
    temperature: Optional[Annotated[Celsius, Meta(ge=-50, le=100)]] = None
    mode: Literal["auto", "manual", None] = None
    note: str = ""
    repaired_at: Annotated[datetime, Meta(tz=True)] | None = None


class Speechless(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses what it does not know, and has a rule of its own about two fields."""

    key: str
    at: datetime
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.key == "boom":
            raise KeyError("boom")
        if self.key == "stop":
            next(iter(()))
        if self.key == "dumb":
            raise Speechless
        if self.low > self.high:
            raise ValueError("low is above high")
        if self.key == "far":
            self.high = float("inf")
        if self.key == "wrong":
            self.high = "a text"  # type: ignore[assignment]


Word: Any = Literal[tuple(f"choice-{i}" for i in range(500))]


class Wordy(msgspec.Struct):
    """Whose messages are long."""

    key: str
    at: datetime
    one: Word
    two: Word


class WithOwnFuture(msgspec.Struct):
    key: str
    at: Annotated[datetime, Meta(extra={"error_type": "future_timestamp"})]


class Kebab(msgspec.Struct, rename="kebab"):
    machine_id: str
    measured_at: datetime
    oil_level: float


class Outer:
    class Inner(msgspec.Struct):
        key: str
        at: datetime


class NotAStruct:
    key: str


class AsArray(msgspec.Struct, array_like=True):
    key: str
    at: datetime


class WithList(msgspec.Struct):
    key: str
    at: datetime
    tags: list[str]


class WithUnion(msgspec.Struct):
    key: str
    at: datetime
    size: Union[int, str]


class WithMixedLiteral(msgspec.Struct):
    key: str
    at: datetime
    size: Literal["one", 2]


class WithBytes(msgspec.Struct):
    key: str
    at: datetime
    blob: bytes


class WithNested(msgspec.Struct):
    key: str
    at: datetime
    inner: Kebab


class WithOffsetColumn(msgspec.Struct, rename={"offset": "source_offset"}):
    key: str
    at: datetime
    offset: int


class WithBacktick(msgspec.Struct, rename={"other": "o`ther"}):
    key: str
    at: datetime
    other: int


class WithBadMeta(msgspec.Struct):
    key: str
    at: datetime
    size: Annotated[int, Meta(min_length=1)]


class WithBadErrorType(msgspec.Struct):
    key: str
    at: datetime
    size: Annotated[int, Meta(extra={"error_type": "Bad Size"})]


class WithBadDefault(msgspec.Struct):
    key: str
    at: datetime
    size: Annotated[int, Meta(ge=1)] = 0


class WithNoneDefault(msgspec.Struct):
    key: str
    at: datetime
    size: int = None  # type: ignore[assignment]


class WithInfiniteDefault(msgspec.Struct):
    key: str
    at: datetime
    size: float = float("inf")


class WithWideDefault(msgspec.Struct):
    key: str
    at: datetime
    size: int = 2**63


class WithFactory(msgspec.Struct):
    key: str
    at: datetime
    size: int = msgspec.field(default_factory=int)


class WithOptionalKey(msgspec.Struct):
    key: str | None
    at: datetime


class WithOptionalTime(msgspec.Struct):
    key: str
    at: datetime | None


class WithDefaultTime(msgspec.Struct):
    key: str
    at: datetime = datetime(2026, 1, 1)  # noqa: DTZ001 - what a user may write


class WithWindowKey(msgspec.Struct):
    window_start: str
    at: datetime
