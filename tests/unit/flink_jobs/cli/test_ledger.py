"""breakwater ledger on folders written by hand, and wrong calls; topics are in tests/kafka."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flink_jobs.cli.app import main
from operators.rules.splits import InputFile, ReadPlan


@pytest.fixture
def call(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["breakwater", "ledger", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code), captured.out, captured.err

    return run


def row(path: str, minute: int, splits: list[int], **more: Any) -> dict[str, Any]:
    return {
        "minute": f"2026-01-01T00:0{minute}:00.000Z", "source_topic": path, "source_partition": 0,
        "received": 3, "processed": 2, "dead_lettered": {"schema_error": 1}, "quarantined": {},
        "windowed": 1, "late": 1, "first_offset": 0, "last_offset": 500, "splits": splits, **more,
    }  # fmt: skip


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A run that is done: two files, two pieces of one of them and one of the other."""
    write_ledger(tmp_path, [row("/a", 1, [0]), row("/a", 2, [1]), row("/b", 2, [0])])
    (tmp_path / ".breakwater").mkdir()
    files = (InputFile("/a", 150, False, 0), InputFile("/b", 100, False, 0))
    plan = ReadPlan(files, split_bytes=100, lanes=1)
    (tmp_path / ".breakwater" / "plan.json").write_bytes(msgspec.json.encode(plan))
    dead = "dead_letters/queue=q/date=d/error_type=schema_error"
    for name, lines in (("processed_events", 6), ("late_events", 3), (dead, 3)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "p.jsonl").write_text("{}\n" * lines)
    (tmp_path / "user_windows").mkdir()
    (tmp_path / "user_windows" / "p.jsonl").write_text('{"event_count":3}\n')
    return tmp_path


def write_ledger(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "ledger").mkdir(exist_ok=True)
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / "ledger" / "p.jsonl").write_text(text)


def test_books_that_balance(call, output: Path) -> None:
    code, out, err = call("--dir", output)
    assert (code, err) == (0, "")
    assert "balanced: every record is in exactly one place" in out
    assert "rows of 2026-01-01T00:01:00.000Z to 2026-01-01T00:02:00.000Z, 2 source part" in out
    assert [line for line in out.splitlines() if "received" in line and " 9 " in line]


def test_numbers_by_minute_and_by_source(call, output: Path) -> None:
    _, out, _ = call("--dir", output, "--by", "minute")
    assert [line for line in out.splitlines() if "T00:02:00.000Z" in line and " 6 " in line]
    _, out, _ = call("--dir", output, "--by", "partition")
    assert [line for line in out.splitlines() if "/a " in line and " 6 " in line]
    assert "left out" not in out, "offsets of files are bytes"


def test_the_fallback_store_is_counted_and_shown_where_there_is_one(call, output: Path) -> None:
    _, out, _ = call("--dir", output, "--by", "partition")
    assert "fallback" not in out
    write_ledger(output, [row("/a", 1, [0, 1], received=10, fallback=7), row("/b", 1, [0])])
    for name, lines in (("processed_events", 4), ("late_events", 2), ("fallback", 7)):
        (output / name).mkdir(exist_ok=True)
        (output / name / "p.jsonl").write_text("{}\n" * lines)
    (output / "user_windows" / "p.jsonl").write_text('{"event_count":2}\n')
    dead = output / "dead_letters/queue=q/date=d/error_type=schema_error/p.jsonl"
    dead.write_text("{}\n" * 2)
    (output / "fallback" / "undelivered.ndjson").write_text("{}\n")
    code, out, _ = call("--dir", output, "--by", "partition")
    assert code == 0, out
    lines = [line.split() for line in out.splitlines()]
    assert ["source", "partition", "received", "processed", "dead", "quarantined", "fallback",
            "windowed", "late"] in lines  # fmt: skip
    assert ["/a", "10", "2", "1", "0", "7", "1", "1"] in lines
    (output / "fallback" / "p.jsonl").write_text("{}\n" * 6)
    code, out, _ = call("--dir", output)
    assert code == 1
    assert "fallback: the stream counted 7, the output files hold 6 (1 too few)" in out


def test_json_has_all_of_it(call, output: Path) -> None:
    code, out, _ = call("--dir", output, "--json")
    found = json.loads(out)
    assert (code, found["balanced"], found["received"], found["late"]) == (0, True, 9, 3)
    assert [p["received"] for p in found["partitions"]] == [6, 3]
    assert [m["received"] for m in found["minutes"]] == [3, 6]


def test_books_that_do_not_balance(call, output: Path) -> None:
    write_ledger(output, [row("/a", 1, [0, 1]), row("/b", 1, [0], received=4)])
    code, out, _ = call("--dir", output)
    assert code == 1
    assert "off: /b/0: received 4, but processed 2" in out
    assert "balanced" not in out


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_piece_that_was_not_read_is_off_and_the_outputs_are_compared_at_the_end(
    call, output: Path, goes_on: bool
) -> None:
    write_ledger(output, [row("/a", 1, [0])])
    if goes_on:
        checkpoint = output / ".breakwater" / "checkpoints" / "job" / "chk-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "_metadata").touch()
    code, out, _ = call("--dir", output)
    assert code == 1
    assert "off: input: 2 of 3 pieces were not read" in out
    assert ("--resume" in out) is goes_on
    assert ("the output files hold" in out) is not goes_on


@pytest.mark.parametrize("goes_on", [True, False])
def test_something_pending_is_off_when_the_run_has_ended(call, output: Path, goes_on: bool) -> None:
    write_ledger(output, [row("/a", 1, [0, 1], received=4, pending=1), row("/b", 1, [0])])
    if goes_on:
        checkpoint = output / ".breakwater" / "checkpoints" / "job" / "chk-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "_metadata").touch()
    _, out, _ = call("--dir", output)
    assert ("off: the run has ended with 1 events that are pending" in out) is not goes_on


def test_outputs_that_are_not_what_was_counted_are_off(call, output: Path) -> None:
    (output / "processed_events" / "p.jsonl").write_text("{}\n" * 5)
    code, out, _ = call("--dir", output)
    assert code == 1
    assert "processed: the stream counted 6, the output files hold 5" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of them"),
        (["--dir", "out", "--kafka", "localhost:9092"], "--dir stands for itself"),
        (["--dir", "out", "--topic", "ledger"], "--dir stands for itself"),
        (["--dir", "there-is-none"], "has no committed ledger"),
        (["--by", "hour"], "hour"),
        (["--config", "there-is-none.toml"], "there-is-none.toml"),
    ],
)
def test_a_wrong_call_is_one_line(call, arguments: list[str], says: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_row_that_cannot_be_read_is_one_line(call, output: Path) -> None:
    (output / "ledger" / "p.jsonl").write_text("{}\n{\n")
    code, _, err = call("--dir", output)
    assert (code, err.count("\n")) == (1, 1)
    assert "ledger row 2 cannot be read" in err
