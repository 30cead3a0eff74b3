"""A million records that fail and are resolved: nothing of them stays anywhere."""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from operators.intake.outgoing import COUNTS_TAG, DEAD_LETTER_TAG
from operators.rules.delivery.backoff import RetryPolicy
from operators.rules.delivery.breaker import BreakerPolicy
from tests.runs import wait_until
from tests.unit.operators.bridge.java_input import unpacked
from tests.unit.operators.delivery.test_delivery import LANES, WITHIN_S, Post, payload
from udfs.targets import Event, Outcome

ROUNDS, A_LANE, BATCH = 100, 5_000, 1_000
A_ROUND = A_LANE * len(LANES)
#: Of Python's blocks of memory so many come and go by themselves, and of the state's bytes such a
#: share, as numbers grow longer. A leak of a block a record would be 900,000 of them.
LOOSE_BLOCKS, LOOSE_SHARE = 1_000, 0.1
EVENT = payload("p")


async def fails_once(events: Sequence[Event]) -> list[Outcome]:
    """What is called with for the first time fails; then all but one of a call is taken."""
    if events[0].attempt == 1:
        return [ConnectionError("gone")] * len(events)
    return [ValueError("bad"), *[None] * (len(events) - 1)]


@dataclass
class Held:
    """What there is of delivery at an instant, in Flink's state and in the worker.

    Attributes:
        entries: in each state.
        state_bytes: of all of them.
        timers: that are registered.
        lengths: of each container that the operator, its calls and its lanes have.
        blocks: of Python's memory: here is what no container of ours has.
    """

    entries: dict[str, int]
    state_bytes: int
    timers: int
    lengths: dict[str, int]
    blocks: int

    def is_as(self, before: Held) -> None:
        """Nothing has grown since."""
        assert self.entries == before.entries
        # One for the end of the input, one for what is due, and one too many.
        assert self.timers <= 3 * len(LANES)
        assert self.lengths == before.lengths
        assert self.state_bytes <= before.state_bytes * (1 + LOOSE_SHARE)
        assert self.blocks <= before.blocks + LOOSE_BLOCKS


class Mill(Post):
    """Deliveries of several lanes: what leaves is counted, and forgotten."""

    def __init__(self) -> None:
        policy = {
            "keeps_order": True,
            "after_dead_letter": "follow",
            "retry": RetryPolicy(),
            # Its state is kept while calls fail; it does not open.
            "breaker": BreakerPolicy(consecutive=2 * A_LANE // BATCH),
        }
        super().__init__(fails_once, BATCH, policy=policy)
        self.gone = self.refused = self.pending = 0

    def bring_and_fail(self, number: int) -> None:
        """New keys for each lane; all of them have failed once, and wait."""
        for self.lane in LANES:
            users = (b'"user_id": "%d-%d"' % (number, i) for i in range(A_LANE))
            self.bring(*(EVENT.replace(b'"user_id": "u"', user) for user in users))
        courier = self.harness.function._courier
        with courier.locked():
            all_fail = courier.wait(self._all_wait, round(WITHIN_S * 1000))
        assert all_fail, "a first call has not come back"
        for self.lane in LANES:
            self.wake()  # which saves what has become of them, and no time passes

    def resolve(self) -> None:
        """All leave, and then nothing is due any more."""
        self.until(lambda: self._count() == self.arrived, ms=200)
        self.come_by(2_000)

    @property
    def stations(self) -> list[Any]:
        return [self.harness.function._stations[key] for key in LANES]

    def held(self) -> Held:
        harness = self.harness
        function = harness.function
        # A task is forgotten a moment after what it has done is seen.
        wait_until("the calls' tasks have ended", lambda: not function._courier._tasks, WITHIN_S)
        tables = harness.backend.tables
        cells = {
            name: [cell for of_key in table.values() for cell in of_key.values()]
            for name, table in tables.items()
        }
        ours: list[Any] = [function, function._courier]
        for station in self.stations:
            ours += [station, station.round, station.lane]
        lengths = {
            f"{at} {type(each).__name__}.{name}": len(value)
            for at, each in enumerate(ours)
            for name, value in vars(each).items()
            if isinstance(value, Collection) and not isinstance(value, bytes | str)
        }
        gc.collect()
        return Held(
            {name: len(found) for name, found in cells.items()},
            sum(len(cell.data) for found in cells.values() for cell in found),
            harness.num_timers(),
            lengths,
            sys.getallocatedblocks(),
        )

    def _all_wait(self) -> bool:
        return all(
            not station.lane.in_flight and chunk.records is not None
            for station in self.stations
            for chunk in station.lane.chunks.values()
        )

    def _count(self) -> int:
        """How many have left by now."""
        harness = self.harness
        for row in harness.output:
            self.gone += unpacked(row.lines).count(b"\n")
        for row in harness.side_output(DEAD_LETTER_TAG):
            self.refused += unpacked(row.lines).count(b"\n")
        for block in harness.side_output(COUNTS_TAG):
            counts = [msgspec.json.decode(line) for line in block.splitlines()]
            self.pending += sum(each["pending"] for each in counts)
        harness.clear_output()
        return self.gone + self.refused


@pytest.fixture
def mill() -> Iterator[Mill]:
    made = Mill()
    yield made
    made.close()


def test_a_million_records_that_fail_and_are_resolved_leave_nothing(mill: Mill) -> None:
    """The same is held when a tenth of them are through as when all are, and at last nothing."""
    held = {}
    for number in range(ROUNDS):
        is_looked_at = number in (ROUNDS // 10, ROUNDS - 1)
        mill.bring_and_fail(number)
        waiting = mill.held() if is_looked_at else None
        mill.resolve()
        if waiting:
            held[number] = waiting, mill.held()
    (waited, rested), (waiting, resting) = held.values()
    assert waiting.entries["events.v1"] == A_ROUND // BATCH, "there is nothing to compare"
    assert sum(n for name, n in waiting.lengths.items() if "_parked" in name) == A_ROUND
    waiting.is_as(waited)
    resting.is_as(rested)
    assert mill.arrived == mill.gone + mill.refused == ROUNDS * A_ROUND >= 1_000_000
    assert mill.refused >= ROUNDS * len(LANES)
    assert mill.pending == 0
    mill.leaves_nothing()
