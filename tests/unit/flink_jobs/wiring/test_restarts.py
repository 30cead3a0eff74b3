"""When a job is given up: a run that ends is, one that goes on for ever is not."""

from __future__ import annotations

import pytest

from flink_jobs.settings.tables import KafkaSettings, Settings
from flink_jobs.wiring.environment import restart_options

GIVES_UP = "restart-strategy.exponential-delay.attempts-before-reset-backoff"


@pytest.mark.parametrize(
    ("kind", "end", "attempts"),
    [("files", "never", "8"), ("kafka", "latest", "8"), ("kafka", "never", None)],
)
def test_only_a_run_that_ends_is_given_up(kind: str, end: str, attempts: str | None) -> None:
    settings = Settings(
        connector=kind,
        kafka=KafkaSettings.model_validate({"end": end}),
    )
    options = restart_options(settings)
    assert options["restart-strategy.type"] == "exponential-delay"
    assert options.get(GIVES_UP) == attempts
