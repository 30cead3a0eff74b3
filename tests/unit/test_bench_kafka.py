"""Programs that are measured beside one another do the same work, or are not compared."""

from __future__ import annotations

import pytest

from bench.kafka import refuse_different

COUNTS = {"processed-events": 98, "user-windows": 7, "windowed": 98, "dlq-validation": 2}


def test_the_same_outputs_are_compared() -> None:
    of_yardstick = {**COUNTS, "dead-letters": 2}
    # Pure SQL is known to take bad records for good ones.
    refuse_different(
        {"breakwater": COUNTS, "record_at_a_time": of_yardstick, "jvm_sql": {"windowed": 99}}
    )


@pytest.mark.parametrize("name", ["processed-events", "user-windows", "windowed"])
def test_different_outputs_are_not(name: str) -> None:
    with pytest.raises(SystemExit, match=f"{name}: .*'record_at_a_time': 6"):
        refuse_different({"breakwater": COUNTS, "record_at_a_time": {**COUNTS, name: 6}})


def test_no_output_is_a_different_one() -> None:
    with pytest.raises(SystemExit, match="user-windows"):
        refuse_different(
            {"breakwater": COUNTS, "record_at_a_time": {"processed-events": 98, "windowed": 98}}
        )
