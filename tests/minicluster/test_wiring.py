"""The flow as Flink gets it, looked at without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pyflink.datastream import OutputTag

import operators.intake.outgoing
from flink_jobs.settings import load_settings
from flink_jobs.workflow import windows_sql
from operators.bridge.steps import steps as bridge
from tests.minicluster.flow import main_job, parallelism, pickled, uids

pytestmark = pytest.mark.minicluster

GOLDEN = Path(__file__).with_name("uids.txt")


@pytest.fixture
def transformations(flink: Callable[..., Any], tmp_path: Path) -> list[Any]:
    """Every step of the main job, sources first."""
    return main_job(flink, tmp_path, {})


def test_uids_and_names_are_those_of_the_golden_list(transformations: list[Any]) -> None:
    """A savepoint finds its state by them: a change here is a decision, seen in a diff."""
    assert uids(transformations) == GOLDEN.read_text()


def test_every_step_that_can_hold_state_has_a_uid(transformations: list[Any]) -> None:
    without = {step.getClass().getSimpleName() for step in transformations if step.getUid() is None}
    assert without <= {"SideOutputTransformation", "PartitionTransformation", "UnionTransformation"}


def test_no_stream_is_pickled(transformations: list[Any]) -> None:
    assert pickled(transformations) == {}


def test_every_output_tag_has_a_consumer(transformations: list[Any]) -> None:
    """Trap T18: what is sent to a tag that nobody asked for is dropped without a word."""
    consumed = {
        step.getOutputTag().getId()
        for step in transformations
        if step.getClass().getSimpleName() == "SideOutputTransformation"
    }
    tags = {tag.tag_id for tag in output_tags(operators.intake.outgoing)}
    assert tags
    assert tags | {"late", "counts"} == consumed


def output_tags(module: ModuleType) -> list[OutputTag]:
    return [value for _, value in inspect.getmembers(module) if isinstance(value, OutputTag)]


def test_readers_keep_their_number_and_the_watermark_has_one_place(
    transformations: list[Any],
) -> None:
    subtasks = parallelism(transformations)
    assert {subtasks[u] for u in ("tickets", "intake")} == {2}
    assert subtasks["marks"] == 1
    assert subtasks["gate"] == 1


def test_one_task_closes_the_books_and_one_writes_them(transformations: list[Any]) -> None:
    """So the rows of a checkpoint appear together."""
    subtasks = parallelism(transformations)
    assert {subtasks[u] for u in ("books", "ledger-blocks", "ledger")} == {1}
    assert subtasks["late_events"] == 3


def test_windows_are_as_long_as_the_settings_say(flink: Callable[..., Any]) -> None:
    from pyflink.table import StreamTableEnvironment

    settings = load_settings(None, {"windows.size_ms": 61_500}, {})
    tables = StreamTableEnvironment.create(flink())
    tables.execute_sql(
        "CREATE TEMPORARY TABLE partials (event_key STRING, event_time TIMESTAMP_LTZ(3), "
        "total_value DOUBLE, event_count BIGINT, WATERMARK FOR event_time AS event_time) "
        "WITH ('connector'='datagen')"
    )
    sql = windows_sql(settings.contract.load(), settings.windows)
    assert "size=[61500 ms]" in tables.explain_sql(sql)
    assert bridge.LINE.field_names() == ["line"]
