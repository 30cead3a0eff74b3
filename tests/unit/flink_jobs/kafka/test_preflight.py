"""What the topics take bounds what is sent to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flink_jobs.errors import UserError
from flink_jobs.kafka.admin import DEFAULT_MAX_MESSAGE_BYTES, KafkaAdmin, KafkaError
from flink_jobs.kafka.parts import kafka_sinks
from flink_jobs.kafka.preflight import (
    _bounded,
    check_settings,
    output_topics,
    refuse_own_output,
)
from flink_jobs.settings import load_settings
from flink_jobs.settings.tables import Settings
from flink_jobs.wiring.rules import delivery_rules, intake_rules
from operators.sinks.kafka import BUFFER_MEMORY_BYTES

KAFKA = {
    "connector": "kafka",
    "kafka.bootstrap_servers": "localhost:9092",
    "kafka.topics": ["in"],
}


def on_kafka(**more: object) -> Settings:
    """Settings that are right, and some that may not be."""
    return load_settings(None, {**KAFKA, **{k.replace("__", "."): v for k, v in more.items()}}, {})


@pytest.mark.parametrize(
    ("topic_bytes", "properties", "taken"),
    [
        (1_048_588, {}, 1_048_588),
        (10 * BUFFER_MEMORY_BYTES, {}, BUFFER_MEMORY_BYTES),
        (1_048_588, {"max.request.size": "500000"}, 500_000),
        (1_048_588, {"buffer.memory": "600000"}, 600_000),
    ],
)
def test_nothing_is_longer_than_what_topic_and_producer_take(
    topic_bytes: int, properties: dict[str, str], taken: int
) -> None:
    """The bug it catches: a producer refuses for ever what its topic would take."""
    huge = 20 * BUFFER_MEMORY_BYTES
    rules = replace(intake_rules(Settings()), max_record_bytes=huge, payload_limit_bytes=huge)
    sinks = kafka_sinks(on_kafka(sink__properties=properties))
    bounded = _bounded(rules, topic_bytes, sinks.max_request_bytes())
    assert bounded.max_envelope_bytes < taken
    assert bounded.max_record_bytes < taken
    assert bounded.payload_limit_bytes < taken


def test_the_fallback_store_has_a_topic_where_there_is_one() -> None:
    """The bug it catches: a topic that nobody uses is made, or asked for."""
    call = {"delivery.target": "http", "http.url": "http://h/", "sink.fallback_topic": "later"}
    assert "fallback" not in output_topics(load_settings(None, call, {}))
    stored = load_settings(None, {**call, "delivery.fallback": "file"}, {})
    assert output_topics(stored)["fallback"] == ["later"]


def test_an_event_with_its_targets_answer_is_no_longer_than_a_topic_takes() -> None:
    """The bug it catches: a producer refuses for ever what an answer has made too long."""
    rules = delivery_rules(on_kafka(delivery__target="builtins:print"), 500_000)
    assert rules is not None
    assert rules.max_record_bytes == 500_000
    on_files = delivery_rules(load_settings(None, {"delivery.target": "builtins:print"}, {}))
    assert on_files is not None
    assert on_files.max_record_bytes == Settings().source.max_record_bytes


def test_a_topic_that_may_not_be_asked_is_taken_to_have_kafkas_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bug it catches: no limit at all, and a dead letter that the broker refuses for ever."""
    limits = {"a": 2_000_000, "b": None}
    monkeypatch.setattr(KafkaAdmin, "_config", lambda _, kind, name, option: limits[name])
    admin = KafkaAdmin.__new__(KafkaAdmin)
    assert admin.max_message_bytes(["a"]) == 2_000_000
    assert admin.max_message_bytes(["b", "a"]) == DEFAULT_MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("table", "properties", "said"),
    [
        ("kafka", {"group.id": "g"}, "kafka.properties: group.id: .* set kafka.group instead"),
        ("kafka", {"isolation.level": "read_uncommitted"}, "isolation.level: .*; remove it"),
        ("sink", {"acks": "1"}, "sink.properties: acks: is set by the job itself; remove it"),
        ("sink", {"transaction.timeout.ms": "1"}, "set sink.transaction_timeout_ms instead"),
        ("sink", {"max.request.size": "1 MB"}, "sink.properties: max.request.size .* correct them"),
    ],
)
def test_properties_that_the_promises_stand_on_are_refused(
    table: str, properties: dict[str, str], said: str
) -> None:
    """The bug it catches: what was checked at the start is not what the clients do."""
    with pytest.raises(UserError, match=said):
        check_settings(on_kafka(**{f"{table}__properties": properties}))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("execution.checkpointing.mode", "remove it"),
        ("execution.checkpointing.interval", "set checkpoint.interval_ms instead"),
    ],
)
def test_flink_options_that_the_promises_stand_on_are_refused(option: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"\[flink\] {option}: .*{said}"):
        check_settings(on_kafka(flink={option: "AT_LEAST_ONCE"}))
    check_settings(on_kafka(flink={"state.backend.type": "rocksdb"}))


def test_what_the_job_writes_is_not_what_it_reads() -> None:
    """The bug it catches: a pattern for all topics, and each event comes round again for ever."""
    settings = on_kafka()
    refuse_own_output(settings, ["in"])
    for mine in ("ledger", "quarantine-oversized"):
        with pytest.raises(KafkaError, match=f"{mine} would be read and written; change one"):
            refuse_own_output(settings, ["in", mine])
