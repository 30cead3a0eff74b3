"""Kill -9 on the cluster while input keeps flowing: what is committed is still the recount.

Each prints how long recovery took: from the fault to the first committed event that came in after
it. The table of the README has these figures.

Where a fault is put decides whether it can hurt at all. With sinks that are only at least once, a
TaskManager or a JobManager that is killed in the middle of a checkpoint was seen to double events,
and a run without a fault was right. A worker that was killed, or a job that was cancelled, at that
moment doubled nothing even then: the checkpoint was completed all the same. So these are put in the
middle of a transaction, where both were seen to double events; the broker's kill there was seen to
lose some with acks=0.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.deploy import Deployment
from tests.cluster.faults import (
    IMPATIENT,
    broker_is_away,
    broker_is_killed,
    committed_of,
    job_is_cancelled,
    jobmanager_is_killed,
    taskmanager_is_killed,
    taskmanager_is_killed_before_it_commits,
    wait_for_a_checkpoint_in_progress,
    wait_for_a_transaction_in_progress,
    worker_is_killed,
)
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import skewed
from tests.runs import tell

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(900)]

Moment = Callable[[Deployment, str], None]
Fault = Callable[[Deployment, str], str]
#: A kill that comes too late, when the transaction has been committed, is put again.
TRIES = 5


@pytest.mark.parametrize(
    ("faults", "patience"),
    [
        # One job lives through all of these, so each is put on what the former one has left.
        (
            (
                (wait_for_a_transaction_in_progress, worker_is_killed),
                (wait_for_a_checkpoint_in_progress, taskmanager_is_killed),
                (wait_for_a_transaction_in_progress, broker_is_killed),
            ),
            {},
        ),
        # After the last two of these it is submitted again.
        (
            (
                (wait_for_a_transaction_in_progress, broker_is_away),
                (wait_for_a_transaction_in_progress, job_is_cancelled),
                (wait_for_a_transaction_in_progress, jobmanager_is_killed),
            ),
            IMPATIENT,
        ),
    ],
    ids=["the job goes on", "the job is submitted again"],
)
def test_faults_in_the_middle_of_a_transaction_or_a_checkpoint_cost_nothing(
    flowing: Deployment,
    many_lines: list[bytes],
    faults: tuple[tuple[Moment, Fault], ...],
    patience: dict[str, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = flowing.settings(kafka={"end": "never", "properties": patience})
    with flowing.flowing(flowing.create("in"), skewed(many_lines)):
        job = flowing.submit("--config", config)
        flowing.wait_for_output("processed_events")
        for wait_for_the_moment, fault in faults:
            wait_for_the_moment(flowing, job)
            sent, began = len(flowing.sent), time.monotonic()
            job = fault(flowing, job)
            flowing.wait_for_event_after(sent)
            tell(capsys, fault.__name__, time.monotonic() - began)
            flowing.wait_for_checkpoints(job)
    flowing.end_and_drain(job)
    assert assert_topics_are_right(flowing, expect(flowing.sent)) > 0


def test_a_kill_between_pre_commit_and_commit_costs_nothing(
    flowing: Deployment, many_lines: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was handed over is committed by the one who goes on, and not written once more.

    It was seen to be lost ("processed missing") when the broker had timed the transaction out
    before the job went on, and then none of these events counted as a hit.

    One subtask: then all that is behind the last committed event was in open transactions, and
    those of them that are committed later were in the checkpoint: that proves that the kill hit.
    """
    with flowing.flowing(flowing.create("in"), skewed(many_lines)):
        config = flowing.settings(kafka={"end": "never"})
        job = flowing.submit("--config", config, BREAKWATER_PARALLELISM="1")
        flowing.wait_for_output("processed_events")
        for _ in range(TRIES):
            sent, began = len(flowing.sent), time.monotonic()
            were_open = taskmanager_is_killed_before_it_commits(flowing, job)
            flowing.cluster.start_taskmanager()
            flowing.wait_for_event_after(sent)
            took = time.monotonic() - began
            flowing.wait_for_checkpoints(job)
            if hit := committed_of(flowing, were_open):
                break
        else:
            pytest.fail(f"no kill of {TRIES} was before the commit")
    flowing.end_and_drain(job)
    assert assert_topics_are_right(flowing, expect(flowing.sent)) > 0
    tell(capsys, f"taskmanager_is_killed before it commits {hit} events", took)
