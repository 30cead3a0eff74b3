"""Running the job here, on Flink's mini-cluster in one Java process, with real worker processes.

A run that was killed is continued from its last checkpoint; one that is done is counted again from
its files before it is called done.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from py4j.java_gateway import JavaGateway
from py4j.protocol import Py4JError
from rich.console import Console
from rich.status import Status

from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.files import load_plan, plan_files, save_plan
from flink_jobs.java import find_java
from flink_jobs.output import Mode, OutputFolder, wait_a_moment
from flink_jobs.recount import recount, streamed
from flink_jobs.report import Report
from flink_jobs.settings import Settings
from operators.rules.splits import ReadPlan

if TYPE_CHECKING:
    from pyflink.common import JobClient

PROJECT: Final = Path(__file__).resolve().parent.parent
_JVM_ENDS_WITHIN_S: Final = 20
_CANCEL_WITHIN_S: Final = 60
#: Settings that a checkpoint's state was made with: a resumed run must have the same.
_FIXED: Final = ("source", "contract", "windows")


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
    # Before anything is written: a wrong path must not leave a folder behind.
    plan = plan_files(settings, inputs, output) if mode != "resume" else None
    with folder.claim(mode):
        if plan is None:
            plan = _plan_to_resume(settings, inputs, folder)
            if folder.ledger_json.is_file():
                return _say_done(folder, json_output)
        else:
            _keep_settings(settings, folder)
            save_plan(plan, folder.plan)
        began = time.monotonic()
        done = _Done(0) if _all_committed(folder) else _run(settings, plan, folder)
        if done is None:
            return FAILED
        report = Report.of(
            streamed(folder), recount(folder), done.records, time.monotonic() - began
        )
        if report.balanced:
            folder.clean_up()
        report.write(folder.ledger_json)
        _print(report, folder, json_output)
        return 0 if report.balanced else FAILED


@dataclass(frozen=True)
class _Done:
    """A job that came to its end, and how many records it read."""

    records: int


def _all_committed(folder: OutputFolder) -> bool:
    """Whether a former run came to its end and only its ledger is missing.

    Flink keeps the last checkpoint until the job is done and all is committed. So output without a
    checkpoint means that nothing is left to do; no checkpoint and no output, that none was taken.
    """
    return folder.newest_checkpoint() is None and folder.has_parts()


def _plan_to_resume(settings: Settings, inputs: list[Path], folder: OutputFolder) -> ReadPlan:
    """The plan of the run in the folder, if this call fits it."""
    plan = load_plan(folder.plan)
    given = {path.resolve() for path in inputs}
    for file in plan.files:
        path = Path(file.path)
        if not given & {path, *path.parents}:
            raise UserError(
                f"the run in {folder.root} reads {path}, which is not in this call's --input: "
                "resume with the same inputs, or start over with --overwrite",
                WRONG_CALL,
            )
    before = msgspec.json.decode(folder.settings.read_bytes())
    for name in _FIXED:
        now = msgspec.to_builtins(getattr(settings, name).model_dump(mode="json"))
        for key, value in now.items():
            if before[name].get(key) != value:
                raise UserError(
                    f"{name}.{key} is {value}, but the run in {folder.root} began with "
                    f"{before[name].get(key)}: resume with the same, "
                    "or start over with --overwrite",
                    WRONG_CALL,
                )
    return plan


def _keep_settings(settings: Settings, folder: OutputFolder) -> None:
    folder.settings.write_bytes(settings.model_dump_json().encode())


def _say_done(folder: OutputFolder, json_output: bool) -> int:
    ledger = msgspec.json.decode(folder.ledger_json.read_bytes())
    if json_output:
        sys.stdout.write(folder.ledger_json.read_text())
    else:
        Console().print(f"the run in {folder.root} is done: its books are in {folder.ledger_json}")
    return 0 if ledger["balanced"] else FAILED


def _print(report: Report, folder: OutputFolder, json_output: bool) -> None:
    if json_output:
        sys.stdout.write(folder.ledger_json.read_text())
    else:
        report.print_table(Console(), folder.root)


# --- the job -------------------------------------------------------------------------------------


def _run(settings: Settings, plan: ReadPlan, folder: OutputFolder) -> _Done | None:
    """Run the job from the newest checkpoint; None when it was interrupted."""
    checkpoint = folder.newest_checkpoint()
    progress = Console(stderr=True)
    with _flink_process(folder) as tmp, progress.status("starting Flink") as status:
        from flink_jobs.main import run  # noqa: PLC0415 - it starts Java, in the place made for it

        options = _local_options(folder, tmp, checkpoint)
        try:
            job = run(settings, plan, folder.root, options)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the job did not start: {_reason(error)}") from error
        return _wait(job, plan, folder, status if progress.is_terminal else None)


def _local_options(folder: OutputFolder, tmp: Path, checkpoint: Path | None) -> dict[str, str]:
    options = {
        "execution.checkpointing.dir": folder.checkpoints.as_uri(),
        "io.tmp.dirs": str(tmp),
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        # How often the counts of the progress line come.
        "heartbeat.interval": "1000",
    }
    if checkpoint is not None:
        # Flink then owns the checkpoint, and removes it when it has a newer one.
        options["execution.state-recovery.path"] = checkpoint.as_uri()
        options["execution.state-recovery.claim-mode"] = "CLAIM"
    return options


@contextmanager
def _flink_process(folder: OutputFolder) -> Iterator[Path]:
    """Set the place for the one Java process that PyFlink starts, and end it and clear up after.

    Yields:
        A folder for temporary files; it is gone afterwards, and after a crash with the next run.
    """
    tmp = Path(tempfile.mkdtemp(prefix="breakwater-"))
    for name, value in _environment(folder, tmp, os.environ).items():
        os.environ[name] = value
    for name in ("FLINK_HOME", "FLINK_CONF_DIR", "FLINK_LIB_DIR", "FLINK_OPT_DIR"):
        # Another Flink on this machine is not the one that this PyFlink is made for.
        os.environ.pop(name, None)
    folder.log.mkdir(parents=True, exist_ok=True)
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415

    try:
        with _one_line("Java did not start"):
            gateway = get_gateway()
            pid = int(gateway.jvm.ProcessHandle.current().pid())
        folder.mark_run(pid, tmp)
        try:
            yield tmp
        finally:
            _end_jvm(gateway, pid)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _environment(folder: OutputFolder, tmp: Path, environ: Mapping[str, str]) -> dict[str, str]:
    python_path = [str(PROJECT), *(p for p in sys.path if p), environ.get("PYTHONPATH", "")]
    return {
        "JAVA_HOME": str(find_java(environ).home),
        "JVM_ARGS": f"{environ.get('JVM_ARGS', '')} -Djava.io.tmpdir={tmp}".strip(),
        "TMPDIR": str(tmp),
        "FLINK_LOG_DIR": str(folder.log),
        # Otherwise PyFlink runs the workers as threads of this process (trap T1).
        "_python_worker_execution_mode": "process",
        # Workers find our packages first, whatever else has their names (trap T3).
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in python_path if p)),
    }


def _end_jvm(gateway: JavaGateway, pid: int) -> None:
    """End the Java process, which ends its workers, and wait until it is gone."""
    with suppress(Py4JError):  # the JVM may have gone before
        gateway.shutdown()
    deadline = time.monotonic() + _JVM_ENDS_WITHIN_S
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            wait_a_moment()


def _wait(
    job: JobClient, plan: ReadPlan, folder: OutputFolder, status: Status | None
) -> _Done | None:
    """Wait for the end of the job, showing how far it is; None when it was interrupted."""
    result = job.get_job_execution_result()
    total = sum(file.splits for file in plan.progress())
    began = time.monotonic()
    counters: dict[str, Any] = {}
    with _interruptible() as interrupted:
        while not result.done():
            if interrupted.is_set():
                _cancel(job, folder)
                return None
            with suppress(Exception):  # the job may have ended since it was asked
                counters = dict(job.get_accumulators().result()) or counters
            if status is not None:
                status.update(_progress_line(counters, total, time.monotonic() - began))
            wait_a_moment()
    try:
        ended = result.result()
    except Exception as error:
        raise UserError(
            f"the run failed: {_reason(error)}; nothing is lost, continue with --resume "
            f"(log: {folder.log})"
        ) from error
    return _Done(int(ended.get_accumulator_result("received") or 0))


def _progress_line(counters: Mapping[str, Any], splits: int, seconds: float) -> str:
    received = int(counters.get("received", 0))
    if not received:
        return f"starting Flink ({seconds:.0f} s)"
    share = int(counters.get("splits", 0)) / splits if splits else 1
    return f"{share:4.0%} read, {received:,} records, {received / seconds:,.0f}/s, {seconds:.0f} s"


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event: an exception would cut a call to Java in two."""
    event = threading.Event()
    former = {
        number: signal.signal(number, lambda *_: event.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield event
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _cancel(job: JobClient, folder: OutputFolder) -> None:
    Console(stderr=True).print("stopping", highlight=False)
    deadline = time.monotonic() + _CANCEL_WITHIN_S
    with suppress(Exception):  # it may have ended by itself
        job.cancel()
        while not job.get_job_execution_result().done() and time.monotonic() < deadline:
            wait_a_moment()
    Console(stderr=True).print(
        f"stopped; nothing is lost: continue from the last checkpoint with the same command and "
        f"--resume (output: {folder.root})",
        highlight=False,
    )


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error


_PYTHON_FAULT: Final = re.compile(
    r"^(?:\w+\.)*(?:SourceFileError|BridgeError): (.*)$", re.MULTILINE
)
_CAUSE: Final = re.compile(r"^Caused by: (?:[\w$]+\.)*([\w$]+(?:: .*)?)$", re.MULTILINE)


def _reason(error: Exception) -> str:
    """The one line of a Java and Python stack trace that tells what happened."""
    text = str(error)
    for pattern in (_PYTHON_FAULT, _CAUSE):
        found = pattern.findall(text)
        if found:
            return str(found[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
