"""The flow with delivery, and with deduplication before it, as Flink gets it; nothing runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import operators.intake.outgoing
from operators.bridge.steps import LANE_GROUPS
from tests.minicluster.flow import main_job, parallelism, pickled, uids
from tests.minicluster.test_wiring import output_tags

pytestmark = pytest.mark.minicluster

GOLDEN = Path(__file__).with_name("uids_delivery.txt")
TARGET = {"delivery.target": "builtins:print"}
DEDUPLICATE = {"deduplicate.enabled": True}


@pytest.fixture
def transformations(flink: Callable[..., Any], tmp_path: Path) -> list[Any]:
    return main_job(flink, tmp_path, {**TARGET, **DEDUPLICATE})


def by_uid(transformations: list[Any]) -> dict[str, Any]:
    return {step.getUid(): step for step in transformations}


def test_uids_and_names_are_those_of_the_golden_list(transformations: list[Any]) -> None:
    """A savepoint finds its state by them: a change here is a decision, seen in a diff."""
    assert uids(transformations) == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("call", "without"),
    [(TARGET, {"dedup"}), (DEDUPLICATE, set()), ({}, {"dedup", "delivery", "lanes", "wake"})],
)
def test_what_is_switched_off_is_not_there_and_changes_no_other_uid(
    flink: Callable[..., Any], tmp_path: Path, call: dict[str, object], without: set[str]
) -> None:
    """So each can be switched on later, and the rest of the state stays."""
    golden = GOLDEN.read_text().splitlines()
    wanted = [line for line in golden if line.split(" | ")[0] not in without]
    assert uids(main_job(flink, tmp_path, call)).splitlines() == wanted


def test_every_step_that_can_hold_state_has_a_uid(transformations: list[Any]) -> None:
    without = {step.getClass().getSimpleName() for step in transformations if step.getUid() is None}
    assert without <= {"SideOutputTransformation", "PartitionTransformation", "UnionTransformation"}


def test_no_stream_is_pickled(transformations: list[Any]) -> None:
    assert pickled(transformations) == {}


def test_what_delivery_turns_away_has_a_consumer(transformations: list[Any]) -> None:
    """Trap T18: what is sent to a tag that nobody asked for is dropped without a word."""
    delivery = by_uid(transformations)["delivery"].getId()
    consumed = {
        step.getOutputTag().getId()
        for step in transformations
        if step.getClass().getSimpleName() == "SideOutputTransformation"
        and [above.getId() for above in step.getInputs()] == [delivery]
    }
    wanted = {tag.tag_id for tag in output_tags(operators.intake.outgoing)} - {"quarantine"}
    assert wanted <= consumed


def test_a_lane_is_in_one_place_in_all_steps_that_keep_something_of_it(
    transformations: list[Any],
) -> None:
    subtasks = parallelism(transformations)
    assert {subtasks[uid] for uid in ("dedup", "delivery", "lanes", "gate")} == {3}
    found = by_uid(transformations)
    for uid in ("dedup", "delivery", "lanes"):
        assert found[uid].getMaxParallelism() == LANE_GROUPS
    for uid in ("dedup", "delivery"):
        assert found[uid].getStateKeySelector().getClass().getSimpleName() == "KeyByKeySelector"
    assert partitioner_before(found["dedup"]).startswith("HASH")
    # By lane they are already: not through the network once more.
    assert partitioner_before(found["delivery"]) == "FORWARD"


def partitioner_before(step: Any) -> str:
    (above,) = step.getInputs()
    return str(above.getPartitioner().toString())
