"""Delivery on a real cluster: what waits for a target goes with a savepoint, or is drained."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from operators.rules.ledger import Counts, read_book
from tests.cluster.deploy import Deployment
from tests.cluster.test_upgrade import states_in
from tests.http_server import Request, Rule, ServerProcess
from tests.kafka.jobs import Sent
from tests.kafka.recount import Place, assert_topics_are_right, expect, place_of
from tests.kafka.test_kafka_job import event, skewed

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(600)]

EVENTS = 5_000
#: As in states.txt: a savepoint finds state by uid and name.
DELIVERY = """\
delivery | delivery | _timer_state/event_user-timers, _timer_state/processing_user-timers, \
python-state-events.v1, python-state-lane.v1, python-state-records.v1
lanes | lanes | held
"""
#: Events for the end: of users whose calls are to be made again soon, and much later.
SOON = [event(f"soon-{n}", 7200) for n in range(3)]
LATER = [event("later", 7200 + second) for second in range(3)]


def settings(deployment: Deployment, server: ServerProcess) -> Path:
    return deployment.settings(
        kafka={"end": "never"},
        delivery={
            "target": "http",
            "max_records": 100_000,
            # The events are of one hour: none is to be late for having waited.
            "watermark_hold_ms": 3_600_000,
        },
        http={"url": f"{server.url}/events"},
        retry={"base_ms": 100},
        breaker={"open_ms": 500, "open_cap_ms": 500},
    )


def books(deployment: Deployment) -> Counts:
    """What the ledger has committed: it balances whenever somebody looks."""
    book = read_book(message.value() for message in deployment.output("ledger"))
    assert book.imbalances() == []
    return book.total


def counted(deployment: Deployment) -> list[Sent]:
    """Records that the ledger has: of each partition all up to the last offset of its rows."""
    last: dict[tuple[str, int], int] = {}
    for row in deployment.rows("ledger"):
        at = row["source_topic"], row["source_partition"]
        last[at] = max(last.get(at, -1), row.get("last_offset", -1))
    return [
        each
        for each in deployment.sent
        if each.offset <= last.get((each.topic, each.partition), -1)
    ]


def each_has_one_key(requests: list[Request]) -> None:
    """An event that is called with again has the key that it had, and no other event has it."""
    keys: defaultdict[Place, set[str]] = defaultdict(set)
    for request in requests:
        keys[place_of(json.loads(request.body))].add(request.key)
    assert {len(of_event) for of_event in keys.values()} == {1}
    assert len(set().union(*keys.values())) == len(keys)
    assert len(keys) < len(requests), "no call was made again"


def taken(requests: list[Request]) -> set[Place]:
    return {place_of(json.loads(each.body)) for each in requests if each.status == 200}


def test_thousands_that_wait_go_from_one_subtask_to_four_and_a_drain_ends_what_is_left(
    deployment: Deployment, many_lines: list[bytes]
) -> None:
    """Each is in the outputs once, and in the books; a call that is made again has its key.

    1. The target is down, thousands wait, and the job is stopped with a savepoint.
    2. Four subtasks go on from it, and the target is well: all are delivered.
    3. Some are to be called with again, soon or much later, when the job is drained.
    """
    with ServerProcess(Rule(status=503)) as server:
        config = settings(deployment, server)
        deployment.create("in")
        # Step 1
        job = deployment.submit("--config", config, BREAKWATER_PARALLELISM="1")
        with deployment.flowing(deployment.topic("in"), skewed(many_lines)):
            deployment.wait("thousands are sent", lambda: len(deployment.sent) >= EVENTS)
            deployment.wait("the target is called", lambda: server.counts()["requests"] > 0)
        deployment.wait_for_checkpoints(job, 3)
        savepoint = deployment.stop(job)
        deployment.settle()
        waiting = [line for line in states_in(savepoint) if line.startswith(("delivery", "lanes"))]
        assert waiting == DELIVERY.splitlines()
        assert not deployment.rows("processed_events")
        booked, arrived = books(deployment), expect(counted(deployment))
        assert booked.pending == len(arrived.processed) > EVENTS / 2
        assert booked.dead_lettered == Counter(arrived.dead.values())
        # Step 2
        server.behave()
        job = deployment.submit(
            "--config", config, "--from-savepoint", savepoint, BREAKWATER_PARALLELISM="4"
        )
        expected = expect(deployment.sent)

        def all_written() -> bool:
            return len(deployment.output("processed_events")) >= len(expected.processed)

        deployment.wait("all are delivered and committed", all_written)
        assert taken(server.requests()) == expected.processed.keys()
        deployment.wait("all is booked", lambda: books(deployment).pending == 0)
        assert books(deployment).processed == len(expected.processed)
        # Step 3
        server.behave(
            Rule(body_has='"soon-', status=503, retry_after="10", first_of_key=1),
            Rule(body_has='"later"', status=503, retry_after="3600"),
        )
        calls = server.counts()["requests"]
        deployment.send(deployment.topic("in"), [(0, each) for each in SOON + LATER])
        deployment.wait(
            "they are called with", lambda: server.counts()["requests"] >= calls + len(SOON) + 1
        )
        deployment.did("stop", "--target", deployment.cluster.target, "--job", job, "--drain")
        assert deployment.cluster.rest.state(job) == "FINISHED"
        requests = server.requests()
    deployment.settle()
    each_has_one_key(requests)
    expected = expect(deployment.sent)
    for record in deployment.sent:
        if record.value in LATER:
            is_first = record.value == LATER[0]
            place = record.topic, record.partition, record.offset
            expected.refused(
                place, "http_503" if is_first else "delivery_flush_at_end", record.value
            )
    assert taken(requests) == expected.processed.keys()
    assert len(requests) == calls + 2 * len(SOON) + 1
    letters = [
        row for row in deployment.rows("dead_letters") if row["processing_stage"] == "delivery"
    ]
    assert [row["disposition"] for row in letters] == ["flush_at_end"] * len(LATER)
    assert_topics_are_right(deployment, expected)
