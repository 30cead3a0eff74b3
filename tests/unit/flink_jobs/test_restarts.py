"""When a job is given up: a run that ends is, one that goes on for ever is not."""

from __future__ import annotations

import pytest

from flink_jobs.restarts import restart_options
from flink_jobs.setting_tables import KafkaSettings, Settings, SourceSettings

GIVES_UP = "restart-strategy.exponential-delay.attempts-before-reset-backoff"


@pytest.mark.parametrize(
    ("kind", "end", "attempts"),
    [("files", "never", "8"), ("kafka", "latest", "8"), ("kafka", "never", None)],
)
def test_only_a_run_that_ends_is_given_up(kind: str, end: str, attempts: str | None) -> None:
    settings = Settings(
        source=SourceSettings.model_validate({"kind": kind}),
        kafka=KafkaSettings.model_validate({"end": end}),
    )
    options = restart_options(settings)
    assert options["restart-strategy.type"] == "exponential-delay"
    assert options.get(GIVES_UP) == attempts
