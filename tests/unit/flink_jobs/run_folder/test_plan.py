"""What a run reads: listing it, keeping the list, and files that change meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from flink_jobs.errors import UserError
from flink_jobs.run_folder.plan import load_plan, plan_files, refuse_changed_files, save_plan
from flink_jobs.settings import Settings
from operators.rules.splits import ReadPlan

EVENT = (
    '{"user_id":"u","product_id":"p","action":"view","price":1,'
    '"timestamp":"2026-01-01T00:00:0%d.000Z"}\n'
)
START_MS = 1_767_225_600_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "late.jsonl").write_text("not an event\n" + EVENT % 9)
    (folder / "early.jsonl").write_text(EVENT % 1)
    (folder / "empty.jsonl").touch()
    return folder


def planned(*inputs: Path, output: Path = Path("/nowhere")) -> ReadPlan:
    return plan_files(Settings(), inputs, output)


def test_files_are_read_in_order_of_their_first_good_event(folder):
    """One that has none comes first: it holds all windows open."""
    files = planned(folder).files
    assert [Path(f.path).stem for f in files] == ["empty", "early", "late"]
    assert [f.first_event_ms for f in files] == [None, START_MS + 1000, START_MS + 9000]


def test_a_plan_reads_back_the_same(folder, tmp_path):
    plan = planned(folder)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert not (tmp_path / "plan.tmp").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"files": 1}'])
def test_a_damaged_plan_is_told_with_what_to_do(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot be read .* start again with --overwrite"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("inside", ["in", "in/early.jsonl"])
def test_input_that_lies_in_the_output_is_refused(folder, inside):
    """It would be left out without a word, or be removed by --overwrite."""
    with pytest.raises(UserError, match="lies in the output folder") as caught:
        planned(folder.parent / inside, output=folder)
    assert caught.value.exit_code == 2


def test_output_that_lies_in_the_input_is_not_read(folder):
    output = folder / "out"
    output.mkdir()
    (output / "part.jsonl").write_text(EVENT % 2)
    assert len(planned(folder, output=output).files) == 3


def test_a_path_that_does_not_exist_is_a_wrong_call(tmp_path):
    with pytest.raises(UserError, match="does not exist") as caught:
        planned(tmp_path / "gone")
    assert caught.value.exit_code == 2


def test_files_that_are_there_or_have_grown_or_were_empty_are_fine(folder):
    plan = planned(folder)
    with (folder / "early.jsonl").open("a") as file:
        file.write(EVENT % 2)
    (folder / "empty.jsonl").unlink()
    refuse_changed_files(plan)


def test_a_file_that_has_vanished_is_named_with_what_to_do(folder):
    plan = planned(folder)
    (folder / "late.jsonl").unlink()
    with pytest.raises(UserError, match=r"late\.jsonl .*put it back and run again with --resume"):
        refuse_changed_files(plan)


def test_a_file_that_has_shrunk_is_named_with_what_to_do(folder):
    plan = planned(folder)
    (folder / "late.jsonl").write_text(EVENT % 9)
    with pytest.raises(UserError, match=r"late\.jsonl has shrunk .*run again with --resume") as e:
        refuse_changed_files(plan)
    assert e.value.exit_code == 1
