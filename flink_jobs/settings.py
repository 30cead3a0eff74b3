"""The settings: one frozen, typed object from defaults, a TOML file, the environment and the call.

Later ones win: defaults, then the file, then ``BREAKWATER_*`` variables, then the command line.
Whatever is wrong is told in one line that names the setting, its value and where to change it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource
from pydantic_settings import SettingsError as SourceError

from flink_jobs.deliveries import failure_table, target_factory, to_fallback
from flink_jobs.setting_faults import (
    Layer,
    SettingsError,
    explain,
    explain_pair,
    not_json,
    refuse_unknown_variables,
    where,
)
from flink_jobs.setting_pairs import contradictions
from flink_jobs.setting_tables import (
    ENV_PREFIX,
    ContractSettings,
    Settings,
    SinkSettings,
    WindowSettings,
    settings_table,
)
from flink_jobs.setting_types import flat_options
from operators.fallback import FallbackError
from operators.rules.backoff import RetryError
from operators.rules.breaker import BreakerError
from operators.rules.contract import ContractError
from operators.rules.failure import FailureError
from operators.rules.poison import PoisonError
from udfs.targets import TargetError

__all__ = [
    "ContractSettings",
    "Settings",
    "SettingsError",
    "SinkSettings",
    "WindowSettings",
    "load_settings",
    "settings_table",
]

_NOT_SETTINGS = ("BREAKWATER_REQUIRE",)  # for the tests: which real parts must be there


def load_settings(
    config: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings from all sources and check everything that can be checked at start.

    The contract is looked for in the current folder and beside the settings file too.

    Args:
        config: A TOML file; none is looked for when it is not given.
        overrides: From the command line, by dotted name; None is not given.
        environ: The environment, `os.environ` when not given.

    Raises:
        SettingsError: One line that names the setting, what is wrong and what to do.
    """
    layers = (
        _call_layer(overrides or {}),
        _environment_layer(os.environ if environ is None else environ),
        _file_layer(config),
    )
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merge(merged, layer.values)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError(explain(error, layers)) from None
    _search_for_contracts(config)
    _check_rules(settings, layers)
    return settings


def _search_for_contracts(config: Path | None) -> None:
    """Let a contract stand in the current folder or beside the settings, as a user's does.

    They come last in the search: a module of theirs never takes the place of an installed one.
    """
    for folder in (Path.cwd(), *([config.resolve().parent] if config else [])):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _check_rules(settings: Settings, layers: tuple[Layer, ...]) -> None:
    """Load what the settings name now: at start a person is there to read what is wrong."""
    try:
        contract = settings.contract.load()
    except ContractError as error:
        raise SettingsError(f"{where('contract', layers)}: {error}") from None
    try:
        settings.poison.rules().check(contract.error_types)
    except PoisonError as error:
        raise SettingsError(f"{where('poison', layers)}: {error}") from None
    _check_delivery(settings, layers)


def _check_delivery(settings: Settings, layers: tuple[Layer, ...]) -> None:
    tables: tuple[tuple[str, Callable[[], object]], ...] = (
        ("retry", settings.retry.policy),
        ("breaker", settings.breaker.policy),
        ("failures", lambda: failure_table(settings)),
        ("delivery", target_factory(settings) if settings.delivery.target else object),
        ("delivery", lambda: to_fallback(settings)),
    )
    for table, check in tables:
        try:
            check()
        except (RetryError, BreakerError, FailureError, TargetError, FallbackError) as error:
            raise SettingsError(f"{where(table, layers)}: {error}") from None
    for each in contradictions(settings):
        value = getattr(getattr(settings, each.table), each.name)
        raise SettingsError(explain_pair((each.table, each.name), value, each.why, layers))


# --- the sources ---------------------------------------------------------------------------------


def _call_layer(overrides: Mapping[str, object]) -> Layer:
    values: dict[str, Any] = {}
    for name, value in overrides.items():
        if value is not None:
            *tables, last = (
                name.split(".") if not name.startswith("flink.") else ("flink", name[6:])
            )
            inner: dict[str, Any] = {last: value}
            for table in reversed(tables):
                inner = {table: inner}
            values = _merge(values, inner)
    return Layer("call", _with_flat_flink(values))


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    ours = {
        name: text
        for name, text in environ.items()
        if name.upper().startswith(ENV_PREFIX) and name not in _NOT_SETTINGS
    }
    refuse_unknown_variables(ours)
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): text for name, text in ours.items()}
    try:
        values = source()
    except (SourceError, ValueError):
        raise SettingsError(not_json(ours)) from None
    return Layer("environment", _with_flat_flink(values))


def _file_layer(config: Path | None) -> Layer:
    if config is None:
        return Layer("file", {})
    if not config.is_file():
        raise SettingsError(f"{config}: there is no such settings file; check --config")
    try:
        values = TomlConfigSettingsSource(Settings, config)()
    except OSError as error:
        raise SettingsError(
            f"{config}: cannot be read ({error.strerror}); check --config"
        ) from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise SettingsError(f"{config}: is not valid TOML ({error}); correct the file") from None
    return Layer("file", _with_flat_flink(values), str(config))


def _with_flat_flink(values: dict[str, Any]) -> dict[str, Any]:
    """Flatten before merging, else the same option in two spellings would stand twice."""
    return {**values, "flink": flat_options(values["flink"])} if "flink" in values else values


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, Mapping)
        merged[name] = _merge(old, value) if both and isinstance(old, dict) else value
    return merged
