"""The zip that a cluster gets: our packages, their SQL and Java, the user's contract, the settings.

The same content gives the same bytes, so its checksum tells which version a job runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.settings import Settings, load_settings

PACKAGES: Final = ("flink_jobs", "operators", "udfs", "sql")
SETTINGS: Final = "breakwater.toml"
_ENTRY: Final = "flink_jobs/on_cluster.py"
_SUFFIXES: Final = (".py", ".sql", ".java")
#: The earliest that a zip can say: our own times would make each package another one.
_ALWAYS: Final = (1980, 1, 1, 0, 0, 0)
_READABLE: Final = 0o644 << 16


class PackageError(UserError):
    """A package cannot be made, or is none: one line that names the file."""


@dataclass(frozen=True)
class Package:
    """A package on disk.

    Attributes:
        path: the zip.
        names: what is in it.
        checksum: SHA-256 of its bytes.
    """

    path: Path
    names: tuple[str, ...]
    checksum: str

    @classmethod
    def open(cls, path: Path) -> Package:
        """Look into a package.

        Raises:
            PackageError: there is none, or it is another zip.
        """
        try:
            with zipfile.ZipFile(path) as zipped:
                names = tuple(zipped.namelist())
        except FileNotFoundError:
            raise PackageError(f"{path}: there is no such package", WRONG_CALL) from None
        except (OSError, zipfile.BadZipFile) as error:
            raise PackageError(
                f"{path}: cannot be read as a package ({error})", WRONG_CALL
            ) from None
        for wanted in (_ENTRY, SETTINGS):
            if wanted not in names:
                raise PackageError(
                    f"{path}: is no package of Breakwater, it lacks {wanted}; make one with "
                    "breakwater package",
                    WRONG_CALL,
                )
        return cls(path.resolve(), names, hashlib.sha256(path.read_bytes()).hexdigest())

    def extract_settings(self, folder: Path) -> Path:
        """Write its settings file into a folder."""
        with zipfile.ZipFile(self.path) as zipped:
            return Path(zipped.extract(SETTINGS, folder))


def build(config: Path, out: Path) -> Package:
    """Make a package.

    Args:
        config: the settings; they are checked, and the contract that they name is found.
        out: the zip; replaced if it is there.

    Raises:
        UserError: the settings are wrong, or the file cannot be written.
    """
    settings = load_settings(config)
    files = {SETTINGS: config, **dict(_own_files()), **dict(_users_files(settings))}
    partial = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as zipped:
            for name in sorted(files):
                _add(zipped, name, files[name].read_bytes())
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PackageError(
            f"--out {out}: cannot be written ({error.strerror})", WRONG_CALL
        ) from None
    return Package.open(out)


def _add(zipped: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _ALWAYS)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3
    entry.external_attr = _READABLE
    zipped.writestr(entry, content)


def _own_files() -> Iterator[tuple[str, Path]]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise PackageError(f"our own package {name} cannot be found: run make venv")
        yield from _files_of(Path(next(iter(spec.submodule_search_locations))))


def _files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in _SUFFIXES:
            yield path.relative_to(folder.parent).as_posix(), path


def _users_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """The contract's module, and what it imports from beside it.

    What is installed here (a package of the environment) has to be installed on the cluster too.
    """
    contract = _place_of(settings.contract.type.partition(":")[0].partition(".")[0])
    if contract is None:
        return
    for name in sorted({name.partition(".")[0] for name in sys.modules}):
        place = _place_of(name)
        if place is not None and place.parent == contract.parent:
            yield from _files_of(place) if place.is_dir() else [(place.name, place)]


def _place_of(name: str) -> Path | None:
    """The folder or file of a top-level module; None for ours, installed and built-in ones."""
    module = sys.modules.get(name)
    found = [*getattr(module, "__path__", []), getattr(module, "__file__", None)]
    if name in (*PACKAGES, "__main__") or not found[0]:
        return None
    place = Path(found[0]).resolve()
    installed = {Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "purelib", "platlib")}
    return None if installed & set(place.parents) else place
