"""Delivery on a real cluster: what waits for a target that is down goes with a savepoint."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.cluster.deploy import Deployment
from tests.cluster.test_upgrade import states_in
from tests.http_server import Rule, ServerProcess
from tests.kafka.recount import expect
from tests.kafka.test_kafka_job import skewed

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(600)]

EVENTS = 5_000
#: As in states.txt: a savepoint finds state by uid and name.
DELIVERY = """\
delivery | delivery | _timer_state/event_user-timers, _timer_state/processing_user-timers, \
python-state-events.v1, python-state-lane.v1, python-state-records.v1
lanes | lanes | held
"""


def place(event: dict[str, Any]) -> tuple[str, int, int]:
    return event["source_topic"], event["source_partition"], event["source_offset"]


def test_thousands_that_wait_go_from_one_subtask_to_four(
    deployment: Deployment, many_lines: list[bytes]
) -> None:
    """Each is delivered, and in the outputs once; a call that is made again has the same key."""
    with ServerProcess(Rule(status=503)) as server:
        config = deployment.settings(
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
        deployment.create("in")
        job = deployment.submit("--config", config, BREAKWATER_PARALLELISM="1")
        with deployment.flowing(deployment.topic("in"), skewed(many_lines)):
            deployment.wait("thousands are sent", lambda: len(deployment.sent) >= EVENTS)
            deployment.wait("the target is called", lambda: server.counts()["requests"] > 0)
        deployment.wait_for_checkpoints(job, 3)
        savepoint = deployment.stop(job)
        waiting = [line for line in states_in(savepoint) if line.startswith(("delivery", "lanes"))]
        assert waiting == DELIVERY.splitlines()
        assert not deployment.rows("processed_events")
        server.behave()
        job = deployment.submit(
            "--config", config, "--from-savepoint", savepoint, BREAKWATER_PARALLELISM="4"
        )
        deployment.wait_for_output("processed_events")
        expected = expect(deployment.sent)

        def all_written() -> bool:
            return len(deployment.rows("processed_events")) >= len(expected.processed)

        deployment.wait("all are delivered and committed", all_written)
        deployment.wait_for_checkpoints(job, 2)
        requests = server.requests()
        processed = deployment.rows("processed_events")
    places = Counter(map(place, processed))
    assert places == Counter(dict.fromkeys(expected.processed, 1)), "lost or doubled"
    keys: defaultdict[tuple[str, int, int], set[str]] = defaultdict(set)
    for request in requests:
        event = json.loads(request.body)
        keys[place(event)].add(request.key)
    assert {len(of_event) for of_event in keys.values()} == {1}
    taken = [request.key for request in requests if request.status == 200]
    assert len(keys) == len(expected.processed) <= len(taken)
