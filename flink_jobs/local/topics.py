"""The job on Kafka, run on this machine: its input and output are topics, its state is a folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from flink_jobs.errors import FAILED
from flink_jobs.kafka.jars import KAFKA, Jar, find_jar
from flink_jobs.ledger.report import Report
from flink_jobs.local.job import LocalJob, run_job
from flink_jobs.local.progress import Progress
from flink_jobs.machine.faults import one_line
from flink_jobs.machine.java import find_java
from flink_jobs.machine.paths import refuse_odd_paths
from flink_jobs.machine.waiting import wait_a_moment
from flink_jobs.run_folder.folder import OutputFolder
from flink_jobs.settings import Settings
from flink_jobs.wiring.reserved import refuse_own_options

if TYPE_CHECKING:
    from pyflink.common import JobClient

    from flink_jobs.ledger.audit import Audit

#: A commit is done when the coordinator has written it down; the markers that make the records
#: visible follow a moment later.
_VISIBLE_WITHIN_S: Final = 10.0


def run_topics(settings: Settings, state: Path, json_output: bool = False) -> int:
    """Run the job on Kafka here, until Ctrl-C or, with `kafka.end = "latest"`, to its end.

    Args:
        settings: all of them.
        state: folder for checkpoints and logs; the job goes on from the newest checkpoint there.
        json_output: print the ledger as JSON instead of a table.

    Returns:
        0 when the job came to its end and its books balance, 1 when they do not, or it was
        interrupted.

    Raises:
        UserError: a foreseeable fault, with its own exit code.
    """
    refuse_own_options(settings)
    jar = find_jar(KAFKA, settings.jars, os.environ)
    folder = OutputFolder(state)
    report = run_to_report(settings, jar, folder, f"run it again (state: {folder.root})")
    if report is None:
        return FAILED
    if json_output:
        sys.stdout.write(report.to_json())
    else:
        has_fallback = settings.delivery.has_fallback
        report.print_table(
            Console(), f"topics on {settings.kafka.bootstrap_servers}", has_fallback=has_fallback
        )
    return 0 if report.balanced else FAILED


def run_to_report(
    settings: Settings, jar: Jar, folder: OutputFolder, how_to_go_on: str
) -> Report | None:
    """Run the job; its committed books at the end, None when it was interrupted.

    Args:
        settings: all of them.
        jar: the Kafka connector.
        folder: for checkpoints and logs.
        how_to_go_on: said after an interruption; "" says nothing.
    """
    refuse_odd_paths()
    java = find_java(os.environ)
    began = time.monotonic()
    audits: list[Audit] = []

    def begin(options: dict[str, str]) -> JobClient:
        from flink_jobs.job import start  # noqa: PLC0415 - it starts Java, in its place
        from flink_jobs.kafka_job import KafkaJob  # noqa: PLC0415

        return start(KafkaJob(settings, jar), options)

    with one_line(f"the run with its state in {folder.root} failed"), folder.claim("new"):
        progress = Progress(folder.progress, splits=0, checkpoint=folder.newest_checkpoint())
        job = LocalJob(
            folder=folder,
            start=begin,
            progress=progress,
            lanes=settings.delivery.lanes,
            how_to_go_on=how_to_go_on,
            for_long=True,
            at_end=lambda: audits.append(_audit(settings, jar)),
        )
        if not run_job(job, java):
            return None
    (audit,) = audits
    records = progress.read.records - progress.before.records
    return Report.of(audit.book.total, audit.problems, records, time.monotonic() - began)


def _audit(settings: Settings, jar: Jar) -> Audit:
    """What `breakwater ledger` says, in the job's own Java process."""
    from flink_jobs.kafka.parts import client_properties  # noqa: PLC0415 - Java is there by now
    from flink_jobs.kafka.reader import connected  # noqa: PLC0415
    from flink_jobs.ledger.audit import audit_topics  # noqa: PLC0415

    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    with connected(client_properties(settings), jar) as committed:
        while True:
            audit = audit_topics(committed, settings.sink.ledger_topic, settings)
            if audit.balanced or time.monotonic() > deadline:
                return audit
            wait_a_moment()
