"""From settings to the target that events are delivered to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from flink_jobs.settings import Settings
from operators.rules.contract import Contract
from operators.targets.function import FunctionTarget, load_function
from operators.targets.http import HttpSettings, HttpTarget
from operators.targets.nothing import NoTarget
from operators.targets.postgres import PostgresSettings, PostgresTarget
from udfs.targets import Target, TargetError


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
            raise TargetError(
                f"http.secret_headers: the variable {variable} for {name} is not set; set it here "
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
        settings.failure_table(),
    )
