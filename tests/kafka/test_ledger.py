"""The books of real jobs, and positive controls: a row that is lost or doubled must be found."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from flink_jobs.demo.broker import Broker
from tests.kafka.jobs import CLIENT_WITHIN_S, Kafka
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, event, lines, skewed
from tests.kafka.test_kafka_recovery import RECORDS
from tests.runs import run, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]

Row = dict[str, Any]


def ledger(*arguments: object) -> tuple[int, Row]:
    """Exit code and answer of the command."""
    ended = run("ledger", *arguments, "--json")
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def delete_before(kafka: Kafka, topic: str, offset: int) -> None:
    """As retention does."""
    admin = AdminClient(kafka.client())  # it must outlive the call
    for deleted in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        deleted.result(CLIENT_WITHIN_S)


# --- legitimate gaps


def in_transaction(kafka: Kafka, topic: str, users: list[str], commit: bool) -> None:
    """Write events in one transaction; its end takes an offset too."""
    producer = Producer(kafka.client(**{"transactional.id": f"{kafka.name}-{uuid.uuid4()}"}))
    producer.init_transactions(CLIENT_WITHIN_S)
    producer.begin_transaction()
    for second, user in enumerate(users):
        producer.produce(topic, event(user, second), partition=0)
    producer.flush(CLIENT_WITHIN_S)
    (producer.commit_transaction if commit else producer.abort_transaction)(CLIENT_WITHIN_S)


def test_markers_and_aborted_records_are_no_holes_even_when_the_topic_has_deleted_them(
    kafka: Kafka,
) -> None:
    """Offsets 0 to 49, a marker, 51 to 70 aborted, a marker, 72 to 101."""
    topic = kafka.create("in", partitions=1)
    in_transaction(kafka, topic, ["kept"] * 50, commit=True)
    in_transaction(kafka, topic, ["aborted"] * 20, commit=False)
    kafka.send(topic, [(0, event("plain", i)) for i in range(30)])
    config = kafka.settings()
    ended = kafka.run(config)
    assert ended.returncode == 0, ended.stderr

    code, found = ledger("--config", config)
    assert (code, found["received"], found["processed"]) == (0, 80, 80)
    (partition,) = found["partitions"]
    gap = {"first_offset": 50, "last_offset": 71, "missing": 22, "uncounted": 0}
    assert (partition["gaps"], partition["behind"]) == ([gap], 0)
    assert (partition["first_offset"], partition["last_offset"]) == (0, 101)
    assert [note for note in found["notes"] if "without a record, which are no loss: 22 (" in note]

    # Now the topic cannot tell any more what was there before offset 60.
    delete_before(kafka, topic, 60)
    told = run("ledger", "--config", config, "--by", "partition")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "not in the ledger and cannot be checked any more: 10 (" in told.stdout
    assert "without a record, which are no loss: 12 (" in told.stdout
    assert "balanced: every record is in exactly one place" in told.stdout


def test_what_compaction_has_removed_is_no_hole(kafka: Kafka) -> None:
    often = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    topic = kafka.create("in", partitions=1, **{"cleanup.policy": "compact"}, **often)
    for round_ in range(20):
        for key in ("a", "b", "c"):
            kafka.send(topic, [(0, event(key, round_))], key=key.encode())

    def compacted() -> bool:
        # A record of another key each time, since the newest segment is never compacted.
        kafka.send(topic, [(0, event("tick", len(kafka.sent)))], key=str(len(kafka.sent)).encode())
        return len(kafka.read([topic])) < len(kafka.sent) - 20

    wait_until("the cleaner", compacted)
    there = {message.offset() for message in kafka.read([topic])}
    config = kafka.settings()
    ended = kafka.run(config)
    assert ended.returncode == 0, ended.stderr
    code, found = ledger("--config", config)
    (partition,) = found["partitions"]
    assert code == 0, found["problems"]
    assert sum(gap["missing"] for gap in partition["gaps"]) > 20
    assert len(there) >= found["received"] > 0


# --- a run that was disturbed, and ledgers that somebody has spoilt


@dataclass(frozen=True)
class Done:
    kafka: Kafka
    config: Path

    @property
    def rows(self) -> list[Row]:
        """The ledger's, in the order of their offsets."""
        return sorted(
            self.kafka.rows("ledger"),
            key=lambda row: (row["source_partition"], row["first_offset"]),
        )

    def spoilt(self, rows: list[Row]) -> tuple[int, Row]:
        """What the command says of a ledger of these rows."""
        topic = self.kafka.create(f"spoilt-{uuid.uuid4().hex[:6]}", 1)
        self.kafka.send(topic, [(0, json.dumps(row).encode()) for row in rows])
        return ledger("--config", self.config, "--topic", topic)


@pytest.fixture(scope="module")
def done(shared_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run whose workers were killed in the middle."""
    folder = tmp_path_factory.mktemp("ledger")
    kafka = Kafka(shared_broker, f"t{uuid.uuid4().hex[:8]}", folder)
    kafka.send(kafka.create("in"), skewed(lines(folder, RECORDS, BEYOND_THE_DELAY_S)))
    config = kafka.settings()
    with kafka.started(config) as job:
        kafka.kill_workers(job)
        kafka.end(job)
    assert assert_topics_are_right(kafka, expect(kafka.sent)) > 0
    return Done(kafka, config)


def test_the_rows_of_a_run_with_a_killed_worker_add_up(done: Done) -> None:
    code, found = ledger("--config", done.config)
    assert (code, found["problems"], found["received"]) == (0, [], RECORDS)
    late = len(done.kafka.output("late_events"))
    assert (found["late"], found["windowed"]) == (late, found["processed"] - late)
    assert [p["behind"] for p in found["partitions"]] == [0, 0, 0, 0]
    sent = Counter(record.partition for record in done.kafka.sent if record.topic.endswith("-in"))
    assert {p["source_partition"]: p["received"] for p in found["partitions"]} == sent
    for minute in found["minutes"]:
        rejected = sum(minute["dead_lettered"].values()) + sum(minute["quarantined"].values())
        assert minute["received"] == minute["processed"] + rejected
    batches = RECORDS / 300
    assert len(done.rows) < batches / 2, "the rows were meant to be few"


@pytest.mark.parametrize("at", [0, 1], ids=["the first row", "a row in the middle"])
def test_a_row_that_is_gone_is_a_hole(done: Done, at: int) -> None:
    rows = done.rows
    assert rows[at + 1]["source_partition"] == rows[at]["source_partition"] == 0
    code, found = done.spoilt(rows[:at] + rows[at + 1 :])
    gone = rows[at]
    assert code == 1
    (problem,) = found["problems"]
    where = f"offsets {gone['first_offset']} to {gone['last_offset']}"
    there = f"records that the topic has there and the ledger has not: {gone['received']}"
    assert problem == f"{done.kafka.topic('in')}/0: {where}: {there}"


def test_a_row_that_is_there_twice_is_found(done: Done) -> None:
    rows = done.rows
    code, found = done.spoilt([rows[1], *rows])
    (problem,) = found["problems"]
    assert code == 1
    assert f"/0: offsets counted more than once: {rows[1]['received']}, " in problem


def test_counts_that_do_not_balance_are_found(done: Done) -> None:
    rows = done.rows
    rows[0] = {**rows[0], "processed": rows[0]["processed"] - 1}
    code, found = done.spoilt(rows)
    assert code == 1
    assert [p.split(":")[0] for p in found["problems"]] == [f"{done.kafka.topic('in')}/0"] * 2


def test_rows_that_the_ledger_has_deleted_are_left_aside(done: Done) -> None:
    """The oldest row is gone by retention, which is no hole."""
    rows = done.rows
    old = [{**row, "minute": "2026-01-01T00:00:00.000Z"} for row in rows[:2]]
    new = [{**row, "minute": "2026-01-01T00:01:00.000Z"} for row in rows[2:]]
    topic = done.kafka.create("old", 1)
    done.kafka.send(topic, [(0, json.dumps(row).encode()) for row in old + new])
    delete_before(done.kafka, topic, 1)
    code, found = ledger("--config", done.config, "--topic", topic)
    assert (code, found["problems"]) == (0, [])
    assert found["received"] == sum(row["received"] for row in new)
    assert "rows up to 2026-01-01T00:00:00.000Z are left aside" in found["notes"][0]


# --- calls


def test_a_ledger_that_is_not_there_is_named(kafka: Kafka) -> None:
    kafka.create("ledger", 1)
    ended = run("ledger", "--kafka", kafka.servers, "--topic", f"{kafka.name}-ledgr")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"--topic: there is no topic {kafka.name}-ledgr" in ended.stderr
    assert f"did you mean {kafka.name}-ledger?" in ended.stderr


def test_a_topic_that_is_no_ledger_is_named(kafka: Kafka) -> None:
    kafka.send(kafka.create("other", 1), [(0, b"{"), (0, b"x")])
    ended = run("ledger", "--kafka", kafka.servers, "--topic", kafka.topic("other"))
    assert ended.returncode == 1
    assert "ledger row 1 cannot be read" in ended.stderr
