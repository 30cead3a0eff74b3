"""What the settings make of delivery: its rules, and the target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from flink_jobs.setting_tables import Settings
from operators.delivery import DeliveryRules
from operators.rules.failure import FailureTable
from operators.rules.lane import LanePolicy
from udfs.function_target import FunctionTarget, load_function
from udfs.targets import Target


def delivery_rules(settings: Settings, max_envelope_bytes: int = 0) -> DeliveryRules | None:
    """What delivery goes by; None if events are delivered to nothing.

    Args:
        settings: all of them.
        max_envelope_bytes: what the place of the envelopes takes; 0 for files.
    """
    delivery = settings.delivery
    if not delivery.target:
        return None
    make_target = target_factory(settings)
    target = make_target()
    return DeliveryRules(
        target=make_target,
        lanes=delivery.lanes,
        policy=LanePolicy(
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
        ),
        failures=failure_table(settings),
        contract=settings.contract.load(),
        timeout_ms=delivery.timeout_ms,
        calls_per_worker=delivery.calls_per_worker,
        slow_input_ms=delivery.slow_input_ms,
        drain_timeout_ms=delivery.drain_timeout_ms,
        window_ms=settings.windows.size_ms,
        max_record_bytes=settings.source.max_record_bytes,
        code_version=version("breakwater"),
        max_envelope_bytes=max_envelope_bytes,
    )


def failure_table(settings: Settings) -> FailureTable:
    """The failure table with the user's entries; a `FailureError` names one that is none."""
    return FailureTable({name: entry.handling() for name, entry in settings.failures.items()})


def target_factory(settings: Settings) -> Callable[[], Target]:
    """What makes the target, here to look at it and in each worker to use it.

    It travels to the workers. What it makes there raises a `TargetError` if the settings are wrong.
    """
    return partial(
        _function_target,
        settings.delivery.target,
        settings.delivery.batch_max_events or 1,
        settings.delivery.calls_per_worker,
    )


def _function_target(path: str, max_batch: int, threads: int) -> Target:
    return FunctionTarget(load_function(path), max_batch, threads)
