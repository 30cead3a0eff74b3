"""Intake: whatever a batch holds, each record leaves once, by the output that its verdict names."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyflink.common import Row

from operators.batches import records as records_module
from operators.batches.events import EventType, partials_schema
from operators.batches.origin import MAX_SPANS, Origin, spans_of
from operators.batches.records import BatchReader, Records
from operators.bridge.steps import ACCEPTED, BYTES
from operators.bridge.wire import (
    RECORDS,
    Progress,
    SplitMark,
    from_bytes,
    to_bytes,
)
from operators.intake.intake import Intake, IntakeRules, judge_batch
from operators.intake.outgoing import (
    COUNTS_TAG,
    DEAD_LETTER_FOLDERS,
    DEAD_LETTER_TAG,
    QUARANTINE_FOLDERS,
    QUARANTINE_TAG,
    Accepted,
    Size,
)
from operators.rules.contract import Contract, load_contract
from operators.rules.poison import PoisonPattern, PoisonRules
from operators.rules.splits import UNKNOWN_MS
from operators.rules.times import epoch_ms, iso_utc_ms
from operators.rules.verdict import Rejection
from tests.harness import Harness
from tests.unit.operators.bridge.java_input import events_by_partition, read_progress, unpacked
from tests.unit.operators.contracts import CLASHING, REWRITING, REWRITTEN
from tests.unit.operators.rules.contracts import ECOMMERCE, READING
from tests.unit.operators.rules.records import (
    NOW_MS,
    SKEW_MS,
    damaged_records,
    good_records,
    mutated,
)

STRICT = ("tests.unit.operators.rules.contracts:Strict", "key", "at")
MAX_RECORD_BYTES = 500
PAYLOAD_LIMIT_BYTES = 100
WINDOW_MS = 300_000
NONE = PoisonRules()
SOME = PoisonRules(
    (PoisonPattern("x.*y", "x_and_y"), PoisonPattern("click|pump", "unwanted")),
    frozenset({"missing_required", "future_timestamp"}),
)
GOOD = {
    "user_id": "u1",
    "product_id": "p1",
    "action": "view",
    "price": 1.5,
    "timestamp": "2026-01-01T11:00:00.5Z",
}
GOOD_MS = NOW_MS - 3_600_000 + 500


def shop(**changes: Any) -> bytes:
    """A good record with some fields changed; `...` leaves one out."""
    fields = {name: v for name, v in {**GOOD, **changes}.items() if v is not ...}
    return json.dumps(fields).encode()


def rules_of(path: tuple[str, ...], poison: PoisonRules = NONE) -> IntakeRules:
    return IntakeRules(
        contract=load_contract(*path),
        poison=poison,
        max_record_bytes=MAX_RECORD_BYTES,
        max_future_skew_ms=SKEW_MS,
        window_ms=WINDOW_MS,
        payload_limit_bytes=PAYLOAD_LIMIT_BYTES,
        row_bytes=10**9,
        lines_bytes=10**9,
        code_version="1.2.3",
    )


class Marked(BatchReader):
    """A reader of batches of records that may say which piece of a planned partition they are."""

    def read(self, element: bytes) -> Iterator[Records]:
        batch = from_bytes(element)
        if not batch.schema.metadata:
            yield from super().read(element)
            return
        mark = msgspec.json.decode(batch.schema.metadata[b"mark"], type=SplitMark)
        yield of_split(Records.of_batch(batch), mark)


def of_split(records: Records, mark: SplitMark) -> Records:
    return dataclasses.replace(records, origin=Origin.of_split(mark, records.origin.offsets))


@functools.cache
def intake(path: tuple[str, ...] = ECOMMERCE, poison: PoisonRules = NONE) -> Harness:
    """Intake in the strict harness; it has no state, so tests share it."""
    return Harness(
        Intake(rules_of(path, poison), Marked()),
        input_type=BYTES,
        output_type=ACCEPTED,
        side_outputs=[DEAD_LETTER_TAG, QUARANTINE_TAG, COUNTS_TAG],
        processing_time=NOW_MS,
    )


def batch_of(rows: list[dict[str, Any]], mark: SplitMark | None = None) -> pa.RecordBatch:
    """A batch of records; where a row does not say, they are of one topic and counted from 0."""
    default = {"source_topic": "t", "source_partition": 0}
    full = [{**default, "source_offset": i, **row} for i, row in enumerate(rows)]
    schema = RECORDS.with_metadata({"mark": msgspec.json.encode(mark)}) if mark else RECORDS
    return pa.RecordBatch.from_pylist(full, schema)


def payloads(*values: bytes | None, mark: SplitMark | None = None) -> pa.RecordBatch:
    return batch_of([{"payload": value} for value in values], mark)


@dataclass
class Outcome:
    """All that came out for one batch, by offset."""

    progress: list[Progress]
    times_ms: list[int]
    partials: list[dict[str, Any]]
    accepted: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    dead: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    quarantined: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def places(self) -> list[int]:
        """Offsets of all records, from all outputs."""
        return sorted(
            [offset for offset, _ in self.accepted]
            + [offset for offset, *_ in self.dead + self.quarantined]
        )

    @property
    def reasons(self) -> dict[int, str]:
        """Why records were turned away."""
        turned_away = self.dead + self.quarantined
        return {offset: envelope["error_type"] for offset, envelope, _ in turned_away}


def outcome(batch: pa.RecordBatch, harness: Harness | None = None) -> Outcome:
    """One batch through intake."""
    harness = harness or intake()
    harness.clear_output()
    harness.process(to_bytes(batch))
    if not harness.output:
        assert not any(map(harness.side_output, (DEAD_LETTER_TAG, QUARANTINE_TAG, COUNTS_TAG)))
        return Outcome([], [], [])
    (row,) = harness.output
    partials = from_bytes(row.partials)
    assert partials.schema.equals(partials_schema(harness.function._rules.contract))
    times = [ms for (ms,) in struct.iter_unpack(">q", row.times)]
    found = Outcome(read_progress(row.progress), times, partials.to_pylist())
    found.accepted = [(line["source_offset"], line) for line in split(unpacked(row.lines))]
    assert len(found.accepted) == len(times)
    for tag, folders, into in (
        (DEAD_LETTER_TAG, DEAD_LETTER_FOLDERS, found.dead),
        (QUARANTINE_TAG, QUARANTINE_FOLDERS, found.quarantined),
    ):
        for lines, *names in harness.side_output(tag):
            folder = dict(zip(folders, names, strict=True))
            envelopes = split(unpacked(lines))
            assert envelopes
            into += [(envelope["source_offset"], envelope, folder) for envelope in envelopes]
    found.dead.sort(key=itemgetter(0))
    found.quarantined.sort(key=itemgetter(0))
    for block in harness.side_output(COUNTS_TAG):
        found.counts += split(block)
    return found


def split(block: bytes) -> list[dict[str, Any]]:
    assert block == b"" or block.endswith(b"\n")
    return [json.loads(line) for line in block.split(b"\n")[:-1]]


# --- any batch of any bytes


def rows_of(path: tuple[str, ...]) -> st.SearchStrategy[list[dict[str, Any]]]:
    good = good_records(path[0])
    rows = st.fixed_dictionaries(
        {
            "payload": good
            | mutated(good)
            | damaged_records(path[0])
            | st.binary()
            | st.none()
            | st.sampled_from([b"", b" \n", b"[]", b"{}", b"x" * (MAX_RECORD_BYTES + 1)]),
            "source_topic": st.sampled_from(["a", "b"]),
            "source_partition": st.integers(0, 2),
            "payload_bytes": st.sampled_from([None] * 6 + [MAX_RECORD_BYTES + 1]),
            "fault": st.sampled_from([None] * 6 + ["cut"]),
        }
    )
    return st.lists(rows, max_size=5)


def expected_verdict(harness: Harness, row: dict[str, Any]) -> msgspec.Struct | Rejection:
    """What the judge of single records says."""
    if row["fault"]:
        return Rejection("quarantine", "unreadable", row["fault"])
    judge = harness.function._rules.judge()
    verdict: msgspec.Struct | Rejection = judge.judge(
        row["payload"] or b"", NOW_MS, row["payload_bytes"]
    )
    return verdict


@pytest.mark.parametrize("path", [ECOMMERCE, READING])
@pytest.mark.parametrize("poison", [NONE, SOME])
@settings(max_examples=40)
@given(data=st.data())
def test_any_bytes_leave_once_by_the_output_that_the_judge_names(
    path: tuple[str, ...], poison: PoisonRules, data: st.DataObject
) -> None:
    rows = data.draw(rows_of(path))
    harness = intake(path, poison)
    found = outcome(batch_of(rows), harness)
    verdicts = [expected_verdict(harness, row) for row in rows]
    assert found.places == [*range(len(rows))]
    assert_accepted(found, harness.function._rules.contract, verdicts, rows)
    assert_turned_away(found, verdicts, rows)
    assert_counted(found, verdicts, rows)


def assert_accepted(
    found: Outcome, contract: Contract, verdicts: list[Any], rows: list[dict[str, Any]]
) -> None:
    expected = []
    for i, (verdict, row) in enumerate(zip(verdicts, rows, strict=True)):
        if not isinstance(verdict, Rejection):
            values = {c.name: getattr(verdict, c.attribute) for c in contract.columns}
            place = {"source_topic": row["source_topic"], "source_offset": i}
            written = {
                name: iso_utc_ms(epoch_ms(value)) if isinstance(value, datetime) else value
                for name, value in values.items()
            }
            expected.append((i, {**written, **place, "source_partition": row["source_partition"]}))
    assert found.accepted == expected
    assert_added_up(found, contract)


def assert_added_up(found: Outcome, contract: Contract) -> None:
    """Times and partials agree with the lines; how partials add up is tested with the events."""
    lines = [line for _, line in found.accepted]
    assert [iso_utc_ms(ms) for ms in found.times_ms] == [
        line[contract.event_time] for line in lines
    ]
    counted: Counter[str] = Counter()
    for partial in found.partials:
        counted[partial["event_key"]] += partial["event_count"]
    assert counted == Counter(line[contract.key] for line in lines)


def assert_turned_away(found: Outcome, verdicts: list[Any], rows: list[dict[str, Any]]) -> None:
    expected = {i: why for i, why in enumerate(verdicts) if isinstance(why, Rejection)}
    kinds = {i: "dead_letter" for i, *_ in found.dead}
    kinds |= {i: "quarantine" for i, *_ in found.quarantined}
    assert kinds == {i: why.kind for i, why in expected.items()}
    for i, envelope, folder in found.dead + found.quarantined:
        why = expected[i]
        assert envelope["error_type"] == why.error_type
        assert envelope["error_message"] == why.message
        assert envelope["violations"] == msgspec.to_builtins(list(why.violations))
        assert envelope["source_topic"] == rows[i]["source_topic"]
        assert envelope["source_partition"] == rows[i]["source_partition"]
        if why.kind == "quarantine":
            assert folder == {"reason": why.error_type}
        else:
            date = {"queue": "data_quality", "date": "2026-01-01"}
            assert folder == {**date, "error_type": why.error_type}


def assert_counted(found: Outcome, verdicts: list[Any], rows: list[dict[str, Any]]) -> None:
    sources = [(row["source_topic"], row["source_partition"]) for row in rows]
    lines = {(line["source_topic"], line["source_partition"]): line for line in found.counts}
    assert len(lines) == len(found.counts)
    assert lines.keys() == set(sources)
    for source, line in lines.items():
        offsets = [i for i, s in enumerate(sources) if s == source]
        whys = [verdicts[i] for i in offsets if isinstance(verdicts[i], Rejection)]
        assert line["minute_ms"] == NOW_MS - NOW_MS % 60_000
        assert line["received"] == len(offsets)
        assert (line["first_offset"], line["last_offset"]) == (offsets[0], offsets[-1])
        for name, kind in (("dead_lettered", "dead_letter"), ("quarantined", "quarantine")):
            assert line[name] == Counter(why.error_type for why in whys if why.kind == kind)
    newest = dict.fromkeys(sources, UNKNOWN_MS)
    for source, verdict in zip(sources, verdicts, strict=True):
        if not isinstance(verdict, Rejection):
            time = getattr(verdict, "timestamp", None) or getattr(verdict, "taken_at", None)
            assert isinstance(time, datetime)
            newest[source] = max(newest[source], epoch_ms(time))
    assert sorted(found.progress, key=lambda p: p.partition) == [
        Progress(f"{topic}/{partition}", -1, False, sources.count((topic, partition)), ms)
        for (topic, partition), ms in sorted(newest.items())
    ]


@pytest.mark.parametrize("path", [ECOMMERCE, READING])
@settings(max_examples=25)
@given(data=st.data())
def test_good_records_are_accepted_in_their_order_and_nothing_else_comes_out(
    path: tuple[str, ...], data: st.DataObject
) -> None:
    small = good_records(path[0]).filter(lambda record: len(record) <= MAX_RECORD_BYTES)
    found = outcome(payloads(*data.draw(st.lists(small, min_size=1, max_size=4))), intake(path))
    assert [offset for offset, _ in found.accepted] == found.places
    assert found.dead == found.quarantined == []


@settings(max_examples=50)
@given(st.lists(st.binary() | st.none(), max_size=8))
@example([b"[" * 100_000, b'{"user_id":' * 20, b'"' * 399, None])
def test_bytes_that_were_never_events_are_all_turned_away(values: list[bytes | None]) -> None:
    found = outcome(payloads(*values))
    assert found.accepted == []
    assert found.places == [*range(len(values))]


# --- verdicts by example


MENAGERIE: dict[str, list[bytes | None]] = {
    "empty_message": [b"", b" \t\r\n", None],
    "oversized": [b'"' + b"x" * MAX_RECORD_BYTES, shop(more="x" * MAX_RECORD_BYTES)],
    "null_bytes": [b"\0", shop()[:-1] + b',"x":"\0"}', shop() + b"\0"],
    "invalid_json": [
        *(b"{", b"nonsense", shop()[:-1], shop() + b"}", b"[" * 399, b"\xff\xfe{}", b"NaN"),
        shop()[:-1] + b',"more":"\xff"}',
        shop()[:-1] + b',"\xc3":1}',
        shop()[:-1] + b',"more":NaN}',
    ],
    "schema_error": [b"[]", b"null", b'"text"', b"1", shop(user_id=1), shop(timestamp="today")],
    "missing_required": [b"{}", shop(user_id=...), shop(product_id=""), shop(timestamp=None)],
    "invalid_price": [
        *(shop(price=...), shop(price=None), shop(price=-1), shop(price=float("nan"))),
        *(shop(price=float("inf")), shop(price=10**320), shop().replace(b"1.5", b"1e999")),
    ],
    "unknown_action": [shop(action="buy"), shop(action="VIEW")],
    "future_timestamp": [shop(timestamp="2026-01-01T12:05:00.001Z"), shop(timestamp="9999-01-01")],
}
MENAGERIE["schema_error"].append(MENAGERIE["future_timestamp"].pop())


def test_a_batch_of_every_kind_of_damage_is_taken_apart_by_reason() -> None:
    named = [(reason, value) for reason, values in MENAGERIE.items() for value in values]
    found = outcome(payloads(shop(), *(value for _, value in named), shop()))
    assert [offset for offset, _ in found.accepted] == [0, len(named) + 1]
    assert [found.reasons[i] for i in range(1, len(named) + 1)] == [reason for reason, _ in named]
    quarantine = {"empty_message", "oversized", "null_bytes", "invalid_json"}
    assert {folder["reason"] for *_, folder in found.quarantined} == quarantine
    assert {folder["error_type"] for *_, folder in found.dead} == MENAGERIE.keys() - quarantine


def test_a_good_record_is_written_with_its_fields_and_its_coordinates() -> None:
    place = {"source_topic": "shop-events", "source_partition": 3, "source_offset": 12}
    found = outcome(batch_of([{"payload": shop(extra=1), **place}]))
    assert found.accepted == [(12, {**GOOD, "timestamp": "2026-01-01T11:00:00.500Z", **place})]
    assert found.times_ms == [GOOD_MS]
    assert found.partials == [
        {
            "event_key": "u1",
            "event_time": datetime(2026, 1, 1, 11, 0, 0, 500_000),  # noqa: DTZ001 - as Arrow has it
            "total_value": 1.5,
            "event_count": 1,
        }
    ]


def test_events_are_added_up_by_window() -> None:
    times = ("11:00:00Z", "11:04:59.999Z", "11:05:00Z")
    found = outcome(payloads(*(shop(timestamp=f"2026-01-01T{time}") for time in times)))
    assert sorted(partial["event_count"] for partial in found.partials) == [1, 2]


def test_a_tombstone_is_an_empty_message() -> None:
    found = outcome(batch_of([{"payload": None, "key": b"u1"}]))
    ((_, envelope, folder),) = found.quarantined
    assert folder == {"reason": "empty_message"}
    assert (envelope["original_message"], envelope["message_bytes"]) == ("", 0)
    assert envelope["key"] == "u1"


def test_the_envelope_has_the_records_own_coordinates_time_key_and_bytes() -> None:
    bad = shop(price=-1)
    rows = [
        {"payload": shop(), "source_offset": 7},
        {
            "payload": bad,
            "source_topic": "shop-events",
            "source_partition": 2,
            "source_offset": 9,
            "source_timestamp": NOW_MS - 1,
            "key": b"u\xff",
        },
    ]
    ((_, envelope, folder),) = outcome(batch_of(rows)).dead
    assert folder == {
        "queue": "data_quality",
        "date": "2026-01-01",
        "error_type": "invalid_price",
    }
    expected = {
        "original_message": bad.decode(),
        "encoding": "utf-8",
        "source_topic": "shop-events",
        "source_partition": 2,
        "source_offset": 9,
        "source_timestamp": "2026-01-01T11:59:59.999Z",
        "key": "u\\xff",
        "processing_stage": "intake",
        "first_failure_time": "2026-01-01T12:00:00.000Z",
        "message_checksum": hashlib.md5(bad).hexdigest(),  # noqa: S324
        "disposition": "dq_rule",
        "code_version": "1.2.3",
        "has_invalid_price": True,
        "has_schema_error": False,
    }
    assert {name: envelope[name] for name in expected} == expected


def test_a_line_that_the_reader_has_cut_keeps_its_full_length_and_checksum() -> None:
    """Also when what is left of it is a good record by itself."""
    cut = {"payload": shop(), "payload_bytes": 50_000_000, "checksum": "c" * 32}
    ((_, envelope, folder),) = outcome(batch_of([cut])).quarantined
    assert folder == {"reason": "oversized"}
    assert envelope["message_bytes"] == 50_000_000
    assert envelope["message_checksum"] == "c" * 32
    assert envelope["message_truncated"] is True
    assert envelope["original_message"] == shop()[:PAYLOAD_LIMIT_BYTES].decode()


def test_an_oversized_record_that_came_whole_is_cut_in_its_envelope() -> None:
    """From a topic, where no reader has cut it."""
    whole = shop(more="x" * MAX_RECORD_BYTES)
    ((_, envelope, _),) = outcome(payloads(whole)).quarantined
    assert envelope["message_bytes"] == len(whole)
    assert envelope["message_checksum"] == hashlib.md5(whole).hexdigest()  # noqa: S324
    assert envelope["original_message"] == whole[:PAYLOAD_LIMIT_BYTES].decode()
    assert envelope["message_truncated"] is True


def test_a_record_of_the_greatest_length_is_accepted_and_a_longer_one_is_not() -> None:
    room = MAX_RECORD_BYTES - len(shop(more=""))
    found = outcome(payloads(shop(more="x" * room), shop(more="x" * (room + 1))))
    assert [offset for offset, _ in found.accepted] == [0]
    assert found.reasons == {1: "oversized"}


def test_any_other_bad_record_is_kept_whole_so_that_it_can_be_sent_again() -> None:
    bad = shop(price=-1, more="x" * PAYLOAD_LIMIT_BYTES)
    ((_, envelope, _),) = outcome(payloads(bad)).dead
    assert envelope["original_message"] == bad.decode()
    assert envelope["message_truncated"] is False


def test_what_the_source_could_not_read_is_quarantined_as_unreadable_with_the_reason() -> None:
    """Also when the piece that it has is a good record by itself."""
    cut = {"payload": shop(), "fault": "the gzip file ends too early"}
    found = outcome(batch_of([cut, {"payload": shop()}]))
    ((_, envelope, folder),) = found.quarantined
    assert folder == {"reason": "unreadable"}
    assert envelope["error_message"] == "the gzip file ends too early"
    assert [offset for offset, _ in found.accepted] == [1]
    assert found.counts[0]["quarantined"] == {"unreadable": 1}


# --- the user's own rules


def test_a_good_record_that_matches_a_pattern_is_quarantined_with_its_reason() -> None:
    found = outcome(payloads(shop(), shop(action="click"), shop(more="x-y")), intake(poison=SOME))
    assert [offset for offset, _ in found.accepted] == [0]
    assert found.reasons == {1: "unwanted", 2: "x_and_y"}
    assert {folder["reason"] for *_, folder in found.quarantined} == {"unwanted", "x_and_y"}


def test_a_violation_that_the_user_calls_poison_is_quarantined_under_its_name() -> None:
    bad = (shop(user_id=...), shop(price=-1), shop(timestamp="2999-01-01T00:00:00Z"))
    found = outcome(payloads(*bad), intake(poison=SOME))
    assert found.dead[0][2]["error_type"] == "invalid_price"
    reasons = [(offset, folder["reason"]) for offset, _, folder in found.quarantined]
    assert reasons == [(0, "missing_required"), (2, "future_timestamp")]
    assert found.counts[0]["quarantined"] == {"missing_required": 1, "future_timestamp": 1}
    assert found.counts[0]["dead_lettered"] == {"invalid_price": 1}


# --- what a contract's own code can do


def strict(**fields: Any) -> bytes:
    return json.dumps({"key": "k", "at": "2026-01-01T00:00:00Z", **fields}).encode()


def test_whatever_a_contracts_own_code_raises_or_sets_is_a_dead_letter() -> None:
    keys = ("boom", "far", "wrong", "dumb", "stop")
    bad = [strict(low=2), *(strict(key=key) for key in keys)]
    found = outcome(payloads(strict(), *bad, strict(), bad[-1]), intake(STRICT))
    assert [offset for offset, _ in found.accepted] == [0, 7]
    assert found.reasons == dict.fromkeys([*range(1, 7), 8], "schema_error")
    assert len(found.dead) == 7


def test_an_envelope_says_where_a_contracts_own_code_has_raised() -> None:
    found = outcome(payloads(strict(key="boom"), strict(more=1)), intake(STRICT))
    raised, refused = (envelope["error_stacktrace"] for _, envelope, _ in found.dead)
    assert 'raise KeyError("boom")' in raised
    assert raised.endswith("KeyError: 'boom'")
    assert refused == ""


def test_a_value_that_no_column_can_hold_is_a_dead_letter_and_not_the_end_of_the_job() -> None:
    bad = [strict(key=key) for key in REWRITTEN]
    found = outcome(payloads(b"[]", strict(), *bad, strict()), intake(REWRITING))
    assert [offset for offset, _ in found.accepted] == [1, len(bad) + 2]
    assert found.reasons == dict.fromkeys([0, *range(2, len(bad) + 2)], "schema_error")
    assert found.counts[0]["dead_lettered"] == {"schema_error": 1 + len(bad)}
    assert all(envelope["has_schema_error"] for _, envelope, _ in found.dead)
    assert [offset for offset, *_ in found.dead] == sorted(found.reasons)


def test_attributes_may_have_the_names_that_breakwater_uses_itself() -> None:
    fields = {"key": "k", "f1": "2026-01-01T00:00:00Z", "topic": "mine", "offset": 5, "class": 6}
    found = outcome(payloads(json.dumps(fields).encode()), intake(CLASHING))
    ((_, line),) = found.accepted
    assert (line["topic"], line["offset"], line["source_topic"]) == ("mine", 5, "t")


# --- progress and counts


FUTURE = shop(timestamp="2026-01-01T12:05:00.001Z")
AT_THE_LIMIT = shop(timestamp="2026-01-01T12:05:00.000999Z")


def test_a_split_says_how_far_it_has_come_by_its_newest_accepted_event() -> None:
    mark = SplitMark("/in/😀.jsonl", 4, last=True)
    older = shop(timestamp="2025-01-01T00:00:00Z")
    found = outcome(payloads(older, shop(), b"bad", older, mark=mark))
    assert found.progress == [Progress("/in/😀.jsonl", 4, True, 4, GOOD_MS)]


@pytest.mark.parametrize("mark", [None, SplitMark("t/0", 1, last=False)])
def test_an_event_of_the_future_does_not_push_the_watermark(mark: SplitMark | None) -> None:
    found = outcome(payloads(FUTURE, shop(), FUTURE, mark=mark))
    assert found.reasons == {0: "future_timestamp", 2: "future_timestamp"}
    assert [p.newest_ms for p in found.progress] == [GOOD_MS]
    alone = outcome(payloads(FUTURE, mark=mark))
    assert [p.newest_ms for p in alone.progress] == [UNKNOWN_MS]


def test_an_event_at_the_limit_of_the_future_is_accepted_and_pushes_the_watermark() -> None:
    found = outcome(payloads(AT_THE_LIMIT, shop()))
    assert len(found.accepted) == 2
    assert [p.newest_ms for p in found.progress] == [NOW_MS + SKEW_MS]


def test_an_event_of_the_future_pushes_the_watermark_of_no_partition() -> None:
    rows = [
        {"payload": FUTURE, "source_partition": 0},
        {"payload": shop(), "source_partition": 1},
        {"payload": FUTURE, "source_partition": 1},
        {"payload": AT_THE_LIMIT, "source_partition": 2},
    ]
    found = outcome(batch_of(rows))
    assert found.progress == [
        Progress("t/0", -1, False, 1, UNKNOWN_MS),
        Progress("t/1", -1, False, 2, GOOD_MS),
        Progress("t/2", -1, False, 1, NOW_MS + SKEW_MS),
    ]


def test_topics_and_partitions_of_one_batch_are_counted_and_advance_each_for_itself() -> None:
    times = {("b", 1): 10, ("a", 1): 30, ("b", 0): 20}
    rows = [
        {
            "payload": shop(timestamp=iso_utc_ms(ms)),
            "source_topic": topic,
            "source_partition": partition,
            "source_offset": 1000 + ms,
        }
        for (topic, partition), ms in times.items()
    ]
    rows.append({**rows[0], "payload": b"bad", "source_offset": 999})
    rows.append({**rows[1], "payload": shop(price=-1), "source_offset": 2000})
    found = outcome(batch_of(rows))
    assert {p.partition: (p.records, p.newest_ms) for p in found.progress} == {
        "b/1": (2, 10),
        "a/1": (2, 30),
        "b/0": (1, 20),
    }
    counts = {(line["source_topic"], line["source_partition"]): line for line in found.counts}
    assert len(counts) == len(found.counts) == 3
    assert counts["b", 1]["quarantined"] == {"invalid_json": 1}
    assert counts["b", 1]["dead_lettered"] == counts["b", 0]["quarantined"] == {}
    assert counts["a", 1]["dead_lettered"] == {"invalid_price": 1}
    assert (counts["b", 1]["first_offset"], counts["b", 1]["last_offset"]) == (999, 1010)
    assert (counts["a", 1]["first_offset"], counts["a", 1]["last_offset"]) == (1030, 2000)


def test_an_empty_batch_only_says_that_its_split_ends() -> None:
    found = outcome(payloads(mark=SplitMark("/in/a", 2, last=True)))
    assert found.progress == [Progress("/in/a", 2, True, 0, UNKNOWN_MS)]
    assert not found.accepted + found.times_ms + found.partials + found.dead + found.quarantined
    assert found.counts == [
        {
            "minute_ms": NOW_MS - NOW_MS % 60_000,
            "source_topic": "/in/a",
            "source_partition": 0,
            "received": 0,
            "splits": [2],
            "dead_lettered": {},
            "quarantined": {},
        }
    ]


@pytest.mark.parametrize("last", [False, True])
def test_counts_say_which_split_has_ended(last: bool) -> None:
    found = outcome(payloads(shop(), b"bad", mark=SplitMark("t", 3, last)))
    (line,) = found.counts
    assert (line["splits"], line["received"]) == ([3] if last else [], 2)
    assert line["quarantined"] == {"invalid_json": 1}


def test_an_empty_batch_of_a_topic_says_nothing() -> None:
    found = outcome(payloads())
    assert not found.progress + found.accepted + found.counts


# --- many batches of one element


@dataclass
class Thrice:
    """A reader that gives an element three times, as a file's split comes in several batches."""

    def open(self) -> None:
        """Nothing to get ready."""

    def read(self, element: bytes) -> Iterator[Records]:
        for offset in (0, 100, 200):
            rows = [{**row, "source_offset": offset + i} for i, row in enumerate(rows_in(element))]
            mark = SplitMark("/in/a", 1, last=offset == 200)
            yield of_split(Records.of_batch(batch_of(rows)), mark)


def rows_in(element: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = from_bytes(element).to_pylist()
    return rows


def thrice(**bounds: int) -> list[Any]:
    """Two good records and a bad one, three times, through intake: the rows that come out."""
    rules = dataclasses.replace(rules_of(ECOMMERCE), **bounds)
    function = Intake(rules, Thrice())
    function.open(None)  # type: ignore[arg-type] # it asks nothing of it
    element = to_bytes(payloads(shop(), shop(price=-1), shop(user_id="u2")))
    return list(function.process_element(element, Context()))


def test_the_batches_of_an_element_leave_together_with_nothing_lost() -> None:
    row, (dead_tag, dead), (counts_tag, counts) = thrice()
    assert (dead_tag, counts_tag) == (DEAD_LETTER_TAG, COUNTS_TAG)
    offsets = [line["source_offset"] for line in split(unpacked(row.lines))]
    assert offsets == [0, 2, 100, 102, 200, 202]
    assert len(row.times) == 8 * len(offsets)
    added = {p["event_key"]: p["event_count"] for p in from_bytes(row.partials).to_pylist()}
    assert added == {"u1": 3, "u2": 3}
    assert read_progress(row.progress) == [
        Progress("/in/a", 1, last, 3, GOOD_MS) for last in (False, False, True)
    ]
    assert [line["source_offset"] for line in split(unpacked(dead[0]))] == [1, 101, 201]
    assert [line["received"] for line in split(counts)] == [3, 3, 3]
    assert events_by_partition(row.progress, 6) == {"/in/a": 6}


@pytest.mark.parametrize("bound", ["row_bytes", "lines_bytes"])
def test_an_element_that_gives_much_is_handed_on_in_parts(bound: str) -> None:
    """As a compressed file does: memory is bounded by the part, not by the split."""
    rows = [out for out in thrice(**{bound: 1}) if not isinstance(out, tuple)]
    assert [read_progress(row.progress)[0].last for row in rows] == [False, False, True]
    assert [len(split(unpacked(row.lines))) for row in rows] == [2, 2, 2]


def sizes(*values: bytes) -> tuple[Row, Size]:
    """What comes of a batch, and how large it was said to be."""
    harness = intake()
    rules = harness.function._rules
    (records,) = BatchReader().read(to_bytes(payloads(*values)))
    judged = judge_batch(records, rules.judge(), EventType(rules.contract), NOW_MS)
    accepted = Accepted(EventType(rules.contract), WINDOW_MS)
    accepted.add(records, judged.rows, judged.events, NOW_MS)
    (row,) = accepted.rows()
    return row, accepted.size


def test_lines_of_little_variety_count_for_what_they_unpack_to() -> None:
    """Else a small compressed file would be one row that the JVM cannot hold."""
    row, size = sizes(*[shop(product_id="x" * 300)] * 500)
    lines = unpacked(row.lines)
    assert size.unpacked == len(lines) > 200_000
    assert len(row.lines) < size.travels < len(lines) / 4


def test_what_travels_is_no_more_than_was_counted() -> None:
    """Also where every key is another one, and long, so that nothing is added up."""
    row, size = sizes(*[shop(user_id=hashlib.sha512(b"%d" % i).hexdigest()) for i in range(500)])
    travels = len(row.lines) + len(row.times) + len(row.partials)
    assert size.travels > travels * 0.9


@settings(max_examples=60)
@given(rows_of(ECOMMERCE).filter(len), st.integers(1, 3))
def test_a_batch_that_is_judged_in_pieces_comes_to_the_same(
    rows: list[dict[str, Any]], piece_records: int
) -> None:
    batch = batch_of(rows * 3)
    whole = totals(batch)
    with patch.object(records_module, "PIECE_RECORDS", piece_records):
        assert totals(batch) == whole


def totals(batch: pa.RecordBatch) -> dict[str, Any]:
    """All that the outputs, the watermark and the books make of a batch."""
    found = outcome(batch)
    (row,) = intake().output
    newest: dict[str, int] = {}
    received: Counter[str] = Counter()
    for progress in found.progress:
        received[progress.partition] += progress.records
        newest[progress.partition] = max(
            progress.newest_ms, newest.get(progress.partition, UNKNOWN_MS)
        )
    counts: Counter[tuple[str, int, str]] = Counter()
    for line in found.counts:
        place = line["source_topic"], line["source_partition"]
        counts[(*place, "received")] += line["received"]
        for kind in ("dead_lettered", "quarantined"):
            for name, n in line[kind].items():
                counts[(*place, name)] += n
    return {
        "accepted": found.accepted,
        "dead": found.dead,
        "quarantined": found.quarantined,
        "times": found.times_ms,
        "partials": sorted(map(str, found.partials)),
        "received": received,
        "newest": newest,
        "by_partition": +Counter(events_by_partition(row.progress, len(found.times_ms))),
        "counts": +counts,
    }


# --- what is not the data's fault


class FailsOnce:
    """A decoder that fails at its first call only."""

    def __init__(self, decode: Any, error: type[BaseException]) -> None:
        self.decode = decode
        self.errors = [error]

    def __call__(self, payload: bytes, *_: object) -> Any:
        if self.errors:
            raise self.errors.pop()
        return self.decode(payload)


def test_a_lack_of_memory_fails_the_job_instead_of_costing_a_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = intake().function
    events = function._events
    monkeypatch.setattr(events, "decode", FailsOnce(events.decode, MemoryError))
    with pytest.raises(MemoryError):
        list(function.process_element(to_bytes(payloads(shop())), Context()))


@pytest.mark.parametrize("look", ["refused", "judge"])
def test_a_lack_of_memory_at_the_second_look_fails_the_job_too(
    monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    function = intake().function
    bad = {"refused": b"bad", "judge": shop(timestamp="2999-01-01T00:00:00.000Z")}[look]
    monkeypatch.setattr(function._judge, look, FailsOnce(None, MemoryError))
    with pytest.raises(MemoryError):
        list(function.process_element(to_bytes(payloads(bad)), Context()))


def test_a_contract_that_refuses_a_record_only_once_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bug it catches: neither accepted, since it failed, nor turned away, since it is good."""
    events = intake().function._events
    monkeypatch.setattr(events, "decode", FailsOnce(events.decode, OSError))
    found = outcome(payloads(shop(), shop()))
    assert [offset for offset, _ in found.accepted] == [1]
    assert found.reasons == {0: "schema_error"}


def test_any_exception_of_the_decoder_but_a_lack_of_memory_costs_one_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = intake().function._events
    decode = events.decode

    def fail(payload: bytes) -> Any:
        if b"u1" in payload:
            raise RecursionError
        return decode(payload)

    monkeypatch.setattr(events, "decode", fail)
    found = outcome(payloads(shop(), shop(user_id="u2")))
    assert [offset for offset, _ in found.accepted] == [1]
    assert found.reasons == {0: "schema_error"}


class Context:
    """As much of Flink's context as intake asks for."""

    def timer_service(self) -> Context:
        return self

    def current_processing_time(self) -> int:
        return NOW_MS


def test_the_rules_travel_to_a_worker_and_judge_there_as_here() -> None:
    """The harness ships the function through cloudpickle, contract, patterns and all."""
    harness = intake(READING, SOME)
    assert harness.settings.ship
    assert harness.function._rules == rules_of(READING, SOME)


# --- offsets and partitions in the books


def test_events_of_a_mixed_batch_say_their_partitions() -> None:
    """Three of partition 1, one of partition 0, and a bad one that has no event."""
    rows = [
        {"payload": shop() if i != 3 else b"bad", "source_partition": p, "source_offset": 10 + i}
        for i, p in enumerate([1, 0, 1, 0, 1])
    ]
    harness = intake()
    harness.clear_output()
    harness.process(to_bytes(batch_of(rows)))
    (row,) = harness.output
    assert events_by_partition(row.progress, 4) == {"t/0": 1, "t/1": 3}


def test_gaps_between_offsets_are_counted_as_spans() -> None:
    offsets = [3, 4, 5, 9, 11, 12]
    found = outcome(batch_of([{"payload": shop(), "source_offset": at} for at in offsets]))
    (line,) = found.counts
    assert line["spans"] == [[3, 5, 3], [9, 9, 1], [11, 12, 2]]
    assert (line["first_offset"], line["last_offset"], line["received"]) == (3, 12, 6)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=600))
def test_spans_hold_every_offset_and_are_few(steps: list[int]) -> None:
    offsets = np.cumsum(steps)
    spans = spans_of(offsets)
    assert len(spans) <= MAX_SPANS + 1
    assert sum(records for _, _, records in spans) == len(offsets)
    for first, last, records in spans:
        assert records == np.count_nonzero((offsets >= first) & (offsets <= last))
        assert {first, last} <= set(offsets.tolist())
    if sum(step > 1 for step in steps[1:]) < MAX_SPANS:
        assert all(last - first + 1 == records for first, last, records in spans)
