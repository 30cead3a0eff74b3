"""The Kafka job as Flink gets it, looked at without running it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.kafka.jars import Jar
from tests.minicluster.flow import environment, parallelism, pickled, steps_of, uids

pytestmark = pytest.mark.minicluster

GOLDEN = Path(__file__).with_name("uids_kafka.txt")


@pytest.fixture
def transformations(flink: Callable[..., Any], kafka_jar: Jar) -> list[Any]:
    """Every step of the Kafka job, sources first; it needs the connector's jar, but no broker."""
    from flink_jobs.kafka.parts import kafka_sinks, kafka_source
    from flink_jobs.settings import load_settings
    from flink_jobs.wiring.rules import intake_rules
    from flink_jobs.workflow import define_workflow
    from operators.sources.kafka import open_partition

    call = {"parallelism": 3, "kafka.bootstrap_servers": "127.0.0.1:1", "kafka.topics": ["in"]}
    settings = load_settings(None, call, {})
    env = environment(flink, settings)
    env.add_jars(kafka_jar.url)
    rules = intake_rules(settings)
    sinks = kafka_sinks(settings)
    source = kafka_source(settings, (open_partition("in", 0),), rules)
    define_workflow(env, source, sinks, sinks, rules=rules, windows=settings.windows)
    return steps_of(env)


def test_uids_and_names_are_those_of_the_golden_list(transformations: list[Any]) -> None:
    """A savepoint finds its state by them: a change here is a decision, seen in a diff."""
    assert uids(transformations) == GOLDEN.read_text()


def test_no_stream_is_pickled(transformations: list[Any]) -> None:
    assert pickled(transformations) == {}


def test_no_row_of_the_source_is_copied_into_another_one(transformations: list[Any]) -> None:
    """A Calc would, whose code Flink generates: a column then has another type or place."""
    generated = {
        step.getUid()
        for step in transformations
        if step.getClass().getSimpleName() == "OneInputTransformation"
        and step.getOperatorFactory().getClass().getSimpleName() == "CodeGenOperatorFactory"
    }
    assert "kafka" in generated, "our own steps are made the same way"
    assert not {uid for uid in generated if uid.startswith("kafka-source")}


def test_the_watermark_has_one_place_that_knows_all_partitions(transformations: list[Any]) -> None:
    subtasks = parallelism(transformations)
    assert {subtasks[uid] for uid in ("kafka-source", "kafka", "intake")} == {3}
    # The gate shares the watermark's thread: lines are handed over there, not copied.
    assert subtasks["marks"] == subtasks["gate"] == 1


def test_one_task_closes_the_books_and_one_writes_them(transformations: list[Any]) -> None:
    """So the rows of a checkpoint appear together."""
    subtasks = parallelism(transformations)
    assert {subtasks[u] for u in ("books", "ledger-records", "ledger")} == {1}
    assert subtasks["late_events"] == 3
