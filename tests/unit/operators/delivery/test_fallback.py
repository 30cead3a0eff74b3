"""What delivery gives up and keeps, and what is read of it later."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.batches.events import EventType
from operators.bridge.wire import EVENTS
from operators.delivery.fallback import (
    FALLBACK_TAG,
    KEY_FIELD,
    UNDELIVERED,
    FallbackError,
    FallbackReader,
    fallback_line,
    fallback_rows,
    refuse_contract,
)
from operators.delivery.parcels import Parcel
from operators.intake.lanes import AT_MS
from operators.rules.contract import Contract, load_contract
from operators.rules.delivery.breaker import BreakerPolicy
from operators.rules.poison import PoisonRules
from operators.rules.verdict import Judge
from tests.oracle import to_ms
from tests.unit.operators.bridge.java_input import unpacked
from tests.unit.operators.contracts import CLASHING, REWRITING
from tests.unit.operators.delivery.test_delivery import Post, payload
from tests.unit.operators.rules.contracts import ECOMMERCE, READING
from tests.unit.operators.rules.records import NOW_MS

DOWN = BreakerPolicy(consecutive=1, open_ms=3_600_000, open_cap_ms=3_600_000)


class Store(Post):
    """A delivery with a fallback store."""

    side_outputs = (*Post.side_outputs, FALLBACK_TAG)

    def __init__(self, *arguments: Any, **changes: Any) -> None:
        super().__init__(*arguments, **{"to_fallback": UNDELIVERED, **changes})

    @property
    def stored(self) -> list[bytes]:
        rows = [row for harness in self.outputs for row in harness.side_output(FALLBACK_TAG)]
        return [line for row in rows for line in unpacked(row.lines).splitlines(keepends=True)]

    @property
    def kept(self) -> list[str]:
        """The products in the store, in their order."""
        return [json.loads(line)["product_id"] for line in self.stored]

    def balances(self) -> None:
        counts: Counter[str] = Counter()
        for harness in self.outputs:
            for block in harness.side_output(self.side_outputs[1]):
                for line in block.splitlines():
                    row = json.loads(line)
                    counts.update(pending=row["pending"], fallback=row.get("fallback", 0))
                    counts.update(dead=sum(row["dead_lettered"].values()))
        assert counts["fallback"] == len(self.stored) == len(set(self.kept))
        assert counts["dead"] == len(self.dead)
        left = len(self.delivered) + len(self.dead) + len(self.stored)
        assert self.arrived == left + counts["pending"]


@pytest.fixture
def store() -> Iterator[Callable[..., Store]]:
    made: list[Store] = []

    def make(*arguments: Any, **changes: Any) -> Store:
        made.append(Store(*arguments, **changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Store]


# --- what goes there


def test_what_has_used_up_its_attempts_is_kept(store: Make) -> None:
    found = store()
    found.service.answers["p"] = [ConnectionError("gone")] * 3
    found.bring(payload("p"), payload("q", "b"))
    found.until(lambda: bool(found.stored), ms=500)
    assert (found.kept, found.delivered, found.dead) == (["p"], ["q"], {})
    found.bring(payload("r"))  # else the breaker still knows of a failure
    found.until(lambda: found.delivered == ["q", "r"])
    found.balances()
    found.come_by(1_000)
    found.leaves_nothing()


def test_what_is_too_old_is_kept_even_if_it_was_never_its_turn(store: Make) -> None:
    found = store(policy={"breaker": DOWN, "max_age_ms": 10_000, "calls": 1})
    found.service.is_down = True
    found.bring(payload("p", "a"), payload("q", "b"))
    found.until(lambda: len(found.stored) == 2, ms=500)
    assert (sorted(found.kept), found.dead) == (["p", "q"], {})
    found.balances()


def test_at_the_end_of_the_input_what_is_left_is_kept(store: Make) -> None:
    found = store(drain_timeout_ms=100)
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p", "a"), payload("p2", "a"), payload("q", "b"))
    found.until(lambda: found.delivered == ["q"])
    found.harness.end_of_input()
    assert (found.kept, found.dead) == (["p", "p2"], {})
    found.balances()
    assert found.harness.num_timers() == 0


def test_followers_of_what_is_given_up_are_kept_behind_it(store: Make) -> None:
    found = store(policy={"after_dead_letter": "follow"})
    found.service.answers["p"] = [ConnectionError("gone")] * 3
    found.bring(payload("p"), payload("p2"), payload("p3"))
    found.until(lambda: len(found.stored) == 3, ms=500)
    assert found.kept == ["p", "p2", "p3"]
    assert set(found.service.products) == {"p"}
    found.balances()


def test_what_the_target_refuses_is_bad_data_and_a_dead_letter(store: Make) -> None:
    found = store(to_fallback=UNDELIVERED | {"overflow"})
    found.service.answers["p"] = [ValueError("not like this")]
    found.bring(payload("p"))
    found.until(lambda: bool(found.dead))
    assert found.dead["p"]["disposition"] == "refused"
    assert found.stored == []
    found.balances()


@pytest.mark.parametrize("overflows", [True, False])
def test_what_there_is_no_room_for_goes_where_the_settings_say(
    store: Make, overflows: bool
) -> None:
    to_fallback = UNDELIVERED | {"overflow"} if overflows else UNDELIVERED
    found = store(policy={"max_records": 3}, to_fallback=to_fallback)
    found.service.is_down = True
    found.bring(*(payload(f"p{i}", f"u{i}") for i in range(5)))
    assert found.kept == (["p3", "p4"] if overflows else [])
    assert sorted(found.dead) == ([] if overflows else ["p3", "p4"])
    found.balances()


def test_what_a_new_contract_refuses_is_a_dead_letter_even_if_it_is_never_called_with(
    store: Make,
) -> None:
    """The bug it catches: the line of another event is written, or the operator fails."""
    found = store(policy={"max_age_ms": 20_000, "breaker": DOWN, "calls": 1})
    found.service.is_down = True
    found.bring(payload("p", action="purchase"), payload("q", "b"))
    found.until(lambda: bool(found.service.calls) and not found.status["in_flight"])
    narrower = load_contract("tests.unit.operators.contracts:OnlyViews", *ECOMMERCE[1:])
    found.rules = dataclasses.replace(found.rules, contract=narrower)
    found.crash()
    found.until(lambda: len(found.dead) + len(found.stored) == 2, ms=1_000)
    assert (sorted(found.dead), found.kept) == (["p"], ["q"])
    found.balances()


def test_a_line_that_does_not_fit_its_topic_is_a_dead_letter(store: Make) -> None:
    """The bug it catches: one record that the broker refuses stops the job for ever."""
    found = store(max_envelope_bytes=1_000)
    for product in ("p" * 900, "q"):
        found.service.answers[product] = [ConnectionError("gone")] * 3
        found.bring(payload(product, product[:1]))
    found.until(lambda: bool(found.stored and found.books["connection_error"]), ms=500)
    assert (found.kept, found.books["pending"]) == (["q"], 0)


def test_what_has_been_kept_is_not_kept_again_after_a_crash(store: Make) -> None:
    found = store()
    found.service.answers["p"] = [ConnectionError("gone")] * 3
    found.bring(payload("p"), payload("q"))
    found.until(lambda: bool(found.stored), ms=500)
    found.crash()
    found.until(lambda: found.delivered == ["q"])
    assert found.kept == ["p"]
    found.balances()


# --- what a line is


def test_a_line_is_that_of_processed_events_with_the_key_behind_it(store: Make) -> None:
    bad, good = store(), store()
    bad.service.answers["p"] = [ConnectionError("gone")] * 3
    event = payload("p", timestamp="2026-01-01T12:00:00+01:00", more="left out", user='ü"\\\n')
    for each in (bad, good):
        each.bring(event)
    bad.until(lambda: bool(bad.stored), ms=500)
    good.until(lambda: bool(good.delivered))
    (row,) = [row for row in good.harness.output if row.lines]
    processed = unpacked(row.lines)
    key = bad.service.calls[0][1]
    assert bad.stored == [processed[:-2] + f',"breakwater_key":"{key}"}}\n'.encode()]


def test_many_lines_are_several_rows() -> None:
    lines = [b"x" * 999_999 + b"\n"] * 9
    rows = [*fallback_rows(lines)]
    assert {tag for tag, _ in rows} == {FALLBACK_TAG}
    assert [len(unpacked(row.lines)) for _, row in rows] == [4_000_000, 4_000_000, 1_000_000]
    assert [*fallback_rows([])] == []
    assert len([*fallback_rows([b"x" * 9_000_000 + b"\n"])]) == 1


def test_a_contract_that_has_the_field_is_refused() -> None:
    refuse_contract(load_contract(*ECOMMERCE))
    taken = load_contract("tests.unit.operators.contracts:WithBreakwaterKey", "key", "at")
    with pytest.raises(FallbackError, match="WithBreakwaterKey has one: rename it there"):
        refuse_contract(taken)


# --- what is read of it

CONTRACTS = {
    "ecommerce": (ECOMMERCE, json.loads(payload("p"))),
    "every type, other names": (
        READING,
        {
            "deviceId": "dä-1", "takenAt": "2026-01-01T00:00:00Z", "sequence": 2**63 - 1,
            "isOk": True, "level": 2, "humidity": 0.1, "temperature": -1e-7, "note": "a\nb\u2028",
            "repairedAt": "2026-01-01T05:30:00.123+05:30",
        },
    ),
    "nothing unknown, a rule of its own": (
        ("tests.unit.operators.rules.contracts:Strict", "key", "at", "low"),
        {"key": "k", "at": "2026-01-01T00:00:00.123Z", "low": 0.5},
    ),
    "its own column names": (
        CLASHING,
        {"key": "k", "at": "2026-01-01T00:00:00Z", "f1": "2026-01-01T00:00:00Z", "topic": "x",
         "offset": 3, "class": 4},
    ),
    "tagged": (
        ("tests.unit.operators.contracts:Tagged", "key", "at"),
        {"type": "Tagged", "key": "k", "at": "2026-01-01T00:00:00Z"},
    ),
    "without a zone": (
        ("tests.unit.operators.contracts:WithoutZone", "key", "at"),
        {"key": "k", "at": "2026-01-01T00:00:00"},
    ),
    "code of its own": (REWRITING, {"key": "k", "at": "2026-01-01T00:00:00Z", "more": None}),
    "an identity": (
        (*ECOMMERCE, "product_id"), {**json.loads(payload("p")), "product_id": 'né"1'},
    ),
}  # fmt: skip


def parcel_of(contract: Contract, payloads: list[bytes], event_ms: int) -> Parcel:
    """Events as delivery has them at hand."""
    rows = [
        {
            "payload": each, "source_topic": "töpic", "source_partition": 3, "source_offset": 2**40,
            "event_key": json.loads(each)[contract.key], "event_ms": event_ms, "place": i,
        }
        for i, each in enumerate(payloads)
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows, EVENTS.with_metadata({AT_MS: b"%d" % NOW_MS}))
    judge = Judge(contract, PoisonRules(), 10**6, 2**62)
    return Parcel(batch, EventType(contract), judge, NOW_MS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_an_event_is_called_with_as_the_job_has_called_with_it(name: str) -> None:
    path, fields = CONTRACTS[name]
    contract = load_contract(*path)
    event_ms = to_ms(fields[contract.event_time])
    assert event_ms is not None
    parcel = parcel_of(contract, [json.dumps(fields).encode()], event_ms)
    assert parcel.refusal(0) is None
    before = parcel.event(0, 1)
    reader = FallbackReader(contract)
    stored = reader.read(fallback_line(before))
    again = reader.parcel([stored], NOW_MS)
    assert again.refusal(0) is None
    after = again.event(0, 1)
    for attribute in vars(before):
        if attribute != "payload":
            assert getattr(after, attribute) == getattr(before, attribute), attribute
    assert fallback_line(after) == fallback_line(before)
    written = json.loads(after.payload)
    assert {"source_topic", "source_offset", KEY_FIELD}.isdisjoint(written)


def test_what_is_sent_is_what_stands_there_also_under_a_newer_contract() -> None:
    before = parcel_of(load_contract(*ECOMMERCE), [payload("p")], 0).event(0, 1)
    newer = "tests.unit.operators.contracts:WithCurrency"
    reader = FallbackReader(load_contract(newer, *ECOMMERCE[1:]))
    after = reader.parcel([reader.read(fallback_line(before))], NOW_MS).event(0, 1)
    assert after.value.currency == "EUR"
    assert after.line == before.line


BROKEN = {
    "nothing": (b"", "truncated"),
    "no JSON": (b"x", "malformed"),
    "no object": (b"[]", "got `array`"),
    "a line of processed_events": (b'{"source_topic":"t"}', "there is no 'breakwater_key'"),
    "no topic": (b'{"breakwater_key":"k"}', "there is no 'source_topic'"),
    "a partition that is none": (
        b'{"breakwater_key":"","source_topic":"","source_partition":3000000000,"source_offset":1}',
        "Expected `int` <= 2147483647",
    ),
    "a key that is no text": (b'{"breakwater_key":3}', "Expected `str`"),
    "no UTF-8": (b'{"breakwater_key":"\xff"}', "utf-8"),
    "too deep": (b'{"breakwater_key":' + b"[" * 200_000, "recursion"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_line_of_the_store_is_told(name: str) -> None:
    line, told = BROKEN[name]
    with pytest.raises(FallbackError, match=r"^is no line of a fallback store: ") as caught:
        FallbackReader(load_contract(*ECOMMERCE)).read(line)
    assert told in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_stands_there_is_read_or_told(line: bytes) -> None:
    reader = FallbackReader(load_contract(*ECOMMERCE))
    try:
        reader.read(line)
    except FallbackError as error:
        assert "\n" not in str(error)  # noqa: PT017 # most lines raise it, some may not


FIELDS = st.dictionaries(
    st.sampled_from(["user_id", "product_id", "action", "price", "timestamp", "other"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("view"),
)


@given(FIELDS)
def test_a_line_that_the_contract_does_not_take_is_refused_and_costs_no_other(
    fields: dict[str, Any],
) -> None:
    reader = FallbackReader(load_contract(*ECOMMERCE))
    place = {"source_topic": "t", "source_partition": 0, "source_offset": 1, KEY_FIELD: "k"}
    good = json.dumps({**json.loads(payload("p")), **place}).encode()
    try:
        odd = reader.read(json.dumps({**fields, **place}).encode())
    except FallbackError:
        return
    parcel = reader.parcel([reader.read(good), odd, reader.read(good)], NOW_MS)
    assert (parcel.refusal(0), parcel.refusal(2)) == (None, None)
    if parcel.refusal(1) is None:
        assert parcel.event(1, 1).value.user_id == fields["user_id"]
    assert parcel.event(2, 4).idempotency_key == "k"
