"""Handing the job to a cluster: `flink run` of the installed PyFlink, with the right options."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from flink_jobs.cluster.package import Package
from flink_jobs.cluster.rest import Rest, reason_of
from flink_jobs.errors import FAILED, UserError
from flink_jobs.kafka.jars import PROJECT_JARS
from flink_jobs.machine.java import find_java

SUBMITTED_WITHIN_S: Final = 180.0
ENTRY: Final = "flink_jobs.on_cluster"
#: For a Java that runs for seconds, as Flink's client: compiling for the peak, and collecting in
#: parallel, does not pay.
SHORT_LIVED_JVM: Final = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class SubmitError(UserError):
    """The job was not taken: one line with the reason."""


class _Result(msgspec.Struct):
    """What `on_cluster` tells."""

    job_id: str = ""
    error: str = ""
    exit_code: int = FAILED
    note: str = ""


@dataclass(frozen=True)
class Submission:
    """What to hand over, and where.

    Attributes:
        target: "host:port" of the JobManager's REST interface.
        package: the zip with code, SQL and settings.
        config: a settings file instead of the package's own.
        from_savepoint: savepoint or retained checkpoint to go on from; "" starts anew.
        worker_python: the Python on the cluster's machines; "" when ours is there too.
    """

    target: str
    package: Package
    config: Path | None = None
    from_savepoint: str = ""
    worker_python: str = ""


def flink_home() -> Path:
    """The installed PyFlink's folder, which is a whole Flink; in an image the image's own Flink.

    Another Flink that FLINK_HOME names is taken only when it is of PyFlink's version.

    Raises:
        SubmitError: PyFlink is not installed.
    """
    spec = importlib.util.find_spec("pyflink")
    for place in (spec and spec.submodule_search_locations) or ():
        named = Path(os.environ.get("FLINK_HOME") or place)
        same = (named / "lib" / f"flink-dist-{version('apache-flink')}.jar").is_file()
        return named if same else Path(place)
    raise SubmitError("PyFlink is not installed: run make venv, or pip install apache-flink==2.3.0")


def submit(submission: Submission) -> str:
    """Submit a job and return its id, without waiting for more.

    Raises:
        UserError: no cluster there, wrong settings, a missing jar, state that would be lost, or
            Flink's own reason.
    """
    Rest(submission.target).get("/overview")
    return _hand_over(submission).job_id


def check(submission: Submission, instead_of: str) -> str:
    """Build the job as it would be submitted, and see that it could start; nothing is submitted.

    Args:
        submission: what would be submitted.
        instead_of: a job that goes on, all of whose state it has to take over.

    Returns:
        "", or why the state could not be compared.

    Raises:
        UserError: as `submit`.
    """
    return _hand_over(submission, instead_of).note


def _hand_over(submission: Submission, only_check_against: str = "") -> _Result:
    java = find_java(os.environ)
    # Flink and its client run in a folder that has no sources, else these would come first.
    with tempfile.TemporaryDirectory(prefix="breakwater-submit-") as tmp:
        folder = Path(tmp)
        config = submission.config or submission.package.extract_settings(folder)
        result = folder / "result.json"
        entry = entry_arguments(submission, config, result)
        environ = _environment(os.environ, java.home, folder)
        if only_check_against:
            # Without a cluster Flink's client is not needed: the package's own code is enough.
            environ["PYTHONPATH"] = str(submission.package.path)
            entry += ["--check", "--instead-of", submission.target, only_check_against]
            said = _run([sys.executable, "-m", ENTRY, *entry], environ, folder)
        else:
            said = _run(flink_run(submission, entry), environ, folder)
        return _told(submission.target, result, said)


def flink_run(submission: Submission, entry: list[str]) -> list[str]:
    """The command line (traps T2, T8, T50): code by -pyfs, entry by -pym, both Pythons named."""
    start_from = ["-s", submission.from_savepoint] if submission.from_savepoint else []
    return [
        "bash", str(flink_home() / "bin" / "flink"), "run", "--detached",
        "-m", submission.target.rpartition("://")[2],
        *start_from,
        "-pyclientexec", sys.executable,
        "-pyexec", submission.worker_python or sys.executable,
        "-pyfs", str(submission.package.path),
        "-pym", ENTRY,
        *entry,
    ]  # fmt: skip


def entry_arguments(submission: Submission, config: Path, result: Path) -> list[str]:
    """What `on_cluster` gets."""
    return [
        "--config", str(config.resolve()),
        "--folder", str(Path.cwd()),
        "--worker-python", submission.worker_python or sys.executable,
        "--package-id", submission.package.checksum,
        "--result", str(result),
        *(["--jars", str(PROJECT_JARS)] if PROJECT_JARS.is_dir() else []),
        *(["--savepoint", submission.from_savepoint] if submission.from_savepoint else []),
    ]  # fmt: skip


def _run(command: list[str], environ: dict[str, str], folder: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603, PyFlink's own script, or our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=folder,
            timeout=SUBMITTED_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SubmitError(
            f"Flink's client gave no answer within {SUBMITTED_WITHIN_S:g} s; the job may have been "
            "taken: look with breakwater status"
        ) from None
    return done.stdout.decode(errors="replace")


def _told(target: str, result: Path, said: str) -> _Result:
    if not result.exists():
        raise SubmitError(f"{target} did not take the job: {refusal(said)}")
    told = msgspec.json.decode(result.read_bytes(), type=_Result)
    if told.error:
        raise SubmitError(told.error, told.exit_code)
    return told


def _environment(environ: Mapping[str, str], java: Path, folder: Path) -> dict[str, str]:
    """The client's: no other Flink, our code from the package only, its log out of the way."""
    strangers = ("FLINK_CONF_DIR", "FLINK_LIB_DIR", "FLINK_OPT_DIR", "PYTHONPATH")
    return {
        "JVM_ARGS": SHORT_LIVED_JVM,
        **{name: value for name, value in environ.items() if name not in strangers},
        "JAVA_HOME": str(java),
        "FLINK_HOME": str(flink_home()),
        "FLINK_LOG_DIR": str(folder),
        "TMPDIR": str(folder),
    }


def refusal(said: str) -> str:
    """The one line of all that Flink's client prints that tells why it did not submit."""
    faults = re.findall(r"^breakwater: (.*)$", said, re.MULTILINE)
    python = re.findall(r"^(?:[\w.]+)?(?:Error|Exception): .*$", said, re.MULTILINE)
    if faults:
        return str(faults[-1])
    if "Caused by: " in said:
        return reason_of(said)
    return str(python[-1]) if python else reason_of(said)
