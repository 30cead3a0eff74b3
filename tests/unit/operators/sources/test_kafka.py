"""The options of Flink's Kafka table, as far as they are a matter of what wins."""

from __future__ import annotations

from flink_jobs.settings.tables import KafkaSettings
from operators.sources.kafka import CONSUMER_TUNING, KafkaBatches, KafkaSource


def options(properties: dict[str, str]) -> dict[str, str]:
    source = KafkaSource(
        properties={"bootstrap.servers": "localhost:9092", **properties},
        topics=("events",),
        topic_pattern="",
        group="group",
        start="earliest",
        start_timestamp_ms=0,
        end="never",
        limits=KafkaBatches(1, 1, 1, 1, 1),
        readers=1,
        planned=(),
    )
    return source._options()


def test_reads_more_at_once_than_kafka_would() -> None:
    assert int(options({})["properties.max.poll.records"]) > 500


def test_the_settings_say_how_much() -> None:
    said = KafkaSettings.model_fields["properties"].description or ""
    assert f"max.poll.records is not among them it is {CONSUMER_TUNING['max.poll.records']}" in said


def test_properties_of_the_user_win() -> None:
    found = options({"max.poll.records": "7", "auto.offset.reset": "latest"})
    assert found["properties.max.poll.records"] == "7"
    assert found["properties.auto.offset.reset"] == "latest"


def test_what_was_never_committed_is_not_read() -> None:
    found = options({"isolation.level": "read_uncommitted", "group.id": "mine"})
    assert found["properties.isolation.level"] == "read_committed"
    assert found["properties.group.id"] == "group"
