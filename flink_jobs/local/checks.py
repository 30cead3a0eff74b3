"""Is this machine ready: what a run needs, looked at one by one without starting one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flink_jobs.errors import UserError
from flink_jobs.machine.java import JavaError, find_java
from flink_jobs.machine.paths import refuse_odd_paths

if TYPE_CHECKING:  # the settings import our packages, of which we check that they are ours
    from flink_jobs.settings import Settings

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
# Flink is pinned: the bridge uses its internals. The others have what we call since these versions.
NEEDED = {"apache-flink": ((2, 3), (2, 3)), "pyarrow": ((16,), (20,)), "msgspec": ((0, 19), (0,))}
OUR_PACKAGES = ("flink_jobs", "operators", "udfs", "sql")
LEAST_FREE_BYTES = 1_000_000_000
FREE_PER_INPUT = 2  # the output's envelopes and records are larger than what they were read from


@dataclass(frozen=True)
class Check:
    """One thing that a run needs.

    Attributes:
        name: What was looked at.
        ok: Whether it is as a run needs it.
        detail: What was found.
        advice: What to do when it is not ok.
    """

    name: str
    ok: bool
    detail: str
    advice: str = ""


def run_checks(
    settings: Settings | UserError,
    inputs: Sequence[Path] = (),
    output: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[Check]:
    """Look at everything; input and output only when they are given."""
    checks = [
        python_check(),
        packages_check(),
        own_packages_check(),
        java_check(os.environ if environ is None else environ),
        paths_check(),
        settings_check(settings),
    ]
    size = None
    if inputs:
        check, size = input_check(inputs, output)
        checks.append(check)
    if output is not None:
        checks.append(output_check(output))
    return [*checks, disk_check(output or Path(), size)]


def python_check() -> Check:
    """The Python that runs this."""
    version = sys.version_info[:2]
    return Check(
        "python",
        OLDEST_PYTHON <= version <= NEWEST_PYTHON,
        f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}",
        "make the environment with Python 3.10, 3.11 or 3.12",
    )


def packages_check() -> Check:
    """Installed versions of what must fit together."""
    found = {name: _installed(name) for name in NEEDED}
    wrong = [name for name, version in found.items() if not _fits(name, version)]
    return Check(
        "packages",
        not wrong,
        ", ".join(f"{name} {version or 'is not installed'}" for name, version in found.items()),
        f"{', '.join(wrong)}: install the versions of constraints.txt (make venv)",
    )


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _fits(name: str, version: str) -> bool:
    """Whether the version lies in the range, as far as the range's ends are written out."""
    low, high = NEEDED[name]
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    return low <= parts and parts[: len(high)] <= high


def own_packages_check() -> Check:
    """Trap T3: their names are common, so a folder earlier on sys.path can take their place."""
    root = Path(__file__).resolve().parents[2]
    strangers = [
        f"{name} is {origin or 'missing'}"
        for name in OUR_PACKAGES
        if (origin := _origin(name)) is None or origin != root / name / "__init__.py"
    ]
    return Check(
        "our packages",
        not strangers,
        "; ".join(strangers) or f"{', '.join(OUR_PACKAGES)} of {root}",
        f"take the folder with that name off PYTHONPATH; ours is in {root}",
    )


def _origin(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec has taken the name
        return None
    return Path(spec.origin).resolve() if spec and spec.origin else None


def java_check(environ: Mapping[str, str]) -> Check:
    """The Java that Flink will run on."""
    try:
        java = find_java(environ)
    except JavaError as error:
        return Check("java", False, *_detail_and_advice(error))
    passed_over = f" (passed over: {java.note})" if java.note else ""
    return Check("java", True, f"{java.version} from {java.origin}, {java.home}{passed_over}")


def paths_check() -> Check:
    """Where Python is and where temporary files go."""
    try:
        refuse_odd_paths()
    except UserError as error:
        return Check("paths", False, *_detail_and_advice(error))
    return Check("paths", True, f"temporary files in {tempfile.gettempdir()}")


def settings_check(settings: Settings | UserError) -> Check:
    """The settings, or why there are none."""
    if isinstance(settings, UserError):
        return Check("settings", False, *_detail_and_advice(settings))
    from flink_jobs.wiring.reserved import refuse_own_options  # noqa: PLC0415, needs what settings need

    try:
        refuse_own_options(settings)
    except UserError as error:
        return Check("settings", False, *_detail_and_advice(error))
    return Check(
        "settings", True, f"contract {settings.contract.type}, parallelism {settings.parallelism}"
    )


def _detail_and_advice(error: UserError) -> tuple[str, str]:
    """Our one-line messages put what to do after the last semicolon."""
    detail, _, advice = error.message.rpartition("; ")
    return (detail, advice) if detail else (advice, "")


def input_check(inputs: Sequence[Path], output: Path | None) -> tuple[Check, int | None]:
    """Every file that would be read; also their size, None when it is not known."""
    try:
        sizes = [_readable_size(path) for path in _input_files(inputs, output)]
    except OSError as error:
        detail = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return Check("input", False, detail, "correct --input"), None
    except ImportError as error:
        return Check("input", False, f"not looked at ({error})", "mend the packages first"), None
    files = "1 file" if len(sizes) == 1 else f"{len(sizes):,} files"
    return Check("input", True, f"{files}, {_size(sum(sizes))}"), sum(sizes)


def _input_files(inputs: Sequence[Path], output: Path | None) -> list[Path]:
    from flink_jobs.run_folder.plan import find_input  # noqa: PLC0415, needs PyFlink: others do not

    # A name that no input lies under, when there is no output to leave out.
    return find_input(inputs, output or Path(os.devnull))


def _readable_size(path: Path) -> int:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size


def output_check(output: Path) -> Check:
    """The output folder: it can be written to, and holds nothing that a run would refuse."""
    place = _existing(output)
    if not place.is_dir():
        return Check("output", False, f"{place} is not a folder", "choose another --output")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check(
            "output", False, f"{place}: {error.strerror}", "choose another --output or its rights"
        )
    if place != output:
        return Check("output", True, f"{output} will be created")
    from flink_jobs.run_folder.folder import OutputFolder  # noqa: PLC0415, needs msgspec: others do not

    content = OutputFolder(output).content()
    details = {
        "nothing": f"{output} is empty",
        "run": f"{output} holds a run: --resume or --overwrite it",
        "remains": f"{output} holds what is left of a run: --overwrite it",
        "strangers": f"{output} is not empty and holds no run",
    }
    return Check("output", content != "strangers", details[content], "choose another --output")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def disk_check(output: Path, input_bytes: int | None) -> Check:
    """Room for the output and the checkpoints."""
    place = _existing(output)
    needed = max(LEAST_FREE_BYTES, FREE_PER_INPUT * (input_bytes or 0))
    free = shutil.disk_usage(place).free
    return Check(
        "disk",
        free >= needed,
        f"{_size(free)} free at {place.resolve()}, {_size(needed)} wanted "
        f"({FREE_PER_INPUT} times the input, at least {_size(LEAST_FREE_BYTES)})",
        "free some space or choose an --output on another disk",
    )


def _size(count: int) -> str:
    return next(_scaled(count))


def _scaled(count: int) -> Iterator[str]:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            yield f"{count / scale:,.1f} {unit}"
    yield f"{count} bytes"
