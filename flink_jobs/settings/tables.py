"""What can be set: every setting with its type, default, bounds and description."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from flink_jobs.settings.delivery_tables import (
    BreakerSettings,
    DeduplicateSettings,
    DeliverySettings,
    FailureSettings,
    HttpTargetSettings,
    PostgresTargetSettings,
    RetrySettings,
)
from flink_jobs.settings.types import DAY_MS, MIB, FlinkOptions, Table, Whole
from operators.rules.contract import Contract, load_contract
from operators.rules.delivery.failure import FailureTable
from operators.rules.poison import PoisonPattern, PoisonRules

ENV_PREFIX = "BREAKWATER_"


class SourceSettings(Table):
    """Where records come from, and the bounds of one record."""

    split_bytes: Whole = Field(
        default=3_000_000,
        ge=64,
        le=1_073_741_824,
        description="a reader takes this much of a file at a time",
    )
    max_record_bytes: Whole = Field(
        default=1_048_576,
        ge=64,
        le=64 * MIB,
        description="a longer record is quarantined as oversized",
    )
    payload_limit_bytes: Whole = Field(
        default=65_536,
        ge=64,
        le=64 * MIB,
        validate_default=True,
        description="what is kept of an oversized record (length and checksum are of all)",
    )
    max_future_skew_ms: Whole = Field(
        default=300_000,
        ge=0,
        le=366 * DAY_MS,
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


class ContractSettings(Table):
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
    identity: str = Field(
        default="",
        description='the field that tells events of a key apart, also for targets; "" is the '
        "checksum of the payload",
    )

    def load(self) -> Contract:
        """Import the contract and check it; a `ContractError` says what is wrong with it."""
        return load_contract(self.type, self.key, self.event_time, self.value, self.identity)


class WindowSettings(Table):
    """Event-time windows and the watermark that closes them."""

    size_ms: Whole = Field(
        default=300_000, ge=1000, le=7 * DAY_MS, description="length of a tumbling window"
    )
    watermark_delay_ms: Whole = Field(
        default=600_000,
        ge=0,
        le=7 * DAY_MS,
        description="events out of order by up to this are never late",
    )
    idle_timeout_ms: Whole = Field(
        default=60_000,
        ge=100,
        le=DAY_MS,
        description="a partition that is silent for this long no longer holds windows open",
    )


class BatchSettings(Table):
    """When a batch goes over to Python; whichever comes first."""

    max_records: Whole = Field(
        default=32_768, ge=1, le=100_000, description="records in a batch; of files 8192 at most"
    )
    max_bytes: Whole = Field(
        default=4_000_000,
        ge=64,
        le=64 * MIB,
        description="bytes in a batch; of files 1 MB at most",
    )
    max_age_ms: Whole = Field(
        default=200,
        ge=1,
        le=60_000,
        description="a record waits at most this long for its batch to fill",
    )


class PoisonPatternSettings(Table):
    """One of the user's own rules for what can never succeed."""

    pattern: str = Field(description="a regular expression, searched in the record's raw bytes")
    reason: str = Field(description="the reason it is quarantined under")


class PoisonSettings(Table):
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


class CheckpointSettings(Table):
    """How often the job can be continued from."""

    interval_ms: Whole = Field(
        default=5000,
        ge=100,
        le=3_600_000,
        description="time between checkpoints; output appears with them",
    )


class KafkaSettings(Table):
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
        default={},
        description="any property of Kafka's clients (SASL, TLS), passed on as it is; where"
        " max.poll.records is not among them it is 2000 (Kafka's own default is 500)",
    )


class SinkSettings(Table):
    """The outputs: files, or topics with exactly-once transactions."""

    part_max_bytes: Whole = Field(
        default=134_217_728,
        ge=1024,
        le=10 * 1024 * MIB,
        description="a file is closed at this size",
    )
    rollover_interval_ms: Whole = Field(
        default=60_000, ge=100, le=DAY_MS, description="a file is closed at this age"
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
    fallback_topic: str = Field(
        default="fallback", description="topic of the fallback store, where there is one"
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
        le=7 * DAY_MS,
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

    connector: Literal["files", "kafka"] = Field(
        default="files",
        description='where records come from and output goes to: "files" or "kafka"',
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
    deduplicate: DeduplicateSettings = DeduplicateSettings()
    delivery: DeliverySettings = DeliverySettings()
    http: HttpTargetSettings = HttpTargetSettings()
    postgres: PostgresTargetSettings = PostgresTargetSettings()
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    failures: dict[str, FailureSettings] = Field(
        default={},
        description="what is done about failed calls, over what Breakwater knows: by http_NNN, "
        "sqlstate_XXXXX or class of the exception",
    )
    jars: str = Field(
        default="", description='folder of the connectors\' jars; "" finds what make jars fetched'
    )
    flink: FlinkOptions = Field(default={}, description="any option of Flink, passed on as it is")

    def failure_table(self) -> FailureTable:
        """The failure table with the user's entries; a `FailureError` names a wrong one."""
        return FailureTable({name: entry.handling() for name, entry in self.failures.items()})

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


def settings_table() -> list[tuple[str, str, str, str]]:
    """Every setting as (name, default, bounds, description), in the order of the code."""
    return [
        (name, _default(field), _bounds(field), field.description or "")
        for name, field in known_fields().items()
    ]


def known_fields() -> dict[str, FieldInfo]:
    """Every setting by its dotted name."""
    fields: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            fields |= {f"{name}.{inner}": each for inner, each in table.model_fields.items()}
        else:
            fields[name] = field
    return fields


def _default(field: FieldInfo) -> str:
    """The default as TOML writes it."""
    return json.dumps(field.default)


def _bounds(field: FieldInfo) -> str:
    low = next((str(m.ge) for m in field.metadata if hasattr(m, "ge")), "")
    high = next((str(m.le) for m in field.metadata if hasattr(m, "le")), "")
    return f"{low} to {high}" if low or high else ""
