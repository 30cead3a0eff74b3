"""Kafka to exactly-once Kafka with the real broker, against the oracle's recount."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from flink_jobs.settings.tables import BatchSettings
from tests.kafka.jobs import Kafka
from tests.kafka.recount import assert_topics_are_right, expect
from tests.runs import events, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]

BEYOND_THE_DELAY_S, WITHIN_THE_DELAY_S = 40, 19
#: 60, 5, 26 and 9 % of the records: the skew at which a merged watermark loses half of the windows.
SKEW = [0] * 60 + [1] * 5 + [2] * 26 + [3] * 9


def lines(folder: Path, n: int, disorder_s: float, bad_rate: float = 0.03) -> list[bytes]:
    path = events(folder / "events.jsonl", n, disorder_s=disorder_s, bad_rate=bad_rate)
    return path.read_bytes().split(b"\n")[:-1]


def skewed(values: list[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Spread over four partitions; empty values are tombstones."""
    for i, value in enumerate(values):
        yield SKEW[i * 37 % 100], value or None


@pytest.mark.parametrize(
    ("parallelism", "batch_records"), [(1, BatchSettings().max_records), (2, 300), (4, 300)]
)
def test_every_record_is_in_its_one_place_with_all_damage_and_disorder_beyond_the_delay(
    kafka: Kafka, parallelism: int, batch_records: int
) -> None:
    """Also in batches as large as they are by default, which are judged in pieces."""
    kafka.send(
        kafka.create("in"), skewed(lines(kafka.folder, 40_000, BEYOND_THE_DELAY_S)), key=b"some"
    )
    config = kafka.settings(batch={"max_records": batch_records})
    ended = kafka.run(config, BREAKWATER_PARALLELISM=str(parallelism))
    assert ended.returncode == 0, ended.stderr
    late = assert_topics_are_right(kafka, expect(kafka.sent))
    assert late > 0, "the input was meant to have late events"


def test_a_skewed_backlog_makes_no_event_late(kafka: Kafka) -> None:
    """Trap T56: the same events one partition after the other, and one partition without any."""
    topic = kafka.create("in", partitions=5)
    records = sorted(skewed(lines(kafka.folder, 40_000, WITHIN_THE_DELAY_S)), key=lambda r: r[0])
    kafka.send(topic, records)
    ended = kafka.run(kafka.settings())
    assert ended.returncode == 0, ended.stderr
    assert assert_topics_are_right(kafka, expect(kafka.sent)) == 0


def event(user: str, second: int) -> bytes:
    minute, second = divmod(second, 60)
    hour, minute = divmod(minute, 60)
    return json.dumps(
        {
            "user_id": user, "product_id": "p", "action": "view", "price": 1.5,
            "timestamp": f"2026-01-01T{hour:02d}:{minute:02d}:{second:02d}Z",
        }
    ).encode()  # fmt: skip


def test_a_backlog_whose_partitions_are_an_hour_apart_makes_no_event_late(kafka: Kafka) -> None:
    topic = kafka.create("in", partitions=3)
    kafka.send(
        topic, [(p, event(f"u{i % 7}", 3600 * p + i)) for p in (2, 1, 0) for i in range(3_000)]
    )
    ended = kafka.run(kafka.settings(windows={"watermark_delay_ms": 0}))
    assert ended.returncode == 0, ended.stderr
    assert assert_topics_are_right(kafka, expect(kafka.sent), delay_ms=0) == 0


def test_an_empty_or_idle_partition_does_not_hold_the_windows_back(kafka: Kafka) -> None:
    """The run does not end: its windows close because time goes on where there are records."""
    topic = kafka.create("in", partitions=3)
    kafka.send(topic, [(1, event("idle", 0))])
    config = kafka.settings(
        kafka={"end": "never"}, windows={"watermark_delay_ms": 0, "idle_timeout_ms": 2_000}
    )
    second = iter(range(10, 10_000))

    def closed() -> bool:
        kafka.send(topic, [(0, event("busy", next(second)))])
        return len(kafka.output("user_windows")) >= 3

    with kafka.started(config) as job:
        wait_until("a window of an idle topic's busy partition", closed)
        job.send_signal(signal.SIGINT)
        assert "nothing is lost" in job.communicate(timeout=60)[0]


def test_topics_by_pattern_from_a_timestamp_on(kafka: Kafka) -> None:
    old, new = kafka.create("in-a", 1), kafka.create("in-b", 1)
    kafka.send(old, [(0, event("before", 1))], timestamp=1_000_000)
    kafka.sent.clear()
    kafka.send(old, [(0, event("after", 2))], timestamp=3_000_000)
    kafka.send(new, [(0, event("after", 3))], timestamp=3_000_001)
    config = kafka.settings(
        kafka={
            "topics": [], "topic_pattern": f"{kafka.name}-in-.", "start": "timestamp",
            "start_timestamp_ms": 2_000_000,
        }
    )  # fmt: skip
    ended = kafka.run(config)
    assert ended.returncode == 0, ended.stderr
    assert_topics_are_right(kafka, expect(kafka.sent))


def commit(kafka: Kafka, topic: str, offsets: dict[int, int]) -> None:
    """As a job of the same group has left them behind."""
    consumer = Consumer(kafka.client(**{"group.id": kafka.name}))
    places = [TopicPartition(topic, number, offset) for number, offset in offsets.items()]
    done = consumer.commit(offsets=places, asynchronous=False)
    consumer.close()
    assert [place.error for place in done] == [None] * len(places)


@pytest.mark.parametrize(
    ("start", "begins"), [("committed", (123, 500, 0, 499)), ("latest", (500, 500, 500, 500))]
)
def test_a_run_begins_where_its_settings_say(
    kafka: Kafka, start: str, begins: tuple[int, ...]
) -> None:
    """A wrong name of one of these starts is no fault anywhere: records are missing, or twice.

    The group has committed in the midst of a partition, at the end of one, before the last record
    of one, and nothing of partition 2, which is read from its oldest record on.
    """
    topic = kafka.create("in")
    values = lines(kafka.folder, 2_000, WITHIN_THE_DELAY_S, bad_rate=0.1)
    kafka.send(topic, [(i % 4, value or None) for i, value in enumerate(values)])
    commit(kafka, topic, {0: 123, 1: 500, 3: 499})
    ended = kafka.run(kafka.settings(kafka={"start": start}))
    assert ended.returncode == 0, ended.stderr
    kafka.sent = [record for record in kafka.sent if record.offset >= begins[record.partition]]
    assert len(kafka.sent) == 4 * 500 - sum(begins)
    assert assert_topics_are_right(kafka, expect(kafka.sent)) == 0


def test_a_dead_letter_always_fits_its_topic(kafka: Kafka) -> None:
    """In JSON a quote takes two bytes and a control character six: the topic takes 1 MB."""
    topic = kafka.create("in", partitions=1)
    bad = json.dumps({"user_id": "u", "note": '"' * 450_000}).encode()
    kafka.send(
        topic, [(0, bad), (0, b"\x01" * 900_000), (0, b"x" * 5_000_000), (0, b"\xff" * 980_000)]
    )
    kafka.send(topic, [(0, event("good", 1))])
    ended = kafka.run(kafka.settings())
    assert ended.returncode == 0, ended.stderr
    # A record that only just fits its topic would not fit the output: it counts as oversized.
    assert_topics_are_right(kafka, expect(kafka.sent, max_record_bytes=1_048_588 - 65_536))
    sent = {record.offset: len(record.value or b"") for record in kafka.sent}
    for row in kafka.rows("dead_letters") + kafka.rows("quarantine"):
        assert row["message_truncated"]
        assert row["message_bytes"] == sent[row["source_offset"]]


def test_key_timestamp_and_headers_reach_the_envelope(kafka: Kafka) -> None:
    topic = kafka.create("in", partitions=1)
    headers = [("trace", b"a1"), ("raw", b"\xff"), ("none", None)]
    kafka.send(topic, [(0, b"bad")], key=b"k\xff", timestamp=1_767_225_600_123, headers=headers)
    kafka.send(topic, [(0, None)])
    ended = kafka.run(kafka.settings())
    assert ended.returncode == 0, ended.stderr
    with_all, tombstone = sorted(kafka.rows("quarantine"), key=lambda row: row["source_offset"])
    assert with_all["key"] == "k\\xff"
    assert with_all["source_timestamp"] == "2026-01-01T00:00:00.123Z"
    assert with_all["metadata"] == {"header.trace": "a1", "header.raw": "\\xff", "header.none": ""}
    assert (tombstone["error_type"], tombstone["key"]) == ("empty_message", None)
    assert tombstone["metadata"] == {}
