"""What delivery goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from operators.rules.contract import Contract
from operators.rules.delivery.failure import FailureTable
from operators.rules.delivery.lane_records import Disposition, LanePolicy
from udfs.targets import Target


@dataclass(frozen=True)
class DeliveryRules:
    """What delivery goes by.

    Attributes:
        target: makes what is called; asked once a worker.
        lanes: how many there are; fixed as long as the job lives.
        policy: of each lane.
        failures: decides about what the target raises.
        contract: of the events.
        timeout_ms: of a call.
        calls_per_worker: at a time, of all lanes together.
        slow_input_ms: a lane that is almost full holds its input up for so long at most, a batch.
        drain_timeout_ms: so long it goes on at the end of the input.
        duplicates_ttl_ms: so long an event that comes again is a duplicate; 0 for no deduplication.
        window_ms: length of the windows that events are added up for.
        max_record_bytes: intake's: a record is no longer.
        code_version: version of this code, for the envelope.
        max_envelope_bytes: what the place of the envelopes takes; 0 for files.
        to_fallback: dispositions whose events go to the fallback store, where there is one; those
            of all others become dead letters.
    """

    target: Callable[[], Target]
    lanes: int
    policy: LanePolicy
    failures: FailureTable
    contract: Contract
    timeout_ms: int
    calls_per_worker: int
    slow_input_ms: int
    drain_timeout_ms: int
    window_ms: int
    max_record_bytes: int
    code_version: str
    max_envelope_bytes: int = 0
    duplicates_ttl_ms: int = 0
    to_fallback: frozenset[Disposition] = frozenset()
