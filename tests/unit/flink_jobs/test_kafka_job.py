"""What the topics take bounds what is sent to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flink_jobs.kafka_job import _bounded
from flink_jobs.main import intake_rules
from flink_jobs.setting_tables import Settings
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
