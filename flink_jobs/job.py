"""The one way to start a job: an environment, the job's parts, the workflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pyflink.common import JobClient
from pyflink.datastream import StreamExecutionEnvironment

from flink_jobs.settings import Settings
from flink_jobs.wiring.environment import environment
from flink_jobs.workflow import Source, define_workflow
from operators.delivery.delivery_rules import DeliveryRules
from operators.intake.intake import IntakeRules
from operators.sinks.files import Sinks

NAME = "breakwater"


@dataclass(frozen=True)
class Parts:
    """What the workflow is made of.

    Attributes:
        source: where records come from.
        sinks: where all outputs go.
        rules: what intake decides by.
        delivery: what delivery decides by; None for no delivery.
    """

    source: Source
    sinks: Sinks
    rules: IntakeRules
    delivery: DeliveryRules | None


class Job(Protocol):
    """A job that can be started: on files (`file_job`) or on Kafka (`kafka_job`)."""

    @property
    def settings(self) -> Settings:
        """All settings of the job."""

    def build(self, env: StreamExecutionEnvironment) -> Parts:
        """Make the parts; a `UserError` says why they cannot be made."""


def _nothing(_: StreamExecutionEnvironment) -> None:
    pass


def start(
    job: Job,
    options: Mapping[str, str],
    before_start: Callable[[StreamExecutionEnvironment], None] = _nothing,
) -> JobClient:
    """Start a job, and return without waiting for it.

    Args:
        job: what to start.
        options: Flink options of this place (where checkpoints go, what to start from); the
            `[flink]` table of the settings wins.
        before_start: looks at the job that has been built, and may refuse to start it.

    Raises:
        UserError: the job is refused; the message names the setting.
    """
    env = environment(job.settings, options)
    parts = job.build(env)
    define_workflow(
        env,
        parts.source,
        parts.sinks,
        parts.sinks,
        rules=parts.rules,
        windows=job.settings.windows,
        delivery=parts.delivery,
    )
    before_start(env)
    return env.execute_async(NAME)
