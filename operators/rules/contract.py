"""The contract: what a good event looks like, and everything that follows from it.

A user writes one `msgspec.Struct`. Column types for SQL and Arrow, the names of the error types and
their precedence are derived from it here, once, so that no other module needs to change for
another domain.

Supported field types: `str`, `int`, `float`, `bool`, `datetime`, `Literal` of strings or of
integers, `Optional` of these, each possibly `Annotated` with `msgspec.Meta`. The names of the
columns are the names in the JSON, so `rename=` is honoured.

Times: RFC 3339; without an offset they are read as UTC. Digits below a millisecond are cut (those
below a microsecond msgspec has rounded before).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import json
import math
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import pyarrow as pa

from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms

ColumnKind = Literal["str", "int", "float", "bool", "datetime"]

SCHEMA_ERROR = "schema_error"
MISSING_REQUIRED = "missing_required"
FUTURE_TIMESTAMP = "future_timestamp"

SOURCE_COLUMNS = ("source_topic", "source_partition", "source_offset")
"""Added to each event on its way out; a contract must not use these names."""
WINDOW_COLUMNS = ("window_start", "window_end", "total_value", "latest_event", "event_count")
"""Columns of a window beside its key; the key must not use these names."""

MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
OUTSIDE_INT64 = "outside 64 bits"
NOT_FINITE = "not a finite number"

_KINDS: dict[Any, ColumnKind] = {
    str: "str",
    int: "int",
    float: "float",
    bool: "bool",
    datetime: "datetime",
}
_SQL_TYPES: dict[ColumnKind, str] = {
    "str": "STRING",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "datetime": "TIMESTAMP_LTZ(3)",
}
# Timestamps carry no zone in Arrow: only so does Flink read them as TIMESTAMP or TIMESTAMP_LTZ.
_ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "datetime": pa.timestamp("ms"),
}
_CONSTRAINTS = (
    "gt",
    "ge",
    "lt",
    "le",
    "multiple_of",
    "pattern",
    "min_length",
    "max_length",
    "tz",
)
_TYPE_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_ERROR_TYPE = re.compile(r"[a-z0-9_]+")
_SUPPORTED = "str, int, float, bool, datetime, Literal of str or of int, or Optional of these"

T = TypeVar("T")


class ContractError(ValueError):
    """A contract that cannot be used. The message is one line: what is wrong, and what to do."""


@dataclass(frozen=True)
class Column:
    """One field of the contract, as every other part of Breakwater needs it.

    Attributes:
        name: Name in the JSON, in SQL and in Arrow.
        attribute: Name of the attribute on the Struct; differs from `name` under `rename=`.
        kind: The type without its constraints; a `Literal` has the kind of its values.
        optional: `None` is a legal value.
        required: There is no default: the field has to be in the JSON.
        bare_type: The Python type without constraints, e.g. `float`.
        full_type: The type as declared, for msgspec.
        absent_error: Error type when the field is absent, null or empty and must not be.
        invalid_error: Error type when a value of the right type breaks a constraint.
        constrained: Whether a value of the right type can be refused at all. Numbers always can:
            they have to fit 64 bits.
        choices: The values of a `Literal`, else `()`.
        sql_type: Column type in Flink SQL.
        arrow_type: Column type in Arrow.
    """

    name: str
    attribute: str
    kind: ColumnKind
    optional: bool
    required: bool
    bare_type: Any
    full_type: Any
    absent_error: str
    invalid_error: str
    constrained: bool
    choices: tuple[str | int, ...]
    sql_type: str
    arrow_type: pa.DataType


@dataclass(frozen=True)
class Contract:
    """A loaded contract. Pickled by reference: the worker loads it again from `path`.

    Attributes:
        type: The user's Struct.
        key: Name of the key column: windows and lanes are by it. A `str`, never null.
        event_time: Name of the event-time column. A `datetime`, never null.
        value: Name of the numeric column that windows sum, or None: they only count.
        columns: The fields in the order of the Struct.
        version: 12 hex digits over names, types, defaults and constraints: the same on every
            Python version, another one whenever the meaning of an accepted event may change.
        path: `package.module:Class`, where it was loaded from.
        identity: Name of the column that tells events apart, or None: their payloads do. A `str`
            or an `int`, in every record.
    """

    type: type[msgspec.Struct]
    key: str
    event_time: str
    value: str | None
    columns: tuple[Column, ...]
    version: str
    path: str
    identity: str | None = None

    @functools.cached_property
    def error_types(self) -> tuple[str, ...]:
        """Every error type a record can have, the one that names the record first.

        `schema_error`, `missing_required`, then constraints of free values in field order, then
        values outside a `Literal` in field order, then `future_timestamp`.
        """
        free = [name for c in self.columns if not c.choices for name in _error_types(c)]
        literal = [name for c in self.columns if c.choices for name in _error_types(c)]
        names = [SCHEMA_ERROR, MISSING_REQUIRED, *free, *literal]
        return (*dict.fromkeys(n for n in names if n != FUTURE_TIMESTAMP), FUTURE_TIMESTAMP)

    @functools.cached_property
    def answerable(self) -> tuple[str, ...]:
        """Columns that a target's answer may add: not those by which an event has its place."""
        fixed = {self.key, self.event_time, self.identity}
        return tuple(column.name for column in self.columns if column.name not in fixed)

    def column(self, name: str) -> Column:
        """Find a column by its name in the JSON.

        Raises:
            ContractError: There is no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ContractError(f"{self.path} has no column {name!r}{_nearest(name, self)}")

    def __reduce__(self) -> tuple[Callable[..., Contract], tuple[str | None, ...]]:
        """Pickle by reference: msgspec's constraints cannot be pickled, the class's name can."""
        return load_contract, (self.path, self.key, self.event_time, self.value, self.identity)


def load_contract(
    type_path: str,
    key: str,
    event_time: str,
    value: str | None = None,
    identity: str | None = None,
) -> Contract:
    """Load a user's contract, and refuse at start what would fail at the first record.

    Args:
        type_path: `package.module:Class` of a `msgspec.Struct`.
        key: Field that windows and lanes are keyed by, by its name in the JSON.
        event_time: Field with the time of the event.
        value: Field that windows sum; None or "" to only count.
        identity: Field that tells events apart; None or "" for the checksum of the payload.

    Raises:
        ContractError: The class cannot be imported or is no Struct; a field has a type, a default
            or a name that cannot be used; `key`, `event_time`, `value` or `identity` is not a field
            of the right type. One line that names it and says what to do.
    """
    struct = _import_struct(type_path)
    columns = _columns(type_path, struct)
    return Contract(
        type=struct,
        key=_role(type_path, "key", key, columns, ("str",)),
        event_time=_role(type_path, "event_time", event_time, columns, ("datetime",)),
        value=_role(type_path, "value", value, columns, ("int", "float")) if value else None,
        columns=columns,
        version=_version(struct, columns),
        path=type_path,
        identity=_role(type_path, "identity", identity, columns, ("str", "int"))
        if identity
        else None,
    )


# --- the class


def _import_struct(path: str) -> type[msgspec.Struct]:
    """Import the class that `path` names."""
    if not _TYPE_PATH.fullmatch(path):
        raise ContractError(f"{path!r}: write it as my_package.module:MyEvent")
    module_name, _, class_name = path.partition(":")
    found: Any = _import_module(path, module_name)
    try:
        found = functools.reduce(getattr, class_name.split("."), found)
    except AttributeError:
        raise ContractError(
            f"{path}: module {module_name} has no {class_name}"
            f"{_did_you_mean(class_name, _struct_names(found))}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        raise ContractError(f"{path}: {class_name} is not a msgspec.Struct; derive it so")
    if found.__struct_config__.array_like:
        raise ContractError(
            f"{path}: array_like=True reads JSON arrays, but events are objects; remove it"
        )
    return found


def _import_module(path: str, name: str) -> types.ModuleType:
    """Import a module; whatever goes wrong in it is one line."""
    if name == "__main__":
        raise ContractError(f"{path}: workers cannot import __main__; move it to a module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ContractError(
                f"{path}: no module {error.name}; "
                "check its name, and that its folder is on PYTHONPATH"
            ) from error
        raise ContractError(f"{path}: importing {name} failed: {error}") from error
    except Exception as error:
        raise ContractError(
            f"{path}: importing {name} failed: {type(error).__name__}: {_line(error)}"
        ) from error


def _struct_names(module: Any) -> list[str]:
    """Names of the Structs that a module holds."""
    members = vars(module).items() if hasattr(module, "__dict__") else ()
    return [n for n, m in members if isinstance(m, type) and issubclass(m, msgspec.Struct)]


# --- its fields


def _columns(path: str, struct: type[msgspec.Struct]) -> tuple[Column, ...]:
    """Derive the columns, in the order of the fields."""
    try:
        # The decoder is made here only to hear msgspec's own complaints at start.
        msgspec.json.Decoder(struct)
        fields = msgspec.structs.fields(struct)
        return tuple(_column(path, field) for field in fields)
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"{path}: msgspec refuses it: {_line(error)}") from error


def _column(path: str, field: msgspec.structs.FieldInfo) -> Column:
    """Derive one column."""
    where = f"{path}: field {field.encode_name!r}"
    if field.encode_name in SOURCE_COLUMNS:
        raise ContractError(f"{where} has the name of a column that Breakwater adds; rename it")
    if "`" in field.encode_name:
        raise ContractError(f"{where} has a backtick, which SQL cannot quote; rename it")
    shape = _shape(field.type)
    if shape is None:
        raise ContractError(f"{where} has type {_type_name(field.type)}; use {_SUPPORTED}")
    kind = _KINDS[shape.bare]
    own_error = _own_error_type(where, shape)
    prefix = "unknown_" if shape.choices else "invalid_"
    column = Column(
        name=field.encode_name,
        attribute=field.name,
        kind=kind,
        optional=shape.optional,
        required=field.required,
        bare_type=shape.bare,
        full_type=field.type,
        absent_error=own_error or MISSING_REQUIRED,
        invalid_error=own_error or prefix + re.sub(r"\W", "_", field.encode_name),
        constrained=_is_constrained(kind, shape),
        choices=shape.choices,
        sql_type=_SQL_TYPES[kind],
        arrow_type=_ARROW_TYPES[kind],
    )
    _check_default(where, field, column)
    return column


@dataclass(frozen=True)
class _Shape:
    """A declared type taken apart."""

    bare: Any
    optional: bool = False
    choices: tuple[str | int, ...] = ()
    metas: tuple[msgspec.Meta, ...] = ()


def _shape(hint: Any) -> _Shape | None:
    """Take a declared type apart; None when it is not supported."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner = _shape(hint.__origin__)
        metas = tuple(m for m in hint.__metadata__ if isinstance(m, msgspec.Meta))
        return inner and _merge(inner, metas=metas)
    if origin is Union or origin is types.UnionType:
        return _union_shape(get_args(hint))
    if origin is Literal:
        return _literal_shape(get_args(hint))
    named = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    if named is not None:  # NewType, or Python 3.12's `type Name = ...`
        return _shape(named)
    return _Shape(hint) if hint in _KINDS else None


def _union_shape(members: tuple[Any, ...]) -> _Shape | None:
    """Optional[X]; any other union has no single column type."""
    others = [m for m in members if m is not types.NoneType]
    inner = _shape(others[0]) if len(others) == 1 else None
    return inner and _merge(inner, optional=True)


def _literal_shape(values: tuple[Any, ...]) -> _Shape | None:
    """Literal of strings or of integers; None among them makes it optional."""
    choices = tuple(v for v in values if v is not None)
    kinds = {type(v) for v in choices}
    if kinds not in ({str}, {int}):
        return None
    return _Shape(kinds.pop(), optional=None in values, choices=choices)


def _merge(shape: _Shape, optional: bool = False, metas: tuple[msgspec.Meta, ...] = ()) -> _Shape:
    """The shape with what an outer layer of the type adds."""
    return _Shape(shape.bare, shape.optional or optional, shape.choices, (*shape.metas, *metas))


def _constraints(metas: Iterable[msgspec.Meta]) -> dict[str, Any]:
    """The constraints that the annotations set, the outermost winning."""
    found: dict[str, Any] = {}
    for meta in metas:
        values = {name: getattr(meta, name) for name in _CONSTRAINTS}
        found.update({name: value for name, value in values.items() if value is not None})
    return found


def _is_constrained(kind: ColumnKind, shape: _Shape) -> bool:
    """Whether a value of the right type can be refused."""
    constraints = _constraints(shape.metas)
    # A text that is too short for 1 is empty, and an empty text is a missing one.
    if constraints.get("min_length", 0) <= 1:
        constraints.pop("min_length", None)
    return bool(shape.choices or constraints or kind in ("int", "float"))


def _own_error_type(where: str, shape: _Shape) -> str | None:
    """The error type that the user gave the field in `Meta(extra={"error_type": ...})`."""
    names = [(meta.extra or {}).get("error_type") for meta in shape.metas]
    name = next((n for n in reversed(names) if n is not None), None)
    if name is not None and not (isinstance(name, str) and _ERROR_TYPE.fullmatch(name)):
        raise ContractError(f"{where} has error_type {name!r}; use a-z, 0-9 and _ only")
    return name


def _error_types(column: Column) -> Iterable[str]:
    """What can be wrong with one column apart from its type."""
    if column.required or not column.optional:
        yield column.absent_error
    if column.constrained:
        yield column.invalid_error


def _check_default(where: str, field: msgspec.structs.FieldInfo, column: Column) -> None:
    """Refuse a default that msgspec would take unchecked and a column could not hold."""
    if field.default_factory is not msgspec.NODEFAULT:
        raise ContractError(
            f"{where} has a default_factory: a record read again after a restart could get "
            "another value; use a plain default"
        )
    if field.default is msgspec.NODEFAULT:
        return
    try:
        value = msgspec.convert(field.default, field.type)
    except msgspec.ValidationError as error:
        raise ContractError(
            f"{where} has default {field.default!r}, which the field itself refuses: {error}"
        ) from None
    reason = misfit(column, value)
    if reason:
        raise ContractError(f"{where} has default {field.default!r}, which is {reason}; change it")


def fits_int64(value: int) -> bool:
    """Whether a BIGINT column can hold the value."""
    return MIN_INT64 <= value <= MAX_INT64


def misfit(column: Column, value: Any) -> str | None:
    """Why a value of the right Python type does not fit its column; None when it does.

    Python's integers, floats and datetimes reach further than BIGINT, JSON numbers and a
    calendar of the years 1 to 9999.
    """
    if value is None:
        return None
    if column.kind == "int" and not fits_int64(value):
        return OUTSIDE_INT64
    if column.kind == "float" and not math.isfinite(value):
        return NOT_FINITE
    if column.kind == "datetime" and not MIN_EPOCH_MS <= epoch_ms(value) <= MAX_EPOCH_MS:
        return "outside the years 1 to 9999 in UTC"
    return None


# --- key, event time, value, identity


def _role(
    path: str, role: str, name: str, columns: tuple[Column, ...], kinds: tuple[ColumnKind, ...]
) -> str:
    """Check that a setting names a field that can play its role; return its name in the JSON."""
    column = _find(name, columns)
    wanted = " or ".join(kinds)
    if column is None:
        names = [c.name for c in columns]
        raise ContractError(
            f"{path}: {role} = {name!r} is not one of its fields ({', '.join(names)})"
            f"{_did_you_mean(name, names)}"
        )
    if column.kind not in kinds:
        raise ContractError(
            f"{path}: {role} = {name!r} is a {column.kind}; name a field that is {wanted}"
        )
    if column.optional and role != "value":
        raise ContractError(
            f"{path}: {role} = {name!r} may be null; declare it {wanted}, without Optional"
        )
    if role == "event_time" and not column.required:
        raise ContractError(
            f"{path}: event_time = {name!r} has a default, which is no event's time; remove it"
        )
    if role == "identity" and (column.choices or not column.required):
        why = "is one of a few values" if column.choices else "has a default"
        raise ContractError(
            f"{path}: identity = {name!r} {why}, so that events which differ would be taken for "
            "one; name a field that each event has its own value of"
        )
    if role == "key" and column.name in WINDOW_COLUMNS:
        raise ContractError(
            f"{path}: key = {name!r} has the name of a window's own column; rename it"
        )
    return column.name


def _find(name: str, columns: tuple[Column, ...]) -> Column | None:
    """By name in the JSON first, then by attribute, which is what a user of `rename=` may write."""
    by_name = {c.attribute: c for c in columns} | {c.name: c for c in columns}
    return by_name.get(name)


# --- small parts


def _version(struct: type[msgspec.Struct], columns: tuple[Column, ...]) -> str:
    """Hash what decides which events are accepted, and as what."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    config = struct.__struct_config__
    facts = {
        "fields": [_facts(column, fields[column.attribute]) for column in columns],
        "tag": [config.tag_field, config.tag],
        "forbid_unknown_fields": config.forbid_unknown_fields,
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _facts(column: Column, field: msgspec.structs.FieldInfo) -> list[Any]:
    """What the version says of a column: plain values, whose text no Python version changes."""
    shape = _shape(field.type)
    constraints = _constraints(shape.metas) if shape else {}
    default = None if column.required else repr(field.default)
    errors = [column.absent_error, column.invalid_error]
    choices = sorted(map(repr, column.choices))
    return [column.name, column.kind, column.optional, default, errors, choices, constraints]


def _type_name(hint: Any) -> str:
    """A type as a person wrote it."""
    is_plain = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if is_plain else repr(hint).replace("typing.", "")


def _line(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def _nearest(name: str, contract: Contract) -> str:
    """A hint at the column that was meant."""
    return _did_you_mean(name, [c.name for c in contract.columns])


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
