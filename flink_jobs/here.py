"""Running a job on this machine whose input and output are elsewhere: Kafka in, Kafka out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.status import Status

from flink_jobs.errors import FAILED
from flink_jobs.faults import one_line
from flink_jobs.interrupt import Interrupt, interruptible
from flink_jobs.java import find_java
from flink_jobs.jvm import flink_process
from flink_jobs.local import cancel, local_options
from flink_jobs.output import OutputFolder, wait_for
from flink_jobs.paths import refuse_odd_paths

if TYPE_CHECKING:
    from pyflink.common import JobClient


def run_here(
    state: Path,
    start: Callable[[dict[str, str]], JobClient],
    advice: str | None = None,
    *,
    jars: Sequence[Path] = (),
    at_end: Callable[[], None] = lambda: None,
) -> int:
    """Run a job on this machine whose input and output are elsewhere, until it ends or Ctrl-C.

    Args:
        state: folder for checkpoints and logs; a job goes on from the newest checkpoint there.
        start: starts the job with the Flink options that this place needs.
        jars: what Java's class path has beside Flink's own.
        advice: what to say when it was stopped; how to go on, if it is not given.
        at_end: called when the job has come to its end, while Java is still there.

    Returns:
        0 when the job came to its end, 1 when it was interrupted.

    Raises:
        UserError: a foreseeable fault, with its own exit code.
    """
    folder = OutputFolder(state)
    refuse_odd_paths()
    java = find_java(os.environ)
    console = Console(stderr=True)
    with (
        one_line(f"the run with its state in {folder.root} failed"),
        folder.claim("new"),
        interruptible() as interrupt,
        flink_process(folder, java, jars=jars, for_long=True) as process,
        console.status("starting Flink") as status,
    ):
        if not interrupt.requested:
            with one_line("the job did not start"):
                options = local_options(folder, process.tmp, folder.newest_checkpoint())
                job = start(options | process.options)
            if _wait(job, folder, interrupt, status if console.is_terminal else None):
                at_end()
                process.done = True
                return 0
    if advice is None:
        advice = f"stopped; nothing is lost: start it again to go on (state: {folder.root})"
    if advice:
        console.print(advice, highlight=False, soft_wrap=True)
    return FAILED


def _wait(
    job: JobClient, folder: OutputFolder, interrupt: Interrupt, status: Status | None
) -> bool:
    """Wait for the end of the job; False when it was interrupted."""
    result = job.get_job_execution_result()
    began = time.monotonic()
    with one_line("the run failed", f"; nothing is lost, start it again (log: {folder.log})"):
        while not result.done():
            if interrupt.requested:
                cancel(job)
                return False
            if status is not None:
                with suppress(Exception):  # the job may have ended since it was asked
                    received = dict(job.get_accumulators().result()).get("received", 0)
                    status.update(f"{received:,} records, {time.monotonic() - began:.0f} s")
            wait_for(result)
        result.result()
    return True
