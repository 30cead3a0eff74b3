"""Delivery and deduplication from topics to topics."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest
from confluent_kafka import Producer

from tests.http_server import HttpServer
from tests.kafka.jobs import CLIENT_WITHIN_S, Kafka
from tests.kafka.recount import Place, assert_topics_are_right, expect, place_of
from tests.kafka.test_kafka_job import WITHIN_THE_DELAY_S, lines, skewed

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]

EVENTS = 1_500


def abort(kafka: Kafka, topic: str, values: list[bytes]) -> None:
    """Write records in a transaction that is aborted."""
    producer = Producer(kafka.client(**{"transactional.id": f"{kafka.name}-outside"}))
    producer.init_transactions(CLIENT_WITHIN_S)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(CLIENT_WITHIN_S)
    producer.abort_transaction(CLIENT_WITHIN_S)


def test_a_record_that_is_in_the_topic_twice_is_delivered_once_and_booked_as_a_duplicate(
    kafka: Kafka,
) -> None:
    """Right behind the first one, and five hundred records later in another partition.

    What a transaction has aborted was never there: it is not the first one.
    """
    records = list(skewed(lines(kafka.folder, EVENTS, WITHIN_THE_DELAY_S)))
    again = [(i, records[i]) for i in range(0, EVENTS, 5)]
    again += [(i + 500, (3, records[i][1])) for i in range(0, EVENTS, 7)]
    in_order = sorted([*enumerate(records), *again], key=lambda each: each[0])
    topic = kafka.create("in")
    abort(kafka, topic, [value for _, value in records[:50] if value])
    kafka.send(topic, [record for _, record in in_order])
    expected = expect(kafka.sent)
    places: defaultdict[bytes, set[Place]] = defaultdict(set)
    for each in kafka.sent:
        place = each.topic, each.partition, each.offset
        if place in expected.processed:
            places[each.value or b""].add(place)
    with HttpServer() as server:
        config = kafka.settings(
            deduplicate={"enabled": True},
            delivery={"target": "http"},
            http={"url": f"{server.url}/events"},
        )
        ended = kafka.run(config)
        called = Counter(place_of(json.loads(each.body)) for each in server.requests())
    assert ended.returncode == 0, ended.stderr
    kept = {place_of(row) for row in kafka.rows("processed_events")}
    for of_event in places.values():
        assert len(of_event & kept) == 1
    assert called == Counter(dict.fromkeys(kept, 1))
    expected.leave_out(expected.processed.keys() - kept)
    assert len(expected.duplicates) > EVENTS / 5
    assert_topics_are_right(kafka, expected)
