"""Delivery in the strict harness: what has come in leaves once, whatever the target does.

The clock is a number that each test moves; the calls are real ones, on the courier's own loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from pyflink.common import Row, Types

from operators.bridge.wire import EVENTS, to_bytes
from operators.delivery.courier import Courier
from operators.delivery.delivery import QUICK_MS, Delivery
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.departures import DELIVERED
from operators.intake.lanes import AT_MS, LANED_VALUE
from operators.intake.outgoing import COUNTS_TAG, DEAD_LETTER_FOLDERS, DEAD_LETTER_TAG
from operators.rules.contract import load_contract
from operators.rules.delivery.backoff import RetryPolicy
from operators.rules.delivery.breaker import BreakerPolicy
from operators.rules.delivery.failure import FailureTable, Handling
from operators.rules.delivery.lane_records import MOST_AT_ONCE, LanePolicy
from operators.rules.times import iso_utc_ms
from operators.targets.function import FunctionTarget
from tests.harness import Harness, _Snapshot
from tests.runs import wait_until
from tests.unit.operators.bridge.java_input import unpacked
from tests.unit.operators.rules.contracts import ECOMMERCE
from tests.unit.operators.rules.records import NOW_MS
from udfs.targets import Event, NotTried, Outcome

LANE = 7
LANES = (3, LANE)
WITHIN_S = 20.0
RETRY = RetryPolicy(max_attempts=3, base_ms=1_000, jitter=0)
CALM = BreakerPolicy(consecutive=0)


class Clock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


class Service:
    """What the events are delivered to: it does what a test has told it of a product."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = defaultdict(list)
        self.is_down = False
        self.calls: list[tuple[str, str, int]] = []
        self.hanging = threading.Event()

    async def deliver(self, event: Event) -> Any:
        product = event.value.product_id
        self.calls.append((product, event.idempotency_key, event.attempt))
        if self.is_down:
            raise ConnectionError("nobody there")
        answers = self.answers[product]
        answer = answers.pop(0) if answers else None
        if answer == "hang":
            self.hanging.set()
            await asyncio.sleep(3600)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @property
    def products(self) -> list[str]:
        return [product for product, *_ in self.calls]


def payload(product: str, user: str = "u", **changes: Any) -> bytes:
    event = {
        "user_id": user,
        "product_id": product,
        "action": "view",
        "price": 1.5,
        "timestamp": "2026-01-01T11:00:00.000Z",
        **changes,
    }
    return json.dumps(event).encode()


class Post:
    """A lane's delivery in the harness, with its clock and its service."""

    side_outputs = (DEAD_LETTER_TAG, COUNTS_TAG)

    def __init__(self, function: Any = None, batch: int = 1, **changes: Any) -> None:
        self.clock = Clock()
        self.service = Service()
        self.arrived = 0
        self.at_ms = NOW_MS
        self.lane = LANE
        self.function = function or self.service.deliver
        policy = {"retry": RETRY, "breaker": CALM, "batch": batch, **changes.pop("policy", {})}
        self.rules = DeliveryRules(
            **{
                "target": lambda: FunctionTarget(self.function, batch),
                "lanes": 16,
                "policy": LanePolicy(**policy),
                "failures": FailureTable(),
                "contract": load_contract(*ECOMMERCE),
                "timeout_ms": 10_000,
                "calls_per_worker": 64,
                "slow_input_ms": 0,
                "drain_timeout_ms": 5_000,
                "window_ms": 300_000,
                "max_record_bytes": 10_000,
                "code_version": "1.2.3",
                **changes,
            }
        )
        self.harness = Harness(
            Delivery(self.rules, LANES, self.clock),
            key_by=lambda _: self.lane,
            key_type=Types.INT(),
            input_type=LANED_VALUE,
            output_type=DELIVERED,
            side_outputs=self.side_outputs,
            processing_time=self.clock.ms,
            ship=False,
        )
        self.outputs: list[Harness] = [self.harness]

    def bring(self, *payloads: bytes) -> None:
        """A batch of events comes in."""
        count = len(payloads)
        columns = {
            **dict.fromkeys(EVENTS.names, [None] * count),
            "payload": payloads,
            "source_topic": ["t"] * count,
            "source_partition": [3] * count,
            "source_offset": range(self.arrived, self.arrived + count),
            "event_key": [msgspec.json.decode(each)["user_id"] for each in payloads],
            "event_ms": [NOW_MS - 3_600_000] * count,
            "place": range(count),
        }
        self.arrived += count
        schema = EVENTS.with_metadata({AT_MS: b"%d" % self.at_ms})
        batch = pa.RecordBatch.from_pydict(columns, schema)
        row = [b""] * len(LANED_VALUE.get_field_types())
        row[1] = to_bytes(batch, packed=True)
        self.harness.process(Row(*row))

    def wake(self) -> None:
        """As Wake.java does."""
        self.harness.process(Row(b"", b"", b""))

    def come_by(self, ms: int = 50) -> None:
        """Time passes, and Flink's timers fire."""
        time.sleep(0.002)
        self.clock.ms += ms
        self.harness.advance_processing_time(self.clock.ms)

    def until(self, condition: Callable[[], bool], ms: int = 50) -> None:
        end = time.monotonic() + WITHIN_S
        while not condition():
            assert time.monotonic() < end, "it does not come to it"
            self.come_by(ms)

    def crash(self, snapshot: bytes | None = None) -> None:
        """The worker dies, and another one goes on from the checkpoint."""
        saved = self.harness.snapshot() if snapshot is None else snapshot
        self.harness.function._courier.close()
        fresh = Delivery(self.rules, LANES, self.clock)
        self.harness = self.harness.restore(saved, fresh, processing_time=self.clock.ms)
        self.outputs.append(self.harness)

    def close(self) -> None:
        self.harness.function._courier.close()

    @property
    def delivered(self) -> list[str]:
        """The products that came out, in their order."""
        return [line["product_id"] for line in self.lines]

    @property
    def lines(self) -> list[dict[str, Any]]:
        rows = [row for harness in self.outputs for row in harness.output]
        return [json.loads(line) for row in rows for line in unpacked(row.lines).splitlines()]

    @property
    def dead(self) -> dict[str, dict[str, Any]]:
        """Dead letters by product."""
        found = {}
        for harness in self.outputs:
            for lines, *names in harness.side_output(DEAD_LETTER_TAG):
                folder = dict(zip(DEAD_LETTER_FOLDERS, names, strict=True))
                for line in unpacked(lines).splitlines():
                    letter = json.loads(line)
                    assert folder["error_type"] == letter["error_type"]
                    assert folder["queue"] == letter["failure_category"]
                    product = json.loads(letter["original_message"])["product_id"]
                    assert product not in found, "it has left twice"
                    found[product] = letter
        return found

    @property
    def books(self) -> Counter[str]:
        """Pending, and dead letters by type."""
        books: Counter[str] = Counter()
        for harness in self.outputs:
            for block in harness.side_output(COUNTS_TAG):
                for line in block.splitlines():
                    row = json.loads(line)
                    assert (row["source_topic"], row["source_partition"]) == ("t", 3)
                    assert row["minute_ms"] in {ms - ms % 60_000 for ms in (NOW_MS, self.at_ms)}
                    books["pending"] += row["pending"]
                    books.update(row["dead_lettered"])
        return books

    @property
    def status(self) -> dict[str, Any]:
        rows = [row for harness in self.outputs for row in harness.output if row.status]
        assert rows[-1].lane == LANE
        status = json.loads(rows[-1].status)
        assert status["lane"] == 1
        return status  # type: ignore[no-any-return]

    def leaves_nothing(self) -> None:
        """No state and no timer, but those of the lanes that wait for the end of the input."""
        assert self.harness.num_processing_time_timers() == 0
        assert self.harness.num_event_time_timers() <= len(self.harness.function._stations)
        assert self.harness.num_state_entries() == 0
        self.harness.end_of_input()
        self.harness.assert_no_leaks()

    def keeps_only_the_breaker(self) -> None:
        """The input has ended, and the last call has failed."""
        assert self.harness.num_timers() == 0
        assert self.harness.num_state_entries() == self.harness.num_state_entries("lane.v1")

    def balances(self) -> None:
        """Each event that came in is in one place, and the books say the same."""
        books = self.books
        assert self.arrived == len(self.delivered) + len(self.dead) + books["pending"]
        assert sum(books.values()) == books["pending"] + len(self.dead)


@pytest.fixture
def post() -> Iterator[Callable[..., Post]]:
    """Makes deliveries, and ends them."""
    made: list[Post] = []

    def make(*arguments: Any, **changes: Any) -> Post:
        made.append(Post(*arguments, **changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


Make = Callable[..., Post]


def test_what_a_quick_target_takes_leaves_at_once_and_nothing_is_kept(post: Make) -> None:
    found = post()
    found.bring(*(payload(f"p{i}", f"u{i}") for i in range(5)))
    found.until(lambda: len(found.delivered) == 5)
    assert found.dead == {}
    found.balances()
    found.come_by(1_000)
    found.leaves_nothing()


def test_the_line_is_that_of_processed_events(post: Make) -> None:
    found = post()
    found.bring(payload("p", timestamp="2026-01-01T12:00:00+01:00", more="left out"))
    found.until(lambda: bool(found.delivered))
    assert found.lines == [
        {
            "user_id": "u",
            "product_id": "p",
            "action": "view",
            "price": 1.5,
            "timestamp": "2026-01-01T11:00:00.000Z",
            "source_topic": "t",
            "source_partition": 3,
            "source_offset": 0,
        }
    ]


def test_a_failed_call_is_made_again_when_it_is_due_with_the_same_key(post: Make) -> None:
    found = post()
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p"))
    found.until(lambda: found.status["waiting"] == 1 and not found.status["in_flight"])
    assert found.books["pending"] == 1
    found.come_by(500)
    assert len(found.service.calls) == 1
    found.until(lambda: found.delivered == ["p"])
    key = hashlib.md5(payload("p"), usedforsecurity=False).hexdigest()
    assert found.service.calls == [("p", key, 1), ("p", key, 2)]
    found.balances()
    found.come_by(2_000)
    found.leaves_nothing()


def test_what_is_given_up_is_a_dead_letter_with_its_history(post: Make) -> None:
    found = post()
    found.service.answers["p"] = [ConnectionError(f"gone {i}") for i in range(3)]
    found.bring(payload("p"))
    found.until(lambda: "p" in found.dead, ms=500)
    letter = found.dead["p"]
    history = letter["attempts"]
    assert [each["error_message"] for each in history] == ["gone 0", "gone 1", "gone 2"]
    assert letter["error_type"] == history[0]["error_type"] == "connection_error"
    assert letter["first_failure_time"] == history[0]["at"]
    assert letter["last_failure_time"] == history[2]["at"]
    assert letter["processing_attempts"] == 3
    assert letter["processing_stage"] == "delivery"
    assert letter["disposition"] == "exhausted"
    assert letter["failure_category"] == "transient"
    assert letter["source_offset"] == 0
    assert json.loads(letter["original_message"])["product_id"] == "p"
    # Only the breaker remembers, until a call succeeds.
    assert found.harness.num_state_entries() == found.harness.num_state_entries("lane.v1") == 1
    found.bring(payload("q"))
    found.until(lambda: found.delivered == ["q"])
    found.balances()
    found.come_by(2_000)
    found.leaves_nothing()


def test_an_error_that_nothing_is_known_of_costs_its_record_and_has_its_stack(post: Make) -> None:
    found = post()
    found.service.answers["p"] = [ZeroDivisionError("oh")]
    found.bring(payload("p"), payload("q", "v"))
    found.until(lambda: bool(found.dead) and found.delivered == ["q"])
    letter = found.dead["p"]
    assert (letter["error_type"], letter["disposition"]) == ("zero_division_error", "refused")
    assert letter["failure_category"] == "persistent"
    assert "ZeroDivisionError: oh" in letter["error_stacktrace"]
    assert "in deliver" in letter["error_stacktrace"]


class Odd(Exception):
    """Its text cannot be told."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (Odd(), "value_error"),
        (SystemExit(3), "runtime_error"),
        (ValueError("bad \udc80"), "value_error"),
        (ValueError("x" * 3_000_000), "value_error"),
    ],
    ids=["no text", "exit", "surrogate", "long"],
)
def test_whatever_a_target_raises_costs_its_record_and_no_more(
    post: Make, error: BaseException, error_type: str
) -> None:
    found = post(calls_per_worker=1)
    found.service.answers["p"] = [error]
    found.service.answers["waits"] = [ConnectionError("gone")] * 2
    found.bring(payload("waits", "w"), payload("p"), payload("q", "v"))
    found.until(lambda: "p" in found.dead and "q" in found.delivered)
    assert found.dead["p"]["error_type"] == error_type
    found.until(lambda: "waits" in found.delivered, ms=200)
    found.balances()


def test_the_watermark_is_let_go_behind_the_last_event(post: Make) -> None:
    """Events of two minutes are two rows: what the lane holds back stands in the last one."""
    found = post()
    found.service.is_down = True
    found.bring(payload("p", "a"))
    found.at_ms += 60_000
    found.bring(payload("q", "b"))
    found.until(lambda: not found.status["in_flight"])
    found.service.is_down = False
    found.until(lambda: len(found.delivered) == 2, ms=5_000)
    rows = found.harness.output
    last = max(i for i, row in enumerate(rows) if row.lines)
    telling = [i for i, row in enumerate(rows) if row.status]
    assert len([row for row in rows if row.lines]) == 2
    assert last not in telling
    assert max(telling) > last


def test_the_users_entries_decide_first(post: Make) -> None:
    table = FailureTable({"builtins.ZeroDivisionError": Handling("transient", retryable=True)})
    found = post(failures=table)
    found.service.answers["p"] = [ZeroDivisionError("oh")]
    found.bring(payload("p"))
    found.until(lambda: found.delivered == ["p"])


def test_a_call_that_hangs_keeps_only_its_own_key_waiting(post: Make) -> None:
    found = post(timeout_ms=300)
    found.service.answers["p"] = ["hang"]
    found.bring(payload("p", "a"), payload("p2", "a"), payload("q", "b"))
    assert found.service.hanging.wait(WITHIN_S)
    found.until(lambda: found.delivered == ["q"])
    found.until(lambda: set(found.delivered) == {"p", "q", "p2"})
    assert found.delivered.index("p") < found.delivered.index("p2")
    assert found.service.products.count("p") == 2
    found.balances()


def test_nor_what_has_been_delivered_meanwhile(post: Make) -> None:
    """Not within 20 ms, or it would have left with the batch that it came with."""

    async def deliver(event: Event) -> None:
        await asyncio.sleep(3600 if event.value.product_id == "p" else 0.06)
        done.set()

    done = threading.Event()
    found = post(deliver, timeout_ms=100_000)
    found.bring(payload("p", "a"))
    for _ in range(60):
        found.come_by()
    found.bring(payload("q", "b"))
    lane = found.harness.function._stations[LANE].lane
    wait_until("its call is back", lambda: done.is_set() and lane.in_flight == 1, WITHIN_S)
    for _ in range(2):
        found.come_by()
    assert found.delivered == ["q"]


def test_the_answer_enriches_the_event_and_what_does_not_fit_is_a_dead_letter(post: Make) -> None:
    found = post()
    found.service.answers = defaultdict(
        list,
        {
            "p": [{"price": 99.5}],
            "wrong": [{"price": -1}],
            "key": [{"user_id": "x"}],
            "unknown": [{"colour": "red"}],
        },
    )
    found.bring(*(payload(p, p) for p in ("p", "wrong", "key", "unknown", "plain")))
    found.until(lambda: len(found.delivered) == 2 and len(found.dead) == 3)
    assert {line["product_id"]: line["price"] for line in found.lines} == {"p": 99.5, "plain": 1.5}
    assert {letter["error_type"] for letter in found.dead.values()} == {"invalid_answer"}
    assert "price" in found.dead["wrong"]["error_message"]
    assert "'user_id'" in found.dead["key"]["error_message"]


def test_windows_add_up_what_the_target_has_answered(post: Make) -> None:
    from operators.bridge.wire import from_bytes

    found = post()
    found.service.answers["p"] = [{"price": 99.5}]
    found.bring(payload("p"))
    found.until(lambda: bool(found.delivered))
    (row,) = [row for row in found.harness.output if row.partials]
    assert from_bytes(row.partials).to_pylist()[0]["total_value"] == 99.5


# --- crashes


def test_after_a_crash_calls_that_were_out_are_made_again_with_the_same_key(post: Make) -> None:
    found = post()
    found.service.answers["p"] = ["hang"]
    found.bring(payload("p", "a"), payload("p2", "a"))
    assert found.service.hanging.wait(WITHIN_S)
    found.crash()
    found.until(lambda: found.delivered == ["p", "p2"])
    assert found.service.calls[0] == found.service.calls[1]
    found.balances()
    found.come_by(2_000)
    found.leaves_nothing()


def test_what_came_of_calls_behind_the_checkpoint_is_not_taken_twice(post: Make) -> None:
    """The books, the outputs and the state are of one instant."""
    found = post()
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p"))
    found.until(lambda: bool(found.service.calls) and not found.status["in_flight"])
    snapshot = found.harness.snapshot()
    found.until(lambda: found.delivered == ["p"])
    found.outputs.clear()  # nothing of it was committed
    books_then = 1
    found.crash(snapshot)
    found.until(lambda: found.delivered == ["p"])
    assert found.books["pending"] + books_then == 0
    found.leaves_nothing()


def test_a_breaker_that_is_open_stays_so_for_the_time_that_was_left(post: Make) -> None:
    breaker = BreakerPolicy(consecutive=2, open_ms=60_000)
    found = post(policy={"breaker": breaker})
    found.service.is_down = True
    found.bring(*(payload(f"p{i}", f"u{i}") for i in range(20)))
    found.until(lambda: found.status["breaker"] == "open")
    calls = len(found.service.calls)
    found.until(lambda: not found.status["in_flight"])
    found.come_by(30_000)
    found.crash()
    found.come_by(20_000)
    assert len(found.service.calls) == calls
    assert found.dead == {}
    found.service.is_down = False
    found.until(lambda: len(found.delivered) == 20, ms=1_000)
    assert found.clock.ms >= NOW_MS + 60_000
    found.balances()


def test_an_outage_uses_up_no_attempts(post: Make) -> None:
    found = post(policy={"breaker": BreakerPolicy(consecutive=2, open_ms=1_000, open_cap_ms=1_000)})
    found.service.is_down = True
    found.bring(*(payload(f"p{i}", f"u{i}") for i in range(50)))
    end_ms = found.clock.ms + 60_000
    found.until(lambda: found.clock.ms > end_ms, ms=250)
    calls = len(found.service.calls)
    assert calls < 20 + 60, "the probes, and what was out when it opened"
    assert found.dead == {}
    found.service.is_down = False
    found.until(lambda: len(found.delivered) == 50, ms=250)
    found.balances()


@pytest.mark.parametrize("failing", [3, 4, 5])
def test_batches_of_a_key_keep_their_order_through_an_outage(post: Make, failing: int) -> None:
    calls: list[list[str]] = []

    async def deliver(events: list[Event]) -> None:
        calls.append([event.value.product_id for event in events])
        if len(calls) <= failing:
            raise ConnectionError("nobody there")

    breaker = BreakerPolicy(consecutive=2, open_ms=500, open_cap_ms=500)
    retry = RetryPolicy(base_ms=100, jitter=0, cap_ms=100)
    found = post(deliver, batch=2, policy={"breaker": breaker, "retry": retry, "keeps_order": True})
    found.bring(*(payload(f"p{i}") for i in range(4)))
    found.until(lambda: len(found.delivered) == 4, ms=100)
    assert found.delivered == ["p0", "p1", "p2", "p3"]
    assert {called[0] for called in calls[: failing + 1]} == {"p0"}
    found.balances()


def test_an_outage_costs_a_lane_with_one_event_nothing(post: Make) -> None:
    """Its fifth failure is that which opens the breaker, and would be its last one."""
    found = post(policy={"retry": RetryPolicy(jitter=0), "breaker": BreakerPolicy()})
    found.service.is_down = True
    found.bring(payload("p"))
    end_ms = found.clock.ms + 120_000
    found.until(lambda: found.clock.ms > end_ms, ms=250)
    assert found.dead == {}
    found.service.is_down = False
    found.until(lambda: found.delivered == ["p"], ms=1_000)
    found.balances()


# --- bounds and ends


def test_what_there_is_no_room_for_is_a_dead_letter(post: Make) -> None:
    found = post(policy={"max_records": 3})
    found.service.is_down = True
    found.bring(*(payload(f"p{i}", f"u{i}") for i in range(5)))
    assert sorted(found.dead) == ["p3", "p4"]
    assert found.dead["p3"]["disposition"] == "overflow"
    assert found.dead["p3"]["error_type"] == "delivery_overflow"
    assert "max_records" in found.dead["p3"]["error_message"]
    found.balances()


def test_a_batch_is_held_up_once_and_not_in_each_lane_that_is_almost_full(
    post: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = post(policy={"max_records": 10}, slow_input_ms=100)
    found.service.is_down = True
    courier = found.harness.function._courier
    asked: list[int] = []

    def wait(until: Callable[[], bool], timeout_ms: int) -> bool:
        asked.append(timeout_ms)
        return Courier.wait(courier, until, timeout_ms)

    monkeypatch.setattr(courier, "wait", wait)
    for batch in range(3):
        found.at_ms += 1
        asked.clear()
        for found.lane in LANES:
            found.bring(*(payload(f"p{batch}-{found.lane}-{i}", f"u{i}") for i in range(5)))
        slowed = [ms for ms in asked if ms != QUICK_MS]
        assert sum(slowed) == pytest.approx([0, 100, 100][batch], abs=5), "full from the second on"


def test_a_record_beyond_its_time_budget_leaves_though_the_breaker_is_open(post: Make) -> None:
    breaker = BreakerPolicy(consecutive=1, open_ms=3_600_000, open_cap_ms=3_600_000)
    retry = RetryPolicy(max_attempts=9, base_ms=1_000, jitter=0, budget_ms=10_000)
    found = post(policy={"breaker": breaker, "retry": retry, "calls": 1})
    found.service.is_down = True
    found.bring(payload("p"))
    found.until(lambda: "p" in found.dead, ms=500)
    assert found.dead["p"]["disposition"] == "exhausted"
    assert found.clock.ms <= NOW_MS + 12_000
    found.balances()


def test_what_is_too_old_is_a_dead_letter_even_if_it_was_never_its_turn(post: Make) -> None:
    breaker = BreakerPolicy(consecutive=1, open_ms=3_600_000, open_cap_ms=3_600_000)
    found = post(policy={"breaker": breaker, "max_age_ms": 10_000, "calls": 1})
    found.service.is_down = True
    found.bring(payload("p", "a"), payload("p2", "b"), payload("q", "c"))
    found.until(lambda: len(found.dead) == 3, ms=500)
    assert found.dead["p"]["error_type"] == found.dead["p2"]["error_type"] == "connection_error"
    assert found.dead["q"]["error_type"] == "delivery_expired"
    assert "connection_error: nobody there" in found.dead["q"]["error_message"]
    assert {letter["disposition"] for letter in found.dead.values()} == {"expired"}
    found.balances()


def test_at_the_end_of_the_input_what_is_due_soon_is_finished(post: Make) -> None:
    found = post(drain_timeout_ms=60_000)
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p"))
    found.until(lambda: bool(found.service.calls) and not found.status["in_flight"])

    def let_time_pass() -> None:
        while found.delivered == [] and not ended.is_set():
            time.sleep(0.005)
            found.clock.ms += 100

    ended = threading.Event()
    passing = threading.Thread(target=let_time_pass, daemon=True)
    passing.start()
    found.harness.end_of_input()
    ended.set()
    assert found.delivered == ["p"]
    found.balances()
    found.harness.assert_no_leaks()


def test_and_what_is_due_later_is_a_dead_letter(post: Make) -> None:
    found = post(drain_timeout_ms=500)
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p", "a"), payload("p2", "a"), payload("q", "b"))
    found.until(lambda: found.delivered == ["q"])
    found.harness.end_of_input()
    assert found.dead["p"]["disposition"] == found.dead["p2"]["disposition"] == "flush_at_end"
    assert found.dead["p"]["error_type"] == "connection_error"
    assert found.dead["p2"]["error_type"] == "delivery_flush_at_end"
    found.balances()
    found.harness.assert_no_leaks()


def test_at_the_end_of_the_input_no_lane_waits_for_another_one_to_be_done(post: Make) -> None:
    """Flink comes to one after the other: the first must not have all of the time."""
    retry = RetryPolicy(max_attempts=9, base_ms=2_000, jitter=0)
    found = post(drain_timeout_ms=7_000, policy={"retry": retry})
    found.service.answers["p"] = [ConnectionError("gone")] * 3  # the next one would be too late
    found.service.answers["q"] = [ConnectionError("gone")] * 2
    for found.lane, product in ((3, "p"), (LANE, "q")):
        found.bring(payload(product))
    deadline = time.monotonic() + WITHIN_S
    while len(found.service.calls) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    ended = threading.Event()

    def let_time_pass() -> None:
        while not ended.is_set():
            time.sleep(0.02)
            found.clock.ms += 100

    threading.Thread(target=let_time_pass, daemon=True).start()
    found.harness.end_of_input()
    ended.set()
    assert found.delivered == ["q"]
    assert found.dead["p"]["disposition"] == "flush_at_end"
    assert found.dead["p"]["processing_attempts"] == 3
    found.balances()
    found.keeps_only_the_breaker()


def test_a_large_backlog_leaves_in_pieces_at_the_end(post: Make) -> None:
    found = post(drain_timeout_ms=0, policy={"calls": 1})
    found.service.is_down = True
    for i in range(3):
        found.bring(*(payload(f"p{i}-{j}", f"u{j}") for j in range(MOST_AT_ONCE)))
    found.harness.end_of_input()
    assert len(found.dead) == 3 * MOST_AT_ONCE
    rows = [lines for lines, *_ in found.harness.side_output(DEAD_LETTER_TAG)]
    assert max(len(unpacked(lines).splitlines()) for lines in rows) <= MOST_AT_ONCE
    found.balances()
    found.keeps_only_the_breaker()


def test_what_the_target_has_answered_is_kept_until_it_is_written(post: Make) -> None:
    """Also where a chunk's events were put away and read again while the input ended."""

    async def deliver(event: Event) -> dict[str, float]:
        await asyncio.sleep(0.002)
        return {"price": 77.0}

    found = post(deliver, policy={"calls": 4}, drain_timeout_ms=60_000)
    for i in range(10):
        found.bring(*(payload(f"p{i}-{j}", f"u{j % 3}") for j in range(20)))
    found.harness.end_of_input()
    assert len(found.lines) == 200
    assert {line["price"] for line in found.lines} == {77.0}
    found.harness.assert_no_leaks()


# --- batches


def test_a_lane_whose_timers_were_lost_is_looked_after_when_it_is_woken(post: Make) -> None:
    """A timer of the last bundle before a checkpoint may not be in it."""
    found = post()
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p"))
    found.until(lambda: bool(found.service.calls) and not found.status["in_flight"])
    snapshot = msgspec.msgpack.decode(found.harness.snapshot(), type=_Snapshot)
    snapshot.event_timers.clear()
    snapshot.processing_timers.clear()
    found.crash(msgspec.msgpack.encode(snapshot))
    found.come_by(10_000)
    assert len(found.service.calls) == 1
    found.wake()
    found.until(lambda: found.delivered == ["p"])
    found.balances()
    found.come_by(2_000)
    found.leaves_nothing()


def test_at_the_end_of_the_input_too(post: Make) -> None:
    found = post(drain_timeout_ms=0)
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p"))
    found.until(lambda: bool(found.service.calls) and not found.status["in_flight"])
    snapshot = msgspec.msgpack.decode(found.harness.snapshot(), type=_Snapshot)
    snapshot.event_timers.clear()
    found.crash(msgspec.msgpack.encode(snapshot))
    found.wake()
    found.harness.end_of_input()
    assert found.dead["p"]["disposition"] == "flush_at_end"
    found.balances()


def test_a_batch_is_one_call_and_only_what_failed_of_it_is_made_again(post: Make) -> None:
    calls: list[list[str]] = []

    async def deliver(events: list[Event]) -> list[Outcome] | None:
        calls.append([event.value.product_id for event in events])
        outcomes: list[Outcome] = []
        for event in events:
            if event.value.product_id == "bad" and len(calls) == 1:
                outcomes.append(ConnectionError("gone"))
            elif event.value.user_id == "a" and outcomes and len(calls) == 1:
                outcomes.append(NotTried())
            else:
                outcomes.append(None)
        return outcomes

    found = post(deliver, batch=10, policy={"keeps_order": True})
    found.bring(payload("bad", "a"), payload("p2", "a"), payload("q", "b"))
    found.until(lambda: len(found.delivered) == 3)
    assert calls == [["bad", "p2", "q"], ["bad", "p2"]]
    assert found.delivered == ["q", "bad", "p2"]
    found.balances()
    found.come_by(2_000)
    found.leaves_nothing()


def test_a_large_batch_is_cut_into_calls(post: Make) -> None:
    sizes: list[int] = []

    async def deliver(events: list[Event]) -> None:
        sizes.append(len(events))

    found = post(deliver, batch=4, policy={"keeps_order": True})
    found.bring(*(payload(f"p{i}", f"u{i % 3}") for i in range(10)))
    found.until(lambda: len(found.delivered) == 10)
    assert sizes == [3, 3, 4]
    assert found.delivered == [f"p{i}" for i in range(10)]


def test_a_wrong_number_of_outcomes_is_a_failure_of_all(post: Make) -> None:
    async def deliver(events: list[Event]) -> list[None]:
        return [None]

    found = post(deliver, batch=10)
    found.bring(payload("p", "a"), payload("q", "b"))
    found.until(lambda: len(found.dead) == 2)
    assert "1 outcomes for 2 events" in found.dead["p"]["error_message"]


def test_a_target_that_says_it_has_tried_nothing_has_failed(post: Make) -> None:
    """Else it would be called again and again, at once."""

    async def deliver(events: list[Event]) -> list[Outcome]:
        return [NotTried() for _ in events]

    found = post(deliver, batch=10)
    found.bring(payload("p", "a"), payload("q", "b"))
    found.until(lambda: len(found.dead) == 2)
    assert "tried none" in found.dead["p"]["error_message"]


# --- the state


def test_events_are_in_the_state_and_not_in_the_worker_while_they_wait(post: Make) -> None:
    breaker = BreakerPolicy(consecutive=1, open_ms=3_600_000, open_cap_ms=3_600_000)
    found = post(policy={"breaker": breaker})
    found.service.is_down = True
    for i in range(30):
        found.bring(*(payload(f"p{i}-{j}", f"u{i}-{j}") for j in range(10)))
    found.until(lambda: found.status["breaker"] == "open" and not found.status["in_flight"])
    found.come_by(60_000)
    station = found.harness.function._stations[LANE]
    assert station.round.lane.count == 300
    assert len(station.round.parcels) <= 2, "to probe with"
    assert found.harness.num_state_entries("events.v1") == 1  # of one key
    found.crash()
    found.service.is_down = False
    found.until(lambda: len(found.delivered) == 300, ms=60_000)
    found.balances()


def test_what_is_left_of_a_chunk_takes_no_more_room_than_it_needs(post: Make) -> None:
    found = post()
    found.service.answers["p0"] = [ConnectionError("gone")]
    found.bring(*(payload(f"p{i}" + "x" * 500, f"u{i}") for i in range(1, 50)), payload("p0", "a"))
    found.until(lambda: len(found.delivered) == 49)
    ((_, cells),) = found.harness.backend.live_rows("events.v1")
    (cell,) = cells.values()
    assert len(cell.data) < 3_000
    found.until(lambda: len(found.delivered) == 50)


def test_fail_and_succeed_again_and_again_leaves_nothing(post: Make) -> None:
    found = post()
    for i in range(200):
        found.service.answers[f"p{i}"] = [ConnectionError("gone")]
        found.bring(payload(f"p{i}", f"u{i % 7}"))
        if i % 20 == 19:
            found.until(lambda n=i + 1: len(found.delivered) == n, ms=200)  # type: ignore[misc]
    found.come_by(10_000)
    found.balances()
    found.leaves_nothing()


def test_a_record_that_a_new_contract_refuses_is_a_dead_letter(post: Make) -> None:
    found = post()
    found.service.answers["p"] = [ConnectionError("gone")]
    found.bring(payload("p", action="purchase"), payload("q", "b"))
    found.until(lambda: found.delivered == ["q"] and not found.status["in_flight"])
    narrower = load_contract("tests.unit.operators.contracts:OnlyViews", *ECOMMERCE[1:])
    found.rules = dataclasses.replace(found.rules, contract=narrower)
    found.crash()
    found.until(lambda: "p" in found.dead, ms=500)
    assert found.dead["p"]["error_type"] == "schema_error"
    assert "action" in found.dead["p"]["error_message"]
    assert found.service.products.count("p") == 1
    found.balances()


def test_the_clock_of_history_is_that_of_the_records(post: Make) -> None:
    found = post()
    found.service.answers["p"] = [ZeroDivisionError("oh")]
    found.bring(payload("p"))
    found.until(lambda: bool(found.dead))
    at = found.dead["p"]["attempts"][0]["at"]
    assert iso_utc_ms(NOW_MS) <= at <= iso_utc_ms(found.clock.ms)


@contextmanager
def started(target: FunctionTarget) -> Iterator[Courier]:
    courier = Courier(target, FailureTable(), timeout_ms=100, calls=1, now_ms=Clock())
    courier.open()
    try:
        yield courier
    finally:
        courier.close()


def test_a_courier_ends_though_a_call_hangs() -> None:
    async def deliver(event: Event) -> None:
        await asyncio.sleep(3600)

    begun = time.monotonic()
    with started(FunctionTarget(deliver)):
        pass
    assert time.monotonic() - begun < WITHIN_S


def test_a_target_that_blocks_the_loop_is_told_of_and_not_waited_for_for_ever(post: Make) -> None:
    released = threading.Event()

    async def deliver(event: Event) -> None:
        released.wait(WITHIN_S)

    found = post(deliver, timeout_ms=50)
    found.bring(payload("p", "a"))
    try:
        with pytest.raises(RuntimeError, match=r"blocked the event loop .* plain def"):
            found.until(lambda: False)
    finally:
        released.set()


def test_a_target_that_cannot_be_made_is_what_is_told(post: Make) -> None:
    def refuse() -> FunctionTarget:
        raise ValueError("no such table")

    found = post()
    function = Delivery(dataclasses.replace(found.rules, target=refuse), LANES)
    with pytest.raises(ValueError, match="no such table"):
        found.harness.restore(found.harness.snapshot(), function)
    function.close()  # as Flink does then
