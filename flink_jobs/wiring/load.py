"""The settings of a job that is built here: whether its target can be made is checked too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flink_jobs.settings import Settings, load_settings
from flink_jobs.settings.load import Check
from flink_jobs.wiring.rules import to_fallback
from flink_jobs.wiring.targets import target_factory


def _look_at_target(settings: Settings) -> None:
    if settings.delivery.target:
        target_factory(settings)()


_CHECKS: Final[tuple[Check, ...]] = (("delivery", _look_at_target), ("delivery", to_fallback))


def load_job_settings(
    config: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings as `load_settings` does, and see that the job's parts can be built.

    Raises:
        SettingsError: one line that names the setting, what is wrong and what to do.
    """
    return load_settings(config, overrides, environ, checks=_CHECKS)
