"""The types that settings are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

DAY_MS = 86_400_000
MIB = 1_048_576


def _whole_number(value: object) -> object:
    """Refuse ``true``, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("whole_number", "must be a whole number")
    return value


def flat_options(value: object) -> object:
    """Flatten tables to dotted names: TOML reads ``state.backend.type = "rocksdb"`` as tables."""
    if not isinstance(value, Mapping):
        return value
    return dict(_dotted(value))


def _dotted(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _flink_text(value)


def _flink_text(value: object) -> object:
    """Write a value as Flink's own configuration file does: true, 4, a;b."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return ";".join(str(_flink_text(item)) for item in value)
    return value


Whole = Annotated[int, BeforeValidator(_whole_number)]
FlinkOptions = Annotated[dict[str, str], BeforeValidator(flat_options)]


class Table(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
