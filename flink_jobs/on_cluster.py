"""What `breakwater submit` lets Flink run: it builds the main job, hands it over, and is done.

    flink run -d ... -pym flink_jobs.on_cluster --config breakwater.toml

It never waits for the job: on a cluster that would hold the client until the job ends. What it has
to say to the command that started it (the job's id, or the one line of a fault) goes to the file
`--result`, because the output of `flink run` is mixed with much else.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
from py4j.protocol import Py4JJavaError
from pyflink.datastream import StreamExecutionEnvironment

from flink_jobs.cluster.rest import Rest, reason_of
from flink_jobs.cluster.savepoint import (
    IGNORE,
    SavepointError,
    newest_beside,
    read_savepoint,
    refuse_lost_state,
)
from flink_jobs.errors import UserError
from flink_jobs.job import start
from flink_jobs.kafka.jars import KAFKA, find_jar
from flink_jobs.kafka.preflight import check_settings
from flink_jobs.kafka_job import KafkaJob
from flink_jobs.settings import Settings
from flink_jobs.wiring.load import load_job_settings

#: A checkpoint is removed when the next one is complete, perhaps just while it is read.
_TRIES = 10


class Submitted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a submission: a job's id, or a fault and its exit code."""

    job_id: str = ""
    error: str = ""
    exit_code: int = 0
    note: str = ""


class _OnlyChecked(Exception):
    """The job has been built and looked at, and is not to be run; its text is for the user."""


def main(arguments: list[str] | None = None) -> None:
    """Submit the main job to the cluster that `flink run` names."""
    call = _parser().parse_args(arguments)
    if call.folder:
        # Flink starts us in a folder without sources, so that only the package's are found.
        os.chdir(call.folder)
    try:
        job_id, note = submit(call)
    except UserError as error:
        tell(call.result, Submitted(error=error.message, exit_code=error.exit_code))
        print(f"breakwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Py4JJavaError as error:
        fault = UserError(f"Flink refused the job: {reason_of(str(error))}")
        tell(call.result, Submitted(error=fault.message, exit_code=fault.exit_code))
        raise
    tell(call.result, Submitted(job_id=job_id, note=note))
    print(f"job {job_id}" if job_id else "checked")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--folder", type=Path, help="where relative paths begin")
    parser.add_argument("--worker-python", default=sys.executable, help="Python on the cluster")
    parser.add_argument("--jars", default="", help="folder of the jars, unless the settings say it")
    parser.add_argument("--result", type=Path, help="file for the job's id or the fault")
    parser.add_argument("--package-id", default="", help="checksum of the package, for `upgrade`")
    parser.add_argument("--savepoint", default="", help="see that the job takes over all of it")
    parser.add_argument(
        "--instead-of", nargs=2, metavar=("TARGET", "JOB"), help="the same of a job"
    )
    parser.add_argument("--check", action="store_true", help="look whether it would start, only")
    return parser


def submit(call: Any) -> tuple[str, str]:
    """Build the job and hand it over; returns its id, or "" and a note when it was only checked."""
    settings = load_job_settings(call.config)
    check_settings(settings)
    jar = find_jar(KAFKA, settings.jars or call.jars, os.environ)
    options = {"python.executable": call.worker_python}
    if call.package_id:
        options["pipeline.global-job-parameters"] = f"breakwater.package:{call.package_id}"

    def before_start(env: StreamExecutionEnvironment) -> None:
        if call.savepoint and not _may_lose_state(settings):
            refuse_lost_state(env, read_savepoint(call.savepoint), call.savepoint)
        note = ""
        if call.instead_of and not _may_lose_state(settings):
            note = _refuse_lost_state_of_job(env, *call.instead_of)
        if call.check:
            raise _OnlyChecked(note)

    try:
        return str(start(KafkaJob(settings, jar), options, before_start).get_job_id()), ""
    except _OnlyChecked as checked:
        return "", str(checked)


def _refuse_lost_state_of_job(env: StreamExecutionEnvironment, target: str, job_id: str) -> str:
    """Compare with the newest checkpoint of a job that goes on.

    Flink's answer may be seconds old, and a checkpoint is removed when the next one is complete.

    Returns:
        "", or why it was not compared: a savepoint will be, once the job is stopped.
    """
    named = Rest(target).newest_checkpoint(job_id)
    if not named:
        return "the job has no checkpoint yet"
    for left in reversed(range(_TRIES)):
        try:
            path = newest_beside(named)
            saved = read_savepoint(path)
        except SavepointError as error:
            if not left:
                return error.message
        else:
            refuse_lost_state(env, saved, path)
            break
    return ""


def _may_lose_state(settings: Settings) -> bool:
    return settings.flink.get(IGNORE, "").lower() == "true"


def tell(file: Path | None, result: Submitted) -> None:
    """Write the result where the command looks for it."""
    if file is not None:
        file.write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
