"""Programs that are measured beside one another do the same work, or are not compared."""

from __future__ import annotations

import pytest

from bench.kafka import ALIKE, DELIVERING, GOALS, LABELS, PROGRAMS, refuse_different

OURS = {
    "processed-events": 98,
    "late-events": 1,
    "dlq-data_quality": 2,
    "dlq-validation": 3,
    "quarantine-oversized": 4,
    "user-windows": 7,
    "windowed": 97,
    "value": 1234,
}
THEIRS = {
    **{name: n for name, n in OURS.items() if not name.startswith(("dlq-", "quarantine-"))},
    "dead-letters": 5,
    "quarantine": 4,
}


def test_the_same_outputs_are_compared() -> None:
    # Pure SQL is known to take bad records for good ones.
    refuse_different({"breakwater": OURS, "record_at_a_time": THEIRS, "jvm_sql": {"windowed": 99}})


@pytest.mark.parametrize("name", THEIRS)
def test_different_outputs_are_not(name: str) -> None:
    with pytest.raises(SystemExit, match=r"not the same, .*'record_at_a_time': 6\}"):
        refuse_different({"breakwater": OURS, "record_at_a_time": {**THEIRS, name: 6}})


def test_no_output_is_a_different_one() -> None:
    none = {name: n for name, n in THEIRS.items() if name != "late-events"}
    with pytest.raises(SystemExit, match=r"not the same, late events: .*'record_at_a_time': 0\}"):
        refuse_different({"breakwater": OURS, "record_at_a_time": none})


def test_the_tables_name_known_programs() -> None:
    assert set(LABELS) == {*PROGRAMS, DELIVERING}
    assert {*GOALS, *ALIKE} <= set(LABELS)
