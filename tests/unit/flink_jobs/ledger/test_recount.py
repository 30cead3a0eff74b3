"""The second count on files written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from flink_jobs.ledger.recount import count_lines, coverage, recount
from flink_jobs.run_folder.folder import OutputFolder
from operators.rules.ledger import Counts
from operators.rules.splits import InputFile, ReadPlan

#: Two files of two pieces and one; an empty file has none.
PLAN = ReadPlan(
    (InputFile("/a", 150, False, 0), InputFile("/b", 100, False, 0), InputFile("/c", 0, False, 0)),
    split_bytes=100,
    lanes=1,
)
A0, A1, B0 = ("/a", 0), ("/a", 1), ("/b", 0)


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder(tmp_path)


def write(folder: OutputFolder, name: str, text: str) -> None:
    path = folder.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(*pieces: tuple[str, int]) -> str:
    """The stream's rows: the first two pieces in one, when one file's, and one before any ends."""
    row = '{{"received":2,"processed":1,"source_topic":"{}","splits":{}}}\n'
    rows = row.format(pieces[0][0], [])
    while pieces:
        path = pieces[0][0]
        together = [split for of, split in pieces[:2] if of == path]
        rows += row.format(path, together)
        pieces = pieces[len(together) :]
    return rows


def test_input_that_was_read_once_is_covered(folder):
    write(folder, "ledger/part-0.jsonl", read(A0, B0))
    write(folder, "ledger/part-1.jsonl", read(A1))
    assert coverage(folder, PLAN).problems() == []


def test_a_piece_that_was_not_read_is_named(folder):
    write(folder, "ledger/part-0.jsonl", read(A0, B0))
    found = coverage(folder, PLAN)
    assert found.missing == [A1]
    assert found.problems() == ["input: 1 of 3 pieces were not read, the first is piece 1 of /a"]


def test_a_piece_that_was_begun_and_not_ended_is_missing(folder):
    begun = read(A1).splitlines(keepends=True)[0]
    assert "[]" in begun
    write(folder, "ledger/part-0.jsonl", read(A0, B0) + begun)
    assert coverage(folder, PLAN).missing == [A1]


def test_a_piece_that_was_read_twice_is_named(folder):
    write(folder, "ledger/part-0.jsonl", read(A0, A1, B0))
    write(folder, "ledger/part-1.jsonl", read(B0))
    found = coverage(folder, PLAN)
    assert found.again == [B0]
    assert found.problems() == [
        "input: 1 of 3 pieces were read more than once, the first is piece 0 of /b"
    ]


def test_one_piece_missing_and_another_twice_do_not_make_up_for_each_other(folder):
    write(folder, "ledger/part-0.jsonl", read(A0, A0, B0))
    assert len(coverage(folder, PLAN).problems()) == 2


def test_hidden_files_are_not_committed_and_not_counted(folder):
    write(folder, "ledger/.part-0.jsonl.inprogress.x", read(A0))
    write(folder, "ledger/.part-1.jsonl", read(A0))
    write(folder, "processed_events/.part-0.jsonl", "{}\n")
    assert coverage(folder, PLAN).missing == [A0, A1, B0]
    assert recount(folder) == Counts()


def test_files_are_counted_by_what_their_folders_say(folder):
    write(folder, "processed_events/p.jsonl", "{}\n" * 5)
    write(folder, "late_events/p.jsonl", "{}\n" * 2)
    write(folder, "user_windows/p.jsonl", '{"event_count":2,"x":1}\n{"event_count":1}\n')
    for date in ("2026-01-01", "2026-01-02"):
        write(folder, f"dead_letters/queue=q/date={date}/error_type=a/p.jsonl", "{}\n")
    write(folder, "quarantine/reason=r/p.jsonl", "{}\n" * 3)
    write(folder, "fallback/p.jsonl", "{}\n" * 4)
    assert recount(folder) == Counts(
        processed=5, dead_lettered={"a": 2}, quarantined={"r": 3}, windowed=3, late=2, fallback=4
    )


def test_lines_are_counted_in_files_of_any_size(tmp_path):
    small, large = tmp_path / "a", tmp_path / "b"
    small.write_bytes(b"")
    large.write_bytes(b"x" * (1 << 20) + b"\n" * 3)
    assert count_lines([small, large]) == 3
