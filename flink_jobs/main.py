"""The job as Flink itself submits it, without Breakwater's command line.

flink run ... -pym flink_jobs.main --config shop.toml                       # on Kafka
flink run ... -pym flink_jobs.main --config files.toml --input ... --output ...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyflink.common import JobClient
from pyflink.datastream import StreamExecutionEnvironment

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.file_job import FileJob, refuse_used_folder
from flink_jobs.job import start
from flink_jobs.kafka.jars import KAFKA, find_jar
from flink_jobs.kafka.preflight import check_settings
from flink_jobs.kafka_job import KafkaJob
from flink_jobs.machine.faults import one_line
from flink_jobs.run_folder.plan import plan_files
from flink_jobs.settings import Settings
from flink_jobs.wiring.load import load_job_settings


def main(arguments: list[str] | None = None) -> None:
    """Submit the job that the settings describe, and wait for its end."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--input", type=Path, nargs="+", help="files or folders to read")
    parser.add_argument("--output", type=Path, help="output folder")
    parser.add_argument(
        "--append", action="store_true", help="write beside what is in the output folder"
    )
    call = parser.parse_args(arguments)
    try:
        settings = load_job_settings(call.config)
        launch = _on_files if settings.connector == "files" else _on_kafka
        start_job = launch(settings, call)
        with one_line("the run failed"):
            start_job().get_job_execution_result().result()
    except UserError as error:
        print(f"breakwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _on_files(settings: Settings, call: argparse.Namespace) -> Callable[[], JobClient]:
    missing = [f"--{name}" for name in ("input", "output") if not getattr(call, name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: missing; a job on files needs both "
            '(for a job on Kafka set connector = "kafka")',
            WRONG_CALL,
        )
    plan = plan_files(settings, call.input, call.output)
    before_start = _nothing if call.append else partial(refuse_used_folder, call.output)
    return partial(start, FileJob(settings, plan, call.output), {}, before_start)


def _on_kafka(settings: Settings, call: argparse.Namespace) -> Callable[[], JobClient]:
    if call.input or call.output or call.append:
        raise UserError(
            '--input, --output and --append are for a job on files, but connector = "kafka"; '
            "leave them out",
            WRONG_CALL,
        )
    check_settings(settings)
    return partial(start, KafkaJob(settings, find_jar(KAFKA, settings.jars, os.environ)), {})


def _nothing(_: StreamExecutionEnvironment) -> None:
    pass


if __name__ == "__main__":
    main()
