"""A strict fake of the PyFlink runtime: process functions tested in milliseconds, without a JVM.

The surface is that of Flink's own ``KeyedOneInputStreamOperatorTestHarness``::

    with Harness(
        CountPerUser(),
        key_by=lambda event: event.user_id, key_type=Types.STRING(),
        input_type=EVENT_TYPE, output_type=COUNT_TYPE, side_outputs=[LATE],
    ) as harness:
        harness.process(Row(user_id="u1"), NOON)
        harness.advance_watermark(NOON + MINUTE)
        assert harness.output == [Row(user_id="u1", count=1)]
        assert harness.side_output(LATE) == []
        harness = harness.restore(harness.snapshot())  # a crash, and a fresh function
        harness.end_of_input()
        harness.assert_no_leaks()

A ``KeyedProcessFunction`` needs ``key_by`` and ``key_type``, a ``ProcessFunction`` has neither.
What Flink does silently, late, or only on a cluster fails here at once, as a ``HarnessError``
(the T and M numbers are those of the project's list of PyFlink traps):

* The function is shipped through cloudpickle, as to a worker (T6). ``harness.function`` is the
  copy that runs; ``ship=False`` runs the object itself.
* Every input, key, output, side output and state value goes through the Python coder of its
  declared type and must come back equal: no coercion (T12), no Row without names (T11), no missing
  or surplus field (Flink's compiled coder reads past the end of a short Row or tuple and kills the
  worker).
* Pickled types are refused everywhere (T10, T16, T19, T38).
* A hook is a generator, or returns an iterator (T14); ``process_element`` may return None.
* A side output needs a tag that the test has asked for (T17, T18).
* State hands out copies (T24), refuses None (T25), exists once per name, and only on keyed streams.
  Its iterables behave like Flink's: no ``len``, no truth value, map entries in no useful order.
* Timers are kept once per (key, time). With ``bundle=True`` registrations, deletions and watermarks
  wait for ``finish_bundle()`` (T26, T27); without it every call is a bundle of its own.
* A missing timestamp or watermark is ``MIN_TIME`` (T30).
* ``end_of_input()`` fires every event-time timer and drops processing-time timers (M5, T29). One
  that is registered then may never fire in Flink.
* A snapshot is bytes. ``restore`` refuses state whose name or type the new function does not
  declare (T34, T35), where Flink would go on with garbage or with nothing.

A fault is reported even when the function swallows the exception.

Not covered: parallelism, chaining, broadcast and connected streams, threads.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import GeneratorType, TracebackType
from typing import Any, NoReturn

import cloudpickle  # type: ignore[import-untyped] # it ships none
import msgspec
from pyflink.common import Row
from pyflink.common.typeinfo import (
    BasicArrayTypeInfo,
    BasicType,
    BasicTypeInfo,
    ExternalTypeInfo,
    ListTypeInfo,
    MapTypeInfo,
    ObjectArrayTypeInfo,
    PickledBytesTypeInfo,
    PrimitiveArrayTypeInfo,
    RowTypeInfo,
    TupleTypeInfo,
    TypeInformation,
)
from pyflink.datastream import (
    KeyedProcessFunction,
    OutputTag,
    ProcessFunction,
    RuntimeContext,
    TimeDomain,
    TimerService,
)
from pyflink.datastream.state import (
    AggregatingState,
    AggregatingStateDescriptor,
    ListState,
    ListStateDescriptor,
    MapState,
    MapStateDescriptor,
    ReducingState,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueState,
    ValueStateDescriptor,
)
from pyflink.fn_execution.coders import from_type_info
from pyflink.fn_execution.datastream.process.process_function import (
    InternalKeyedProcessFunctionContext,
    InternalKeyedProcessFunctionOnTimerContext,
    InternalProcessFunctionContext,
)
from pyflink.metrics import Counter, Distribution, Meter, MetricGroup

MIN_TIME = -(2**63)
"""What Flink gives where a timestamp or watermark is absent (T30)."""
MAX_TIME = 2**63 - 1
"""The watermark that ends a bounded input."""
MAX_ROUNDS = 100_000
"""Firing rounds in one call before the harness says that the function re-arms for ever."""

EVENT = TimeDomain.EVENT_TIME
PROCESSING = TimeDomain.PROCESSING_TIME


class HarnessError(AssertionError):
    """What the function did would be wrong, silent or fatal in Flink."""


@dataclass(frozen=True)
class Record:
    """An emitted value with the timestamp Flink would give it."""

    value: Any
    timestamp: int


class _Faults:
    """Remembers the first fault, so that ``except Exception`` in a function cannot hide it."""

    def __init__(self) -> None:
        self.first: HarnessError | None = None

    def fail(self, message: str) -> NoReturn:
        error = HarnessError(message)
        self.first = self.first or error
        raise error

    def raise_first(self) -> None:
        if self.first is not None:
            raise self.first


# Values and types -------------------------------------------------------------------------------


class _Wire:
    """One declared type: what goes in must be of that type and come back equal."""

    def __init__(self, declared: Any, what: str, faults: _Faults) -> None:
        self._what = what
        self._faults = faults
        problem = _type_problem(declared)
        if problem:
            faults.fail(f"{what}: {problem}")
        self.type = declared
        self._coder = from_type_info(declared).get_impl()

    def encode(self, value: Any) -> bytes:
        problem = _value_problem(value, self.type)
        if problem:
            self._refuse(value, problem)
        try:
            data: bytes = self._coder.encode(value)
            back = self._coder.decode(data)
        except Exception as error:
            self._refuse(value, f"its coder says {type(error).__name__}: {error}")
        if not _equal(value, back):
            self._refuse(value, f"it would silently become {back!r} (T12)")
        return data

    def decode(self, data: bytes) -> Any:
        return self._coder.decode(data)

    def copy(self, value: Any) -> Any:
        """The value as it looks on the other side."""
        return self.decode(self.encode(value))

    def _refuse(self, value: Any, problem: str) -> NoReturn:
        shown = repr(value)[:200]
        self._faults.fail(f"{self._what}: {shown} does not fit {self.type!r}: {problem}")


def _type_problem(declared: Any) -> str | None:
    """Why this type must not be used, or None. Names the fields of an unnamed ROW as Flink does."""
    if not isinstance(declared, TypeInformation):
        return f"a declared type is needed, not {declared!r}; without one Flink pickles (T10, T16)"
    if isinstance(declared, PickledBytesTypeInfo):
        return "a pickled type: declare the real one (T10, T16, T19, T38)"
    if isinstance(declared, RowTypeInfo) and not declared._field_names:
        # get_field_names() would start a JVM to learn just these names
        declared._field_names = [f"f{i}" for i in range(len(declared.get_field_types()))]
    problems = (_type_problem(inner) for inner in _inner_types(declared))
    return next((problem for problem in problems if problem), None)


def _inner_types(declared: Any) -> list[Any]:
    if isinstance(declared, RowTypeInfo | TupleTypeInfo):
        return list(declared.get_field_types())
    if isinstance(declared, MapTypeInfo):
        return [declared._key_type_info, declared._value_type_info]
    if isinstance(declared, ListTypeInfo):
        return [declared.elem_type]
    if isinstance(declared, PrimitiveArrayTypeInfo | BasicArrayTypeInfo | ObjectArrayTypeInfo):
        return [declared._element_type]
    if isinstance(declared, ExternalTypeInfo):
        return [declared._type_info]
    return []


_INTEGERS = {BasicType.BYTE, BasicType.SHORT, BasicType.INT, BasicType.LONG, BasicType.BIG_INT}
_FLOATS = {BasicType.FLOAT, BasicType.DOUBLE}
_TEXTS = {BasicType.STRING, BasicType.CHAR}


def _value_problem(value: Any, declared: Any) -> str | None:
    """Why the value does not have the declared shape, or None.

    Asked before the coder, because Flink's compiled coder does not check bounds: a short Row or
    tuple ends in a segmentation fault.
    """
    if isinstance(declared, BasicTypeInfo):
        return _basic_problem(value, declared._basic_type)
    if isinstance(declared, RowTypeInfo):
        return _row_problem(value, declared)
    if isinstance(declared, TupleTypeInfo):
        return _tuple_problem(value, declared)
    if isinstance(declared, MapTypeInfo):
        return _map_problem(value, declared)
    if isinstance(declared, ExternalTypeInfo):
        return _value_problem(value, declared._type_info)
    inner = _inner_types(declared)
    return _sequence_problem(value, inner[0]) if inner else None


def _basic_problem(value: Any, basic: BasicType) -> str | None:
    if basic in _TEXTS:
        fits = isinstance(value, str)
    elif basic == BasicType.BOOLEAN:
        fits = isinstance(value, bool)
    elif basic in _INTEGERS:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    elif basic in _FLOATS:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    else:
        return None
    return None if fits else f"{basic.value} expected, not {type(value).__name__}"


def _row_problem(value: Any, declared: Any) -> str | None:
    if not isinstance(value, Row):
        return f"Row expected, not {type(value).__name__} (T11)"
    names = declared.get_field_names()
    given = getattr(value, "_fields", None)
    if given is None and names != [f"f{i}" for i in range(len(names))]:
        return "build the Row with keywords: Row(name=value), a positional one has no names (T11)"
    if given is not None and sorted(given) != sorted(names):
        return f"fields {sorted(given)} are not the declared {sorted(names)}"
    if len(value) != len(names):
        return f"{len(value)} fields, not {len(names)}"
    values, types = value.get_fields_by_names(names), declared.get_field_types()
    fields = zip(names, values, types, strict=True)
    return _first_problem((f"field {name}", v, t) for name, v, t in fields if v is not None)


def _tuple_problem(value: Any, declared: Any) -> str | None:
    types = declared.get_field_types()
    if not isinstance(value, tuple):
        return f"tuple expected, not {type(value).__name__}"
    if len(value) != len(types):
        return f"{len(value)} items, not {len(types)}"
    pairs = zip(value, types, strict=True)
    return _first_problem((f"item {i}", inner, t) for i, (inner, t) in enumerate(pairs))


def _map_problem(value: Any, declared: Any) -> str | None:
    if not isinstance(value, dict):
        return f"dict expected, not {type(value).__name__}"
    keys = (("a key", key, declared._key_type_info) for key in value)
    values = ((f"[{k!r}]", v, declared._value_type_info) for k, v in value.items() if v is not None)
    return _first_problem(keys) or _first_problem(values)


def _sequence_problem(value: Any, element: Any) -> str | None:
    if isinstance(element, BasicTypeInfo) and element._basic_type == BasicType.BYTE:
        fits = isinstance(value, bytes | bytearray)
        return None if fits else f"bytes expected, not {type(value).__name__}"
    if not isinstance(value, list):
        return f"list expected, not {type(value).__name__}"
    return _first_problem((f"item {i}", inner, element) for i, inner in enumerate(value))


def _first_problem(parts: Iterable[tuple[str, Any, Any]]) -> str | None:
    for where, value, declared in parts:
        problem = _value_problem(value, declared)
        if problem:
            return f"{where}: {problem}"
    return None


def _equal(sent: Any, back: Any) -> bool:
    """Equality through containers; NaN equals itself, a Row is its values in declared order."""
    if isinstance(sent, Row):
        names = getattr(back, "_fields", None)
        return _all_equal(sent.get_fields_by_names(names) if names else list(sent), list(back))
    if isinstance(sent, tuple | list):
        return _all_equal(sent, back)
    if isinstance(sent, dict):
        return sent.keys() == back.keys() and all(_equal(v, back[k]) for k, v in sent.items())
    if isinstance(sent, float) and math.isnan(sent):
        return isinstance(back, float) and math.isnan(back)
    return bool(sent == back)


def _all_equal(sent: Sequence[Any], back: Sequence[Any]) -> bool:
    return len(sent) == len(back) and all(map(_equal, sent, back))


# State ------------------------------------------------------------------------------------------


class _Cell(msgspec.Struct, array_like=True):
    """One stored value, and when its time to live last began."""

    data: bytes
    touched_ms: int


class _Declared(msgspec.Struct, array_like=True):
    """What a function said its state is: compared at restore, which Flink does not do (T34)."""

    kind: str
    type: str


class _Backend:
    """Keyed state as Flink keeps it: bytes by state name, key, and entry within the state."""

    def __init__(self, faults: _Faults, now: Callable[[], int]) -> None:
        self.faults = faults
        self.now = now
        self.declared: dict[str, _Declared] = {}
        self.tables: dict[str, dict[bytes, dict[bytes, _Cell]]] = {}
        self.key: bytes | None = None
        self.ttl: dict[str, Any] = {}
        self.cleared: set[tuple[str, bytes]] = set()  # map state cleared in this bundle

    def declare(self, descriptor: Any, kind: str) -> None:
        name = descriptor.name
        if name in self.declared:
            self.faults.fail(
                f"state {name!r} is declared twice; get each state once, in open() (T25)"
            )
        self.declared[name] = _Declared(kind, repr(descriptor.type_info))
        ttl = descriptor._ttl_config
        self.ttl[name] = ttl if ttl is not None and ttl.is_enabled() else None
        self.tables.setdefault(name, {})

    def cells(self, name: str) -> dict[bytes, _Cell]:
        if self.key is None:
            self.faults.fail(
                f"state {name!r} is used without a current key (open, close, a thread)"
            )
        return self.tables[name].setdefault(self.key, {})

    def expired(self, name: str, cell: _Cell) -> bool:
        ttl = self.ttl[name]
        return ttl is not None and cell.touched_ms + ttl.get_ttl().to_milliseconds() <= self.now()

    def live_rows(self, name: str) -> list[tuple[bytes, dict[bytes, _Cell]]]:
        """Keys of this state, with what they hold that has not expired."""
        table = self.tables[name].items()
        rows = [
            (key, {entry: c for entry, c in cells.items() if not self.expired(name, c)})
            for key, cells in table
        ]
        return [(key, cells) for key, cells in rows if cells]

    def live_keys(self, name: str) -> list[bytes]:
        """Keys that hold something in this state that has not expired."""
        return [key for key, _ in self.live_rows(name)]


class _Cells:
    """The entries of one state under the current key, with their time to live."""

    def __init__(self, backend: _Backend, name: str) -> None:
        self._backend = backend
        self._name = name

    def read(self, entry: bytes) -> bytes | None:
        cells = self._backend.cells(self._name)
        cell = cells.get(entry)
        if cell is None:
            return None
        ttl = self._backend.ttl[self._name]
        if self._backend.expired(self._name, cell):
            del cells[entry]  # Flink cleans up on access, and may return the value this once
            visible = StateTtlConfig.StateVisibility.ReturnExpiredIfNotCleanedUp
            return cell.data if ttl.get_state_visibility() == visible else None
        if ttl and ttl.get_update_type() == StateTtlConfig.UpdateType.OnReadAndWrite:
            cell.touched_ms = self._backend.now()
        return cell.data

    def write(self, entry: bytes, data: bytes) -> None:
        self._backend.cells(self._name)[entry] = _Cell(data, self._backend.now())

    def append(self, data: bytes) -> None:
        cells = self._backend.cells(self._name)
        last = int.from_bytes(max(cells), "big") if cells else 0
        self.write((last + 1).to_bytes(8, "big"), data)

    def drop(self, entry: bytes) -> bool:
        return self._backend.cells(self._name).pop(entry, None) is not None

    def clear(self) -> None:
        self._backend.cells(self._name).clear()

    def present(self) -> list[tuple[bytes, bytes]]:
        """Entries and values, sorted by bytes: the order they came in is not to be relied on."""
        found = ((entry, self.read(entry)) for entry in sorted(self._backend.cells(self._name)))
        return [(entry, data) for entry, data in found if data is not None]


_ONLY = b""  # the one entry of a state that holds one value


class _ValueState(ValueState):  # type: ignore[misc] # pyflink has no types
    def __init__(self, cells: _Cells, wire: _Wire) -> None:
        self._cells = cells
        self._wire = wire

    def value(self) -> Any:
        data = self._cells.read(_ONLY)
        return None if data is None else self._wire.decode(data)

    def update(self, value: Any) -> None:
        self._cells.write(_ONLY, self._wire.encode(value))

    def clear(self) -> None:
        self._cells.clear()


class _Elements:
    """What ListState.get() gives: it can be iterated, and nothing else."""

    def __init__(self, values: list[Any], name: str, faults: _Faults) -> None:
        self._values = values
        self._name = name
        self._faults = faults

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __bool__(self) -> NoReturn:  # noqa: PLE0304 # Flink's has no truth value worth having
        self._faults.fail(
            f"{self._name}: the result of ListState.get() is always true in Flink; use list(...)"
        )


class _ListState(ListState):  # type: ignore[misc] # pyflink has no types
    def __init__(self, name: str, cells: _Cells, wire: _Wire, faults: _Faults) -> None:
        self._name = name
        self._cells = cells
        self._wire = wire
        self._faults = faults

    def get(self) -> _Elements:
        values = [self._wire.decode(data) for _, data in self._cells.present()]
        return _Elements(values, f"state {self._name!r}", self._faults)

    def add(self, value: Any) -> None:
        self._cells.append(self._wire.encode(value))

    def add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def update(self, values: Iterable[Any]) -> None:
        new = list(values)
        self.clear()
        self.add_all(new)

    def clear(self) -> None:
        self._cells.clear()


class _MapState(MapState):  # type: ignore[misc] # pyflink has no types
    def __init__(
        self, name: str, cells: _Cells, key_wire: _Wire, wire: _Wire, backend: _Backend
    ) -> None:
        self._name = name
        self._cells = cells
        self._key_wire = key_wire
        self._wire = wire
        self._backend = backend
        self._changes = 0

    def get(self, key: Any) -> Any:
        data = self._cells.read(self._key_wire.encode(key))
        return None if data is None else self._wire.decode(data)

    def put(self, key: Any, value: Any) -> None:
        self._changes += 1
        self._cells.write(self._key_wire.encode(key), self._wire.encode(value))

    def put_all(self, dict_value: Any) -> None:
        self._backend.faults.fail(
            f"state {self._name!r}: put_all() of a dict is broken in PyFlink 2.3 (it unpacks the "
            "keys as pairs, so {'ab': 1} puts 'b' under 'a'); call put() for each entry"
        )

    def remove(self, key: Any) -> None:
        self._changes += 1
        found = self._cells.drop(self._key_wire.encode(key))
        if not found and self._was_cleared() and not self.is_empty():
            self._backend.faults.fail(
                f"state {self._name!r}: after clear() and put() in one bundle, remove() of an "
                f"absent key raises KeyError({key!r}) in PyFlink 2.3; ask contains() first"
            )

    def contains(self, key: Any) -> bool:
        return self.get(key) is not None

    def items(self) -> Iterator[tuple[Any, Any]]:
        return ((key, value) for key, value in self._iterate())

    def keys(self) -> Iterator[Any]:
        return (key for key, _ in self._iterate())

    def values(self) -> Iterator[Any]:
        return (value for _, value in self._iterate())

    def is_empty(self) -> bool:
        return not self._cells.present()

    def clear(self) -> None:
        self._changes += 1
        self._cells.clear()
        self._backend.cleared.add((self._name, self._backend.key or b""))

    def _was_cleared(self) -> bool:
        return (self._name, self._backend.key or b"") in self._backend.cleared

    def _iterate(self) -> Iterator[tuple[Any, Any]]:
        before = self._changes
        for entry, data in self._cells.present():
            self._check_unchanged(before)
            yield self._key_wire.decode(entry), self._wire.decode(data)
        self._check_unchanged(before)

    def _check_unchanged(self, before: int) -> None:
        if self._changes != before:
            self._backend.faults.fail(
                f"state {self._name!r} was changed while it was iterated; iterate over list(...)"
            )


class _ReducingState(ReducingState):  # type: ignore[misc] # pyflink has no types
    def __init__(self, cells: _Cells, wire: _Wire, reduce: Any) -> None:
        self._value = _ValueState(cells, wire)
        self._reduce = reduce

    def get(self) -> Any:
        return self._value.value()

    def add(self, value: Any) -> None:
        current = self._value.value()
        self._value.update(value if current is None else self._reduce.reduce(current, value))

    def clear(self) -> None:
        self._value.clear()


class _AggregatingState(AggregatingState):  # type: ignore[misc] # pyflink has no types
    def __init__(self, cells: _Cells, wire: _Wire, aggregate: Any) -> None:
        self._accumulator = _ValueState(cells, wire)
        self._aggregate = aggregate

    def get(self) -> Any:
        accumulator = self._accumulator.value()
        return None if accumulator is None else self._aggregate.get_result(accumulator)

    def add(self, value: Any) -> None:
        if value is None:  # Flink takes it as clear()
            self.clear()
            return
        accumulator = self._accumulator.value()
        if accumulator is None:
            accumulator = self._aggregate.create_accumulator()
        self._accumulator.update(self._aggregate.add(value, accumulator))

    def clear(self) -> None:
        self._accumulator.clear()


# Metrics ----------------------------------------------------------------------------------------


class _Number(Counter, Meter, Distribution):  # type: ignore[misc] # pyflink has no types
    """Counter, meter and distribution in one: all of them add whole numbers."""

    def __init__(self, name: str, faults: _Faults) -> None:
        self._name = name
        self._faults = faults
        self.values: list[int] = []

    @property
    def total(self) -> int:
        return sum(self.values)

    def inc(self, n: int = 1) -> None:
        if not isinstance(n, int) or isinstance(n, bool):
            self._faults.fail(f"metric {self._name!r} takes whole numbers, not {n!r} (T46)")
        self.values.append(n)

    def dec(self, n: int = 1) -> None:
        self.inc(-n)

    def mark_event(self, value: int = 1) -> None:
        self.inc(value)

    def update(self, value: int) -> None:
        self.inc(value)

    def get_count(self) -> int:
        return self.total


class _Metrics(MetricGroup):  # type: ignore[misc] # pyflink has no types
    def __init__(self, faults: _Faults, prefix: str = "", root: _Metrics | None = None) -> None:
        self._faults = faults
        self._prefix = prefix
        root = root or self
        self._root = root
        if root is self:
            self.numbers: dict[str, _Number] = {}
            self.gauges: dict[str, Callable[[], int]] = {}

    def add_group(self, name: str, extra: str | None = None) -> _Metrics:
        path = name if extra is None else f"{name}.{extra}"
        return _Metrics(self._faults, f"{self._prefix}{path}.", self._root)

    def counter(self, name: str) -> _Number:
        full = self._prefix + name
        return self._root.numbers.setdefault(full, _Number(full, self._faults))

    def meter(self, name: str, time_span_in_seconds: int = 60) -> _Number:
        return self.counter(name)

    def distribution(self, name: str) -> _Number:
        return self.counter(name)

    def gauge(self, name: str, obj: Callable[[], int]) -> None:
        self._root.gauges[self._prefix + name] = obj

    def read(self, name: str) -> int:
        if name in self.gauges:
            value = self.gauges[name]()
            if not isinstance(value, int):
                self._faults.fail(f"gauge {name!r} must be a whole number, not {value!r} (T46)")
            return value
        if name not in self.numbers:
            self._faults.fail(f"no metric {name!r}; there are {sorted(self.numbers | self.gauges)}")
        return self.numbers[name].total


# Time and timers --------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Timer:
    time: int
    key: bytes


class _Timers:
    """Timers once per (key, time); changes reach Flink when the bundle is flushed (T26)."""

    def __init__(self) -> None:
        self.known: dict[Any, set[_Timer]] = {EVENT: set(), PROCESSING: set()}
        self._changes: list[tuple[bool, Any, _Timer]] = []

    def register(self, domain: Any, timer: _Timer) -> None:
        self._changes.append((True, domain, timer))

    def delete(self, domain: Any, timer: _Timer) -> None:
        self._changes.append((False, domain, timer))

    def flush(self) -> None:
        self.known = {domain: self._after_changes(domain) for domain in self.known}
        self._changes.clear()

    def count(self, domain: Any) -> int:
        return len(self._after_changes(domain))

    def take_due(self, domain: Any, limit: int, one: bool) -> list[_Timer]:
        """Remove and return what is due: the first one only, or all that Flink sends in one go."""
        due = sorted(timer for timer in self.known[domain] if timer.time <= limit)
        taken = due[:1] if one else due
        self.known[domain].difference_update(taken)
        return taken

    def _after_changes(self, domain: Any) -> set[_Timer]:
        timers = set(self.known[domain])
        for added, changed_domain, timer in self._changes:
            if changed_domain == domain:
                (timers.add if added else timers.discard)(timer)
        return timers


class _TimerService(TimerService):  # type: ignore[misc] # pyflink has no types
    """Times and timers of the element or timer that is being processed."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def current_processing_time(self) -> int:
        return self._harness.processing_time

    def current_watermark(self) -> int:
        return self._harness.watermark

    def register_processing_time_timer(self, timestamp: int) -> None:
        self._timers().register(PROCESSING, self._timer(timestamp))

    def register_event_time_timer(self, timestamp: int) -> None:
        self._timers().register(EVENT, self._timer(timestamp))

    def delete_processing_time_timer(self, timestamp: int) -> None:
        self._timers().delete(PROCESSING, self._timer(timestamp))

    def delete_event_time_timer(self, timestamp: int) -> None:
        self._timers().delete(EVENT, self._timer(timestamp))

    def _timers(self) -> _Timers:
        if not self._harness.keyed:
            self._harness.faults.fail("timers exist on keyed streams only")
        return self._harness.timers

    def _timer(self, timestamp: Any) -> _Timer:
        faults = self._harness.faults
        if not isinstance(timestamp, int) or isinstance(timestamp, bool):
            faults.fail(f"a timer's time is whole milliseconds, not {timestamp!r} (T12 cuts it)")
        if not MIN_TIME <= timestamp <= MAX_TIME:
            faults.fail(f"timer at {timestamp} overflows a Java long (T29: watermark + delay?)")
        key = self._harness.backend.key
        if key is None:
            faults.fail("a timer is set where no key is current (open, close, a thread)")
        return _Timer(timestamp, key)


class _KeyedStateBackend:
    """As much of the worker's own as it takes to go to the state of another key, and back."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def get_current_key(self) -> Row | None:
        key, wire = self._harness.backend.key, self._harness._key
        return None if key is None or wire is None else Row(wire.decode(key))

    def set_current_key(self, key: Row) -> None:
        wire = self._harness._key
        if wire is None:
            self._harness.faults.fail("without key_by there is no key to go to")
        self._harness.backend.key = wire.encode(key[0])


class _RuntimeContext(RuntimeContext):  # type: ignore[misc] # pyflink has no types
    """What open() receives."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._keyed_state_backend = _KeyedStateBackend(harness)

    def get_task_name(self) -> str:
        return "harness"

    def get_task_name_with_subtasks(self) -> str:
        subtask, parallelism = self._harness.settings.subtask, self._harness.settings.parallelism
        return f"harness ({subtask + 1}/{parallelism})"

    def get_number_of_parallel_subtasks(self) -> int:
        return self._harness.settings.parallelism

    def get_max_number_of_parallel_subtasks(self) -> int:
        return 128

    def get_index_of_this_subtask(self) -> int:
        return self._harness.settings.subtask

    def get_attempt_number(self) -> int:
        return self._harness.attempt

    def get_job_parameter(self, key: str, default_value: str) -> str:
        return self._harness.settings.job_parameters.get(key, default_value)

    def get_metrics_group(self) -> _Metrics:
        return self._harness.metrics

    def get_state(self, state_descriptor: ValueStateDescriptor) -> _ValueState:
        cells, wire = self._open(state_descriptor, "value", state_descriptor.type_info)
        return _ValueState(cells, wire)

    def get_list_state(self, state_descriptor: ListStateDescriptor) -> _ListState:
        cells, wire = self._open(state_descriptor, "list", state_descriptor.type_info.elem_type)
        return _ListState(state_descriptor.name, cells, wire, self._harness.faults)

    def get_map_state(self, state_descriptor: MapStateDescriptor) -> _MapState:
        types = state_descriptor.type_info
        cells, wire = self._open(state_descriptor, "map", types._value_type_info)
        what = f"key of state {state_descriptor.name!r}"
        key_wire = _Wire(types._key_type_info, what, self._harness.faults)
        return _MapState(state_descriptor.name, cells, key_wire, wire, self._harness.backend)

    def get_reducing_state(self, state_descriptor: ReducingStateDescriptor) -> _ReducingState:
        cells, wire = self._open(state_descriptor, "reducing", state_descriptor.type_info)
        return _ReducingState(cells, wire, state_descriptor.get_reduce_function())

    def get_aggregating_state(
        self, state_descriptor: AggregatingStateDescriptor
    ) -> _AggregatingState:
        cells, wire = self._open(state_descriptor, "aggregating", state_descriptor.type_info)
        return _AggregatingState(cells, wire, state_descriptor.get_agg_function())

    def _open(self, descriptor: Any, kind: str, value_type: Any) -> tuple[_Cells, _Wire]:
        harness = self._harness
        if not harness.keyed:
            harness.faults.fail(f"state {descriptor.name!r}: only keyed streams have state (T25)")
        harness.backend.declare(descriptor, kind)
        wire = _Wire(value_type, f"state {descriptor.name!r}", harness.faults)
        return _Cells(harness.backend, descriptor.name), wire


# The harness ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What a restored harness takes over from the one before."""

    input_type: Any
    output_type: Any
    key_by: Callable[[Any], Any] | None
    key_type: Any
    side_outputs: tuple[Any, ...]
    bundle: bool
    ship: bool
    parallelism: int
    subtask: int
    job_parameters: dict[str, str]


class _Snapshot(msgspec.Struct):
    """A checkpoint: self-contained, and nothing in it but bytes, numbers and names."""

    key_type: str
    declared: dict[str, _Declared]
    tables: dict[str, list[tuple[bytes, dict[bytes, _Cell]]]]
    event_timers: list[tuple[int, bytes]]
    processing_timers: list[tuple[int, bytes]]


class Harness:
    """Runs one process function as Flink would, only stricter (see the module's docstring).

    Args:
        function: The ``ProcessFunction`` or ``KeyedProcessFunction`` under test.
        input_type: Declared type of the stream before it.
        output_type: Declared type of its main output.
        key_by: Key selector, for a ``KeyedProcessFunction``.
        key_type: Declared type of the key.
        side_outputs: The tags that the job asks for with ``get_side_output``.
        bundle: Hold timers and watermarks until ``finish_bundle()``, as a long bundle does.
        ship: Send the function through cloudpickle, as Flink does.
        processing_time: What the clock shows at the start, in milliseconds.
        parallelism: Number of subtasks that the runtime context reports.
        subtask: Index of this one.
        job_parameters: What ``get_job_parameter`` finds.

    Attributes:
        function: The copy that runs.
        records: Main output so far, with timestamps.
        watermark: The present watermark, ``MIN_TIME`` before the first.
        processing_time: What the clock shows.
        dropped_timers: Processing-time timers that ``end_of_input`` dropped.
    """

    function: Any
    records: list[Record]
    watermark: int
    processing_time: int
    dropped_timers: int
    _input: _Wire
    _output: _Wire
    _key: _Wire | None
    _side: dict[str, tuple[_Wire, list[Record]]]
    _held_watermark: int | None
    _bundle_open: bool
    _ended: bool
    _closed: bool
    _failed: bool
    _payload: bytes

    def __init__(
        self,
        function: Any,
        *,
        input_type: Any,
        output_type: Any,
        key_by: Callable[[Any], Any] | None = None,
        key_type: Any = None,
        side_outputs: Iterable[Any] = (),
        bundle: bool = False,
        ship: bool = True,
        processing_time: int = 0,
        parallelism: int = 1,
        subtask: int = 0,
        job_parameters: dict[str, str] | None = None,
    ) -> None:
        settings = _Settings(
            input_type=input_type,
            output_type=output_type,
            key_by=key_by,
            key_type=key_type,
            side_outputs=tuple(side_outputs),
            bundle=bundle,
            ship=ship,
            parallelism=parallelism,
            subtask=subtask,
            job_parameters=dict(job_parameters or {}),
        )
        self._start(function, settings, processing_time, attempt=0, snapshot=None)

    # -- feeding it

    def process(self, value: Any, timestamp: int | None = None) -> None:
        """One element through ``process_element``. Without a timestamp it has ``MIN_TIME``."""
        self._require_running()
        element = self._input.copy(value)
        key = self._key_of(element)
        stamp = MIN_TIME if timestamp is None else timestamp
        self._bundle_open = True
        with self._running(key):
            context = self._element_context(key, stamp)
            self._emit(self.function.process_element(element, context), stamp, "process_element")
        if not self.settings.bundle:
            self.finish_bundle()

    def process_all(self, values: Iterable[Any], timestamp: int | None = None) -> None:
        """Several elements with the same timestamp."""
        for value in values:
            self.process(value, timestamp)

    def advance_watermark(self, timestamp: int) -> None:
        """A watermark arrives: due event-time timers fire. In an open bundle it waits (T27)."""
        self._require_running()
        latest = self.watermark if self._held_watermark is None else self._held_watermark
        if timestamp < latest:
            raise ValueError(f"watermark {timestamp} is behind the present one, {latest}")
        if self._bundle_open and timestamp != MAX_TIME:
            self._held_watermark = timestamp
            return
        self._flush_bundle()
        self._fire_event_timers(timestamp)
        self._fire_processing_timers(self.processing_time)

    def advance_processing_time(self, timestamp: int) -> None:
        """The clock goes on; it stops at each timer on the way, so a tick that re-arms keeps time.

        In an open bundle only timers of earlier bundles fire: the rest has not reached Flink (T26).
        """
        self._require_running()
        if timestamp < self.processing_time:
            raise ValueError(f"time {timestamp} is behind the present, {self.processing_time}")
        self._fire_processing_timers(timestamp)
        self.processing_time = timestamp

    def finish_bundle(self) -> None:
        """Flush: timers reach Flink, the last held watermark is applied, what is due fires."""
        self._require_running()
        watermark = self._flush_bundle()
        if watermark is not None:
            self._fire_event_timers(watermark)
        self._fire_processing_timers(self.processing_time)

    def end_of_input(self) -> None:
        """A bounded input ends: event-time timers fire, processing-time timers are dropped (M5).

        Nothing says so in Flink; here ``dropped_timers`` counts them.
        """
        self._require_running()
        self._flush_bundle()
        self._fire_event_timers(MAX_TIME)
        self.dropped_timers = self.timers.count(PROCESSING)
        self.timers.known[PROCESSING].clear()
        self._ended = True

    def close(self) -> None:
        """Call the function's ``close``; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.function.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- looking at it

    @property
    def output(self) -> list[Any]:
        """Values of the main output so far, as the next operator sees them."""
        return [record.value for record in self.records]

    def side_output(self, tag: Any) -> list[Any]:
        """Values of one side output so far."""
        return [record.value for record in self.side_records(tag)]

    def side_records(self, tag: Any) -> list[Record]:
        """Values of one side output so far, with their timestamps."""
        if tag.tag_id not in self._side:
            raise HarnessError(f"side output {tag.tag_id!r} is not in side_outputs")
        return self._side[tag.tag_id][1]

    def clear_output(self) -> None:
        """Forget what was emitted so far, on the main and on every side output."""
        self.records.clear()
        for _, records in self._side.values():
            records.clear()

    def metric(self, name: str) -> int:
        """Value of a counter, meter or gauge, sum of a distribution. Groups are joined by dots."""
        return self.metrics.read(name)

    def num_state_entries(self, name: str | None = None) -> int:
        """Number of (key, state) pairs that hold something, of one state or of all."""
        names = self.backend.declared if name is None else [name]
        return sum(len(self.backend.live_keys(each)) for each in names)

    def num_timers(self) -> int:
        """Number of timers of both kinds, those that wait for the bundle's end included."""
        return self.num_event_time_timers() + self.num_processing_time_timers()

    def num_event_time_timers(self) -> int:
        """Number of event-time timers."""
        return self.timers.count(EVENT)

    def num_processing_time_timers(self) -> int:
        """Number of processing-time timers."""
        return self.timers.count(PROCESSING)

    def assert_no_leaks(self) -> None:
        """The end of every stateful test: no state and no timer is left."""
        left = [self._leak(name) for name in self.backend.declared if self.backend.live_keys(name)]
        if self.num_timers():
            left.append(
                f"{self.num_event_time_timers()} event-time and "
                f"{self.num_processing_time_timers()} processing-time timers"
            )
        if left and self.dropped_timers:
            left.append(f"{self.dropped_timers} processing-time timers were dropped at the end")
        if left:
            raise HarnessError("left behind: " + "; ".join(left))

    # -- snapshots

    def snapshot(self) -> bytes:
        """A checkpoint: finishes the bundle, then state and timers as bytes."""
        self.finish_bundle()
        backend, known = self.backend, self.timers.known
        return msgspec.msgpack.encode(
            _Snapshot(
                key_type=repr(self.settings.key_type),
                declared=backend.declared,
                tables={name: backend.live_rows(name) for name in backend.declared},
                event_timers=[(timer.time, timer.key) for timer in sorted(known[EVENT])],
                processing_timers=[(timer.time, timer.key) for timer in sorted(known[PROCESSING])],
            )
        )

    def restore(
        self,
        snapshot: bytes,
        function: Any | None = None,
        *,
        forget: Iterable[str] = (),
        processing_time: int | None = None,
    ) -> Harness:
        """A new harness that goes on from the snapshot, after a crash or with new code.

        Args:
            snapshot: What ``snapshot()`` gave.
            function: The new code; without it a fresh copy of the function (needs ``ship=True``).
            forget: State names that the new function drops on purpose.
            processing_time: What the clock shows now; without it, what it showed here.

        Returns:
            A harness with the same settings, no output, no watermark, one attempt more.
        """
        if function is None and not self.settings.ship:
            raise ValueError("ship=False keeps no copy of the function: give restore() a fresh one")
        now = self.processing_time if processing_time is None else processing_time
        decoded = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        for name in forget:
            del decoded.tables[name]
        fresh = type(self).__new__(type(self))
        new = cloudpickle.loads(self._payload) if function is None else function
        fresh._start(new, self.settings, now, attempt=self.attempt + 1, snapshot=decoded)
        return fresh

    # -- how it works

    def _start(
        self,
        function: Any,
        settings: _Settings,
        processing_time: int,
        *,
        attempt: int,
        snapshot: _Snapshot | None,
    ) -> None:
        self.settings = settings
        self.attempt = attempt
        self.processing_time = processing_time
        self.watermark = MIN_TIME
        self.dropped_timers = 0
        self.records = []
        self.faults = _Faults()
        self.backend = _Backend(self.faults, lambda: self.processing_time)
        self.timers = _Timers()
        self.metrics = _Metrics(self.faults)
        self._timer_service = _TimerService(self)
        self._held_watermark = None
        self._bundle_open = False
        self._ended = False
        self._closed = False
        self._failed = False
        self._declare_types()
        self._ship(function)
        with self._running(None):
            self.function.open(_RuntimeContext(self))
        if snapshot is not None:
            self._take_over(snapshot)

    @property
    def keyed(self) -> bool:
        """Whether there is a key, and with it state and timers."""
        return self.settings.key_by is not None

    def _declare_types(self) -> None:
        settings = self.settings
        self._input = _Wire(settings.input_type, "input", self.faults)
        self._output = _Wire(settings.output_type, "output", self.faults)
        self._key = _Wire(settings.key_type, "key", self.faults) if self.keyed else None
        self._side = {}
        for tag in settings.side_outputs:
            wire = _Wire(tag.type_info, f"side output {tag.tag_id!r}", self.faults)
            if tag.tag_id in self._side:
                self.faults.fail(f"two side outputs are called {tag.tag_id!r}")
            self._side[tag.tag_id] = (wire, [])

    def _ship(self, function: Any) -> None:
        wanted = KeyedProcessFunction if self.keyed else ProcessFunction
        name = type(function).__name__
        if not isinstance(function, wanted):
            with_key = "with" if self.keyed else "without"
            self.faults.fail(f"{with_key} key_by a {wanted.__name__} is needed, not a {name}")
        self._payload = b""
        self.function = function
        if self.settings.ship:
            try:
                self._payload = cloudpickle.dumps(function)
            except Exception as error:
                self.faults.fail(f"Flink cannot ship {name} to a worker (T6): {error}")
            self.function = cloudpickle.loads(self._payload)

    def _take_over(self, snapshot: _Snapshot) -> None:
        key_type = repr(self.settings.key_type)
        if snapshot.key_type != key_type:
            self.faults.fail(f"the key was {snapshot.key_type}, now it is {key_type}")
        for name, rows in snapshot.tables.items():
            if rows:
                self._check_declared(name, snapshot.declared[name])
                self.backend.tables[name] = dict(rows)
        self.timers.known[EVENT] = {_Timer(*timer) for timer in snapshot.event_timers}
        self.timers.known[PROCESSING] = {_Timer(*timer) for timer in snapshot.processing_timers}

    def _check_declared(self, name: str, before: _Declared) -> None:
        now = self.backend.declared.get(name)
        if now is None:
            self.faults.fail(
                f"the snapshot has state {name!r}, which the function did not get in open(): Flink "
                "would start empty without a word (T35); forget=[...] if that is meant"
            )
        if now != before:
            self.faults.fail(
                f"state {name!r} was a {before.kind} of {before.type}, now it is a {now.kind} of "
                f"{now.type}: Flink would read garbage (T34); give the state a new name"
            )

    def _key_of(self, element: Any) -> bytes:
        if self.settings.key_by is None or self._key is None:
            return b""
        return self._key.encode(self.settings.key_by(element))

    def _element_context(self, key: bytes, timestamp: int) -> Any:
        if self._key is None:
            context = InternalProcessFunctionContext(self._timer_service)
        else:
            context = InternalKeyedProcessFunctionContext(self._timer_service)
            context.set_current_key(self._key.decode(key))
        context.set_timestamp(timestamp)
        return context

    def _timer_context(self, domain: Any, timer: _Timer) -> Any:
        context = InternalKeyedProcessFunctionOnTimerContext(self._timer_service)
        context.set_current_key(self._key.decode(timer.key) if self._key else None)
        context.set_timestamp(timer.time)
        context.set_time_domain(domain)
        return context

    @contextmanager
    def _running(self, key: bytes | None) -> Iterator[None]:
        """Call the function with this key current; afterwards no fault stays hidden."""
        self.backend.key = key
        try:
            yield
            self.faults.raise_first()
        except BaseException:
            self._failed = True
            raise
        finally:
            self.backend.key = None

    def _require_running(self) -> None:
        if self._failed:
            raise HarnessError("the function has failed: restore() a snapshot into a fresh one")
        if self._ended or self._closed:
            raise HarnessError("the input has ended, or the harness is closed")

    def _emit(self, results: Any, timestamp: int, hook: str) -> None:
        if results is None and hook == "process_element":
            return
        if not isinstance(results, Iterator):
            self.faults.fail(
                f"{hook} returned {results!r}: Flink iterates over what is returned (T14), and "
                "fails on None after on_timer; make it a generator"
            )
        for result in results:
            try:
                self._route(result, timestamp)
            except HarnessError as error:
                error.args = (f"{error} (yielded at {_yield_site(results)})",)
                raise

    def _route(self, result: Any, timestamp: int) -> None:
        if result == () and isinstance(result, tuple) and self._side:
            self.faults.fail("an empty tuple is an IndexError where side outputs are active (T19)")
        if not (isinstance(result, tuple) and result and isinstance(result[0], OutputTag)):
            self.records.append(Record(self._output.copy(result), timestamp))
            return
        if len(result) != 2:
            self.faults.fail(f"a side output is (tag, value); of {len(result)} items some get lost")
        wire, records = self._asked_for(result[0])
        records.append(Record(wire.copy(result[1]), timestamp))

    def _asked_for(self, tag: Any) -> tuple[_Wire, list[Record]]:
        if tag.tag_id not in self._side:
            self.faults.fail(
                f"nobody asked for side output {tag.tag_id!r}: Flink drops it, or sends it to the "
                "main output (T17, T18); the job calls get_side_output, the test lists side_outputs"
            )
        wire, records = self._side[tag.tag_id]
        if repr(wire.type) != repr(tag.type_info):
            self.faults.fail(f"two tags {tag.tag_id!r}: {wire.type!r} and {tag.type_info!r}")
        return wire, records

    def _flush_bundle(self) -> int | None:
        """End the open bundle; returns the watermark that waited for it."""
        watermark, self._held_watermark = self._held_watermark, None
        self._bundle_open = False
        self.timers.flush()
        self.backend.cleared.clear()
        return watermark

    def _fire_event_timers(self, watermark: int) -> None:
        """Fire in rounds: what a round registers and is due fires in the next (T28)."""
        self.watermark = watermark
        known = set(self.timers.known[EVENT])
        for _ in self._rounds(EVENT):
            due = self.timers.take_due(EVENT, watermark, one=not self.settings.bundle)
            if not due:
                return
            if watermark == MAX_TIME and not known.issuperset(due):
                self.faults.fail(
                    "an event-time timer was registered at the end of the input: Flink may never "
                    "fire it (it does not where the last bundle was full)"
                )
            for timer in due:
                self._fire(EVENT, timer)
            self._flush_bundle()

    def _fire_processing_timers(self, now: int) -> None:
        for _ in self._rounds(PROCESSING):
            due = self.timers.take_due(PROCESSING, now, one=True)
            if not due:
                return
            self.processing_time = max(self.processing_time, due[0].time)
            self._fire(PROCESSING, due[0])
            if self.settings.bundle:
                self._bundle_open = True
            else:
                self._flush_bundle()

    def _rounds(self, domain: Any) -> Iterator[int]:
        yield from range(MAX_ROUNDS)
        self.faults.fail(f"{domain.name} timers fired {MAX_ROUNDS} times: re-armed for ever?")

    def _fire(self, domain: Any, timer: _Timer) -> None:
        with self._running(timer.key):
            context = self._timer_context(domain, timer)
            self._emit(self.function.on_timer(timer.time, context), timer.time, "on_timer")

    def _leak(self, name: str) -> str:
        keys = self.backend.live_keys(name)
        shown = self._key.decode(keys[0]) if self._key else keys[0]
        return f"state {name!r} of {len(keys)} keys, as {shown!r}"


def _yield_site(results: Iterator[Any]) -> str:
    """File and line of the yield at which a generator stands, through every ``yield from``."""
    if not isinstance(results, GeneratorType):
        return type(results).__name__
    if isinstance(results.gi_yieldfrom, GeneratorType):
        return _yield_site(results.gi_yieldfrom)
    frame = results.gi_frame
    line = frame.f_lineno if frame else results.gi_code.co_firstlineno
    return f"{results.gi_code.co_filename}:{line}"
