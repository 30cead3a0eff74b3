"""A task that fails is interrupted: what its steps do then must not end the TaskManager."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyflink.common import Types
from pyflink.table import StreamTableEnvironment

from operators.bridge.steps import steps as bridge
from operators.sources.kafka import record_type
from tests.minicluster.steps import AS_RECORDS, Describe

pytestmark = pytest.mark.minicluster

BATCHES = 5
ROWS = ", ".join(f"('row-{i}')" for i in range(BATCHES))
QUERY = AS_RECORDS.format(payload="v", table=f"(VALUES {ROWS}) AS t (v)")
#: Behind the batcher, in its thread: the next batch finds itself interrupted as it is written.
INTERRUPTING = """
public class Interrupting extends AbstractStreamOperator implements OneInputStreamOperator {
  public Interrupting(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void processElement(StreamRecord record) throws Exception {
    output.collect(record);
    if (getRuntimeContext().getTaskInfo().getAttemptNumber() == 0) {
      Thread.currentThread().interrupt();
    }
  }
}
"""


def test_a_batch_that_is_interrupted_costs_a_restart_and_no_taskmanager(
    flink: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A killed worker interrupts the task beside it; seen on a cluster: the TaskManager ended.

    "FATAL - exception in exception handler of task": then nothing takes the job up again, and here
    the restart finds no slot.
    """
    ours = bridge._source
    monkeypatch.setattr(
        bridge,
        "_source",
        lambda name: ours("Books") + INTERRUPTING if name == "Interrupting" else ours(name),
    )
    env = flink(
        **{
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": "1",
            "restart-strategy.fixed-delay.delay": "0 ms",
            "slot.request.timeout": "5000",
            # Without checkpoints what is collected does not outlive a restart.
            "execution.checkpointing.interval": "1 h",
            "execution.checkpointing.dir": tmp_path.as_uri(),
        }
    )
    tables = StreamTableEnvironment.create(env)
    batches = bridge.kafka_batch(
        tables, tables.sql_query(QUERY), record_type(), uid="batch", parallelism=1,
        max_records=1, max_bytes=10**6, max_age_ms=10**6, max_payload_bytes=10**6,
        keep_bytes=10**6,
    )  # fmt: skip
    passed = bridge._add(
        batches, "Interrupting", "interrupting", [], bridge.BYTES.get_java_type_info()
    )
    with passed.process(Describe(), Types.STRING()).execute_and_collect() as found:
        payloads = [line.split(" ")[-1] for line in found]
    # What the first attempt collected may have been fetched before it was taken back.
    assert list(dict.fromkeys(payloads)) == [f"row-{i}" for i in range(BATCHES)]
