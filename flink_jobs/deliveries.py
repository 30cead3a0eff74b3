"""What the settings make of delivery: its rules, and the target."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Final

from flink_jobs.setting_tables import Settings
from operators.delivery_rules import DeliveryRules
from operators.fallback import UNDELIVERED, refuse_contract
from operators.rules.contract import Contract
from operators.rules.failure import FailureTable
from operators.rules.lane_records import Disposition, LanePolicy
from udfs.function_target import FunctionTarget, load_function
from udfs.http_target import HttpSettings, HttpTarget
from udfs.no_target import NoTarget
from udfs.postgres_target import PostgresSettings, PostgresTarget
from udfs.targets import Target, TargetError, variable_shown

_OWN_TIMEOUT_MS: Final = 1_000
_NO_BOUND: Final = 2**62


def delivery_rules(settings: Settings, max_envelope_bytes: int = 0) -> DeliveryRules | None:
    """What delivery goes by; None if events are delivered to nothing, and all of them count.

    Args:
        settings: all of them.
        max_envelope_bytes: what the place of the envelopes takes; 0 for files.
    """
    delivery, deduplicate = settings.delivery, settings.deduplicate
    if not delivery.target and not deduplicate.enabled:
        return None
    make_target = target_factory(settings)
    target = make_target()
    own = not isinstance(target, FunctionTarget)
    max_record_bytes = settings.source.max_record_bytes
    return DeliveryRules(
        target=make_target,
        lanes=delivery.lanes,
        policy=_lane_policy(settings, target),
        failures=failure_table(settings),
        contract=settings.contract.load(),
        # Those that come with Breakwater keep to it themselves, and say more when it is over.
        timeout_ms=delivery.timeout_ms + (_OWN_TIMEOUT_MS if own else 0),
        calls_per_worker=_calls_per_worker(settings),
        slow_input_ms=delivery.slow_input_ms,
        drain_timeout_ms=delivery.drain_timeout_ms,
        window_ms=settings.windows.size_ms,
        # With a target's answer an event is longer than its record, and goes to the same places.
        max_record_bytes=min(max_record_bytes, max_envelope_bytes or max_record_bytes),
        code_version=version("breakwater"),
        max_envelope_bytes=max_envelope_bytes,
        duplicates_ttl_ms=deduplicate.ttl_ms if deduplicate.enabled else 0,
        to_fallback=to_fallback(settings),
    )


def _calls_per_worker(settings: Settings) -> int:
    """No more than can be made at a time: one that waits within the target loses its own time."""
    calls = settings.delivery.calls_per_worker
    if settings.delivery.target == "postgres":
        return min(calls, settings.postgres.connections)
    return calls


def to_fallback(settings: Settings) -> frozenset[Disposition]:
    """What goes to the fallback store; a `FallbackError` says why nothing can."""
    if not settings.delivery.has_fallback:
        return frozenset()
    refuse_contract(settings.contract.load())
    overflows = settings.delivery.overflow == "fallback"
    return UNDELIVERED | {"overflow"} if overflows else UNDELIVERED


def _lane_policy(settings: Settings, target: Target) -> LanePolicy:
    delivery = settings.delivery
    if not delivery.target:
        # What is taken at once needs no retry and no breaker, and must not run out of room.
        return LanePolicy(
            batch=target.max_batch,
            keeps_order=target.keeps_order,
            max_records=_NO_BOUND,
            max_bytes=_NO_BOUND,
        )
    return LanePolicy(
        retry=settings.retry.policy(),
        breaker=settings.breaker.policy(),
        ordering=delivery.ordering,
        after_dead_letter=delivery.after_dead_letter,
        calls=delivery.calls_per_lane,
        batch=target.max_batch,
        keeps_order=target.keeps_order,
        max_records=delivery.max_records,
        max_bytes=delivery.max_bytes,
        max_age_ms=delivery.max_age_ms,
        hold_ms=delivery.watermark_hold_ms,
    )


def failure_table(settings: Settings) -> FailureTable:
    """The failure table with the user's entries; a `FailureError` names one that is none."""
    return FailureTable({name: entry.handling() for name, entry in settings.failures.items()})


def target_factory(settings: Settings) -> Callable[[], Target]:
    """What makes the target, here to look at it and in each worker to use it.

    It travels to the workers. What it makes raises a `TargetError` if the settings are wrong.
    """
    delivery = settings.delivery
    if not delivery.target:
        return NoTarget
    if delivery.target == "http":
        return partial(_http_target, settings)
    if delivery.target == "postgres":
        return partial(_postgres_target, settings)
    return partial(
        _function_target,
        delivery.target,
        delivery.batch_max_events or 1,
        delivery.calls_per_worker,
    )


def _function_target(path: str, max_batch: int, threads: int) -> Target:
    return FunctionTarget(load_function(path), max_batch, threads)


def _http_target(settings: Settings) -> Target:
    http, delivery = settings.http, settings.delivery
    if not http.url:
        raise TargetError('http.url is missing: set it to "http://host:port/path"')
    headers = dict(http.headers)
    for name, variable in http.secret_headers.items():
        if variable not in os.environ:
            shown = variable_shown(variable)
            raise TargetError(
                f"http.secret_headers: the variable {shown} for {name} is not set; set it here "
                "and where the workers run"
            )
        headers[name] = os.environ[variable]
    contract = settings.contract.load()
    _refuse_answer_fields(http.answer_fields, contract)
    return HttpTarget(
        HttpSettings(
            url=http.url,
            method=http.method,
            body=http.body,
            headers=headers,
            batch_max_events=delivery.batch_max_events or 1,
            answer_fields=http.answer_fields,
            timeout_ms=delivery.timeout_ms,
            connections=delivery.calls_per_worker,
            answer_max_bytes=http.answer_max_bytes,
        ),
        {column.name: column.attribute for column in contract.columns},
    )


def _refuse_answer_fields(names: Sequence[str], contract: Contract) -> None:
    """At start a person is there to read it: else each event would be a dead letter for it."""
    for name in names:
        if name not in contract.answerable:
            raise TargetError(
                f"http.answer_fields: {name!r} cannot be added: use fields of the contract, but "
                f"not its key, time or identity: {', '.join(contract.answerable) or 'none'}"
            )


def _postgres_target(settings: Settings) -> Target:
    postgres, delivery = settings.postgres, settings.delivery
    if not postgres.table:
        raise TargetError('postgres.table is missing: set it to "table" or "schema.table"')
    return PostgresTarget(
        PostgresSettings(
            table=postgres.table,
            dsn_env=postgres.dsn_env,
            columns=postgres.columns or None,
            identity=postgres.identity,
            on_conflict=postgres.on_conflict,
            batch_max_events=delivery.batch_max_events or 500,
            connections=postgres.connections,
            timeout_ms=delivery.timeout_ms,
        ),
        settings.contract.load(),
        failure_table(settings),
    )
