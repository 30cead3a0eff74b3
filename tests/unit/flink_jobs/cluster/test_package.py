"""The zip that a cluster gets."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flink_jobs.cluster.package import Package, PackageError, build

ROOT = Path(__file__).resolve().parents[3]

SHOP = """
import msgspec
from datetime import datetime
import prices

class Event(msgspec.Struct):
    user_id: str
    price: float
    timestamp: datetime
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "breakwater.toml"
    path.write_text("parallelism = 3\n")
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A user's folder: a contract that imports a module beside it."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop_contract.py").write_text(SHOP)
    (folder / "prices.py").write_text("LOWEST = 0\n")
    (folder / "unused.py").write_text("")
    (folder / "shop.toml").write_text('[contract]\ntype = "shop_contract:Event"\n')
    return folder


def package(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: what is imported here must not matter."""
    return subprocess.run(
        [sys.executable, "-m", "flink_jobs.cli", "package", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_it_holds_code_java_sql_and_settings_and_nothing_else(config: Path, tmp_path: Path) -> None:
    made = build(config, tmp_path / "app.zip")
    assert {
        "breakwater.toml",
        "flink_jobs/on_cluster.py",
        "operators/rules/ledger.py",
        "operators/bridge/jvm/Marks.java",
        "sql/user_windows.sql",
        "udfs/ecommerce.py",
    } <= set(made.names)
    assert {Path(name).suffix for name in made.names} == {".py", ".sql", ".java", ".toml"}
    assert {name.split("/")[0] for name in made.names} == {
        "breakwater.toml", "flink_jobs", "operators", "sql", "udfs",
    }  # fmt: skip


def test_the_same_content_gives_the_same_bytes_whenever_it_is_made(
    config: Path, tmp_path: Path
) -> None:
    first = build(config, tmp_path / "a.zip")
    os.utime(config, (1_000_000_000, 1_000_000_000))
    second = build(config, tmp_path / "b.zip")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.checksum == second.checksum


def test_another_setting_gives_another_checksum(config: Path, tmp_path: Path) -> None:
    first = build(config, tmp_path / "a.zip")
    config.write_text("parallelism = 4\n")
    assert build(config, tmp_path / "b.zip").checksum != first.checksum


def test_the_settings_come_out_as_they_went_in(config: Path, tmp_path: Path) -> None:
    made = build(config, tmp_path / "app.zip")
    assert made.extract_settings(tmp_path / "out").read_bytes() == config.read_bytes()


def test_a_users_contract_and_what_it_imports_are_in_it(shop: Path, tmp_path: Path) -> None:
    ended = package("--config", shop / "shop.toml", "--out", "app.zip", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    names = set(zipfile.ZipFile(tmp_path / "app.zip").namelist())
    assert {"shop_contract.py", "prices.py"} <= names
    assert "unused.py" not in names
    assert "shop_contract.py" in ended.stdout.splitlines()
    assert ended.stdout.splitlines()[-1].startswith("sha256 ")


def test_wrong_settings_are_refused_before_anything_is_written(
    config: Path, tmp_path: Path
) -> None:
    config.write_text("paralelism = 3\n")
    ended = package("--config", config, "--out", "app.zip", cwd=tmp_path)
    assert ended.returncode == 2
    assert "did you mean parallelism?" in ended.stderr
    assert not (tmp_path / "app.zip").exists()


def test_a_folder_that_is_not_there_is_named(config: Path, tmp_path: Path) -> None:
    ended = package("--config", config, "--out", "no/app.zip", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        "breakwater: --out no/app.zip: cannot be written (No such file or directory)\n"
    )


def test_what_is_no_package_is_refused_with_its_name(tmp_path: Path) -> None:
    missing, text, other = (tmp_path / name for name in ("missing", "text", "other"))
    text.write_text("not a zip")
    with zipfile.ZipFile(other, "w") as zipped:
        zipped.writestr("breakwater.toml", "")
    for path, wanted in (
        (missing, "there is no such package"),
        (text, "cannot be read as a package"),
        (other, "it lacks flink_jobs/on_cluster.py"),
    ):
        with pytest.raises(PackageError, match=wanted) as caught:
            Package.open(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 2
