"""The settings: one frozen, typed object from defaults, a TOML file, the environment and the call.

Later ones win: defaults, then the file, then ``BREAKWATER_*`` variables, then the command line.
Whatever is wrong is told in one line that names the setting, its value and where to change it.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from flink_jobs.errors import WRONG_CALL, UserError
from operators.rules.contract import Contract, ContractError, load_contract
from operators.rules.poison import PoisonError, PoisonPattern, PoisonRules

ENV_PREFIX = "BREAKWATER_"
_NOT_SETTINGS = ("BREAKWATER_REQUIRE",)  # for the tests: which real parts must be there
DEFAULT_FILE = (
    "breakwater.toml"  # only a name to show where no file was given: it is never looked for
)

_DAY_MS = 86_400_000
_MIB = 1_048_576
_SHOWN_CHARACTERS = 60


class SettingsError(UserError, ValueError):
    """A setting is wrong: one line with its name, what is wrong and what to do."""

    def __init__(self, message: str, exit_code: int = WRONG_CALL) -> None:
        """A wrong setting is a wrong call unless said otherwise."""
        super().__init__(message, exit_code)


def _whole_number(value: object) -> object:
    """Refuse ``true``, which pydantic would read as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("whole_number", "must be a whole number")
    return value


def _flink_options(value: object) -> object:
    """Flatten tables to dotted names: TOML reads ``state.backend.type = "rocksdb"`` as tables."""
    if not isinstance(value, Mapping):
        return value
    return dict(_dotted(value))


def _dotted(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _flink_text(value)


def _flink_text(value: object) -> object:
    """Write a value as Flink's own configuration file does: true, 4, a;b."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return ";".join(str(_flink_text(item)) for item in value)
    return value


Whole = Annotated[int, BeforeValidator(_whole_number)]
FlinkOptions = Annotated[dict[str, str], BeforeValidator(_flink_options)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(_Table):
    """Where records come from, and the bounds of one record."""

    kind: Literal["files", "kafka"] = Field(
        default="files", description='where records come from: "files" or "kafka"'
    )
    split_bytes: Whole = Field(
        default=3_000_000,
        ge=64,
        le=1_073_741_824,
        description="a reader takes this much of a file at a time",
    )
    max_record_bytes: Whole = Field(
        default=1_048_576,
        ge=64,
        le=64 * _MIB,
        description="a longer record is quarantined as oversized",
    )
    payload_limit_bytes: Whole = Field(
        default=65_536,
        ge=64,
        le=64 * _MIB,
        validate_default=True,
        description="what is kept of an oversized record (length and checksum are of all)",
    )
    max_future_skew_ms: Whole = Field(
        default=300_000,
        ge=0,
        le=366 * _DAY_MS,
        description="an event further ahead of now is a dead letter (future_timestamp)",
    )

    @field_validator("payload_limit_bytes")
    @classmethod
    def _within_a_record(cls, value: int, info: ValidationInfo) -> int:
        record = info.data.get("max_record_bytes")
        if record is not None and value > record:
            raise PydanticCustomError(
                "too_large",
                "must be at most source.max_record_bytes ({record})",
                {"record": record},
            )
        return value


class ContractSettings(_Table):
    """What a good event looks like."""

    type: str = Field(
        default="udfs.ecommerce:EcommerceEvent",
        description='the contract\'s class: "package.module:Class"',
    )
    key: str = Field(default="user_id", description="the field that windows are grouped by")
    event_time: str = Field(default="timestamp", description="the field that holds the event time")
    value: str = Field(
        default="price", description='the field that windows add up; "" only counts events'
    )

    def load(self) -> Contract:
        """Import the contract and check it; a `ContractError` says what is wrong with it."""
        return load_contract(self.type, self.key, self.event_time, self.value)


class WindowSettings(_Table):
    """Event-time windows and the watermark that closes them."""

    size_ms: Whole = Field(
        default=300_000, ge=1000, le=7 * _DAY_MS, description="length of a tumbling window"
    )
    watermark_delay_ms: Whole = Field(
        default=600_000,
        ge=0,
        le=7 * _DAY_MS,
        description="events out of order by up to this are never late",
    )
    idle_timeout_ms: Whole = Field(
        default=60_000,
        ge=100,
        le=_DAY_MS,
        description="a partition that is silent for this long no longer holds windows open",
    )


class BatchSettings(_Table):
    """When a batch goes over to Python; whichever comes first."""

    max_records: Whole = Field(default=8192, ge=1, le=100_000, description="records in a batch")
    max_bytes: Whole = Field(default=1_050_000, ge=64, le=64 * _MIB, description="bytes in a batch")
    max_age_ms: Whole = Field(
        default=200,
        ge=1,
        le=60_000,
        description="a record waits at most this long for its batch to fill",
    )


class PoisonPatternSettings(_Table):
    """One of the user's own rules for what can never succeed."""

    pattern: str = Field(description="a regular expression, searched in the record's raw bytes")
    reason: str = Field(description="the reason it is quarantined under")


class PoisonSettings(_Table):
    """What else goes to quarantine."""

    patterns: tuple[PoisonPatternSettings, ...] = Field(
        default=(), description='records to quarantine: a list of {pattern = "...", reason = "..."}'
    )
    violations: tuple[str, ...] = Field(
        default=(), description="error types to quarantine that would be dead letters"
    )

    def rules(self) -> PoisonRules:
        """The same as rules; a `PoisonError` names a pattern that does not compile."""
        patterns = tuple(PoisonPattern(rule.pattern, rule.reason) for rule in self.patterns)
        return PoisonRules(patterns, frozenset(self.violations))


class CheckpointSettings(_Table):
    """How often the job can be continued from."""

    interval_ms: Whole = Field(
        default=5000,
        ge=100,
        le=3_600_000,
        description="time between checkpoints; output appears with them",
    )


class KafkaSettings(_Table):
    """The Kafka cluster, and what is read from it."""

    bootstrap_servers: str = Field(
        default="", description='brokers to begin with: "host:port,host:port"'
    )
    topics: tuple[str, ...] = Field(default=(), description="topics to read")
    topic_pattern: str = Field(
        default="", description="instead of topics: a regular expression for whole names"
    )
    group: str = Field(default="breakwater", description="the consumer group")
    start: Literal["earliest", "latest", "committed", "timestamp"] = Field(
        default="earliest",
        description='where a job without a checkpoint begins: "earliest", "latest", "committed" '
        '(by the group) or "timestamp"',
    )
    start_timestamp_ms: Whole = Field(
        default=0,
        ge=0,
        le=253_402_300_799_999,
        description="for timestamp: the first record at or after it (ms since 1970)",
    )
    end: Literal["never", "latest"] = Field(
        default="never", description='"latest" ends the run with what is there when it starts'
    )
    properties: FlinkOptions = Field(
        default={}, description="any property of Kafka's clients (SASL, TLS), passed on as it is"
    )


class SinkSettings(_Table):
    """The outputs: files, or topics with exactly-once transactions."""

    kind: Literal["files", "kafka"] = Field(
        default="files", description='where output goes: "files" or "kafka"'
    )
    part_max_bytes: Whole = Field(
        default=134_217_728,
        ge=1024,
        le=10 * 1024 * _MIB,
        description="a file is closed at this size",
    )
    rollover_interval_ms: Whole = Field(
        default=60_000, ge=100, le=_DAY_MS, description="a file is closed at this age"
    )
    processed_events_topic: str = Field(
        default="processed-events", description="topic of the accepted events"
    )
    user_windows_topic: str = Field(default="user-windows", description="topic of the windows")
    late_events_topic: str = Field(default="late-events", description="topic of the late events")
    dead_letters_topic: str = Field(
        default="dlq-{queue}", description="topics of the dead letters, one a failure category"
    )
    quarantine_topic: str = Field(
        default="quarantine-{reason}", description="topics of the quarantine, one a reason"
    )
    ledger_topic: str = Field(default="ledger", description="topic of the counts")
    create_topics: bool = Field(
        default=True,
        description="make output topics that are missing, with the broker's defaults; "
        "false refuses to start",
    )
    transactional_id_prefix: str = Field(
        default="breakwater",
        description="begins the transactional ids: a job's own, and always the same for it",
    )
    transaction_timeout_ms: Whole = Field(
        default=600_000,
        ge=1000,
        le=7 * _DAY_MS,
        description="a transaction open for longer is lost: set it above any outage of the job",
    )
    properties: FlinkOptions = Field(
        default={}, description="any property of Kafka's producer, over those of kafka.properties"
    )

    def topics(self) -> dict[str, str]:
        """The topic of each output; ``{names}`` in it stand for several."""
        names = [name for name in type(self).model_fields if name.endswith("_topic")]
        return {name.removesuffix("_topic"): getattr(self, name) for name in names}


class Settings(BaseSettings):
    """Everything that can be set. Made by hand it reads no environment: `load_settings` does."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    parallelism: Whole = Field(default=2, ge=1, le=128, description="subtasks of every step")
    source: SourceSettings = SourceSettings()
    contract: ContractSettings = ContractSettings()
    windows: WindowSettings = WindowSettings()
    batch: BatchSettings = BatchSettings()
    poison: PoisonSettings = PoisonSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    sink: SinkSettings = SinkSettings()
    kafka: KafkaSettings = KafkaSettings()
    jars: str = Field(
        default="", description='folder of the connectors\' jars; "" finds what make jars fetched'
    )
    flink: FlinkOptions = Field(default={}, description="any option of Flink, passed on as it is")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the sources to `load_settings`, so that it can say where a wrong value stands."""
        return (init_settings,)


@dataclass(frozen=True)
class _Layer:
    """The values of one source, and how to tell a person to change one of them."""

    kind: Literal["call", "environment", "file"]
    values: dict[str, Any]
    file: str = DEFAULT_FILE

    def holds(self, path: tuple[str, ...]) -> bool:
        found: Any = self.values
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return False
            found = found[name]
        return True

    def advice(self, path: tuple[str, ...]) -> str:
        if self.kind == "call":
            return f"change --{path[-1].replace('_', '-')}"
        if self.kind == "environment":
            return f"change {variable_name(path)}"
        table = f" [{path[0]}]" if len(path) > 1 else ""
        return f"change it in {self.file}{table} or {variable_name(path)}"


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
        raise SettingsError(_explain(error, layers)) from None
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


def settings_table() -> list[tuple[str, str, str, str]]:
    """Every setting as (name, default, bounds, description), in the order of the code."""
    return [
        (name, _default(field), _bounds(field), field.description or "")
        for name, field in _known_fields().items()
    ]


def variable_name(path: tuple[str, ...]) -> str:
    """The environment variable of a setting: BREAKWATER_WINDOWS__SIZE_MS."""
    return ENV_PREFIX + "__".join(path).upper()


# --- the sources ---------------------------------------------------------------------------------


def _call_layer(overrides: Mapping[str, object]) -> _Layer:
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
    return _Layer("call", _with_flat_flink(values))


def _environment_layer(environ: Mapping[str, str]) -> _Layer:
    ours = {
        name: text
        for name, text in environ.items()
        if name.upper().startswith(ENV_PREFIX) and name not in _NOT_SETTINGS
    }
    _refuse_unknown_variables(ours)
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): text for name, text in ours.items()}
    try:
        values = source()
    except (SourceError, ValueError):
        raise SettingsError(_not_json(ours)) from None
    return _Layer("environment", _with_flat_flink(values))


def _file_layer(config: Path | None) -> _Layer:
    if config is None:
        return _Layer("file", {})
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
    return _Layer("file", _with_flat_flink(values), str(config))


def _with_flat_flink(values: dict[str, Any]) -> dict[str, Any]:
    """Flatten before merging, else the same option in two spellings would stand twice."""
    return {**values, "flink": _flink_options(values["flink"])} if "flink" in values else values


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, Mapping)
        merged[name] = _merge(old, value) if both and isinstance(old, dict) else value
    return merged


def _not_json(ours: Mapping[str, str]) -> str:
    """Name the variable of a list or table that is not JSON: pydantic-settings does not."""
    for name, field in _known_fields().items():
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


# --- saying what is wrong ------------------------------------------------------------------------


def _refuse_unknown_variables(ours: Mapping[str, str]) -> None:
    known = list(_known_fields())
    for variable in sorted(ours):
        name = variable[len(ENV_PREFIX) :].lower().replace("__", ".")
        if name not in known and not name.startswith("flink."):
            near = _nearest(name, known, lambda full: variable_name(tuple(full.split("."))))
            raise SettingsError(f"{variable}: no such setting; {near}")


def _explain(error: ValidationError, layers: tuple[_Layer, ...]) -> str:
    # A misspelt name first: it is the reason why another one is missing.
    details = sorted(
        error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden"
    )
    more = [".".join(map(str, detail["loc"])) for detail in details[1:]]
    also = f" (also wrong: {', '.join(more)})" if more else ""
    return _explain_one(details[0], layers) + also


def _explain_one(detail: ErrorDetails, layers: tuple[_Layer, ...]) -> str:
    path = tuple(str(part) for part in detail["loc"])
    name = ".".join(path)
    setting = _setting_path(path)
    if detail["type"] == "extra_forbidden":
        known = list(_known_fields()) + _pattern_names(path)
        where = _layer_of(setting, layers).file
        return f"{name}: no such setting; {_nearest(name, known)} (in {where})"
    layer = _layer_of(setting, layers)
    if setting not in _known_paths():
        return (
            f"{name} = {_shown(detail['input'])}: must be a table; write [{name}] in {layer.file}"
        )
    advice = layer.advice(setting)
    if detail["type"] == "missing":
        return f"{name}: is missing; {advice}"
    return f"{name} = {_shown(detail['input'])}: {_wrong(detail)}; {advice}"


def _pattern_names(path: tuple[str, ...]) -> list[str]:
    if path[:2] != ("poison", "patterns"):
        return []
    return [".".join((*path[:3], name)) for name in PoisonPatternSettings.model_fields]


def _setting_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Cut what lies inside a setting: poison.patterns.0.reason is part of poison.patterns."""
    return path[:1] if path[0] == "flink" else path[:2]


def _layer_of(path: tuple[str, ...], layers: tuple[_Layer, ...]) -> _Layer:
    """The layer that decides a setting; the file's where all leave it at its default."""
    return next((layer for layer in layers if layer.holds(path)), layers[-1])


def _wrong(detail: ErrorDetails) -> str:
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
        "model_type": "must be {pattern = ..., reason = ...}",
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


def _check_rules(settings: Settings, layers: tuple[_Layer, ...]) -> None:
    """Load what the settings name now: at start a person is there to read what is wrong."""
    try:
        contract = settings.contract.load()
    except ContractError as error:
        raise SettingsError(f"{_where('contract', layers)}: {error}") from None
    try:
        settings.poison.rules().check(contract.error_types)
    except PoisonError as error:
        raise SettingsError(f"{_where('poison', layers)}: {error}") from None


def _where(table: str, layers: tuple[_Layer, ...]) -> str:
    layer = _layer_of((table,), layers)
    if layer.kind == "environment":
        return variable_name((table, "*"))
    return f"{layer.file} [{table}]" if layer.kind == "file" else table


# --- the table -----------------------------------------------------------------------------------


def _known_fields() -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            fields |= {f"{name}.{inner}": each for inner, each in table.model_fields.items()}
        else:
            fields[name] = field
    return fields


def _known_paths() -> list[tuple[str, ...]]:
    return [tuple(name.split(".")) for name in _known_fields()]


def _default(field: FieldInfo) -> str:
    """The default as TOML writes it."""
    return json.dumps(field.default)


def _bounds(field: FieldInfo) -> str:
    low = next((str(m.ge) for m in field.metadata if hasattr(m, "ge")), "")
    high = next((str(m.le) for m in field.metadata if hasattr(m, "le")), "")
    return f"{low} to {high}" if low or high else ""
