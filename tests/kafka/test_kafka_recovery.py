"""Killed in the middle of a run: what a read_committed consumer finds is still the recount."""

from __future__ import annotations

import signal
import time
import uuid
from pathlib import Path

import pytest

from flink_jobs.demo.broker import Broker
from tests.kafka.jobs import Kafka
from tests.kafka.recount import CLOSER, all_windows_are_there, assert_topics_are_right, expect
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, event, lines, skewed
from tests.runs import tell, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]

#: So many that the run is still going on when it has taken its first checkpoint.
RECORDS = 150_000


@pytest.fixture
def filled(own_broker: Broker, tmp_path: Path) -> Kafka:
    kafka = Kafka(own_broker, f"t{uuid.uuid4().hex[:8]}", tmp_path)
    kafka.send(kafka.create("in"), skewed(lines(tmp_path, RECORDS, BEYOND_THE_DELAY_S)))
    return kafka


def test_a_killed_driver_goes_on_from_its_checkpoint(
    filled: Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice: the second time it was already a run that went on from a checkpoint."""
    filled.send(filled.topic("in"), [(p, event(CLOSER, 7200)) for p in range(4)])
    expected = expect(filled.sent)
    config = filled.settings(kafka={"end": "never"})
    for more in (1, 2):
        with filled.started(config) as job:
            wait_until("new checkpoints", lambda n=more: filled.checkpoint() >= n * 2)
            job.send_signal(signal.SIGKILL)
    before = len(filled.output("processed_events"))
    assert before < RECORDS * 0.9, "all was done before it was killed: this tests nothing"
    seen, again_at = filled.checkpoint(), time.monotonic()
    with filled.started(config) as job:
        took_s = filled.checkpoints_again_s(job, again_at, seen)
        tell(capsys, "the driver was killed, and is started again", took_s)
        wait_until("all windows", lambda: all_windows_are_there(filled, expected), 200)
        job.send_signal(signal.SIGINT)
        assert "nothing is lost" in job.communicate(timeout=60)[0]
    assert assert_topics_are_right(filled, expected) > 0


def test_a_run_that_ends_is_not_taken_up_again_since_it_would_never_end(filled: Kafka) -> None:
    """FLINK-31006; when Flink's Kafka source has it mended, this guard can go."""
    config = filled.settings()
    with filled.started(config) as job:
        wait_until("a checkpoint", lambda: filled.checkpoint() >= 1)
        job.send_signal(signal.SIGKILL)
    ended = filled.run(config)
    assert ended.returncode == 1
    assert 'kafka.end = "latest": such a run cannot go on from a checkpoint' in ended.stderr


def test_a_killed_worker_costs_nothing(filled: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
    with filled.started(filled.settings()) as job:
        filled.kill_workers(job)
        seen, fault_at = filled.checkpoint(), time.monotonic()
        tell(capsys, "workers are killed", filled.checkpoints_again_s(job, fault_at, seen))
        filled.end(job)
    assert assert_topics_are_right(filled, expect(filled.sent)) > 0


def test_a_killed_broker_that_comes_back_on_the_same_log_costs_nothing(
    filled: Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    with filled.started(filled.settings()) as job:
        wait_until("a checkpoint", lambda: filled.checkpoint() >= 2)
        seen, fault_at = filled.checkpoint(), time.monotonic()
        filled.broker.kill()
        assert job.poll() is None, "the run was over before the broker was killed"
        filled.broker.start()
        tell(capsys, "the broker is killed", filled.checkpoints_again_s(job, fault_at, seen))
        filled.end(job)
    assert assert_topics_are_right(filled, expect(filled.sent)) > 0
