"""Jars found by name: each fault is one line that says what to do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from flink_jobs.kafka import jars
from flink_jobs.kafka.jars import KAFKA, JarError, broker_class_path, find_jar

CLASSES = jars._CLASSES[KAFKA]


def make_jar(folder: Path, name: str = f"{KAFKA}-5.0.0-2.2.jar", leave_out: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as jar:
        for each in CLASSES:
            if not leave_out or leave_out not in each:
                jar.writestr(each, "")
    return folder / name


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is where a jar could be."""
    monkeypatch.setattr(jars, "PROJECT_JARS", tmp_path / "project")
    return tmp_path


def test_the_folder_of_the_settings_wins_over_the_projects(places: Path) -> None:
    make_jar(places / "project")
    wanted = make_jar(places / "mine")
    assert find_jar(KAFKA, str(places / "mine"), {}).path == wanted
    assert find_jar(KAFKA, "", {}).path == places / "project" / wanted.name


def test_a_jar_in_flinks_lib_is_on_the_class_path_already(places: Path) -> None:
    made = make_jar(places / "flink" / "lib")
    found = find_jar(KAFKA, "", {"FLINK_HOME": str(places / "flink")})
    assert (found.path, found.in_flink) == (made, True)
    assert not find_jar(KAFKA, str(made.parent), {}).in_flink


def test_a_missing_jar_is_one_line_that_says_make_jars(places: Path) -> None:
    with pytest.raises(JarError, match=r"flink-sql-connector-kafka.* is missing in .*`make jars`"):
        find_jar(KAFKA, "", {"FLINK_HOME": str(places)})
    with pytest.raises(JarError, match=r"no Kafka broker: run `make jars`"):
        broker_class_path(places)


def test_another_connector_of_a_similar_name_is_not_it(places: Path) -> None:
    make_jar(places / "project", f"{KAFKA}-avro-1.0.jar")
    with pytest.raises(JarError, match=r"missing"):
        find_jar(KAFKA, "", {"FLINK_HOME": str(places)})


def test_two_versions_are_refused(places: Path) -> None:
    make_jar(places / "project")
    make_jar(places / "project", f"{KAFKA}-3.3.0-1.20.jar")
    with pytest.raises(JarError, match=r"3.3.0-1.20.jar.*5.0.0-2.2.jar: remove all but one"):
        find_jar(KAFKA, "", {})


def test_another_version_is_told_by_the_class_that_it_lacks(places: Path) -> None:
    make_jar(places / "project", leave_out="TransactionNamingStrategy")
    with pytest.raises(JarError, match=r"lacks TransactionNamingStrategy.*`make jars`"):
        find_jar(KAFKA, "", {})


def test_a_file_that_is_no_jar_is_named(places: Path) -> None:
    (places / "project").mkdir()
    (places / "project" / f"{KAFKA}-5.jar").write_bytes(b"<html>not found</html>")
    with pytest.raises(JarError, match=r"cannot be read as a jar"):
        find_jar(KAFKA, "", {})


def test_the_url_is_one_that_flink_takes(places: Path) -> None:
    make_jar(places / "with space")
    assert "with%20space" in find_jar(KAFKA, str(places / "with space"), {}).url
