"""Values and rules that are rare, end to end in one run: huge totals, and the user's own poison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import placed_rows, rows
from tests.runs import run

pytestmark = pytest.mark.minicluster

HUGE = 1e308
SETTINGS = r"""
[batch]
max_records = 2  # so that a total overflows within a batch, and only in the sum of two
[poison]
violations = ["unknown_action"]
patterns = [{ pattern = '(?i)drop\s+table', reason = "sql_injection" },
            { pattern = 'naïve', reason = "not_ascii" }]
"""


def event(user: str, price: float, **more: object) -> dict[str, object]:
    return {"user_id": user, "product_id": "p", "action": "view", "price": price,
            "timestamp": "2026-01-01T00:00:00.000Z", **more}  # fmt: skip


EVENTS = [
    event("in one batch", HUGE), event("in one batch", HUGE),
    event("in two batches", HUGE), event("beside", 1),
    event("in two batches", HUGE), event("beside", 2),
    event("just one", HUGE), event("bad", 1, action="steal"),
    event("bad", -1, action="steal"), event("bad", -1), event("Robert; DROP  TABLE users", 1),
    event("naïve", 1), event("x", 1, note="a field that the contract lacks: drop table"),
    event("naive", 1), event("drop the table", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rare")
    (folder / "s.toml").write_text(SETTINGS)
    lines = [json.dumps(e, ensure_ascii=False) + "\n" for e in EVENTS]
    (folder / "in.jsonl").write_text("".join(lines))
    ended = run("run", "--input", "in.jsonl", "--output", "out", "--config", "s.toml", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "out"


def totals(output: Path) -> dict[str, Any]:
    return {row["user_id"]: row["total_value"] for row in rows(output / "user_windows")}


def test_a_total_that_is_infinite_is_null_and_costs_no_other_its_own(output: Path) -> None:
    """JSON has no infinity; the events themselves are all there, and counted."""
    assert totals(output) == {
        "in one batch": None,
        "in two batches": None,
        "beside": 3.0,
        "just one": HUGE,
        "naive": 1.0,
        "drop the table": 1.0,
    }
    counts = {row["user_id"]: row["event_count"] for row in rows(output / "user_windows")}
    assert counts["in one batch"] == counts["in two batches"] == 2
    prices = [r["price"] for r in rows(output / "processed_events") if r["price"] > 2]
    assert prices == [HUGE] * 5


def test_what_the_users_patterns_match_is_quarantined_under_their_reasons(output: Path) -> None:
    """In the raw bytes: also in a field that the contract does not know."""
    assert quarantined(output, "sql_injection") == [EVENTS[-5], EVENTS[-3]]
    assert quarantined(output, "not_ascii") == [EVENTS[-4]]


def quarantined(output: Path, reason: str) -> list[dict[str, object]]:
    found = [row for name, row in placed_rows(output / "quarantine", "reason") if name == reason]
    assert all(row["error_type"] == reason for row in found)
    assert all(row["disposition"] == "poison" for row in found)
    found.sort(key=lambda row: int(row["source_offset"]))
    return [json.loads(row["original_message"]) for row in found]


def test_a_record_with_a_violation_that_is_named_as_poison_is_quarantined(output: Path) -> None:
    """Also when another error comes first; without one it is a dead letter as ever."""
    assert quarantined(output, "unknown_action") == [EVENTS[7], EVENTS[8]]
    ((error_type, dead),) = placed_rows(output / "dead_letters", "error_type")
    assert error_type == "invalid_price"
    assert json.loads(dead["original_message"]) == EVENTS[9]
    ledger = json.loads((output / "ledger.json").read_text())
    assert ledger["balanced"]
    assert ledger["dead_lettered"] == {"invalid_price": 1}
    assert ledger["quarantined"] == {"not_ascii": 1, "sql_injection": 2, "unknown_action": 2}
