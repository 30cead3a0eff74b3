"""The settings: one frozen, typed object from defaults, a TOML file, the environment and the call.

Later ones win: defaults, then the file, then ``BREAKWATER_*`` variables, then the command line.
Whatever is wrong is told in one line that names the setting, its value and where to change it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource
from pydantic_settings import SettingsError as SourceError

from flink_jobs.settings.contradictions import contradictions
from flink_jobs.settings.faults import (
    Layer,
    SettingsError,
    explain,
    explain_pair,
    not_json,
    refuse_unknown_variables,
    where,
)
from flink_jobs.settings.tables import ENV_PREFIX, Settings
from flink_jobs.settings.types import flat_options

#: A table, and a look at what it says that raises a ValueError with the reason why not.
Check = tuple[str, Callable[[Settings], object]]

_RULES: Final[tuple[Check, ...]] = (
    ("contract", lambda settings: settings.contract.load()),
    (
        "poison",
        lambda settings: settings.poison.rules().check(settings.contract.load().error_types),
    ),
    ("retry", lambda settings: settings.retry.policy()),
    ("breaker", lambda settings: settings.breaker.policy()),
    ("failures", lambda settings: settings.failure_table()),
)

_NOT_SETTINGS = ("BREAKWATER_REQUIRE",)  # for the tests: which real parts must be there


def load_settings(
    config: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    checks: Sequence[Check] = (),
) -> Settings:
    """Read the settings from all sources and check what they say.

    The contract is looked for in the current folder and beside the settings file too.

    Args:
        config: A TOML file; none is looked for when it is not given.
        overrides: From the command line, by dotted name; None is not given.
        environ: The environment, `os.environ` when not given.
        checks: What else to check; its ValueErrors are explained as wrong settings.

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
    _check_rules(settings, layers, checks)
    return settings


def _search_for_contracts(config: Path | None) -> None:
    """Let a contract stand in the current folder or beside the settings, as a user's does.

    They come last in the search: a module of theirs never takes the place of an installed one.
    """
    for folder in (Path.cwd(), *([config.resolve().parent] if config else [])):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _check_rules(settings: Settings, layers: tuple[Layer, ...], checks: Sequence[Check]) -> None:
    """Load what the settings name now: at start a person is there to read what is wrong."""
    for table, check in (*_RULES, *checks):
        try:
            check(settings)
        except ValueError as error:
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
    return Layer("file", _with_flat_flink(_with_connector(values, config)), str(config))


def _with_connector(values: dict[str, Any], config: Path) -> dict[str, Any]:
    """Read `source.kind` and `sink.kind`, the two former names of `connector`, as the one setting.

    Raises:
        SettingsError: the two differ, or differ from `connector`.
    """
    tables = {
        name: dict(values[name])
        for name in ("source", "sink")
        if isinstance(values.get(name), Mapping) and "kind" in values[name]
    }
    if not tables:
        return values
    former = {"source": "files", "sink": "files"}
    former |= {name: table.pop("kind") for name, table in tables.items()}
    kinds = {*former.values(), *([values["connector"]] if "connector" in values else [])}
    if len(kinds) > 1:
        raise SettingsError(
            f"{config}: source.kind and sink.kind are now one setting; write connector = "
            '"files" or connector = "kafka" at the top of the file, and remove them'
        )
    return {**values, **tables, "connector": kinds.pop()}


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
