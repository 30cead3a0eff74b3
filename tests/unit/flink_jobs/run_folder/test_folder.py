"""Who may write to the output folder, and what is removed from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flink_jobs.errors import UserError
from flink_jobs.run_folder import folder as output
from flink_jobs.run_folder.folder import OUTPUTS, Mode, OutputFolder, is_our_jvm


def a_run_in(root: Path) -> OutputFolder:
    """A folder as a run leaves it that was killed."""
    folder = OutputFolder(root)
    with folder.claim("new"):
        folder.plan.write_text("{}")
        folder.settings.write_text("{}")
        folder.progress.write_text("{}")
        folder.ledger_json.write_text("{}")
        for name in (*OUTPUTS, ".breakwater/checkpoints/job/chk-1", ".breakwater/log"):
            (folder.root / name).mkdir(parents=True)
            (folder.root / name / "part.jsonl").write_text("{}\n")
    return folder


def claimed(folder: OutputFolder, mode: Mode) -> str:
    """What a claim says: nothing when it is granted."""
    try:
        with folder.claim(mode):
            return ""
    except UserError as error:
        return error.message


@pytest.mark.parametrize("name", ["new", "a/b/c", "sp ace %20 # ü +"])
def test_a_new_folder_is_made(tmp_path, name):
    folder = OutputFolder(tmp_path / name)
    assert claimed(folder, "new") == ""
    assert folder.state.is_dir()


def test_a_folder_with_a_run_is_resumed_or_overwritten_but_not_new(tmp_path):
    folder = a_run_in(tmp_path / "out")
    assert "--resume" in claimed(folder, "new")
    assert "--overwrite" in claimed(folder, "new")
    assert claimed(folder, "resume") == ""
    assert claimed(folder, "overwrite") == ""


@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_a_folder_of_somebody_else_is_never_touched(tmp_path, mode):
    """--overwrite with a mistyped name must not cost anybody their files."""
    for name in ("thesis.tex", "processed_events/part.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    assert "no run of Breakwater has written" in claimed(OutputFolder(tmp_path), mode)
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting_removes_what_a_run_has_written_and_nothing_else(tmp_path):
    folder = a_run_in(tmp_path / "out")
    (folder.root / "notes.txt").write_text("mine")
    (folder.root / "mine").mkdir()
    assert claimed(folder, "overwrite") == ""
    left = sorted(str(p.relative_to(folder.root)) for p in folder.root.rglob("*"))
    assert left == [".breakwater", ".breakwater/lock", "mine", "notes.txt"]


def test_what_is_left_of_an_overwriting_that_was_killed_is_no_run(tmp_path):
    """Its plan goes first: half of its outputs must not be taken for the whole."""
    folder = a_run_in(tmp_path / "out")
    folder.plan.unlink()
    assert "what is left of a run" in claimed(folder, "new")
    assert "nothing to resume" in claimed(folder, "resume")
    assert claimed(folder, "overwrite") == ""
    assert claimed(folder, "new") == ""


def test_a_folder_that_a_run_has_only_made_is_new(tmp_path):
    (tmp_path / "out" / ".breakwater").mkdir(parents=True)
    assert claimed(OutputFolder(tmp_path / "out"), "new") == ""


def test_nothing_is_resumed_where_nothing_has_begun(tmp_path):
    assert "nothing to resume" in claimed(OutputFolder(tmp_path / "gone"), "resume")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    assert "choose another" in claimed(OutputFolder(tmp_path / name), "new")


def test_two_runs_never_write_to_one_folder(tmp_path):
    folder = a_run_in(tmp_path / "out")
    with folder.claim("resume"):
        for mode in ("resume", "overwrite"):
            assert "another run is writing" in claimed(OutputFolder(folder.root), mode)
    assert folder.plan.exists(), "the refused one has removed something"
    assert claimed(folder, "resume") == ""


@pytest.mark.parametrize("jvm_pid", [None, 2**22 + 1, os.getpid()])
def test_the_temporary_folder_of_a_killed_run_goes_with_the_next_one(tmp_path, jvm_pid):
    """Java may not have started, may have ended, and its number may be another process's now."""
    folder = a_run_in(tmp_path / "out")
    left = tmp_path / "breakwater-x"
    (left / "blobs").mkdir(parents=True)
    folder.mark_run(jvm_pid, left)
    assert claimed(folder, "resume") == ""
    assert not left.exists()


def test_a_folder_that_is_not_ours_is_not_removed_whatever_the_mark_says(tmp_path):
    folder = a_run_in(tmp_path / "out")
    precious = tmp_path / "precious"
    precious.mkdir()
    folder.mark_run(None, precious)
    assert claimed(folder, "resume") == ""
    assert precious.exists()


def test_a_java_process_that_does_not_end_is_named(tmp_path, monkeypatch):
    folder = a_run_in(tmp_path / "out")
    folder.mark_run(os.getpid(), tmp_path / "breakwater-x")
    monkeypatch.setattr(output, "is_our_jvm", lambda pid: pid == os.getpid())
    monkeypatch.setattr(output, "_FORMER_RUN_ENDS_WITHIN_S", 0.3)
    assert f"end it (kill {os.getpid()})" in claimed(folder, "resume")


def test_a_process_that_is_no_java_of_ours_is_not_waited_for():
    assert not is_our_jvm(os.getpid())
    assert not is_our_jvm(2**22 + 1)


def test_the_newest_complete_checkpoint_is_found_whatever_job_took_it(tmp_path):
    folder = OutputFolder(tmp_path)
    assert folder.newest_checkpoint() is None
    for name in ("old/chk-9", "new/chk-10", "new/chk-11"):
        (folder.checkpoints / name).mkdir(parents=True)
    for name in ("old/chk-9", "new/chk-10"):
        (folder.checkpoints / name / "_metadata").touch()
    assert folder.newest_checkpoint() == folder.checkpoints / "new" / "chk-10"


def test_only_committed_files_are_parts(tmp_path):
    folder = a_run_in(tmp_path / "out")
    (folder.root / "ledger" / ".part-1.jsonl.inprogress.x").touch()
    (folder.root / "ledger" / ".hidden.jsonl").touch()
    assert [p.name for p in folder.parts("ledger")] == ["part.jsonl"]


def test_after_a_run_nothing_stays_but_its_output_and_its_plan(tmp_path):
    folder = a_run_in(tmp_path / "out")
    folder.mark_run(1, tmp_path / "breakwater-x")
    (folder.root / "ledger" / ".part-1.jsonl.inprogress.x").touch()
    folder.clean_up()
    assert sorted(p.name for p in folder.state.iterdir()) == ["lock", "plan.json", "settings.json"]
    assert sorted(p.name for p in folder.root.iterdir()) == sorted(
        [".breakwater", "ledger.json", *OUTPUTS]
    )
    assert not list(folder.root.rglob("*inprogress*"))
