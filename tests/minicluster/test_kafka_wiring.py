"""The Kafka job as Flink gets it, looked at without running it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.minicluster.test_wiring import walk

pytestmark = pytest.mark.minicluster

GOLDEN = Path(__file__).with_name("uids_kafka.txt")


@pytest.fixture
def transformations(flink: Callable[..., Any]) -> list[Any]:
    """Every step of the Kafka job, sources first; it needs the connector's jar, but no broker."""
    from flink_jobs.jars import KAFKA, JarError, find_jar
    from flink_jobs.kafka_job import kafka_sinks, kafka_source
    from flink_jobs.main import define_workflow, flink_options, intake_rules
    from flink_jobs.settings import load_settings
    from operators.kafka_source import open_partition

    try:
        jar = find_jar(KAFKA, "", {})
    except JarError as error:
        pytest.skip(str(error))
    call = {"parallelism": 3, "kafka.bootstrap_servers": "127.0.0.1:1", "kafka.topics": ["in"]}
    settings = load_settings(None, call, {})
    env = flink(**{name.replace("-", "___").replace(".", "_"): value
                   for name, value in flink_options(settings).items()})  # fmt: skip
    env.add_jars(jar.url)
    rules = intake_rules(settings)
    sinks = kafka_sinks(settings)
    source = kafka_source(settings, (open_partition("in", 0),), rules)
    define_workflow(env, source, sinks, sinks, rules=rules, windows=settings.windows)
    found: dict[int, Any] = {}
    for step in env._j_stream_execution_environment.getTransformations():
        for each in walk(step):
            found[each.getId()] = each
    # Flink refuses steps without a uid here, with pipeline.auto-generate-uids=false.
    env._j_stream_execution_environment.getStreamGraph(False)
    return [found[i] for i in sorted(found)]


def test_uids_and_names_are_those_of_the_golden_list(transformations: list[Any]) -> None:
    """A savepoint finds its state by them: a change here is a decision, seen in a diff."""
    lines = [
        # Flink numbers the SQL steps by order of translation; their uids do without.
        f"{step.getUid()} | {re.sub(r'[[][0-9]+[]]', '', step.getName())}"
        for step in transformations
        if step.getUid() is not None
    ]
    assert "\n".join(sorted(lines)) + "\n" == GOLDEN.read_text()


def test_no_stream_is_pickled(transformations: list[Any]) -> None:
    types = {step.getName(): str(step.getOutputType()) for step in transformations}
    assert not {name: t for name, t in types.items() if "Pickled" in t or "GenericType" in t}


def test_the_watermark_has_one_place_that_knows_all_partitions(transformations: list[Any]) -> None:
    parallelism = {step.getUid(): step.getParallelism() for step in transformations}
    assert {parallelism[uid] for uid in ("kafka-source", "kafka", "intake")} == {3}
    # The gate shares the watermark's thread: lines are handed over there, not copied.
    assert parallelism["marks"] == parallelism["gate"] == 1


def test_one_task_closes_the_books_and_one_writes_them(transformations: list[Any]) -> None:
    """So the rows of a checkpoint appear together."""
    parallelism = {step.getUid(): step.getParallelism() for step in transformations}
    assert {parallelism[u] for u in ("books", "ledger-records", "ledger")} == {1}
    assert parallelism["late_events"] == 3
