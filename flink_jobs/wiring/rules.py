"""From settings to rules: what intake and delivery decide by."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from flink_jobs.settings import Settings
from flink_jobs.wiring.targets import target_factory
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.fallback import UNDELIVERED, refuse_contract
from operators.intake.intake import IntakeRules
from operators.rules.delivery.lane_records import Disposition, LanePolicy
from operators.targets.function import FunctionTarget
from udfs.targets import Target

#: So much makes a row: with the last piece it stays below the 5 MiB from which Flink writes a
#: record to disk first when it goes from one task to another.
ROW_BYTES: Final = 3_500_000
#: And so much of lines before they are packed, which the JVM unpacks at once.
LINES_BYTES: Final = 16_000_000
_OWN_TIMEOUT_MS: Final = 1_000
_NO_BOUND: Final = 2**62


def intake_rules(settings: Settings) -> IntakeRules:
    """What intake decides by, from the settings."""
    return IntakeRules(
        contract=settings.contract.load(),
        poison=settings.poison.rules(),
        max_record_bytes=settings.source.max_record_bytes,
        max_future_skew_ms=settings.source.max_future_skew_ms,
        window_ms=settings.windows.size_ms,
        payload_limit_bytes=settings.source.payload_limit_bytes,
        row_bytes=ROW_BYTES,
        lines_bytes=LINES_BYTES,
        code_version=version("breakwater"),
    )


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
        failures=settings.failure_table(),
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
