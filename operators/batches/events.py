"""Accepted events: held as the lines that they will be written as, added up for the windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import compress, repeat
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.bridge.wire import Ints
from operators.rules.contract import Column, Contract
from operators.rules.identity import digest_of
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms, iso_utc_ms

COORDINATES: Final = ("source_topic", "source_partition", "source_offset")

_A_TIME: Final = "2026-01-01T00:00:00.000Z"
_TIME_CHARS: Final = len(_A_TIME)
# The least and the greatest byte at each place of a time as `iso_utc_ms` writes it. What lies
# between them may still be no day of the calendar: that is Arrow's to say.
_LEAST: Final = np.frombuffer(b"0000-00-00T00:00:00.000Z", np.uint8)
_GREATEST: Final = np.frombuffer(b"9999-19-39T29:59:59.999Z", np.uint8)


@dataclass(frozen=True)
class Events:
    """The events of a batch.

    Attributes:
        lines: each as it will be written, but for its coordinates (`EventType.type`).
        times: columns of times, ms UTC; 0 where there is none.
        numbers: columns of numbers.
        misfits: rows with a value that its column cannot hold: a text that is no time, an integer
            beyond 64 bits.
    """

    lines: list[Any]
    times: dict[str, Ints]
    numbers: dict[str, pa.Array]
    misfits: frozenset[int]

    def without(self, rows: Ints) -> Events:
        """All but these rows, which are in order."""
        kept = np.ones(len(self.lines), np.uint8)
        kept[rows] = 0
        return self._kept(kept)

    def only(self, rows: Ints) -> Events:
        """These rows, which are in order."""
        kept = np.zeros(len(self.lines), np.uint8)
        kept[rows] = 1
        return self._kept(kept)

    def _kept(self, kept: npt.NDArray[np.uint8]) -> Events:
        rows = np.flatnonzero(kept == 0)
        index = pa.array(np.flatnonzero(kept))
        return Events(
            list(compress(self.lines, kept.tobytes())),
            {name: np.delete(times, rows) for name, times in self.times.items()},
            {name: numbers.take(index) for name, numbers in self.numbers.items()},
            frozenset(),
        )


class EventType:
    """What an event of one contract is between its record and its line.

    A msgspec Struct with the fields of the line, in their order and under names of our own: the
    contract's, times as text, and the coordinates. A record decodes straight into it, since most
    times come as they are written: that saves turning each into an object and back into text.
    A contract with code or rules of its own for the whole record is asked first.
    """

    def __init__(self, contract: Contract) -> None:
        """Derive the Struct from the contract."""
        self.contract = contract
        self._fields = {column.name: f"f{i}" for i, column in enumerate(contract.columns)}
        self._times = [c for c in contract.columns if c.kind == "datetime"]
        self._numbers = [c for c in contract.columns if c.kind in ("int", "float")]
        self._encode_lines = msgspec.json.Encoder().encode_lines
        identity = contract.column(contract.identity) if contract.identity else None
        self._identity = attrgetter(identity.attribute) if identity else None
        #: Whether `decode` refuses nothing that the contract's own decoder takes.
        self.is_direct = _decodes_directly(contract)
        self.type = self._line_type(_declared_type if self.is_direct else _bare_type)
        #: One record to its event. Raises what msgspec or the contract's own code raises.
        self.decode: Callable[[bytes], Any] = (
            msgspec.json.Decoder(self.type).decode
            if self.is_direct
            else self._through(msgspec.json.Decoder(contract.type).decode)
        )

    def _line_type(self, type_of: Callable[[Column], Any]) -> type[msgspec.Struct]:
        defaults = {f.encode_name: f.default for f in msgspec.structs.fields(self.contract.type)}
        fields: list[Any] = [
            (name, type_of(column))
            if (column := self.contract.column(full)).required
            else (name, type_of(column), defaults[full])
            for full, name in self._fields.items()
        ]
        # A record may have a field of such a name: it is not looked at, and written over.
        fields += [(name, msgspec.Raw, b"") for name in ("topic", "partition", "offset")]
        names = [*self._fields, *COORDINATES]
        return msgspec.defstruct(
            "Line",
            fields,
            rename={field[0]: name for field, name in zip(fields, names, strict=True)},
            kw_only=True,
            gc=False,
        )

    def _through(self, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Records that the contract's own class decodes first."""

        def decode_line(payload: bytes) -> Any:
            return self.line_of(decode(payload))

        return decode_line

    def line_of(self, event: Any) -> Any:
        """An event of the contract's own class as its line.

        Raises:
            Exception: of any kind: the class has set a value that its field cannot hold.
        """
        values: dict[str, Any] = {}
        for column in self.contract.columns:
            value = getattr(event, column.attribute)
            if column.kind == "datetime" and value is not None:
                value = iso_utc_ms(epoch_ms(value))
            elif isinstance(value, str):
                value.encode()  # a lone surrogate has no bytes
            values[column.name] = value
        return msgspec.convert(values, self.type)

    def events(self, lines: list[Any]) -> Events:
        """Decoded events with what is checked and added up of them in columns.

        Never raises: a value that its column cannot hold makes its row a misfit.
        """
        misfits: set[int] = set()
        times = {c.name: self._time_column(c, lines, misfits) for c in self._times}
        numbers = {c.name: self._number_column(c, lines, misfits) for c in self._numbers}
        return Events(lines, times, numbers, frozenset(misfits))

    def suspects(self, events: Events, latest_ms: int) -> set[int]:
        """Rows that decoded but need the second look: not finite, out of range, in the future."""
        rows = set(events.misfits)
        for column in self._numbers:
            if column.kind == "float":
                rows.update(_where(~np.isfinite(_filled(events.numbers[column.name]))))
        for column in self._times:
            latest = latest_ms if column.name == self.contract.event_time else MAX_EPOCH_MS
            ms = events.times[column.name]
            rows.update(_where((ms < MIN_EPOCH_MS) | (ms > latest)))
        return rows

    def event_ms(self, events: Events) -> Ints:
        """The events' times, ms UTC."""
        return events.times[self.contract.event_time]

    def keys(self, events: Events) -> list[str]:
        """The events' keys."""
        return self._values(self.contract.key, events.lines)

    def idempotency_key(self, payload: bytes, value: Any, key: str) -> str:
        """What tells an event apart from all others, as a text of hexadecimal digits.

        Args:
            payload: the record as it came.
            value: the event, an object of the contract's own class.
            key: its key.
        """
        identity = self._identity(value) if self._identity else None
        return digest_of(payload, identity, key).hex()

    def digests(self, payloads: Sequence[bytes], events: Events) -> bytes:
        """What tells the events of some payloads apart, one digest behind the other."""
        name = self.contract.identity
        values = self._values(name, events.lines) if name else repeat(None, len(payloads))
        return b"".join(map(digest_of, payloads, values, self.keys(events)))

    def encoded(
        self,
        events: Events,
        topics: Iterable[str],
        partitions: Iterable[int],
        offsets: Iterable[int],
    ) -> bytes:
        """The events and where they came from as JSON lines, each ended by a newline."""
        places = zip(events.lines, topics, partitions, offsets, strict=True)
        for line, topic, partition, offset in places:
            line.topic = topic
            line.partition = partition
            line.offset = offset
        return self._encode_lines(events.lines)

    def window_columns(self, events: Events, window_ms: int) -> pa.RecordBatch:
        """What windows need of the events: key, number of the window, time in ms, value."""
        contract = self.contract
        ms = self.event_ms(events)
        total = partials_schema(contract).field("total_value").type
        value = (
            events.numbers[contract.value].cast(total)
            if contract.value
            else pa.nulls(len(ms), total)
        )
        keys = pa.array(self.keys(events), pa.string())
        windows = pa.array(np.floor_divide(ms, window_ms))
        return pa.record_batch(
            [keys, windows, pa.array(ms), value], ["key", "window", "ms", "value"]
        )

    def _values(self, name: str, lines: list[Any]) -> list[Any]:
        return list(map(attrgetter(self._fields[name]), lines))

    def _number_column(self, column: Column, lines: list[Any], misfits: set[int]) -> pa.Array:
        values = self._values(column.name, lines)
        try:
            return pa.array(values, column.arrow_type)
        except OverflowError:  # an integer beyond 64 bits, which Python and JSON know
            low, high = -(2**63), 2**63 - 1
            wide = {i for i, v in enumerate(values) if v is not None and not low <= v <= high}
            misfits.update(wide)
            kept = [None if i in wide else value for i, value in enumerate(values)]
            return pa.array(kept, column.arrow_type)

    def _time_column(self, column: Column, lines: list[Any], misfits: set[int]) -> Ints:
        """A column of times in ms; in the lines each is put as `iso_utc_ms` writes it."""
        texts = self._values(column.name, lines)
        if column.optional:
            texts = [text or "" for text in texts]
        ms, odd = canonical_times(texts)
        field = self._fields[column.name]
        for row in odd:
            if getattr(lines[row], field) is None:
                continue
            try:
                ms[row] = epoch_ms(msgspec.convert(texts[row], column.full_type))
                setattr(lines[row], field, iso_utc_ms(int(ms[row])))
            except (msgspec.ValidationError, ValueError):
                misfits.add(row)
        return ms


def canonical_times(texts: Sequence[str]) -> tuple[Ints, list[int]]:
    """Read the times that stand as `iso_utc_ms` writes them.

    Returns:
        Milliseconds by row, and the rows of those that are written in another way or no times at
        all: their milliseconds are 0.
    """
    kept = list(texts)
    sizes = np.fromiter(map(len, kept), np.int64, len(kept))
    odd = _where(sizes != _TIME_CHARS)
    for row in odd:
        kept[row] = _A_TIME
    # What is not ASCII becomes a question mark, which no time has.
    written = np.frombuffer("".join(kept).encode("ascii", "replace"), np.uint8)
    table = written.reshape(len(kept), _TIME_CHARS)
    fit = (table >= _LEAST) & (table <= _GREATEST)
    if not fit.all():
        fits = fit.all(axis=1)
        table = table.copy()
        table[~fits] = np.frombuffer(_A_TIME.encode(), np.uint8)
        odd += _where(~fits)
    ms, no_days = _parsed(table)
    odd += no_days
    ms[odd] = 0
    return ms, odd


def _parsed(table: npt.NDArray[np.uint8]) -> tuple[Ints, list[int]]:
    """Milliseconds of times that look right, and the rows that are no day of the calendar."""
    n = len(table)
    ends = np.arange(0, (n + 1) * _TIME_CHARS, _TIME_CHARS, dtype=np.int32)
    texts = pa.StringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(table.tobytes()))
    try:
        return _instants(texts), []
    except pa.ArrowInvalid:  # at least one of them: find out which, by halves
        if n == 1:
            return np.zeros(1, np.int64), [0]
        half = n // 2
        (first, none_of_first), (rest, none_of_rest) = _parsed(table[:half]), _parsed(table[half:])
        return np.concatenate((first, rest)), none_of_first + [half + row for row in none_of_rest]


def _instants(texts: pa.Array) -> Ints:
    return texts.cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_numpy().copy()  # type: ignore[no-any-return]


def partials_of(columns: list[pa.RecordBatch], contract: Contract) -> pa.RecordBatch:
    """Events added up by key and tumbling window: rows of `partials_schema`.

    What the windows add up is then some rows a key and batch, not one an event. A partial's time is
    its latest event's, so it falls into the same window as all of them.

    Args:
        columns: of batches, from `EventType.window_columns`.
        contract: theirs.
    """
    schema = partials_schema(contract)
    sums = (
        pa.Table.from_batches(columns)
        .group_by(["key", "window"], use_threads=False)
        .aggregate([("ms", "max"), ("value", "sum"), ("ms", "count")])
    )
    arrays = [sums.column(name) for name in ("key", "ms_max", "value_sum", "ms_count")]
    cast = [a.combine_chunks().cast(t) for a, t in zip(arrays, schema.types, strict=True)]
    return pa.record_batch(cast, schema=schema)


def partials_schema(contract: Contract) -> pa.Schema:
    """Key, time of the latest event, total of the values (null without any), number of events."""
    is_int = contract.value is not None and contract.column(contract.value).kind == "int"
    return pa.schema(
        [
            ("event_key", pa.string()),
            ("event_time", pa.timestamp("ms")),
            # Sums of 64-bit integers need more than 64 bits.
            ("total_value", pa.decimal128(38, 0) if is_int else pa.float64()),
            ("event_count", pa.int64()),
        ]
    )


def _decodes_directly(contract: Contract) -> bool:
    """Whether nothing but the types of its fields decides what an event of the contract is."""
    config = contract.type.__struct_config__
    times = [column for column in contract.columns if column.kind == "datetime"]
    defaults = {f.encode_name: f.default for f in msgspec.structs.fields(contract.type)}
    return (
        config.tag is None
        and not config.forbid_unknown_fields
        and not hasattr(contract.type, "__post_init__")
        and all(c.required or defaults[c.name] is None for c in times)
        and all(takes_utc(column) for column in times)
    )


def takes_utc(column: Column) -> bool:
    """Whether a column of times takes one as it is written."""
    with suppress(msgspec.ValidationError):
        msgspec.convert(_A_TIME, column.full_type)
        return True
    return False  # Meta(tz=False)


def _declared_type(column: Column) -> Any:
    """The field's type as the contract has it; a time as text."""
    return _bare_type(column) if column.kind == "datetime" else column.full_type


def _bare_type(column: Column) -> Any:
    """The field's type without constraints; a time as text."""
    bare = str if column.bare_type is datetime else column.bare_type
    return bare | None if column.optional else bare


def _filled(array: pa.Array) -> npt.NDArray[Any]:
    filled: npt.NDArray[Any] = (array.fill_null(0) if array.null_count else array).to_numpy()
    return filled


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]
