"""What has become of the lines of a fallback folder, over commands that were killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flink_jobs.dead_letters.fallback_folder import (
    DELIVERED,
    TO_SEND,
    UNDELIVERED,
    FallbackFolder,
    Part,
)
from flink_jobs.errors import UserError
from tests.unit.flink_jobs.dead_letters.stored import line, reasons, write_part

A, B = "part-aa-0.jsonl", "part-bb-0.jsonl"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "fallback"
    write_part(folder, A, [line("p0"), line("p1"), line("p2")])
    write_part(folder, B, [line("q0")])
    return folder


def parts(root: Path) -> dict[str, Part]:
    return {part.path.name: part for part in FallbackFolder(root).parts()}


def refused(folder: FallbackFolder) -> str:
    with pytest.raises(UserError) as caught, folder.claim():
        pass
    return f"{caught.value.exit_code} {caught.value}"


def why(name: str, number: int, error_type: str = "e") -> dict[str, object]:
    return {"part": name, "line": number + 1, "error_type": error_type, "event": {}}


def test_each_line_is_to_be_sent_until_it_is_marked(root: Path) -> None:
    with FallbackFolder(root).claim():
        part = parts(root)[A]
        assert [number for number, _ in part.to_send()] == [0, 1, 2]
        part.mark([1], DELIVERED)
        part.mark([2], UNDELIVERED)
        part.close()
        again = parts(root)
        assert [(n, text) for n, text in again[A].to_send()] == [(0, f"{line('p0')}\n".encode())]
        assert [again[A].count(mark) for mark in (TO_SEND, DELIVERED, UNDELIVERED)] == [1, 1, 1]
        assert again[B].count(TO_SEND) == 1


def test_a_mark_is_on_the_disk_at_once(root: Path) -> None:
    """Not when the part is closed: a command may be killed at any moment."""
    with FallbackFolder(root).claim():
        part = parts(root)[A]
        part.mark([0], DELIVERED)
        assert parts(root)[A].count(DELIVERED) == 1
        part.close()


def test_only_committed_parts_are_looked_at_the_oldest_first(root: Path) -> None:
    write_part(root, ".part-cc-0.jsonl.inprogress.x", [line("no")])
    write_part(root, "other.jsonl", [line("no")])
    names = ["part-aa-10.jsonl", "part-aa-9.jsonl", B, A]
    for age, name in enumerate(names):
        write_part(root, name, [line(name)])
        os.utime(root / name, ns=(10**18 - age * 10**9,) * 2)
    assert [part.path.name for part in FallbackFolder(root).parts()] == names[::-1]
    for name in names:
        os.utime(root / name, ns=(10**18,) * 2)
    found = [part.path.name for part in FallbackFolder(root).parts()]
    assert found == [A, "part-aa-9.jsonl", "part-aa-10.jsonl", B]


def test_what_a_command_keeps_is_no_part_and_no_input(root: Path) -> None:
    from operators.sources.files import find_files

    folder = FallbackFolder(root)
    with folder.claim():
        folder.add_undelivered([why(A, 0)])
        parts(root)[A].mark([0], UNDELIVERED)
    assert {part.path.name for part in folder.parts()} == {A, B}
    assert {path.name for path in find_files([root], exclude=root.parent / "out")} == {A, B}


def test_two_commands_never_send_the_same_folder(root: Path) -> None:
    with FallbackFolder(root).claim():
        assert "another breakwater deliver is sending" in refused(FallbackFolder(root))
    with FallbackFolder(root).claim():
        pass


@pytest.mark.parametrize(
    ("name", "says"), [("gone", "there is no such folder"), ("", "has no committed part-*.jsonl")]
)
def test_what_is_no_fallback_folder_is_a_wrong_call_and_not_touched(
    root: Path, name: str, says: str
) -> None:
    folder = root.parent / name
    assert refused(FallbackFolder(folder)).startswith(f"2 --from {folder}".rstrip("/"))
    assert says in refused(FallbackFolder(folder))
    assert not (folder / ".deliver").exists()


def test_a_folder_that_nothing_has_gone_to_is_one(tmp_path: Path) -> None:
    with FallbackFolder(tmp_path).claim():
        assert FallbackFolder(tmp_path).parts() == []


# --- a command that was killed


def test_reasons_of_what_is_not_marked_go_and_those_that_stand_twice(root: Path) -> None:
    """It was killed between the reason and the mark, and another time in the middle of a reason."""
    folder = FallbackFolder(root)
    with folder.claim():
        folder.add_undelivered([why(A, 0), why(A, 2, "first"), why(A, 2, "last"), why(B, 0)])
        parts(root)[A].mark([2], UNDELIVERED)
    with folder.undelivered.open("ab") as file:
        file.write(b'{"part":"part-aa-0.jsonl","line":3,"err')
    with folder.claim():
        assert reasons(root) == [why(A, 2, "last")]
        assert folder.reasons() == {"last": 1}
        folder.add_undelivered([why(B, 0)])
        assert len(reasons(root)) == 2


def test_without_any_reason_there_is_no_file(root: Path) -> None:
    folder = FallbackFolder(root)
    with folder.claim():
        folder.add_undelivered([why(A, 0)])
    with folder.claim():
        assert not folder.undelivered.exists()


def test_what_was_given_up_can_be_sent_again(root: Path) -> None:
    folder = FallbackFolder(root)
    with folder.claim():
        folder.add_undelivered([why(A, 2)])
        part = parts(root)[A]
        part.mark([2], UNDELIVERED)
        part.mark([0], DELIVERED)
    with folder.claim():
        folder.send_again()
        assert [number for number, _ in parts(root)[A].to_send()] == [1, 2]
        assert not folder.undelivered.exists()
