"""The envelope: how a failed record is written down, the same for dead letters and quarantine.

The original bytes come back exactly from `original_message` and `encoding`, unless the payload was
longer than the limit: then `message_truncated` is true, `original_message` holds its beginning, and
`message_bytes` and `message_checksum` still speak of the whole.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

import msgspec

from operators.rules.contract import FUTURE_TIMESTAMP, Contract
from operators.rules.delivery.failure import FailureCategory, category_of
from operators.rules.fingerprint import fingerprint
from operators.rules.times import MAX_EPOCH_MS, MIN_EPOCH_MS, iso_utc_ms
from operators.rules.verdict import Rejection, Violation, bounded_text

MAX_ERROR_MESSAGE_CHARS = 2000
MAX_STACKTRACE_CHARS = 8000
MAX_VIOLATIONS = 50
MAX_KEY_CHARS = 1000
MAX_TOPIC_CHARS = 4096
MAX_METADATA_ENTRIES = 50
MAX_METADATA_CHARS = 1000
MAX_METADATA_BYTES = 65_536
"""Of all names and values as they are in JSON, where one character may take six bytes."""

Encoding = Literal["utf-8", "base64"]
Disposition = Literal[
    "dq_rule",
    "poison",
    "refused",
    "exhausted",
    "followed",
    "expired",
    "overflow",
    "flush_at_end",
]


class Tries(msgspec.Struct, frozen=True):
    """The tries of a step that makes several.

    Attributes:
        category: what kind of failure the last one was.
        disposition: why there is no further one.
        count: how many count.
        history: those that failed, oldest first: `at` (a time), `error_type`, `error_message`.
        first_ms: when the first one failed.
        last_ms: when the last one did.
    """

    category: FailureCategory
    disposition: Disposition
    count: int
    history: list[dict[str, Any]]
    first_ms: int
    last_ms: int


class DeadLetter(msgspec.Struct, kw_only=True, frozen=True):
    """A failed record, where it came from, and all that is known of its failure.

    In the JSON each error type of the contract except `future_timestamp` follows as a boolean
    flag, `has_schema_error` and so on. All times are ISO-8601 UTC with milliseconds.

    Attributes:
        original_message: The payload: its text, or base64 where it is not UTF-8.
        encoding: Which of the two.
        error_type: The violation, or the quarantine reason, that names the record.
        error_message: For a person, bounded.
        error_stacktrace: Where there is one, bounded; "" else.
        failure_category: What kind of failure it is.
        violations: All that apply, at most `MAX_VIOLATIONS`.
        processing_attempts: How often the step that failed has tried; 1 for intake.
        attempts: The failed tries before this, oldest first, bounded; none for intake.
        first_failure_time: When the first try failed.
        last_failure_time: When the last one did.
        source_topic: Topic, or path of the file.
        source_partition: Partition; 0 for a file.
        source_offset: Offset in the partition, or in the file.
        source_timestamp: The time the source gave the record, if any.
        key: The record's key in the source, if any; bytes that are not UTF-8 are escaped.
        processing_stage: The step that failed.
        message_checksum: MD5 of the whole original bytes, hexadecimal: the storage key.
        fingerprint: Which fault it is: the same for other values.
        disposition: `dq_rule` for a dead letter of intake, `poison` for quarantine; of delivery why
            there was no further try, see `lane.Disposition`.
        replay_count: How often it was redriven.
        code_version: Version of Breakwater.
        contract_version: `Contract.version`.
        metadata: Anything else, texts by name, bounded.
        message_bytes: Length of the whole original payload.
        message_truncated: `original_message` holds only its beginning.
    """

    original_message: str
    encoding: Encoding
    error_type: str
    error_message: str
    error_stacktrace: str
    failure_category: FailureCategory
    violations: list[Violation]
    processing_attempts: int
    attempts: list[dict[str, Any]]
    first_failure_time: str
    last_failure_time: str
    source_topic: str
    source_partition: int
    source_offset: int
    source_timestamp: str | None
    key: str | None
    processing_stage: str
    message_checksum: str
    fingerprint: str
    disposition: Disposition
    replay_count: int
    code_version: str
    contract_version: str
    metadata: dict[str, str]
    message_bytes: int
    message_truncated: bool


class Source(msgspec.Struct, frozen=True):
    """Where a record came from.

    Attributes:
        topic: Topic, or path of the file.
        partition: Partition; 0 for a file.
        offset: Offset in the partition, or in the file.
        timestamp_ms: The time the source gave the record, in ms since 1970, if any.
        key: The record's key, if any.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None = None
    key: bytes | None = None


def envelope_line(
    payload: bytes,
    rejection: Rejection,
    source: Source,
    contract: Contract,
    *,
    now_ms: int,
    stage: str,
    code_version: str,
    payload_limit_bytes: int,
    payload_bytes: int | None = None,
    full_checksum: str | None = None,
    stacktrace: str = "",
    metadata: Mapping[str, str] | None = None,
    tries: Tries | None = None,
) -> bytes:
    """Write the envelope of one rejected record.

    Args:
        payload: The record as it came; or its beginning, if the reader has cut it.
        rejection: Why it was rejected.
        source: Where it came from.
        contract: Names the flags, and the version.
        now_ms: The present, within the years 1 to 9999.
        stage: Step that rejected it, e.g. `intake`.
        code_version: Version of Breakwater.
        payload_limit_bytes: A longer payload is cut to this. The cut moves back over a character
            that it would split, so that text stays text.
        payload_bytes: Full length of the record, if the reader has cut it.
        full_checksum: MD5 of the whole record, if the reader has cut it.
        stacktrace: Where there is one.
        metadata: Anything else worth keeping.
        tries: Of a step that makes several.

    Returns:
        One line of JSON in UTF-8, without the newline. Never raises, whatever the payload.
    """
    size = len(payload) if payload_bytes is None else payload_bytes
    message, encoding = _as_text(payload[:payload_limit_bytes], size)
    tries = tries or Tries(
        category_of(rejection.error_type),
        "poison" if rejection.kind == "quarantine" else "dq_rule",
        1,
        [],
        now_ms,
        now_ms,
    )
    letter = DeadLetter(
        original_message=message,
        encoding=encoding,
        error_type=rejection.error_type,
        error_message=bounded_text(rejection.message, MAX_ERROR_MESSAGE_CHARS),
        error_stacktrace=bounded_text(stacktrace, MAX_STACKTRACE_CHARS),
        failure_category=tries.category,
        violations=list(rejection.violations[:MAX_VIOLATIONS]),
        processing_attempts=tries.count,
        attempts=tries.history,
        first_failure_time=_now_text(tries.first_ms),
        last_failure_time=_now_text(tries.last_ms),
        source_topic=bounded_text(source.topic, MAX_TOPIC_CHARS),
        source_partition=source.partition,
        source_offset=source.offset,
        source_timestamp=_iso_or_none(source.timestamp_ms),
        key=_key_text(source.key),
        processing_stage=stage,
        message_checksum=full_checksum or hashlib.md5(payload, usedforsecurity=False).hexdigest(),
        fingerprint=fingerprint(stage, rejection.error_type, rejection.message),
        disposition=tries.disposition,
        replay_count=0,
        code_version=code_version,
        contract_version=contract.version,
        metadata=_bounded_metadata(metadata or {}),
        message_bytes=size,
        message_truncated=size > min(len(payload), payload_limit_bytes),
    )
    return msgspec.json.encode(letter)[:-1] + _flags(rejection, contract) + b"}"


def _as_text(payload: bytes, full_bytes: int) -> tuple[str, Encoding]:
    """The payload as text where it is UTF-8, in base64 where it is not."""
    try:
        return payload.decode(), "utf-8"
    except UnicodeDecodeError as error:
        if full_bytes > len(payload) and error.reason == "unexpected end of data":
            return payload[: error.start].decode(), "utf-8"
    return base64.b64encode(payload).decode(), "base64"


def _flags(rejection: Rejection, contract: Contract) -> bytes:
    """The boolean flags, to go behind the other fields of a JSON object."""
    found = frozenset([violation.error_type for violation in rejection.violations])
    return _flags_text(contract.error_types, found)


# The same few combinations come again and again; a bad hour must not cost more than it has to.
@functools.lru_cache(maxsize=1024)
def _flags_text(error_types: tuple[str, ...], found: frozenset[str]) -> bytes:
    names = (name for name in error_types if name != FUTURE_TIMESTAMP)
    return "".join(f',"has_{n}":{"true" if n in found else "false"}' for n in names).encode()


@functools.lru_cache(maxsize=1)
def _now_text(now_ms: int) -> str:
    """The present, which is the same for all records of a batch."""
    return iso_utc_ms(now_ms)


# In a backlog, records that were written together often have the same time.
@functools.lru_cache(maxsize=1024)
def _iso_or_none(timestamp_ms: int | None) -> str | None:
    """A source's time; a producer may have written any 64 bits, which is then no time."""
    if timestamp_ms is None or not MIN_EPOCH_MS <= timestamp_ms <= MAX_EPOCH_MS:
        return None
    return iso_utc_ms(timestamp_ms)


def _key_text(key: bytes | None) -> str | None:
    if key is None:
        return None
    return bounded_text(key[: 4 * MAX_KEY_CHARS].decode("utf-8", "backslashreplace"), MAX_KEY_CHARS)


def _bounded_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    if not metadata:
        return {}
    kept: dict[str, str] = {}
    size = 0
    for name, text in islice(metadata.items(), MAX_METADATA_ENTRIES):
        entry = bounded_text(name, MAX_METADATA_CHARS), bounded_text(text, MAX_METADATA_CHARS)
        size += len(msgspec.json.encode(entry))
        if size > MAX_METADATA_BYTES:
            break
        kept[entry[0]] = entry[1]
    return kept
