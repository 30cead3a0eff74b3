from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

from flink_jobs.local import checks as check
from flink_jobs.local.checks import run_checks
from flink_jobs.machine.java import Java, JavaError
from flink_jobs.run_folder.folder import OutputFolder
from flink_jobs.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def java(monkeypatch) -> None:
    """No test of this file starts a JVM."""
    found = Java(Path("/java"), 17, "PATH", "JAVA_HOME: /x is Java 8, not 11 to 21")
    monkeypatch.setattr(check, "find_java", lambda environ: found)


def folder_of_input(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}\n" * 100)
    (folder / "b.json").write_text("{}\n" * 100)
    (folder / "notes.txt").write_text("no input")
    return folder


def test_this_machine_is_ready(tmp_path):
    results = run_checks(Settings(), [folder_of_input(tmp_path)], tmp_path / "out")
    assert [result.name for result in results] == [
        "python",
        "packages",
        "our packages",
        "java",
        "paths",
        "settings",
        "input",
        "output",
        "disk",
    ]
    assert [result for result in results if not result.ok] == []


def test_input_and_output_are_looked_at_only_when_given():
    names = {result.name for result in run_checks(Settings())}
    assert names.isdisjoint({"input", "output"})
    assert "disk" in names


def test_java_is_told_with_its_version_and_origin():
    result = check.java_check({})
    assert result.detail == (
        "17 from PATH, /java (passed over: JAVA_HOME: /x is Java 8, not 11 to 21)"
    )


def test_a_missing_java_is_told_with_what_to_do(monkeypatch):
    def none(environ: object) -> Java:
        raise JavaError("no Java 11 to 21 found (PATH: one; two); set JAVA_HOME")

    monkeypatch.setattr(check, "find_java", none)
    result = check.java_check({})
    assert not result.ok
    assert result.detail == "no Java 11 to 21 found (PATH: one; two)"
    assert result.advice == "set JAVA_HOME"


def test_the_environment_that_was_given_is_searched_for_java(monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(
        check, "find_java", lambda environ: asked.append(environ) or Java(Path(), 17, "")
    )
    run_checks(Settings(), environ={"JAVA_HOME": "/x"})
    run_checks(Settings())
    assert asked == [{"JAVA_HOME": "/x"}, os.environ]


@pytest.mark.parametrize("version", [(3, 9, 1), (3, 13, 0), (2, 7, 18)])
def test_another_python_is_refused(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert not check.python_check().ok


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 11, 7), (3, 12, 12)])
def test_supported_pythons_are_taken(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert check.python_check().ok


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("apache-flink", "2.3.0", True),
        ("apache-flink", "2.3.7", True),
        ("apache-flink", "2.2.1", False),
        ("apache-flink", "2.4.0", False),
        ("apache-flink", "", False),
        ("pyarrow", "16.1.0", True),
        ("pyarrow", "15.0.2", False),
        ("pyarrow", "21.0.0", False),
        ("msgspec", "0.22.0", True),
        ("msgspec", "0.18.6", False),
        ("msgspec", "1.0", False),
    ],
)
def test_package_versions_are_compared_as_numbers(monkeypatch, name, version, fits):
    monkeypatch.setattr(check, "NEEDED", {name: check.NEEDED[name]})
    monkeypatch.setattr(check, "_installed", lambda _: version)
    result = check.packages_check()
    assert result.ok == fits
    assert name in result.detail
    assert (name in result.advice) != fits


def test_a_package_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(check, "NEEDED", {"no-such-package": ((1,), (2,))})
    assert check.packages_check().detail == "no-such-package is not installed"
    assert not check.packages_check().ok


@pytest.mark.parametrize("name", ["operators", "udfs", "sql"])
def test_a_stranger_with_the_name_of_our_package_is_told(tmp_path, monkeypatch, name):
    """Trap T3: it would be the stranger's code that the job runs."""
    stranger = tmp_path / name / "__init__.py"
    stranger.parent.mkdir()
    stranger.write_text("")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    result = check.own_packages_check()
    assert not result.ok
    assert result.detail == f"{name} is {stranger}"


def test_a_missing_package_of_ours_is_told(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sql" else real(name)
    )
    assert check.own_packages_check().detail == "sql is missing"


def test_a_module_without_origin_in_our_place_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sql", ModuleType("sql"))
    assert check.own_packages_check().detail == "sql is missing"


def test_a_wrong_setting_is_told_with_what_to_do():
    error = SettingsError("windows.size_ms = 0: must be at least 1000; change --size-ms")
    result = check.settings_check(error)
    assert not result.ok
    assert result.detail == "windows.size_ms = 0: must be at least 1000"
    assert result.advice == "change --size-ms"


def test_the_input_is_counted_in_files_and_bytes(tmp_path):
    result, size = check.input_check([folder_of_input(tmp_path)], None)
    assert result.ok
    assert result.detail == "2 files, 600 bytes"
    assert size == 600


def test_input_below_the_output_is_not_counted(tmp_path):
    folder = folder_of_input(tmp_path)
    (folder / "out").mkdir()
    (folder / "out" / "part.jsonl").write_text("{}\n")
    assert check.input_check([folder], folder / "out")[1] == 600


def test_an_input_that_does_not_exist_is_told(tmp_path):
    result, size = check.input_check([tmp_path / "gone"], None)
    assert not result.ok
    assert str(tmp_path / "gone") in result.detail
    assert size is None


def test_input_that_cannot_be_looked_at_without_pyflink_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flink_jobs.run_folder.plan", None)
    result, size = check.input_check([tmp_path], None)
    assert (result.ok, size) == (False, None)
    assert result.detail.startswith("not looked at (")


def test_a_folder_without_input_is_told(tmp_path):
    assert not check.input_check([tmp_path], None)[0].ok


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """Permissions do not hold for root, so the refusal is made."""

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    folder = folder_of_input(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    result, _ = check.input_check([folder], None)
    assert not result.ok
    assert result.detail == f"{folder}/a.jsonl: Permission denied"


def test_an_output_that_is_not_there_yet_is_ready(tmp_path):
    result = check.output_check(tmp_path / "a" / "b")
    assert result.ok
    assert not (tmp_path / "a").exists()


def test_an_empty_output_is_ready_and_stays_empty(tmp_path):
    assert check.output_check(tmp_path).ok
    assert list(tmp_path.iterdir()) == []


def test_an_output_with_somebody_elses_files_is_told(tmp_path):
    (tmp_path / "old").write_text("")
    result = check.output_check(tmp_path)
    assert not result.ok
    assert result.detail == f"{tmp_path} is not empty and holds no run"


def test_an_output_that_holds_a_run_is_told_with_the_two_ways_on(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.state.mkdir()
    folder.plan.write_text("{}")
    result = check.output_check(tmp_path)
    assert result.ok
    assert "--resume" in result.detail
    assert "--overwrite" in result.detail


def test_what_an_overwriting_run_that_was_killed_has_left_can_be_overwritten(tmp_path):
    """The run takes it, so the check must not refuse it."""
    OutputFolder(tmp_path).state.mkdir()
    assert check.output_check(tmp_path).detail == f"{tmp_path} is empty"
    (tmp_path / "processed_events").mkdir()
    result = check.output_check(tmp_path)
    assert result.ok
    assert result.detail == f"{tmp_path} holds what is left of a run: --overwrite it"


def test_a_temporary_folder_that_pyflink_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(check.tempfile, "tempdir", "/my files")
    result = check.paths_check()
    assert not result.ok
    assert result.detail.startswith("temporary folder /my files: PyFlink cannot use")
    assert result.advice == "set TMPDIR to another"


def test_a_flink_option_that_a_run_chooses_itself_is_told():
    result = check.settings_check(Settings(flink={"io.tmp.dirs": "/x"}))
    assert not result.ok
    assert result.advice == "remove it"


def test_input_that_lies_in_the_output_is_told(tmp_path):
    result, _ = check.input_check([folder_of_input(tmp_path)], tmp_path)
    assert not result.ok
    assert "lies in the output folder" in result.detail


def test_an_output_that_is_a_file_or_lies_below_one_is_told(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert not check.output_check(file).ok
    assert not check.output_check(file / "out").ok


def test_an_output_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refuse(dir: Path) -> None:  # noqa: A002, as tempfile calls it
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(check.tempfile, "TemporaryFile", refuse)
    result = check.output_check(tmp_path / "out")
    assert not result.ok
    assert result.detail == f"{tmp_path}: Read-only file system"


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "size", "ok"),
    [
        (1_000_000_000, None, True),
        (999_999_999, None, False),
        (999_999_999, 1, False),
        (4_000_000_000, 2_000_000_000, True),
        (3_999_999_999, 2_000_000_000, False),
    ],
)
def test_the_disk_has_room_for_twice_the_input_and_a_gigabyte(
    tmp_path, monkeypatch, free, size, ok
):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free))
    result = check.disk_check(tmp_path / "not" / "there", size)
    assert result.ok == ok
    assert " free at " in result.detail
    assert " wanted (2 times the input, at least 1.0 GB)" in result.detail
