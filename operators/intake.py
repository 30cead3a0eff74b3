"""Intake: each record of a batch gets its verdict; none stops the stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyflink.common import Row
from pyflink.datastream import OutputTag, ProcessFunction, RuntimeContext

from operators.batches import (
    DEAD_LETTERS,
    LINES,
    QUARANTINE,
    Record,
    from_bytes,
    pack_progress,
    table_of,
    to_bytes,
)
from operators.bridge import BYTES
from operators.events import Columns, EventColumns
from operators.origin import Origin
from operators.rules.contract import SCHEMA_ERROR, Contract
from operators.rules.envelope import Source, envelope_line
from operators.rules.failure import category_of, queue_of
from operators.rules.fitting import fitted
from operators.rules.poison import PoisonRules
from operators.rules.times import iso_utc_ms
from operators.rules.verdict import OVERSIZED, Judge, Rejection, Violation

STAGE: Final = "intake"
UNREADABLE: Final = "unreadable"
DEAD_LETTER_TAG: Final = OutputTag("dead-letters", BYTES)
QUARANTINE_TAG: Final = OutputTag("quarantine", BYTES)
COUNTS_TAG: Final = OutputTag("counts", BYTES)


@dataclass(frozen=True)
class IntakeRules:
    """What intake decides by.

    Attributes:
        contract: what a good event looks like.
        poison: the user's own rules for quarantine.
        max_record_bytes: a longer record is oversized.
        max_future_skew_ms: how far an event time may lie ahead of now.
        window_ms: length of the windows that events are added up for.
        payload_limit_bytes: how much of an oversized record its envelope holds.
        code_version: version of this code, for the envelope.
        max_envelope_bytes: what the place of the envelopes takes; 0 for files.
    """

    contract: Contract
    poison: PoisonRules
    max_record_bytes: int
    max_future_skew_ms: int
    window_ms: int
    payload_limit_bytes: int
    code_version: str
    max_envelope_bytes: int = 0

    def judge(self) -> Judge:
        """The judge of single records."""
        return Judge(self.contract, self.poison, self.max_record_bytes, self.max_future_skew_ms)


@dataclass
class Judged:
    """A batch after its verdicts: row numbers, in order.

    Attributes:
        rows: the accepted ones.
        columns: their events, in the same order.
        rejected: the others, with their reasons.
    """

    rows: list[int]
    columns: Columns
    rejected: list[tuple[int, Rejection]]


class Intake(ProcessFunction):  # type: ignore[misc]
    """Batches of records to batches of events; the rest to side outputs.

    Output: rows of `bridge.ACCEPTED`, one a batch, also when it has no good event. Side outputs:
    batches of `DEAD_LETTERS`, of `QUARANTINE`, and of counts, one line a source partition.

    Guarantee: stateless. Every record of a batch leaves by exactly one output, whatever its bytes;
    only a lack of memory fails the job, which then goes on from its checkpoint.
    """

    def __init__(self, rules: IntakeRules) -> None:
        """Take the rules; they travel to the workers with the function."""
        self._rules = rules

    def open(self, runtime_context: RuntimeContext) -> None:
        """Build the decoder and the columns, once a worker."""
        self._judge = self._rules.judge()
        self._events = EventColumns(self._rules.contract)

    def process_element(self, data: bytes, ctx: ProcessFunction.Context) -> Iterable[Any]:
        """Judge a batch."""
        now_ms = ctx.timer_service().current_processing_time()
        batch = from_bytes(data)
        judged = judge_batch(batch, self._judge, self._events, now_ms)
        origin = Origin.of(batch)
        yield self._accepted(origin, judged)
        yield from self._rejected(batch, judged, now_ms)
        lines = origin.count_lines(STAGE, judged.rejected)
        if lines:
            yield COUNTS_TAG, to_bytes(table_of(LINES, [lines]))

    def _accepted(self, origin: Origin, judged: Judged) -> Row:
        columns = judged.columns
        times = columns.event_ms()
        return Row(
            progress=pack_progress(origin.progress(judged.rows, times)),
            lines=self._events.lines(columns, *origin.coordinates(judged.rows)),
            times=times.astype(">i8").tobytes(),
            partials=to_bytes(self._events.partials(columns, self._rules.window_ms)),
        )

    def _rejected(
        self, batch: pa.RecordBatch, judged: Judged, now_ms: int
    ) -> Iterator[tuple[OutputTag, bytes]]:
        if not judged.rejected:
            return
        index = pa.array([row for row, _ in judged.rejected])
        records = zip(*(column.take(index).to_pylist() for column in batch.columns), strict=True)
        lines = [
            self._envelope(Record(*record), why, now_ms) + b"\n"
            for record, (_, why) in zip(records, judged.rejected, strict=True)
        ]
        whys = [why for _, why in judged.rejected]
        dead = [i for i, why in enumerate(whys) if why.kind == "dead_letter"]
        if dead:
            types = [whys[i].error_type for i in dead]
            queues = [queue_of(category_of(error_type)) for error_type in types]
            dates = [iso_utc_ms(now_ms)[:10]] * len(dead)
            columns: list[list[Any]] = [[lines[i] for i in dead], queues, dates, types]
            yield DEAD_LETTER_TAG, to_bytes(table_of(DEAD_LETTERS, columns))
        poison = [i for i, why in enumerate(whys) if why.kind == "quarantine"]
        if poison:
            columns = [[lines[i] for i in poison], [whys[i].error_type for i in poison]]
            yield QUARANTINE_TAG, to_bytes(table_of(QUARANTINE, columns))

    def _envelope(self, record: Record, why: Rejection, now_ms: int) -> bytes:
        # Only a record that is too long is cut: any other one must be fit to be sent again, where
        # its envelope fits.
        payload = record.payload or b""
        limit = (
            self._rules.payload_limit_bytes
            if why.error_type == OVERSIZED
            else self._rules.max_record_bytes
        )
        source = Source(
            topic=record.source_topic,
            partition=record.source_partition,
            offset=record.source_offset,
            timestamp_ms=record.source_timestamp,
            key=record.key,
        )

        metadata = {
            f"header.{name}": (value or b"").decode("utf-8", "backslashreplace")
            for name, value in record.headers or ()
        }

        def write(payload_limit_bytes: int) -> bytes:
            return envelope_line(
                payload,
                why,
                source,
                contract=self._rules.contract,
                now_ms=now_ms,
                stage=STAGE,
                code_version=self._rules.code_version,
                payload_limit_bytes=payload_limit_bytes,
                payload_bytes=record.payload_bytes,
                full_checksum=record.checksum,
                metadata=metadata,
            )

        return fitted(write, min(limit, len(payload)), self._rules.max_envelope_bytes)


def judge_batch(batch: pa.RecordBatch, judge: Judge, events: EventColumns, now_ms: int) -> Judged:
    """The verdict on every record of a batch: `Judge.judge` for each, but fast for the good ones.

    A record that decodes, and on which no check of a whole column falls, is accepted as it is.
    Every other one gets the second look.
    """
    payloads = batch.column("payload").to_pylist()
    rows, decoded, failed = _decode(payloads, judge)
    columns = events.columns(decoded)
    doubtful = failed | {rows[at] for at in columns.suspects(judge.latest_ms(now_ms))}
    doubtful.update(_doubtful_as_received(batch, payloads, judge))
    rejected = dict(_second_look(batch, payloads, judge, now_ms, sorted(doubtful)))
    # What is wrong with these, and not for the judge, is the doing of the contract's own code.
    for row in failed:
        rejected.setdefault(row, _schema_error("refused, but not when it was looked at again"))
    for at in columns.misfits:
        rejected.setdefault(rows[at], _schema_error("the event does not fit its columns"))
    if not rejected.keys().isdisjoint(rows):
        keep = [at for at, row in enumerate(rows) if row not in rejected]
        rows, columns = [rows[at] for at in keep], columns.take(keep)
    return Judged(rows, columns, sorted(rejected.items(), key=itemgetter(0)))


def _schema_error(message: str) -> Rejection:
    violation = Violation(SCHEMA_ERROR, "", "", message)
    return Rejection("dead_letter", SCHEMA_ERROR, message, (violation,))


def _decode(payloads: list[bytes | None], judge: Judge) -> tuple[list[int], list[Any], set[int]]:
    """The happy path, one msgspec call a record: rows that decode, their events, the other rows."""
    decode = judge.decode
    rows: list[int] = []
    events: list[Any] = []
    failed: set[int] = set()
    for row, payload in enumerate(payloads):
        try:
            events.append(decode(payload))  # type: ignore[arg-type]
        except MemoryError:
            raise
        except Exception:
            failed.add(row)
        else:
            rows.append(row)
    return rows, events, failed


def _doubtful_as_received(
    batch: pa.RecordBatch, payloads: list[bytes | None], judge: Judge
) -> Iterator[int]:
    """Rows that need the second look whatever they decode to."""
    for name in ("payload_bytes", "fault"):
        column = batch.column(name)
        if column.null_count < len(column):
            yield from _rows_where(column.is_valid())
    lengths = pc.binary_length(batch.column("payload"))
    yield from _rows_where(pc.greater(lengths, judge.max_record_bytes).fill_null(True))
    yield from _not_utf8(batch, payloads)
    if judge.poison.has_patterns:
        match = judge.poison.match
        yield from (row for row, payload in enumerate(payloads) if payload and match(payload))


def _not_utf8(batch: pa.RecordBatch, payloads: list[bytes | None]) -> Iterator[int]:
    """Rows that may not be UTF-8: msgspec does not look into fields that the contract lacks."""
    try:
        batch.column("payload").cast(pa.string())
    except pa.ArrowInvalid:
        yield from (row for row, p in enumerate(payloads) if p is not None and not p.isascii())


def _rows_where(mask: pa.Array) -> list[int]:
    return [int(row) for row in pc.indices_nonzero(mask).to_pylist()]


def _second_look(
    batch: pa.RecordBatch,
    payloads: list[bytes | None],
    judge: Judge,
    now_ms: int,
    rows: list[int],
) -> Iterator[tuple[int, Rejection]]:
    """The rows that are turned away, with the reasons."""
    for row in rows:
        fault = batch.column("fault")[row].as_py()
        verdict = (
            Rejection("quarantine", UNREADABLE, fault, ())
            if fault
            else judge.judge(
                payloads[row] or b"", now_ms, batch.column("payload_bytes")[row].as_py()
            )
        )
        if isinstance(verdict, Rejection):
            yield row, verdict
