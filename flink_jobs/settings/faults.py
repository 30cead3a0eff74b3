"""What is wrong with a setting, as one line that names it, its value and where to change it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.settings.delivery_tables import FailureSettings
from flink_jobs.settings.tables import ENV_PREFIX, PoisonPatternSettings, known_fields

#: Only a name to show where no file was given: it is never looked for.
DEFAULT_FILE = "breakwater.toml"
_SHOWN_CHARACTERS = 60


class SettingsError(UserError, ValueError):
    """A setting is wrong: one line with its name, what is wrong and what to do."""

    def __init__(self, message: str, exit_code: int = WRONG_CALL) -> None:
        """A wrong setting is a wrong call unless said otherwise."""
        super().__init__(message, exit_code)


@dataclass(frozen=True)
class Layer:
    """The values of one source, and how to tell a person to change one of them."""

    kind: Literal["call", "environment", "file"]
    values: dict[str, Any]
    file: str = DEFAULT_FILE

    def holds(self, path: tuple[str, ...]) -> bool:
        """Whether a setting stands here."""
        found: Any = self.values
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return False
            found = found[name]
        return True

    def advice(self, path: tuple[str, ...]) -> str:
        """What to do about a setting that stands here."""
        if self.kind == "call":
            return f"change --{path[-1].replace('_', '-')}"
        if self.kind == "environment":
            return f"change {variable_name(path)}"
        table = f" [{path[0]}]" if len(path) > 1 else ""
        return f"change it in {self.file}{table} or {variable_name(path)}"


def variable_name(path: tuple[str, ...]) -> str:
    """The environment variable of a setting: BREAKWATER_WINDOWS__SIZE_MS."""
    return ENV_PREFIX + "__".join(path).upper()


def refuse_unknown_variables(ours: Mapping[str, str]) -> None:
    """Refuse a variable that begins as ours do and is none of them.

    Raises:
        SettingsError: names it and the nearest known one.
    """
    known = list(known_fields())
    for variable in sorted(ours):
        name = variable[len(ENV_PREFIX) :].lower().replace("__", ".")
        if name not in known and not name.startswith("flink."):
            near = _nearest(name, known, lambda full: variable_name(tuple(full.split("."))))
            raise SettingsError(f"{variable}: no such setting; {near}")


def explain(error: ValidationError, layers: tuple[Layer, ...]) -> str:
    """The first fault in full, and the names of the others."""
    # A misspelt name first: it is the reason why another one is missing.
    details = sorted(
        error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden"
    )
    more = [".".join(map(str, detail["loc"])) for detail in details[1:]]
    also = f" (also wrong: {', '.join(more)})" if more else ""
    return _explain_one(details[0], layers) + also


def _explain_one(detail: ErrorDetails, layers: tuple[Layer, ...]) -> str:
    path = tuple(str(part) for part in detail["loc"])
    name = ".".join(path)
    setting = _setting_path(path)
    if detail["type"] == "extra_forbidden":
        known = [".".join((*path[:-1], own)) for own in _own_names(path)] or list(known_fields())
        where = _layer_of(setting, layers).file
        return f"{name}: no such setting; {_nearest(name, known)} (in {where})"
    layer = _layer_of(setting, layers)
    if ".".join(setting) not in known_fields():
        return (
            f"{name} = {_shown(detail['input'])}: must be a table; write [{name}] in {layer.file}"
        )
    advice = layer.advice(setting)
    if detail["type"] == "missing":
        return f"{name}: is missing; {advice}"
    return f"{name} = {_shown(detail['input'])}: {_wrong(detail, path)}; {advice}"


def explain_pair(path: tuple[str, str], value: object, why: str, layers: tuple[Layer, ...]) -> str:
    """What is wrong with a setting beside another one."""
    advice = _layer_of(path, layers).advice(path)
    return f"{'.'.join(path)} = {_shown(value)}: {why}; {advice}"


def _own_names(path: tuple[str, ...]) -> list[str]:
    """What an entry of a list or table that the user writes may have."""
    if path[:2] == ("poison", "patterns"):
        return list(PoisonPatternSettings.model_fields)
    return list(FailureSettings.model_fields) if path[0] == "failures" else []


def _setting_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Cut what lies inside a setting: poison.patterns.0.reason is part of poison.patterns."""
    return path[:1] if path[0] in ("flink", "failures") else path[:2]


def _layer_of(path: tuple[str, ...], layers: tuple[Layer, ...]) -> Layer:
    """The layer that decides a setting; the file's where all leave it at its default."""
    return next((layer for layer in layers if layer.holds(path)), layers[-1])


def _wrong(detail: ErrorDetails, path: tuple[str, ...]) -> str:
    context = detail.get("ctx", {})
    words = {
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "int_type": "must be a whole number",
        "int_parsing": "must be a whole number",
        "int_parsing_size": "must be a smaller number",
        "int_from_float": "must be a whole number",
        "finite_number": "must be a whole number",
        "bool_type": "must be true or false",
        "bool_parsing": "must be true or false",
        "string_type": "must be text in quotes",
        "literal_error": f"must be {context.get('expected')}",
        "tuple_type": "must be a list",
        "dict_type": "must be a table",
        "model_type": f"must be {{{', '.join(f'{inner} = ...' for inner in _own_names(path))}}}",
    }
    return words.get(detail["type"], detail["msg"])


def _nearest(name: str, known: list[str], spell: Callable[[str], str] = str) -> str:
    """Name the nearest known one: by the whole name, else by its last part (a wrong table)."""
    by_last = {full.rsplit(".", 1)[-1]: full for full in known}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    last = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.7)
    if near or last:
        return f"did you mean {spell(near[0] if near else by_last[last[0]])}?"
    siblings = [full for full in known if full.startswith(name.rsplit(".", 1)[0] + ".")]
    tables = list(dict.fromkeys(full.split(".")[0] for full in known))
    return f"known are {', '.join(map(spell, siblings or tables))}"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def where(table: str, layers: tuple[Layer, ...]) -> str:
    """Where a person finds a table."""
    layer = _layer_of((table,), layers)
    if layer.kind == "environment":
        return variable_name((table, "*"))
    return f"{layer.file} [{table}]" if layer.kind == "file" else table


def not_json(ours: Mapping[str, str]) -> str:
    """Name the variable of a list or table that is not JSON: pydantic-settings does not."""
    for name, field in known_fields().items():
        variable = variable_name(tuple(name.split(".")))
        text = next((text for key, text in ours.items() if key.upper() == variable), "[]")
        if isinstance(field.default, (tuple, dict)) and not _is_json(text):
            example = '["schema_error"]' if isinstance(field.default, tuple) else '{"a.b": "c"}'
            return f"{variable} = {_shown(text)}: must be JSON, for instance {example}"
    return f"{', '.join(sorted(ours))}: one of them is not JSON and has to be; change it"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
