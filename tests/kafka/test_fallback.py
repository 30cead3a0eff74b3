"""The fallback store as a topic."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from tests.http_server import HttpServer, Rule
from tests.kafka.jobs import Kafka
from tests.kafka.recount import assert_envelopes, expect, place_of
from tests.kafka.test_kafka_job import WITHIN_THE_DELAY_S, lines, skewed
from tests.runs import run

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]


def test_with_the_target_down_all_that_is_good_is_in_the_stores_topic_once(kafka: Kafka) -> None:
    kafka.send(kafka.create("in"), skewed(lines(kafka.folder, 5_000, WITHIN_THE_DELAY_S)))
    delivery = {"target": "http", "fallback": "file", "overflow": "fallback", "max_records": 50,
                "slow_input_ms": 0, "drain_timeout_ms": 500}  # fmt: skip
    with HttpServer(Rule(status=503)) as server:
        config = kafka.settings(
            delivery=delivery,
            http={"url": f"{server.url}/events"},
            retry={"max_attempts": 2, "base_ms": 1},
        )
        ended = kafka.run(config)
    assert ended.returncode == 0, ended.stderr
    expected = expect(kafka.sent)
    stored = kafka.rows("fallback")
    assert Counter(map(place_of, stored)) == Counter(dict.fromkeys(expected.processed, 1))
    payloads = {(each.topic, each.partition, each.offset): each.value for each in kafka.sent}
    for row in stored:
        fields = expected.processed[place_of(row)]
        assert {name: row[name] for name in fields} == fields
        payload = payloads[place_of(row)] or b""
        assert row["breakwater_key"] == hashlib.md5(payload).hexdigest()  # noqa: S324 # what it is
    assert kafka.rows("processed_events") == []
    assert_envelopes(kafka, "dead_letters", expected, expected.dead)
    audited = run("ledger", "--config", config, "--json")
    found = json.loads(audited.stdout)
    assert (audited.returncode, found["problems"]) == (0, [])
    assert (found["fallback"], found["processed"]) == (len(stored), 0)
    assert "fallback" in run("ledger", "--config", config, "--by", "partition").stdout
