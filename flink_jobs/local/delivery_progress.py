"""How delivery is getting on, for the progress line of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_CLOSED, _HALF_OPEN, _OPEN = "●", "◐", "○"
_NUMBERS: Final = ("delivered", "dead_letters", "in_flight", "waiting")


def delivery_lines(counters: Mapping[str, Any], lanes: int) -> str:
    """Two more lines; none where the job has told nothing of delivery yet, or has none.

    Args:
        counters: the job's accumulators, see Lanes.java.
        lanes: how many there are.
    """
    count = {name: counters.get(f"delivery.{name}", 0) for name in _NUMBERS}
    if not any(name.startswith("delivery.") for name in counters):
        return ""
    marks = [_mark(counters, lane) for lane in range(lanes)]
    said = [
        f"{marks.count(mark)} {name}"
        for mark, name in ((_CLOSED, "closed"), (_HALF_OPEN, "half open"), (_OPEN, "open"))
        if mark in marks
    ]
    return (
        f"\n  {count['delivered']:,} delivered, {count['dead_letters']:,} dead letters, "
        f"{count['in_flight']:,} calls in flight, {count['waiting']:,} events waiting"
        f"\n  breakers {''.join(marks)} {', '.join(said)}"
    )


def _mark(counters: Mapping[str, Any], lane: int) -> str:
    if counters.get(f"delivery.open.{lane}", 0) > 0:
        return _OPEN
    return _HALF_OPEN if counters.get(f"delivery.half_open.{lane}", 0) > 0 else _CLOSED
