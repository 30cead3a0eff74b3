"""Intake: each record of a batch gets its verdict; none stops the stream."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
from pyflink.datastream import ProcessFunction, RuntimeContext

from operators.batches.events import Events, EventType
from operators.batches.records import NOTHING_ODD, Reader, Records
from operators.bridge.wire import Ints
from operators.intake.lanes import Laned
from operators.intake.outgoing import Accepted, Rejected, Size
from operators.orphan import end_when_orphaned
from operators.rules.contract import SCHEMA_ERROR, Contract
from operators.rules.envelope import envelope_line
from operators.rules.fitting import fitted
from operators.rules.poison import PoisonRules
from operators.rules.times import iso_utc_ms
from operators.rules.verdict import OVERSIZED, Judge, Rejection, Violation

STAGE: Final = "intake"
_GC_THRESHOLD: Final = 100_000
UNREADABLE: Final = "unreadable"


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
        row_bytes: what has come of an element is handed on when it has so many bytes, packed.
        lines_bytes: or so many before its lines were packed.
        code_version: version of this code, for the envelope.
        max_envelope_bytes: what the place of the envelopes takes; 0 for files.
    """

    contract: Contract
    poison: PoisonRules
    max_record_bytes: int
    max_future_skew_ms: int
    window_ms: int
    payload_limit_bytes: int
    row_bytes: int
    lines_bytes: int
    code_version: str
    max_envelope_bytes: int = 0

    def is_full(self, size: Size) -> bool:
        """Whether what has come of an element is handed on."""
        return size.travels >= self.row_bytes or size.unpacked >= self.lines_bytes

    def judge(self) -> Judge:
        """The judge of single records."""
        return Judge(self.contract, self.poison, self.max_record_bytes, self.max_future_skew_ms)


@dataclass
class Judged:
    """A batch after its verdicts.

    Attributes:
        rows: numbers of the accepted ones, in order.
        events: what they hold, in the same order.
        rejected: the others' numbers, in order, with their reasons.
    """

    rows: Ints
    events: Events
    rejected: list[tuple[int, Rejection]]


class Intake(ProcessFunction):  # type: ignore[misc]
    """Records to events, a batch at a time; the rest to side outputs.

    Output: rows of `bridge.ACCEPTED`, or of `lanes.LANED` where delivery comes next, at least one
    for an element that has records. Side outputs: rows of dead letters and of quarantine, one a
    folder (`bridge.packed_type`), and counts, one line a partition of each piece that the reader
    gives.

    Guarantee: stateless. Every record of a batch leaves by exactly one output, whatever its bytes;
    only a lack of memory, or a source file that is not as it was, fails the job, which then goes on
    from its checkpoint. Flink finishes a Python bundle before it takes a checkpoint, so what was
    read of an element is wholly before a checkpoint or wholly after it.
    """

    def __init__(
        self,
        rules: IntakeRules,
        reader: Reader,
        lanes: tuple[int, ...] = (),
        *,
        deduplicates: bool = False,
    ) -> None:
        """Take what travels to the workers.

        Args:
            rules: what is decided by.
            reader: reads the source's elements.
            lanes: of delivery, see `bridge.lane_keys`; none if there is no delivery.
            deduplicates: whether `bridge.dedup` comes before it.
        """
        self._rules = rules
        self._lanes = lanes
        self._deduplicates = deduplicates
        self._reader = reader

    def open(self, runtime_context: RuntimeContext) -> None:
        """Build the decoders, once a worker."""
        end_when_orphaned()
        self._reader.open()
        self._judge = self._rules.judge()
        self._events = EventType(self._rules.contract)
        # What has been loaded by now stays, and a batch's thousands of objects go by themselves:
        # the garbage collector need not go through either again and again.
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)

    def process_element(self, element: Any, ctx: ProcessFunction.Context) -> Iterable[Any]:
        """Judge an element's records, and hand on together what comes of them."""
        accepted, rejected = self._accepted(), Rejected()
        for records in self._reader.read(element):
            now_ms = ctx.timer_service().current_processing_time()
            self._take(records, now_ms, accepted, rejected)
            if self._rules.is_full(accepted.size.plus(*rejected.size)):
                yield from accepted.rows()
                yield from rejected.rows()
                accepted, rejected = self._accepted(), Rejected()
        if not accepted.is_empty:
            yield from accepted.rows()
        yield from rejected.rows()

    def _accepted(self) -> Accepted | Laned:
        if self._lanes:
            return Laned(self._events, self._lanes, deduplicates=self._deduplicates)
        return Accepted(self._events, self._rules.window_ms)

    def _take(
        self, records: Records, now_ms: int, accepted: Accepted | Laned, rejected: Rejected
    ) -> None:
        """Judge a batch. Its thousands of objects go when this ends: the next one's find room."""
        judged = judge_batch(records, self._judge, self._events, now_ms)
        accepted.add(records, judged.rows, judged.events, now_ms)
        date = iso_utc_ms(now_ms)[:10]
        for row, why in judged.rejected:
            rejected.add(self._envelope(records, row, why, now_ms), why, date)
        rejected.count(records.origin.count_lines(accepted.at_ms, judged.rejected))

    def _envelope(self, records: Records, row: int, why: Rejection, now_ms: int) -> bytes:
        odd = records.odd.get(row, NOTHING_ODD)
        payload = records.payloads[row]
        # Only a record that is too long is cut: any other one must be fit to be sent again, where
        # its envelope fits.
        limit = (
            self._rules.payload_limit_bytes
            if why.error_type == OVERSIZED
            else self._rules.max_record_bytes
        )
        source = records.source(row)
        metadata = records.headers(row)

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
                payload_bytes=odd.payload_bytes,
                full_checksum=odd.checksum,
                stacktrace=why.stacktrace,
                metadata=metadata,
            )

        return fitted(write, min(limit, len(payload)), self._rules.max_envelope_bytes)


def judge_batch(records: Records, judge: Judge, event_type: EventType, now_ms: int) -> Judged:
    """The verdict on every record of a batch: `Judge.judge` for each, but fast for the good ones.

    A record that decodes, and on which no check of a whole column falls, is accepted as it is.
    Every other one gets the second look.
    """
    lines, failed = _decode(records.payloads, event_type)
    rows = np.delete(np.arange(len(records)), list(failed))
    events = event_type.events(lines)
    suspects = event_type.suspects(events, judge.latest_ms(now_ms))
    doubtful = failed | {int(rows[at]) for at in suspects}
    doubtful.update(_doubtful_as_received(records, failed, judge))
    refused = failed if event_type.is_direct else set()
    rejected = dict(_second_look(records, judge, now_ms, sorted(doubtful), refused))
    # What is wrong with these, and not for the judge, is the doing of the contract's own code.
    for row in failed:
        rejected.setdefault(row, _schema_error("refused, but not when it was looked at again"))
    for at in events.misfits:
        rejected.setdefault(int(rows[at]), _schema_error("the event does not fit its columns"))
    late_found = np.flatnonzero(np.isin(rows, [row for row in rejected if row not in failed]))
    if len(late_found):
        rows, events = np.delete(rows, late_found), events.without(late_found)
    return Judged(rows, events, sorted(rejected.items(), key=itemgetter(0)))


def _schema_error(message: str) -> Rejection:
    violation = Violation(SCHEMA_ERROR, "", "", message)
    return Rejection("dead_letter", SCHEMA_ERROR, message, (violation,))


def _decode(payloads: list[bytes], event_type: EventType) -> tuple[list[Any], set[int]]:
    """The happy path, one msgspec call a record: the events, and the rows that have none."""
    lines: list[Any] = []
    failed: set[int] = set()
    decoded = map(event_type.decode, payloads)
    while True:
        try:
            lines.extend(decoded)  # keeps what came before an exception
        except MemoryError:
            raise
        except Exception:  # whatever msgspec or the contract's own code raises; go on behind it
            failed.add(len(lines) + len(failed))
        else:
            at = len(lines) + len(failed)
            if at == len(payloads):
                return lines, failed
            failed.add(at)  # a StopIteration of the contract's own code looks like the end


def _doubtful_as_received(records: Records, failed: set[int], judge: Judge) -> Iterator[int]:
    """Rows that need the second look whatever they decode to."""
    yield from records.odd
    if not records.is_bounded:
        limit = judge.max_record_bytes
        yield from (row for row, p in enumerate(records.payloads) if len(p) > limit)
    yield from _not_utf8(records.payloads, failed)
    if judge.poison.has_patterns:
        match = judge.poison.match
        yield from (row for row, p in enumerate(records.payloads) if p and match(p))


def _not_utf8(payloads: list[bytes], failed: set[int]) -> Iterator[int]:
    """Rows that decode and are not UTF-8: msgspec skips over fields that the contract lacks."""
    is_ascii = bytes(map(bytes.isascii, payloads))
    row = is_ascii.find(False)
    while row >= 0:
        if row not in failed:
            try:
                payloads[row].decode()
            except UnicodeDecodeError:
                yield row
        row = is_ascii.find(False, row + 1)


def _second_look(
    records: Records, judge: Judge, now_ms: int, rows: list[int], refused: set[int]
) -> Iterator[tuple[int, Rejection]]:
    """The rows that are turned away, with the reasons; `refused` need not be decoded again."""
    for row in rows:
        odd = records.odd.get(row, NOTHING_ODD)
        if odd.fault:
            yield row, Rejection("quarantine", UNREADABLE, odd.fault, ())
            continue
        payload = records.payloads[row]
        verdict: Any = None
        if row in refused:
            verdict = judge.refused(payload, now_ms, odd.payload_bytes)
        verdict = verdict or judge.judge(payload, now_ms, odd.payload_bytes)
        if isinstance(verdict, Rejection):
            yield row, verdict
