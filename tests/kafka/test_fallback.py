"""The fallback store as a topic, and what is sent of it later."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.http_server import HttpServer, Rule
from tests.kafka.jobs import Kafka
from tests.kafka.recount import assert_envelopes, expect, place_of
from tests.kafka.test_kafka_job import WITHIN_THE_DELAY_S, lines, skewed
from tests.runs import run

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]


def test_with_the_target_down_all_that_is_good_is_in_the_stores_topic_once_and_can_be_sent(
    kafka: Kafka,
) -> None:
    kafka.send(kafka.create("in"), skewed(lines(kafka.folder, 2_000, WITHIN_THE_DELAY_S)))
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
        assert_all_is_sent_later(kafka, config, server)
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


def assert_all_is_sent_later(kafka: Kafka, config: Path, server: HttpServer) -> None:
    """As the README says: the lines of the topic, as a consumer prints them, are a part."""
    topic = kafka.topic("fallback")
    in_order = [name for name, _ in kafka.places()].count(topic) == 1
    assert in_order, "the events of a key are in several partitions"
    stored = [message.value() for message in kafka.read([topic])]
    part = kafka.folder / "later" / "part-1764187000.jsonl"
    part.parent.mkdir()
    part.write_bytes(b"".join(b"%b\n" % value for value in stored))
    server.behave()
    server.reset()
    sent = run("deliver", "--from", part.parent, "--config", config, "--json")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert json.loads(sent.stdout)["delivered"] == len(stored) > 0
    asked = [
        json.dumps({**json.loads(request.body), "breakwater_key": request.key})
        for request in server.requests()
    ]
    assert by_user(asked) == by_user(json.dumps(json.loads(value)) for value in stored)


def by_user(lines: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        found[json.loads(line)["user_id"]].append(line)
    return found
