"""What the topics take bounds what is sent to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flink_jobs.kafka_job import _bounded, output_topics
from flink_jobs.main import intake_rules
from flink_jobs.setting_tables import Settings
from flink_jobs.settings import load_settings
from operators.kafka_sinks import MAX_REQUEST_BYTES


@pytest.mark.parametrize(
    ("topic_bytes", "taken"),
    [(1_048_588, 1_048_588), (10 * MAX_REQUEST_BYTES, MAX_REQUEST_BYTES)],
)
def test_nothing_is_longer_than_what_topic_and_producer_take(topic_bytes: int, taken: int) -> None:
    """The bug it catches: a producer refuses for ever what its topic would take."""
    huge = 20 * MAX_REQUEST_BYTES
    rules = replace(intake_rules(Settings()), max_record_bytes=huge, payload_limit_bytes=huge)
    bounded = _bounded(rules, topic_bytes)
    assert bounded.max_envelope_bytes < taken
    assert bounded.max_record_bytes < taken
    assert bounded.payload_limit_bytes < taken


def test_the_fallback_store_has_a_topic_where_there_is_one() -> None:
    """The bug it catches: a topic that nobody uses is made, or asked for."""
    call = {"delivery.target": "http", "http.url": "http://h/", "sink.fallback_topic": "later"}
    assert "fallback" not in output_topics(load_settings(None, call, {}))
    stored = load_settings(None, {**call, "delivery.fallback": "file"}, {})
    assert output_topics(stored)["fallback"] == ["later"]
