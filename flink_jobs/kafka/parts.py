"""From settings to Kafka's parts: client properties, source and sinks."""

from __future__ import annotations

import re

from flink_jobs.kafka.admin import SHADED
from flink_jobs.settings import Settings
from operators.intake.intake import IntakeRules
from operators.rules.splits import FileProgress
from operators.sinks.kafka import KafkaSinks
from operators.sources.kafka import KafkaBatches, KafkaSource


def client_properties(settings: Settings) -> dict[str, str]:
    """What every client of the job has."""
    given = {name: shaded(value) for name, value in settings.kafka.properties.items()}
    return {**given, "bootstrap.servers": settings.kafka.bootstrap_servers}


def shaded(value: str) -> str:
    """Kafka's own classes have other names in the connector's jar: login modules, for instance."""
    return re.sub(r"(?<![\w.])org\.apache\.kafka\.", f"{SHADED}.", value)


def kafka_source(
    settings: Settings, planned: tuple[FileProgress, ...], rules: IntakeRules
) -> KafkaSource:
    """The source that the settings name."""
    kafka = settings.kafka
    return KafkaSource(
        properties=client_properties(settings),
        topics=kafka.topics,
        topic_pattern=kafka.topic_pattern,
        group=kafka.group,
        start=kafka.start,
        start_timestamp_ms=kafka.start_timestamp_ms,
        end=kafka.end,
        limits=KafkaBatches(
            max_records=settings.batch.max_records,
            max_bytes=settings.batch.max_bytes,
            max_age_ms=settings.batch.max_age_ms,
            max_record_bytes=rules.max_record_bytes,
            payload_limit_bytes=rules.payload_limit_bytes,
        ),
        readers=settings.parallelism,
        planned=planned,
    )


def kafka_sinks(settings: Settings) -> KafkaSinks:
    """The sinks that the settings name."""
    return KafkaSinks(
        properties={
            **client_properties(settings),
            **{name: shaded(value) for name, value in settings.sink.properties.items()},
        },
        topics=settings.sink.topics(),
        transactional_id_prefix=settings.sink.transactional_id_prefix,
        transaction_timeout_ms=settings.sink.transaction_timeout_ms,
    )
