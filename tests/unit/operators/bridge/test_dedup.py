"""Deduplication on the Python side: what intake tells of the events, and what delivery leaves out.

Which of them are duplicates the JVM finds: tests/minicluster/test_dedup.py.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyflink.common import Row, Types

from operators.batches.events import EventType
from operators.batches.records import BatchReader
from operators.bridge.steps import BYTES
from operators.bridge.wire import EVENTS, RECORDS, from_bytes, to_bytes
from operators.delivery.delivery import Delivery
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.departures import DELIVERED
from operators.delivery.parcels import InvalidAnswer, Parcel
from operators.intake.intake import Intake, IntakeRules
from operators.intake.lanes import AT_MS, LANED, LANED_VALUE, lane_of
from operators.intake.outgoing import COUNTS_TAG, DEAD_LETTER_TAG, QUARANTINE_TAG
from operators.rules.contract import Contract, load_contract
from operators.rules.delivery.failure import FailureTable
from operators.rules.delivery.lane_records import LanePolicy
from operators.rules.identity import digest_of
from operators.rules.poison import PoisonRules
from operators.rules.verdict import Judge
from operators.targets.nothing import NoTarget
from tests.harness import Harness
from tests.unit.operators.bridge.java_input import events_by_partition, unpacked
from tests.unit.operators.rules.contracts import ECOMMERCE
from tests.unit.operators.rules.records import NOW_MS
from udfs.targets import Event, Outcome, Target

BY_PAYLOAD = load_contract(*ECOMMERCE)
BY_PRODUCT = load_contract(*ECOMMERCE, "product_id")
#: A contract with code of its own, and an integer that tells its events apart.
READING = ("tests.unit.operators.rules.contracts:Reading", "deviceId", "takenAt", None, "sequence")
LANES = (70, 71, 72, 73)


def payload(user: str = "u1", product: str = "p1", **changes: Any) -> bytes:
    event = {
        "user_id": user,
        "product_id": product,
        "action": "view",
        "price": 1.5,
        "timestamp": "2026-01-01T11:00:00.000Z",
        **changes,
    }
    return json.dumps(event).encode()


def reading(device: str, sequence: int) -> bytes:
    return json.dumps(
        {
            "deviceId": device,
            "takenAt": "2026-01-01T11:00:00Z",
            "sequence": sequence,
            "isOk": True,
            "level": 1,
            "humidity": 0.5,
        }
    ).encode()


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()  # noqa: S324


# --- intake ---------------------------------------------------------------------------------------


def laned(contract: Contract, *payloads: bytes, deduplicates: bool = True) -> dict[int, Row]:
    """What delivery is handed of a batch: by the lane's key."""
    rules = IntakeRules(
        contract=contract,
        poison=PoisonRules(),
        max_record_bytes=500,
        max_future_skew_ms=0,
        window_ms=300_000,
        payload_limit_bytes=100,
        row_bytes=10**9,
        lines_bytes=10**9,
        code_version="1.2.3",
    )
    harness = Harness(
        Intake(rules, BatchReader(), LANES, deduplicates=deduplicates),
        input_type=BYTES,
        output_type=LANED,
        side_outputs=[DEAD_LETTER_TAG, QUARANTINE_TAG, COUNTS_TAG],
        processing_time=NOW_MS,
    )
    rows = [
        {"payload": each, "source_topic": "t", "source_partition": 0, "source_offset": i}
        for i, each in enumerate(payloads)
    ]
    harness.process(to_bytes(pa.RecordBatch.from_pylist(rows, RECORDS)))
    return {row[0]: row[1] for row in harness.output}


def digests(row: Row) -> list[bytes]:
    return [row[2][i : i + 16] for i in range(0, len(row[2]), 16)]


def test_each_event_has_its_digest_in_the_row_and_at_the_place_where_it_is() -> None:
    """Also where others of the batch are turned away, and where lanes part what came together."""
    given = [payload(f"u{i % 7}", f"p{i}") for i in range(50)]
    for at in (0, 20, 49):
        given.insert(at, b"no event")
    rows = laned(BY_PAYLOAD, *given)
    assert rows.keys() == {LANES[lane_of(f"u{i}", 4)] for i in range(7)}
    assert len(rows) > 1
    for row in rows.values():
        payloads = from_bytes(row[1]).column("payload").to_pylist()
        assert digests(row) == [md5(each) for each in payloads]
    assert sum(len(digests(row)) for row in rows.values()) == 50


def test_the_digest_is_of_the_field_that_the_contract_names_and_of_the_key() -> None:
    (row,) = laned(BY_PRODUCT, payload(price=1), payload(price=2), payload(product="p2")).values()
    first, second, other = digests(row)
    assert first == second != other
    rows = laned(BY_PRODUCT, *[payload(f"u{i}") for i in range(20)])
    found = [digest for row in rows.values() for digest in digests(row)]
    assert len(set(found)) == 20, "events of other keys are others"


def test_an_integer_may_tell_events_apart_and_so_may_a_field_with_another_name_in_the_json() -> (
    None
):
    rows = laned(load_contract(*READING), reading("aa", 1), reading("aa", 1), reading("aa", 11))
    (row,) = rows.values()
    first, second, other = digests(row)
    assert first == second != other


def test_nobody_pays_where_nobody_asks() -> None:
    for row in laned(BY_PAYLOAD, payload(), deduplicates=False).values():
        assert row[2] == b""


def test_what_only_tells_how_far_it_has_come_has_no_digests() -> None:
    (row,) = laned(BY_PAYLOAD, b"no event").values()
    assert row[0] != b""
    assert (row[1], row[2]) == (b"", b"")


# --- the idempotency key --------------------------------------------------------------------------


def parcel(contract: Contract, *payloads: bytes, partitions: int = 1) -> Parcel:
    data = events_of(*payloads, contract=contract, partitions=partitions)
    judge = Judge(contract, PoisonRules(), 10_000, 0)
    return Parcel.of_data(data, EventType(contract), judge, NOW_MS)


def events_of(
    *payloads: bytes, contract: Contract = BY_PAYLOAD, partitions: int = 1, at_ms: int = NOW_MS
) -> bytes:
    """Events as `lanes.Laned` packs them; they are dealt out to the partitions in turn."""
    rows = [
        {
            "payload": each,
            "source_topic": "t",
            "source_partition": i % partitions,
            "source_offset": i,
            "event_key": json.loads(each)[contract.key],
            "event_ms": NOW_MS,
            "place": i,
        }
        for i, each in enumerate(payloads)
    ]
    batch = pa.RecordBatch.from_pylist(rows, EVENTS)
    return to_bytes(batch.replace_schema_metadata({AT_MS: str(at_ms).encode()}), packed=True)


def test_the_idempotency_key_is_the_identity() -> None:
    assert parcel(BY_PAYLOAD, payload()).event(0, 1).idempotency_key == md5(payload()).hex()
    product = parcel(BY_PRODUCT, payload())
    assert product.event(0, 1).idempotency_key == digest_of(b"", "p1", product.keys[0]).hex()
    sensor = parcel(load_contract(*READING), reading("aa", 11))
    assert sensor.event(0, 1).idempotency_key == digest_of(b"", 11, sensor.keys[0]).hex()


def test_two_keys_with_the_same_field_are_two_events_for_the_target_too() -> None:
    one, other = parcel(BY_PRODUCT, payload("a")), parcel(BY_PRODUCT, payload("b"))
    assert one.event(0, 1).idempotency_key != other.event(0, 1).idempotency_key


def test_an_answer_cannot_give_an_event_another_identity() -> None:
    with pytest.raises(InvalidAnswer, match="identity"):
        parcel(BY_PRODUCT, payload()).enrich(0, {"product_id": "p2"})
    parcel(BY_PAYLOAD, payload()).enrich(0, {"product_id": "p2"})


def test_a_parcel_without_some_events_is_as_if_they_had_not_come() -> None:
    given = [payload(product=f"p{i}") for i in range(6)]
    less = parcel(BY_PAYLOAD, *given, partitions=2).without(np.array([0, 3, 4]))
    same = [1, 2, 5]
    assert less.at_ms == NOW_MS
    assert [less.event(place, 1).payload for place in range(3)] == [given[i] for i in same]
    assert [less.event(place, 1).source_offset for place in range(3)] == same
    assert less.tally() == {("t", 0): 1, ("t", 1): 2}
    # As the state has it.
    assert [from_bytes(less.data).column("place").to_pylist()] == [[0, 1, 2]]


# --- delivery -------------------------------------------------------------------------------------


class Post:
    """A lane's delivery in the harness, with its clock."""

    def __init__(self, target: type[Target] = NoTarget) -> None:
        self.ms = NOW_MS
        rules = DeliveryRules(
            target=target,
            lanes=16,
            policy=LanePolicy(batch=target.max_batch, keeps_order=True),
            failures=FailureTable(),
            contract=BY_PAYLOAD,
            timeout_ms=10_000,
            calls_per_worker=4,
            slow_input_ms=0,
            drain_timeout_ms=5_000,
            window_ms=300_000,
            max_record_bytes=10_000,
            code_version="1.2.3",
            duplicates_ttl_ms=1_000,
        )
        self.harness = Harness(
            Delivery(rules, (7,), lambda: self.ms),
            key_by=lambda _: 7,
            key_type=Types.INT(),
            input_type=LANED_VALUE,
            output_type=DELIVERED,
            side_outputs=[DEAD_LETTER_TAG, COUNTS_TAG],
            processing_time=self.ms,
            ship=False,
        )

    def bring(self, data: bytes, *duplicates: int) -> None:
        """A row comes in, and all that is not a duplicate goes out again."""
        self.harness.process(Row(b"", data, np.array(duplicates, ">i4").tobytes()))
        end = time.monotonic() + 20
        while self.harness.num_processing_time_timers():
            assert time.monotonic() < end, "it does not come to it"
            time.sleep(0.002)
            self.ms += 100
            self.harness.advance_processing_time(self.ms)

    @property
    def told(self) -> list[dict[str, Any]]:
        """The lines for the books."""
        return [
            json.loads(line)
            for block in self.harness.side_output(COUNTS_TAG)
            for line in block.splitlines()
        ]

    def total(self, name: str) -> dict[tuple[int, int], int]:
        """A count by minute and partition."""
        found: Counter[tuple[int, int]] = Counter()
        for line in self.told:
            found[line["minute_ms"], line["source_partition"]] += line[name]
        return {at: count for at, count in found.items() if count}

    @property
    def written(self) -> list[dict[str, Any]]:
        rows = [row for row in self.harness.output if row.lines]
        return [json.loads(line) for row in rows for line in unpacked(row.lines).splitlines()]


@pytest.fixture
def post() -> Iterator[Callable[..., Post]]:
    """Makes deliveries, and ends them."""
    made: list[Post] = []

    def make(*arguments: Any) -> Post:
        made.append(Post(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.harness.function._courier.close()


MINUTE_MS = NOW_MS - NOW_MS % 60_000


def test_duplicates_are_counted_by_minute_and_partition_and_neither_written_nor_pending(
    post: Callable[..., Post],
) -> None:
    given = [payload(product=f"p{i}") for i in range(6)]
    here = post()
    here.bring(events_of(*given, partitions=2, at_ms=NOW_MS - 120_000), 0, 3, 5)
    assert sorted(row["source_offset"] for row in here.written) == [1, 2, 4]
    minute = MINUTE_MS - 120_000
    assert here.total("duplicate") == {(minute, 0): 1, (minute, 1): 2}
    assert here.total("pending") == {}
    (row,) = [row for row in here.harness.output if row.lines]
    assert events_by_partition(row.progress, 3) == {"t/0": 2, "t/1": 1}


def test_a_batch_of_nothing_but_duplicates_is_counted_and_touches_no_state(
    post: Callable[..., Post],
) -> None:
    here = post()
    here.bring(events_of(payload(), payload(product="p2")), 0, 1)
    assert here.written == here.harness.output == []
    assert here.total("duplicate") == {(MINUTE_MS, 0): 2}
    assert here.harness.num_state_entries() == here.harness.num_timers() == 0


def test_what_is_not_a_duplicate_keeps_its_order(post: Callable[..., Post]) -> None:
    given = [payload(product=f"p{i}") for i in range(5)]
    here = post()
    here.bring(events_of(*given), 0, 1)
    here.bring(events_of(*given), 2)
    assert [row["product_id"] for row in here.written] == ["p2", "p3", "p4", "p0", "p1", "p3", "p4"]


class Duplicate(Exception):
    """A user's exception may be called so."""


class Refusing(NoTarget):
    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        return [Duplicate("no")] * len(events)


def test_a_dead_letter_by_the_name_of_duplicate_is_none(post: Callable[..., Post]) -> None:
    here = post(Refusing)
    here.bring(events_of(payload(), payload(product="p2")), 1)
    assert here.total("duplicate") == {(MINUTE_MS, 0): 1}
    assert sum(line["dead_lettered"].get("duplicate", 0) for line in here.told) == 1
    assert here.total("pending") == {}


def test_the_target_that_is_none_takes_all(post: Callable[..., Post]) -> None:
    """Several events of a key in one call too."""
    given = [payload(product=f"p{i}", user=f"u{i % 3}") for i in range(500)]
    here = post()
    here.bring(events_of(*given))
    assert [row["product_id"] for row in here.written] == [f"p{i}" for i in range(500)]
