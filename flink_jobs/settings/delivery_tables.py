"""What can be set of delivery."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from flink_jobs.settings.types import DAY_MS, MIB, Table, Whole
from operators.rules.delivery.backoff import RetryPolicy
from operators.rules.delivery.breaker import BreakerPolicy
from operators.rules.delivery.failure import FailureCategory, Handling


class DeliverySettings(Table):
    """Where events are delivered to before they count as processed, and within which bounds."""

    target: str = Field(
        default="",
        description='what events are delivered to: "http", "postgres", "package.module:function", '
        'or "" for nothing',
    )
    batch_max_events: Whole = Field(
        default=0,
        ge=0,
        le=10_000,
        description="events in a call; 0 is what suits the target (postgres 500, else 1)",
    )
    timeout_ms: Whole = Field(
        default=10_000, ge=1, le=600_000, description="a call that takes longer has failed"
    )
    lanes: Whole = Field(
        default=16,
        ge=1,
        le=128,
        description="shares of the keys, each with its own breaker; fixed as long as the job lives",
    )
    calls_per_lane: Whole = Field(
        default=16, ge=1, le=10_000, description="calls of a lane at a time"
    )
    calls_per_worker: Whole = Field(
        default=64,
        ge=1,
        le=10_000,
        description="calls of a subtask at a time; to Postgres no more than it has connections",
    )
    ordering: Literal["key", "none"] = Field(
        default="key",
        description='"key": the events of a key are called with one behind the other',
    )
    after_dead_letter: Literal["go_on", "follow"] = Field(
        default="go_on",
        description='of ordering "key": whether those behind a dead letter follow it',
    )
    max_records: Whole = Field(
        default=10_000, ge=1, le=10_000_000, description="events that a lane holds"
    )
    max_bytes: Whole = Field(
        default=16_000_000, ge=1000, le=10_000_000_000, description="bytes of events that it holds"
    )
    max_age_ms: Whole = Field(
        default=0, ge=0, le=30 * DAY_MS, description="an event waits for so long; 0 is for ever"
    )
    slow_input_ms: Whole = Field(
        default=200,
        ge=0,
        le=10_000,
        description="a lane that is half full holds each batch up, for so long when it is full",
    )
    drain_timeout_ms: Whole = Field(
        default=30_000,
        ge=0,
        le=DAY_MS,
        description="at the end of the input delivery goes on for so long",
    )
    watermark_hold_ms: Whole = Field(
        default=10_000,
        ge=0,
        le=DAY_MS,
        description="behind a breaker that is open the watermark waits for an event for so long",
    )
    fallback: Literal["dead_letters", "file"] = Field(
        default="dead_letters",
        description='where an event goes that is not delivered in its time: "dead_letters", or '
        '"file" for the fallback store, from which breakwater deliver sends it later',
    )
    overflow: Literal["dead_letters", "fallback"] = Field(
        default="dead_letters",
        description='where one goes that its lane has no room for: "dead_letters" or "fallback"',
    )

    @field_validator("overflow")
    @classmethod
    def _needs_the_store(cls, value: str, info: ValidationInfo) -> str:
        if value == "fallback" and info.data.get("fallback", "file") != "file":
            raise PydanticCustomError("no_fallback", 'needs delivery.fallback = "file"')
        return value

    @property
    def has_fallback(self) -> bool:
        """Whether there is a fallback store."""
        return bool(self.target) and self.fallback == "file"


class DeduplicateSettings(Table):
    """Whether an event that comes again is left out."""

    enabled: bool = Field(
        default=False,
        description="an event that comes again (contract.identity) is counted, and left out",
    )
    ttl_ms: Whole = Field(
        default=DAY_MS,
        ge=1000,
        le=30 * DAY_MS,
        description="for so long after the first one, by the clock of the machine",
    )


class HttpTargetSettings(Table):
    """The HTTP service, for delivery.target = "http"."""

    url: str = Field(
        default="",
        description="where to, with fields of the event: http://host:port/users/{user_id}",
    )
    method: Literal["GET", "POST", "PUT"] = Field(default="POST", description="GET, POST or PUT")
    body: Literal["event", "none"] = Field(
        default="event", description='"event": the event as JSON; "none" for a GET'
    )
    headers: dict[str, str] = Field(default={}, description="added to each request")
    secret_headers: dict[str, str] = Field(
        default={},
        description="headers whose values are in the environment of the workers, under these names",
    )
    answer_fields: tuple[str, ...] = Field(
        default=(), description="fields of the contract that the answer adds to the event"
    )
    answer_max_bytes: Whole = Field(
        default=1_000_000, ge=1, le=MIB * 64, description="a longer answer is a failure"
    )


class PostgresTargetSettings(Table):
    """The database, for delivery.target = "postgres"."""

    dsn_env: str = Field(
        default="POSTGRES_DSN",
        description="the variable in the environment of the workers with the connection string",
    )
    table: str = Field(default="", description='"table" or "schema.table"')
    columns: dict[str, str] = Field(
        default={},
        description="by column what it holds: a field, idempotency_key, source_topic, "
        "source_partition, source_offset or time; {} is all fields and event_id",
    )
    identity: tuple[str, ...] = Field(
        default=("event_id",), description="columns with a unique index, which tell events apart"
    )
    on_conflict: Literal["update", "nothing"] = Field(
        default="update", description='a row that is there: "update" it, or do "nothing"'
    )
    connections: Whole = Field(
        default=4, ge=1, le=1000, description="connections of a subtask, and so its calls at a time"
    )


class RetrySettings(Table):
    """When a failed call is made again."""

    max_attempts: Whole = Field(
        default=5, ge=1, le=1000, description="calls with an event, the first one included"
    )
    base_ms: Whole = Field(default=1000, ge=1, le=DAY_MS, description="wait behind the first one")
    factor: float = Field(
        default=2.0, ge=1, le=100, description="each wait is so many times as long"
    )
    cap_ms: Whole = Field(default=3_600_000, ge=1, le=30 * DAY_MS, description="the longest wait")
    jitter: float = Field(
        default=0.1, ge=0, le=1, description="waits are spread by this share to either side"
    )
    budget_ms: Whole = Field(
        default=0,
        ge=0,
        le=30 * DAY_MS,
        description="no call later than this behind the first failure; 0 is no limit",
    )

    def policy(self) -> RetryPolicy:
        """The same as a rule; a `RetryError` says what does not go together."""
        return RetryPolicy(**self.model_dump())


class BreakerSettings(Table):
    """When a target is left alone: a breaker for each lane."""

    consecutive: Whole = Field(
        default=5, ge=0, le=10_000, description="opens after so many failures in a row; 0 is never"
    )
    failure_rate: float = Field(
        default=0.0, ge=0, le=1, description="opens at this share of failures; 0 is never"
    )
    slow_rate: float = Field(
        default=0.0, ge=0, le=1, description="opens at this share of slow calls; 0 is never"
    )
    slow_ms: Whole = Field(default=60_000, ge=1, le=DAY_MS, description="a slow call takes so long")
    window_calls: Whole = Field(
        default=100, ge=0, le=100_000, description="rates are of the last so many calls"
    )
    window_ms: Whole = Field(
        default=0, ge=0, le=DAY_MS, description="or, with window_calls = 0, of so long"
    )
    min_calls: Whole = Field(
        default=20, ge=1, le=100_000, description="below so many calls rates say nothing"
    )
    open_ms: Whole = Field(default=60_000, ge=1, le=DAY_MS, description="it is open for so long")
    open_factor: float = Field(
        default=2.0, ge=1, le=100, description="each time in a row so many times as long"
    )
    open_cap_ms: Whole = Field(
        default=600_000, ge=1, le=30 * DAY_MS, description="but no longer than this"
    )
    probes: Whole = Field(
        default=1, ge=1, le=1000, description="calls that try the target out, and must succeed"
    )
    half_open_ms: Whole = Field(
        default=60_000, ge=1, le=DAY_MS, description="a probe that takes longer has failed"
    )
    forced: Literal["", "open", "closed"] = Field(
        default="", description='"open" or "closed" hold all breakers there'
    )

    def policy(self) -> BreakerPolicy:
        """The same as a rule; a `BreakerError` says what does not go together."""
        return BreakerPolicy(**self.model_dump())


class FailureSettings(Table):
    """What is done about one kind of failed call."""

    category: FailureCategory = Field(description="names the queue of its dead letters")
    retryable: bool = Field(default=False, description="the same call may succeed later")
    systemic: bool = Field(default=False, description="it is about the target: the breaker opens")
    wait_ms: Whole = Field(default=0, ge=0, le=DAY_MS, description="at least, before the next call")

    @field_validator("systemic", "wait_ms")
    @classmethod
    def _needs_a_next_call(cls, value: int, info: ValidationInfo) -> int:
        """Else a record is given up for what is no fault of its own, or for having to wait."""
        if value and not info.data.get("retryable", True):
            raise PydanticCustomError("no_next_call", "needs retryable = true: else it is given up")
        return value

    def handling(self) -> Handling:
        """The same as a rule."""
        return Handling(**self.model_dump())
