"""Cutting an envelope to what its place takes: a dead letter that does not fit stops the job."""

from __future__ import annotations

from collections.abc import Callable


def fitted(write: Callable[[int], bytes], payload_bytes: int, max_bytes: int) -> bytes:
    """Write an envelope with as much of its payload as fits, roughly.

    Args:
        write: writes it with at most so many bytes of the payload, and marks it as cut.
        payload_bytes: how much of the payload to begin with.
        max_bytes: what the whole may have; 0 for no limit.

    Returns:
        The line. It is too long only if it is that without any payload.
    """
    line = write(payload_bytes)
    while max_bytes and payload_bytes and len(line) > max_bytes:
        # A byte may take six in JSON, or none of what is too long may be payload: less each time.
        payload_bytes = min(payload_bytes * max_bytes // len(line), payload_bytes - 1)
        line = write(payload_bytes)
    return line
