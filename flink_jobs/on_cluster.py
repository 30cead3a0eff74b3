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
from pyflink.common import JobClient

from flink_jobs.errors import UserError
from flink_jobs.jars import KAFKA, find_jar
from flink_jobs.kafka_job import check_settings, run
from flink_jobs.settings import load_settings


class Submitted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a submission: a job's id, or a fault and its exit code."""

    job_id: str = ""
    error: str = ""
    exit_code: int = 0


def main(arguments: list[str] | None = None) -> None:
    """Submit the main job to the cluster that `flink run` names."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--worker-python", default=sys.executable, help="Python on the cluster")
    parser.add_argument("--jars", default="", help="folder of the jars, unless the settings say it")
    parser.add_argument("--result", type=Path, help="file for the job's id or the fault")
    parser.add_argument("--package-id", default="", help="checksum of the package, for `upgrade`")
    call = parser.parse_args(arguments)
    try:
        job_id = str(submit(call).get_job_id())
    except UserError as error:
        tell(call.result, Submitted(error=error.message, exit_code=error.exit_code))
        print(f"breakwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    tell(call.result, Submitted(job_id=job_id))
    print(f"job {job_id}")


def submit(call: Any) -> JobClient:
    """Build the job and hand it over."""
    settings = load_settings(call.config)
    check_settings(settings)
    jar = find_jar(KAFKA, settings.jars or call.jars, os.environ)
    options = {"python.executable": call.worker_python}
    if call.package_id:
        options["pipeline.global-job-parameters"] = f"breakwater.package:{call.package_id}"
    return run(settings, jar, options)


def tell(file: Path | None, result: Submitted) -> None:
    """Write the result where the command looks for it."""
    if file is not None:
        file.write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
