"""The environment that a job is built in: Flink's options, and what is refused of the user's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from pyflink.common import Configuration
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway

from flink_jobs.settings import Settings
from flink_jobs.wiring.reserved import refuse_promised

_BACKOFF: Final = "restart-strategy.exponential-delay"


def environment(settings: Settings, options: Mapping[str, str]) -> StreamExecutionEnvironment:
    """An environment with all options of a job.

    Args:
        settings: all of them; their `[flink]` table wins over everything else.
        options: Flink options of this place (where checkpoints go, what to start from).

    Raises:
        UserError: the settings change an option that the job's promises depend on.
    """
    refuse_promised(settings)
    configuration = Configuration()
    for name, value in {**flink_options(settings), **options, **settings.flink}.items():
        configuration.set_string(name, value)
    return StreamExecutionEnvironment.get_execution_environment(configuration)


def goes_on(env: StreamExecutionEnvironment) -> bool:
    """Whether the job starts from a checkpoint or a savepoint (also by ``flink run -s``)."""
    option = get_gateway().jvm.org.apache.flink.configuration.StateRecoveryOptions.SAVEPOINT_PATH
    found = env._j_stream_execution_environment.getConfiguration().getOptional(option)
    return bool(found.isPresent())


def flink_options(settings: Settings) -> dict[str, str]:
    """The Flink options that the job needs wherever it runs."""
    return {
        "parallelism.default": str(settings.parallelism),
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.execution-mode": "process",
        # An element of a Python operator is a whole batch or split, so few make a bundle; a bundle
        # is finished before each checkpoint and is held in memory (packed) until then.
        "python.fn-execution.bundle.size": "8",
        "python.fn-execution.bundle.time": "100",
        # Nothing is gained by waiting for more: an element between the steps is a whole batch, and
        # an event passes two or three of these waits (Flink's default is 100 ms each).
        "execution.buffer-timeout.interval": "10 ms",
        # What delivery writes to its state stays there, and not in the worker's memory.
        "python.map-state.read-cache-size": "1",
        # Our Python steps have no metrics of their own, and Flink asks for them after each bundle.
        "python.metric.enabled": "false",
        "pipeline.object-reuse": "true",
        "pipeline.auto-generate-uids": "false",
        # Intake has added up each batch by key and window: a second time before the shuffle gains
        # nothing.
        "table.optimizer.agg-phase-strategy": "ONE_PHASE",
        "table.local-time-zone": "UTC",
        "execution.checkpointing.interval": f"{settings.checkpoint.interval_ms} ms",
        "execution.checkpointing.tolerable-failed-checkpoints": "10",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        **restart_options(settings),
    }


def restart_options(settings: Settings) -> dict[str, str]:
    """Flink's restart options for a job.

    Somebody waits for a run that ends: it fails when it has failed again and again. A job that goes
    on for ever has to outlive its broker's outage, however long that is, and what has killed it
    eight times in a month: it is never given up, and `breakwater status` shows its restarts.
    """
    ends = settings.connector == "files" or settings.kafka.end == "latest"
    return {
        "restart-strategy.type": "exponential-delay",
        f"{_BACKOFF}.initial-backoff": "100 ms",
        f"{_BACKOFF}.max-backoff": "10 s",
        # Else a fault would pay for all those of the hour before it with a longer pause.
        f"{_BACKOFF}.reset-backoff-threshold": "1 h" if ends else "1 min",
        **({f"{_BACKOFF}.attempts-before-reset-backoff": "8"} if ends else {}),
    }
