"""The verdict on one record: accepted, dead letter or quarantine.

The happy path is one `msgspec` decode. Only a record that fails it is looked at a second time,
field by field, to name every violation and not just the first.

What is checked, in this order; the first that applies decides:

1. `empty_message`: nothing, or only white space. `oversized`: longer than the limit.
   `null_bytes`: a raw 0x00. The user's poison patterns.
2. `invalid_json`: not UTF-8 anywhere, not JSON, cut, nested deeper than Python's recursion limit
   allows, or a bare `NaN` or `Infinity` outside the contract's fields.
3. The contract: every violation of every field is found, and the first in the order of
   `Contract.error_types` names the record.

Fields that the contract does not name are checked to be JSON, and otherwise left alone. Of a key
that comes twice the last value counts, but each value has to be good. Only intake's happy path,
which takes times as texts first (`operators.batches.events`), sees just the last one of a time.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from operators.rules.contract import (
    FUTURE_TIMESTAMP,
    NOT_FINITE,
    OUTSIDE_INT64,
    SCHEMA_ERROR,
    Column,
    Contract,
    misfit,
)
from operators.rules.poison import PoisonRules
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, epoch_ms

MAX_VALUE_CHARS = 200
"""Longest text of a value in a violation."""
MAX_MESSAGE_CHARS = 2000
"""Longest message of a rejection."""

EMPTY_MESSAGE = "empty_message"
OVERSIZED = "oversized"
NULL_BYTES = "null_bytes"
INVALID_JSON = "invalid_json"

_JSON_NULL, _JSON_EMPTY, _JSON_NUMBER = b"null", b'""', b"-0123456789"

# NaN and Infinity are not JSON, but pandas, Python and others write them. Numbers too big for a
# double stand in for them, which msgspec then refuses field by field.
_STAND_IN = b"1e9999999"
_NAN, _INFINITY = _STAND_IN + b"0", _STAND_IN + b"1"
_LITERALS = (
    (b"NaN", re.compile(rb"(?<![\w.+-])NaN(?![\w.+-])"), _NAN),
    (
        b"Infinity",
        re.compile(rb"(?<![\w.+-])(-?)Infinity(?![\w.+-])"),
        rb"\g<1>" + _INFINITY,
    ),
)
# A string, closed or not: so that the search for the next never starts inside one, which would
# take hours for a megabyte of quotes.
_STRING = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*"?)', re.DOTALL)

_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_float = msgspec.json.Decoder(float).decode

Fields = dict[str, msgspec.Raw]


class Violation(msgspec.Struct, frozen=True):
    """One thing that is wrong with a record.

    Attributes:
        error_type: One of `Contract.error_types`.
        field: Name in the JSON; "" when it is about the whole record.
        value: JSON text of the field's value, at most `MAX_VALUE_CHARS`; "" when absent.
        message: For a person: the field and what is wrong with it. Does not repeat the value.
    """

    error_type: str
    field: str
    value: str
    message: str


class Rejection(msgspec.Struct, frozen=True):
    """Why a record is not an event.

    Attributes:
        kind: `dead_letter` may succeed once its cause is mended; `quarantine` never as it is.
        error_type: The violation that names the record; for quarantine the reason.
        message: For a person, one line, at most `MAX_MESSAGE_CHARS`.
        violations: All that apply, in the order of `Contract.error_types`. Empty when the record
            could not be read at all.
        stacktrace: Where the contract's own code raised, when that is the reason.
    """

    kind: Literal["dead_letter", "quarantine"]
    error_type: str
    message: str
    violations: tuple[Violation, ...] = ()
    stacktrace: str = ""


def bounded_text(text: str, limit: int) -> str:
    """Cut a text to `limit` characters, and make it encodable: a lone surrogate is escaped."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()[:limit]


class Judge:
    """Decides on records, one at a time. Pure: the same record at the same time, the same verdict.

    Holds msgspec decoders, which cannot be pickled: make one in each worker.

    Attributes:
        decode: The happy path. Returns the event, or raises whatever msgspec or the user's
            `__post_init__` raises. What it accepts is an event only if, besides, the payload is
            UTF-8 and no longer than the limit, no poison pattern matches, and `is_sound` agrees.
        poison: The user's rules.
        max_record_bytes: The limit.
        max_future_skew_ms: How far ahead of now an event time may be.
    """

    decode: Callable[[bytes], msgspec.Struct]

    def __init__(
        self,
        contract: Contract,
        poison: PoisonRules,
        max_record_bytes: int,
        max_future_skew_ms: int,
    ) -> None:
        """Prepare the decoders.

        Args:
            contract: What a good event is.
            poison: The user's rules.
            max_record_bytes: Longer records are `oversized`.
            max_future_skew_ms: An event time further ahead of now is `future_timestamp`.
        """
        self.decode = msgspec.json.Decoder(contract.type).decode
        self.poison = poison
        self.max_record_bytes = max_record_bytes
        self.max_future_skew_ms = max_future_skew_ms
        self._checks = tuple(
            _FieldCheck(c, c.name == contract.event_time) for c in contract.columns
        )
        self._bounded_checks = tuple(check for check in self._checks if check.is_bounded)
        self._rank = {name: rank for rank, name in enumerate(contract.error_types)}

    def judge(
        self, payload: bytes, now_ms: int, payload_bytes: int | None = None
    ) -> msgspec.Struct | Rejection:
        """Decide on one record.

        Args:
            payload: The record as it came; or its beginning, if the reader has cut it.
            now_ms: The present, in milliseconds since 1970.
            payload_bytes: Full length of the record, if the reader has cut it.

        Returns:
            The event, or why it is none. Exactly one of them for any bytes; never raises, short
            of running out of memory.
        """
        rejection = self._unread(payload, payload_bytes)
        if rejection:
            return rejection
        refusal: Exception | None = None
        stacktrace = ""
        try:
            event = self.decode(payload)
            if self.is_sound(event, now_ms):
                return event
        except MemoryError:
            raise
        except Exception as error:  # a user's __post_init__ may raise anything, and set anything
            if not isinstance(error, msgspec.MsgspecError):
                stacktrace = _stacktrace(error)
            # Its traceback holds this frame, which holds it: a ring, which only the garbage
            # collector frees, with a walk through all objects.
            refusal = error.with_traceback(None)
        rejection = self._named(payload, now_ms) or self._unexplained(refusal)
        if stacktrace:
            rejection = msgspec.structs.replace(rejection, stacktrace=stacktrace)
        return rejection

    def refused(
        self, payload: bytes, now_ms: int, payload_bytes: int | None = None
    ) -> Rejection | None:
        """What is wrong with a record that is known not to decode, without decoding it again.

        Arguments as for `judge`, and the same verdict; None if only the decoder can say it.
        """
        return self._unread(payload, payload_bytes) or self._named(payload, now_ms)

    def explain(
        self, payload: bytes, now_ms: int, payload_bytes: int | None = None
    ) -> Rejection | None:
        """Say what is wrong with a record; None when nothing is. Arguments as for `judge`."""
        verdict = self.judge(payload, now_ms, payload_bytes)
        return verdict if isinstance(verdict, Rejection) else None

    def latest_ms(self, now_ms: int) -> int:
        """The latest event time that is not in the future, in milliseconds since 1970."""
        return now_ms + self.max_future_skew_ms

    def is_sound(self, event: msgspec.Struct, now_ms: int) -> bool:
        """Check what types cannot say: values fit their columns, the event is not in the future."""
        latest_ms = self.latest_ms(now_ms)
        return not any(
            check.complaint(getattr(event, check.column.attribute), latest_ms)
            for check in self._bounded_checks
        )

    def _unread(self, payload: bytes, payload_bytes: int | None) -> Rejection | None:
        """Faults that are seen without reading the payload as JSON."""
        size = len(payload) if payload_bytes is None else payload_bytes
        is_whole = size <= len(payload)
        if is_whole and (not payload or payload.isspace()):
            return _quarantine(EMPTY_MESSAGE, "the record is empty")
        if size > self.max_record_bytes:
            return _quarantine(
                OVERSIZED, f"the record has {size} bytes, allowed are {self.max_record_bytes}"
            )
        null_at = payload.find(b"\0")
        if null_at >= 0:
            return _quarantine(NULL_BYTES, f"a null byte at byte {null_at}")
        pattern = self.poison.match(payload) if self.poison.has_patterns else None
        if pattern:
            return _quarantine(pattern.reason, f"the record matches the pattern {pattern.pattern}")
        return _not_utf8(payload)

    def _named(self, payload: bytes, now_ms: int) -> Rejection | None:
        """Name every violation of a record that is no event; None if no field has one."""
        latest_ms = self.latest_ms(now_ms)
        try:
            found = self._violations(_decode_fields(payload), latest_ms)
        except msgspec.ValidationError as error:
            return self._not_an_object(payload, error)
        except (msgspec.DecodeError, RecursionError) as error:
            return self._with_non_finite(payload, latest_ms) or _invalid_json(error)
        return self._reject(found) if found else None

    def _violations(self, fields: Fields, latest_ms: int) -> list[Violation]:
        """Check each field of the contract by itself."""
        found = []
        for check in self._checks:
            violation = check.violation(fields.get(check.name), latest_ms)
            if violation is not None:
                found.append(violation)
        return found

    def _not_an_object(self, payload: bytes, error: Exception) -> Rejection:
        """JSON that is a list, a text or a number; or looks like one, and is cut."""
        try:
            _decode_any(payload)
        except (msgspec.DecodeError, RecursionError) as malformed:
            return _invalid_json(malformed)
        return self._reject([Violation(SCHEMA_ERROR, "", _value_text(payload), str(error))])

    def _with_non_finite(self, payload: bytes, latest_ms: int) -> Rejection | None:
        """Violations of a record that is JSON but for NaN or Infinity in the contract's fields."""
        if b"NaN" not in payload and b"Infinity" not in payload:
            return None
        try:
            fields = _decode_fields(_with_stand_ins(payload))
        except (msgspec.DecodeError, RecursionError):
            return None
        ours = (bytes(fields.get(check.column.name, b"")) for check in self._checks)
        found = self._violations(fields, latest_ms)
        if not found or not any(_STAND_IN in raw for raw in ours):
            return None
        return self._reject([_show_literal(v) for v in found])

    def _unexplained(self, refusal: Exception | None) -> Rejection:
        """A refusal that no single field explains: the Struct's own rules, or a bad duplicate."""
        message = "the event does not fit its columns" if refusal is None else _error_text(refusal)
        return self._reject([Violation(SCHEMA_ERROR, "", "", message)])

    def _reject(self, found: Iterable[Violation]) -> Rejection:
        """Put violations in order, and let the first that decides decide."""
        violations = tuple(sorted(found, key=lambda v: self._rank[v.error_type]))
        message = bounded_text("; ".join([v.message for v in violations]), MAX_MESSAGE_CHARS)
        poisoned = [v for v in violations if v.error_type in self.poison.violations]
        if poisoned:
            return Rejection("quarantine", poisoned[0].error_type, message, violations)
        return Rejection("dead_letter", violations[0].error_type, message, violations)


class _FieldCheck:
    """The second look at one field."""

    def __init__(self, column: Column, is_event_time: bool) -> None:
        self.column = column
        self.name = column.name
        self.is_bounded = column.kind in ("int", "float", "datetime")
        self._is_event_time = is_event_time
        self._decode = msgspec.json.Decoder(column.full_type).decode
        self._choices = f"not one of {', '.join(map(str, column.choices))}"
        self._decode_bare = msgspec.json.Decoder(column.bare_type).decode

    def violation(self, raw: msgspec.Raw | None, latest_ms: int) -> Violation | None:
        """What is wrong with the field's JSON; None when nothing is."""
        if raw is None:
            return self._absent("absent", b"") if self.column.required else None
        try:
            value = self._decode(raw)
        except msgspec.ValidationError as error:
            return self._refused(bytes(raw), str(error))
        complaint = self.complaint(value, latest_ms) if self.is_bounded else None
        return complaint and self._violation(*complaint, bytes(raw))

    def complaint(self, value: Any, latest_ms: int) -> tuple[str, str] | None:
        """Error type and reason why a value that msgspec takes is still no good."""
        # Most often the time is good, and one conversion says so.
        if self._is_event_time and MIN_EPOCH_MS <= epoch_ms(value) <= latest_ms <= MAX_EPOCH_MS:
            return None
        column = self.column
        reason = misfit(column, value)
        if reason:
            is_time = column.kind == "datetime"
            return SCHEMA_ERROR if is_time else column.invalid_error, reason
        if self._is_event_time and epoch_ms(value) > latest_ms:
            return FUTURE_TIMESTAMP, "too far in the future"
        return None

    def _refused(self, raw: bytes, reason: str) -> Violation:
        """Name what msgspec refused: an absent value, a constraint or the type."""
        column = self.column
        if raw == _JSON_NULL:
            return self._absent("null", raw)
        if raw == _JSON_EMPTY and column.kind in ("str", "datetime"):
            return self._absent("empty", raw)
        if self._is_right_type(raw):
            if column.choices:
                reason = self._choices
            return self._violation(column.invalid_error, reason, raw)
        if not _is_too_big(raw):
            return self._violation(SCHEMA_ERROR, reason, raw)
        if column.kind in ("int", "float"):
            reason = OUTSIDE_INT64 if column.kind == "int" else NOT_FINITE
            return self._violation(column.invalid_error, reason, raw)
        return self._violation(SCHEMA_ERROR, f"Expected `{column.kind}`, got a number", raw)

    def _is_right_type(self, raw: bytes) -> bool:
        """Whether the value is of the field's type, its constraints aside."""
        try:
            self._decode_bare(raw)
        except msgspec.ValidationError:
            return False
        return True

    def _absent(self, reason: str, raw: bytes) -> Violation:
        return self._violation(self.column.absent_error, reason, raw)

    def _violation(self, error_type: str, reason: str, raw: bytes) -> Violation:
        name = self.column.name
        message = bounded_text(f"{name}: {reason}", MAX_MESSAGE_CHARS)
        return Violation(error_type, name, _value_text(raw), message)


def _is_too_big(raw: bytes) -> bool:
    """Whether the JSON is a number beyond any double."""
    if raw[:1] not in _JSON_NUMBER:
        return False
    try:
        _decode_float(raw)
    except msgspec.ValidationError:
        return True
    return False


def _not_utf8(payload: bytes) -> Rejection | None:
    """Look at every byte: msgspec skips over fields that the contract does not name."""
    if payload.isascii():
        return None
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        return _quarantine(INVALID_JSON, f"not UTF-8: {error.reason} at byte {error.start}")
    return None


def _invalid_json(error: Exception) -> Rejection:
    if isinstance(error, RecursionError):
        return _quarantine(INVALID_JSON, "not JSON: nested too deep")
    return _quarantine(INVALID_JSON, f"not JSON: {error}")


def _quarantine(reason: str, message: str) -> Rejection:
    return Rejection("quarantine", reason, bounded_text(message, MAX_MESSAGE_CHARS))


def _error_text(error: Exception) -> str:
    """What an exception says; its name where it is not msgspec's own."""
    name = "" if isinstance(error, msgspec.MsgspecError) else f"{type(error).__name__}: "
    try:
        text = str(error)
    except Exception:  # the contract's own exception
        text = "it cannot say why"
    return bounded_text(" ".join(f"{name}{text}".split()), MAX_MESSAGE_CHARS)


def _stacktrace(error: Exception) -> str:
    """Where the contract's own code raised."""
    return "".join(traceback.format_tb(error.__traceback__)) + _error_text(error)


def _value_text(raw: bytes) -> str:
    """JSON text of a value, bounded. Cut as bytes first: a value may be a megabyte."""
    text = raw[: 4 * MAX_VALUE_CHARS + 4].decode("utf-8", "ignore")
    return bounded_text(text, MAX_VALUE_CHARS)


def _with_stand_ins(payload: bytes) -> bytes:
    """The payload with a number for each bare NaN and Infinity; strings stay as they are."""
    # Strings at the odd places, and no quote at the even ones.
    if b"\\" in payload:
        parts, quote = _STRING.split(payload), b""
    else:  # each quote begins or ends a string
        parts, quote = payload.split(b'"'), b'"'
    outside = b'"'.join(parts[::2])
    for word, literal, stand_in in _LITERALS:
        if word in outside:
            outside = literal.sub(stand_in, outside)
    parts[::2] = outside.split(b'"')
    return quote.join(parts)


def _show_literal(violation: Violation) -> Violation:
    """The violation with the literal that the record had, not its stand-in."""
    if _STAND_IN.decode() not in violation.value:
        return violation
    value = violation.value.replace(_NAN.decode(), "NaN")
    return msgspec.structs.replace(violation, value=value.replace(_INFINITY.decode(), "Infinity"))
