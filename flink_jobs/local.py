"""Running the job here, on Flink's mini-cluster in one Java process, with real worker processes.

A run that was killed is continued from its last checkpoint; one that is done is counted again from
its files before it is called done.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pyflink.common import JobStatus
from rich.console import Console
from rich.status import Status

from flink_jobs.audit import audit_run
from flink_jobs.delivery_progress import delivery_lines
from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.faults import one_line
from flink_jobs.files import load_plan, plan_files, refuse_changed_files, save_plan
from flink_jobs.interrupt import Interrupt, interruptible
from flink_jobs.java import Java, find_java
from flink_jobs.jvm import FlinkProcess, flink_process
from flink_jobs.output import Mode, OutputFolder, wait_a_moment, wait_for
from flink_jobs.paths import refuse_odd_paths
from flink_jobs.progress import Progress
from flink_jobs.recount import coverage
from flink_jobs.report import Report
from flink_jobs.reserved import refuse_own_options
from flink_jobs.settings import Settings
from operators.rules.ledger import ROWS_VERSION
from operators.rules.splits import ReadPlan
from operators.sinks import flink_path

if TYPE_CHECKING:
    from pyflink.common import JobClient

_CANCEL_WITHIN_S: Final = 60
#: Asking Flink costs both sides some milliseconds; its counts are as old as its heartbeat anyway.
_LOOK_EVERY_S: Final = 1.0
_FIXED: Final = ("source", "contract", "windows", "poison")


def run_local(
    settings: Settings, inputs: list[Path], output: Path, mode: Mode, json_output: bool
) -> int:
    """Run the main job on this machine, to its end.

    Args:
        settings: all of them.
        inputs: files or folders.
        output: folder of the outputs.
        mode: whether the folder is new, is continued, or is written anew.
        json_output: print the ledger as JSON instead of a table.

    Returns:
        0 when the run is done and its books balance, 1 when they do not, or it was interrupted.

    Raises:
        UserError: a foreseeable fault, with its own exit code.
    """
    folder = OutputFolder(output)
    # Before anything is written: a wrong call must not leave a folder behind.
    refuse_own_options(settings)
    refuse_odd_paths()
    java = find_java(os.environ)
    plan = plan_files(settings, inputs, output)
    with one_line(f"the run in {folder.root} failed"), folder.claim(mode):
        if mode == "resume":
            plan = _plan_to_resume(settings, plan, inputs, folder)
            if folder.ledger_json.is_file():
                return _print(settings, Report.read(folder.ledger_json), folder, json_output)
        else:
            folder.settings.write_bytes(_fixed_settings(settings))
            save_plan(plan, folder.plan)
        began = time.monotonic()
        committed = _all_committed(folder, plan)
        progress = _progress(folder, plan)
        if not committed and not _run(settings, plan, folder, java, progress):
            return FAILED
        audit = audit_run(folder, plan)
        counts = audit.book.total
        records = 0 if committed else counts.received - progress.before.records
        report = Report.of(counts, audit.problems, records, time.monotonic() - began)
        if report.balanced:
            folder.clean_up()
        report.write(folder.ledger_json)
        return _print(settings, report, folder, json_output)


def _all_committed(folder: OutputFolder, plan: ReadPlan) -> bool:
    """Whether a former run came to its end and only its ledger is missing.

    Flink keeps the last checkpoint until the job is done and all is committed. So output without a
    checkpoint means that nothing is left to do; no checkpoint and no output, that none was taken.

    Raises:
        UserError: there is output, but not of all the input: the checkpoints are gone.
    """
    if folder.newest_checkpoint() is not None or not folder.has_parts():
        return False
    read = coverage(folder, plan)
    if read.missing:
        raise UserError(
            f"the run in {folder.root} cannot go on, its checkpoints are gone "
            f"({read.problems()[0]}): start over with --overwrite"
        )
    return True


def _plan_to_resume(
    settings: Settings, found: ReadPlan, inputs: list[Path], folder: OutputFolder
) -> ReadPlan:
    """The plan of the run in the folder, if this call fits it."""
    plan = load_plan(folder.plan)
    given = {path.resolve() for path in inputs}
    planned = {file.path for file in plan.files}
    strange = [path for path in planned if not given & {Path(path), *Path(path).parents}]
    strange += [file.path for file in found.files if file.path not in planned]
    if strange:
        raise UserError(
            f"{strange[0]} is input of this call or of the run in {folder.root}, but not of both: "
            "resume with the same inputs, or start over with --overwrite",
            WRONG_CALL,
        )
    before = msgspec.json.decode(folder.settings.read_bytes())
    now = msgspec.json.decode(_fixed_settings(settings))
    for table, values in now.items():
        for key, value in values.items():
            if before.get(table, {}).get(key) != value:
                raise UserError(
                    f"{table}.{key} is {value}, but the run in {folder.root} began with "
                    f"{before.get(table, {}).get(key)}: resume with the same, "
                    "or start over with --overwrite",
                    WRONG_CALL,
                )
    return plan


def _fixed_settings(settings: Settings) -> bytes:
    """What a checkpoint's state was made with: a resumed run must have the same."""
    tables = {name: getattr(settings, name).model_dump(mode="json") for name in _FIXED}
    tables["contract"]["version"] = settings.contract.load().version
    # Its time to live may change.
    tables["deduplicate"] = {"enabled": settings.deduplicate.enabled}
    # By lane is what delivery and deduplication keep.
    tables["delivery"] = {"fallback": _fallback(settings), "lanes": settings.delivery.lanes}
    tables["ledger"] = {"rows": ROWS_VERSION}
    return msgspec.json.encode(tables)


def _fallback(settings: Settings) -> str:
    """Where events go that are not delivered: the sink of the store has state."""
    return "file" if settings.delivery.has_fallback else "dead_letters"


def _print(settings: Settings, report: Report, folder: OutputFolder, json_output: bool) -> int:
    if json_output:
        sys.stdout.write(folder.ledger_json.read_text())
    else:
        has_fallback = settings.delivery.has_fallback
        report.print_table(Console(), folder.root, has_fallback=has_fallback)
    return 0 if report.balanced else FAILED


# --- the job -------------------------------------------------------------------------------------


def _progress(folder: OutputFolder, plan: ReadPlan) -> Progress:
    splits = sum(file.splits for file in plan.progress())
    return Progress(folder.progress, splits=splits, checkpoint=folder.newest_checkpoint())


def _run(
    settings: Settings, plan: ReadPlan, folder: OutputFolder, java: Java, progress: Progress
) -> bool:
    """Run the job from the newest checkpoint; False when it was interrupted."""
    console = Console(stderr=True)
    try:
        with (
            interruptible() as interrupt,
            flink_process(folder, java) as process,
            console.status("starting Flink") as status,
        ):
            if not interrupt.requested:
                job = _start(settings, plan, folder, process)
                shown = status if console.is_terminal else None
                lanes = settings.delivery.lanes
                if _wait(job, plan, folder, interrupt, progress, lanes, shown):
                    process.done = True
                    return True
    except KeyboardInterrupt:
        raise UserError(f"stopped at once; {_how_to_go_on(folder)}") from None
    console.print(f"stopped; {_how_to_go_on(folder)}", highlight=False, soft_wrap=True)
    return False


def _how_to_go_on(folder: OutputFolder) -> str:
    return (
        f"nothing is lost: run it again with the same inputs and --resume (output: {folder.root})"
    )


def _start(
    settings: Settings, plan: ReadPlan, folder: OutputFolder, process: FlinkProcess
) -> JobClient:
    # They load PyFlink's Java, which starts in the place made for it.
    from flink_jobs.early_cluster import early_cluster  # noqa: PLC0415
    from flink_jobs.main import run  # noqa: PLC0415

    with one_line("the job did not start"):
        options = local_options(folder, process.tmp, folder.newest_checkpoint())
        options |= process.options
        return run(settings, plan, folder.root, options, prepare=early_cluster)


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


def _wait(
    job: JobClient,
    plan: ReadPlan,
    folder: OutputFolder,
    interrupt: Interrupt,
    progress: Progress,
    lanes: int,
    status: Status | None,
) -> bool:
    """Wait for the end of the job, showing how far it is; False when it was interrupted."""
    result = job.get_job_execution_result()
    began = next_look = time.monotonic()
    counters: dict[str, Any] = {}
    with one_line("the run failed", f"; nothing is lost, --resume it (log: {folder.log})"):
        while not result.done():
            if interrupt.requested:
                Console(stderr=True).print("stopping")
                cancel(job)
                return False
            if time.monotonic() >= next_look:
                _end_if_an_input_file_has_changed(job, plan)
                counters = _counters(job) or counters
                progress.update(counters, folder.newest_checkpoint())
                if status is not None:
                    line = progress.line(time.monotonic() - began)
                    status.update(line + delivery_lines(counters, lanes))
                # From the answer on: a Flink that is slow to answer is not asked without a pause.
                next_look = time.monotonic() + _LOOK_EVERY_S
            wait_for(result)
        result.result()
    return True


def _counters(job: JobClient) -> dict[str, Any]:
    """What the job has counted so far; nothing when it has just begun, or ended."""
    with suppress(Exception):
        return dict(job.get_accumulators().result())
    return {}


def _end_if_an_input_file_has_changed(job: JobClient, plan: ReadPlan) -> None:
    """Restarting helps against a crash; it does not bring a file back that has vanished.

    Only a job that is restarting is looked into: a file may go once it has been read.

    Raises:
        UserError: names the file and what to do; the job is cancelled.
    """
    status = None
    with suppress(Exception):  # the job may have ended since it was asked
        status = job.get_job_status().result()
    if status != JobStatus.RESTARTING:
        return
    try:
        refuse_changed_files(plan)
    except UserError:
        cancel(job)
        raise


def cancel(job: JobClient) -> None:
    """Cancel the job and wait until it has ended, for a bounded time."""
    deadline = time.monotonic() + _CANCEL_WITHIN_S
    with suppress(Exception):  # it may have ended by itself
        job.cancel()
        while not job.get_job_execution_result().done() and time.monotonic() < deadline:
            wait_a_moment()
