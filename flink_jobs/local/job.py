"""A job in this machine's own Java process: started, watched, stopped in order.

The job on files and the job on Kafka are run by `run_job` alike: the same progress line, the same
answer to Ctrl-C, the same way to say how a run is continued.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.status import Status

from flink_jobs.errors import UserError
from flink_jobs.local.delivery_progress import delivery_lines
from flink_jobs.local.process import flink_process
from flink_jobs.local.progress import Progress
from flink_jobs.machine.faults import one_line
from flink_jobs.machine.interrupt import Interrupt, interruptible
from flink_jobs.machine.java import Java
from flink_jobs.machine.waiting import wait_a_moment
from flink_jobs.run_folder.folder import OutputFolder
from operators.sinks.files import flink_path

if TYPE_CHECKING:
    from pyflink.common import JobClient

_CANCEL_WITHIN_S: Final = 60
#: Asking Flink costs both sides some milliseconds; its counts are as old as its heartbeat anyway.
_LOOK_EVERY_S: Final = 1.0


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class LocalJob:
    """What is run here, and what is said about it.

    Attributes:
        folder: where checkpoints and logs go; the job goes on from the newest checkpoint there.
        start: starts the job with the Flink options of this place.
        progress: how far it has come.
        lanes: of delivery, for the progress line.
        how_to_go_on: what to do to go on after an interruption, as a clause; "" if nothing can go
            on.
        for_long: whether Java is to compile for its peak.
        look: looks after the job each second; it may raise a `UserError`.
        at_end: called when the job has come to its end, while Java is still there.
    """

    folder: OutputFolder
    start: Callable[[dict[str, str]], JobClient]
    progress: Progress
    lanes: int
    how_to_go_on: str
    for_long: bool = False
    look: Callable[[JobClient], None] = _nothing
    at_end: Callable[[], None] = _nothing


def run_job(job: LocalJob, java: Java) -> bool:
    """Run a job here, from the newest checkpoint, to its end or Ctrl-C.

    The folder must be claimed.

    Returns:
        Whether the job came to its end; False when it was interrupted.

    Raises:
        UserError: a foreseeable fault, or a second Ctrl-C.
    """
    console = Console(stderr=True)
    nothing_is_lost = f"; nothing is lost: {job.how_to_go_on}" if job.how_to_go_on else ""
    try:
        with (
            interruptible() as interrupt,
            flink_process(job.folder, java, for_long=job.for_long) as tmp,
            console.status("starting Flink") as status,
        ):
            if not interrupt.requested:
                with one_line("the job did not start"):
                    client = job.start(_options(job.folder, tmp))
                with one_line("the run failed", f"{nothing_is_lost} (log: {job.folder.log})"):
                    if _wait(job, client, interrupt, status if console.is_terminal else None):
                        job.at_end()
                        return True
    except KeyboardInterrupt:
        raise UserError(f"stopped at once{nothing_is_lost}") from None
    console.print(f"stopped{nothing_is_lost}", highlight=False, soft_wrap=True)
    return False


def _options(folder: OutputFolder, tmp: Path) -> dict[str, str]:
    return local_options(folder, tmp, folder.newest_checkpoint())


def local_options(folder: OutputFolder, tmp: Path, checkpoint: Path | None) -> dict[str, str]:
    """The Flink options of a run on this machine, from a checkpoint where there is one."""
    options = {
        "execution.checkpointing.dir": flink_path(folder.checkpoints),
        "io.tmp.dirs": str(tmp),
        # Flink puts RocksDB's own logs beside its log, each named by the whole path of its data.
        # For state that is parted anew (another parallelism) such a name is too long for a file.
        # With a path that is too long from the first, it leaves them with the data.
        "state.backend.rocksdb.localdir": str(tmp / f"rocksdb{'-' * 200}"),
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        # How often the counts of the progress line come.
        "heartbeat.interval": "1000",
        # All parts are in one process: when it was not heard of, the machine slept or was starved.
        "heartbeat.timeout": "3600000",
    }
    if checkpoint is not None:
        # Flink then owns the checkpoint, and removes it when it has a newer one.
        options["execution.state-recovery.path"] = flink_path(checkpoint)
        options["execution.state-recovery.claim-mode"] = "CLAIM"
    return options


def _wait(job: LocalJob, client: JobClient, interrupt: Interrupt, status: Status | None) -> bool:
    """Wait for the end of the job, showing how far it is; False when it was interrupted."""
    result = client.get_job_execution_result()
    began = next_look = time.monotonic()
    counters: dict[str, Any] = {}
    while not result.done():
        if interrupt.requested:
            Console(stderr=True).print("stopping")
            cancel(client)
            return False
        if time.monotonic() >= next_look:
            job.look(client)
            counters = _counters(client) or counters
            job.progress.update(counters, job.folder.newest_checkpoint())
            if status is not None:
                line = job.progress.line(time.monotonic() - began)
                status.update(line + delivery_lines(counters, job.lanes))
            # From the answer on: a Flink that is slow to answer is not asked without a pause.
            next_look = time.monotonic() + _LOOK_EVERY_S
        wait_a_moment()
    result.result()
    return True


def _counters(job: JobClient) -> dict[str, Any]:
    """What the job has counted so far; nothing when it has just begun, or ended."""
    with suppress(Exception):
        return dict(job.get_accumulators().result())
    return {}


def cancel(job: JobClient) -> None:
    """Cancel the job and wait until it has ended, for a bounded time."""
    deadline = time.monotonic() + _CANCEL_WITHIN_S
    with suppress(Exception):  # it may have ended by itself
        job.cancel()
        while not job.get_job_execution_result().done() and time.monotonic() < deadline:
            wait_a_moment()
