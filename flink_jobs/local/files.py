"""The job on files, run on this machine.

A run that was killed is continued from its last checkpoint; one that is done is counted again from
its files before it is called done.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from pyflink.common import JobStatus
from rich.console import Console

from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.ledger.audit import audit_run
from flink_jobs.ledger.recount import coverage
from flink_jobs.ledger.report import Report
from flink_jobs.local.job import LocalJob, cancel, run_job
from flink_jobs.local.progress import Progress
from flink_jobs.machine.faults import one_line
from flink_jobs.machine.java import Java, find_java
from flink_jobs.machine.paths import refuse_odd_paths
from flink_jobs.run_folder.folder import Mode, OutputFolder
from flink_jobs.run_folder.plan import load_plan, plan_files, refuse_changed_files, save_plan
from flink_jobs.settings import Settings
from flink_jobs.wiring.reserved import refuse_own_options
from operators.rules.ledger import ROWS_VERSION
from operators.rules.splits import ReadPlan

if TYPE_CHECKING:
    from pyflink.common import JobClient

_FIXED: Final = ("source", "contract", "windows", "poison")


def run_files(
    settings: Settings, inputs: list[Path], output: Path, mode: Mode, json_output: bool
) -> int:
    """Run the job on files on this machine, to its end.

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

    def begin(options: dict[str, str]) -> JobClient:
        from flink_jobs.file_job import FileJob  # noqa: PLC0415 - it starts Java, in its place
        from flink_jobs.job import start  # noqa: PLC0415

        return start(FileJob(settings, plan, folder.root), options)

    job = LocalJob(
        folder=folder,
        start=begin,
        progress=progress,
        lanes=settings.delivery.lanes,
        how_to_go_on=f"run it again with the same inputs and --resume (output: {folder.root})",
        look=partial(_end_if_an_input_file_has_changed, plan),
    )
    return run_job(job, java)


def _end_if_an_input_file_has_changed(plan: ReadPlan, job: JobClient) -> None:
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
