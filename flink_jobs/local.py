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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from py4j.java_gateway import JavaGateway
from py4j.protocol import Py4JError, Py4JNetworkError
from rich.console import Console
from rich.status import Status

from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.files import load_plan, plan_files, save_plan
from flink_jobs.java import Java, find_java
from flink_jobs.output import TMP_PREFIX, Mode, OutputFolder, wait_a_moment
from flink_jobs.recount import recount, streamed, unread
from flink_jobs.report import Report
from flink_jobs.settings import Settings
from operators.rules.splits import ReadPlan
from operators.sinks import flink_path

if TYPE_CHECKING:
    from pyflink.common import JobClient

PROJECT: Final = Path(__file__).resolve().parent.parent
_JVM_ENDS_WITHIN_S: Final = 20
_CANCEL_WITHIN_S: Final = 60
_FIXED: Final = ("source", "contract", "windows", "poison")
#: Batches leave the JVM little to do a record, so compiling for its peak and collecting in parallel
#: cost more than they bring on a small machine. The user's own JVM_ARGS come later and win.
_JVM_ARGS: Final = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_OWN_OPTIONS: Final = (
    "execution.checkpointing.dir",
    "execution.checkpointing.mode",
    "execution.checkpointing.externalized-checkpoint-retention",
    "execution.runtime-mode",
    "io.tmp.dirs",
    "parallelism.default",
    "pipeline.auto-generate-uids",
    "python.execution-mode",
    "table.local-time-zone",
)


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
    _refuse_own_options(settings)
    java = find_java(os.environ)
    plan = plan_files(settings, inputs, output)
    with _one_line(f"the run in {folder.root} failed"), folder.claim(mode):
        if mode == "resume":
            plan = _plan_to_resume(settings, plan, inputs, folder)
            if folder.ledger_json.is_file():
                return _print(Report.read(folder.ledger_json), folder, json_output)
        else:
            folder.settings.write_bytes(_fixed_settings(settings))
            save_plan(plan, folder.plan)
        began = time.monotonic()
        done = _Done(0) if _all_committed(folder, plan) else _run(settings, plan, folder, java)
        if done is None:
            return FAILED
        report = Report.of(
            streamed(folder),
            recount(folder),
            unread(folder, plan),
            done.records,
            time.monotonic() - began,
        )
        if report.balanced:
            folder.clean_up()
        report.write(folder.ledger_json)
        return _print(report, folder, json_output)


def run_here(state: Path, start: Callable[[dict[str, str]], JobClient]) -> int:
    """Run a job on this machine whose input and output are elsewhere, until it ends or Ctrl-C.

    Args:
        state: folder for checkpoints and logs; a job goes on from the newest checkpoint there.
        start: starts the job with the Flink options that this place needs.

    Returns:
        0 when the job came to its end, 1 when it was interrupted.

    Raises:
        UserError: a foreseeable fault, with its own exit code.
    """
    folder = OutputFolder(state)
    java = find_java(os.environ)
    progress = Console(stderr=True)
    with (
        _one_line(f"the run with its state in {folder.root} failed"),
        folder.claim("new"),
        _interruptible() as interrupted,
        _flink_process(folder, java) as tmp,
        progress.status("starting Flink") as status,
    ):
        with _one_line("the job did not start"):
            job = start(_local_options(folder, tmp, folder.newest_checkpoint()))
        return _wait_here(job, folder, interrupted, status if progress.is_terminal else None)


def _wait_here(
    job: JobClient, folder: OutputFolder, interrupted: threading.Event, status: Status | None
) -> int:
    result = job.get_job_execution_result()
    began = time.monotonic()
    with _one_line("the run failed", f"; nothing is lost, start it again (log: {folder.log})"):
        while not result.done():
            if interrupted.is_set():
                _cancel(job, folder)
                return FAILED
            if status is not None:
                with suppress(Exception):  # the job may have ended since it was asked
                    received = dict(job.get_accumulators().result()).get("received", 0)
                    status.update(f"{received:,} records, {time.monotonic() - began:.0f} s")
            wait_a_moment()
        result.result()
    return 0


@dataclass(frozen=True)
class _Done:
    """A job that came to its end, and how many records it read."""

    records: int


def _all_committed(folder: OutputFolder, plan: ReadPlan) -> bool:
    """Whether a former run came to its end and only its ledger is missing.

    Flink keeps the last checkpoint until the job is done and all is committed. So output without a
    checkpoint means that nothing is left to do; no checkpoint and no output, that none was taken.

    Raises:
        UserError: there is output, but not of all the input: the checkpoints are gone.
    """
    if folder.newest_checkpoint() is not None or not folder.has_parts():
        return False
    missing = unread(folder, plan)
    if missing:
        raise UserError(
            f"the run in {folder.root} cannot go on, its checkpoints are gone ({missing[0]}): "
            "start over with --overwrite"
        )
    return True


def _refuse_own_options(settings: Settings) -> None:
    """A local run keeps its promises only with its own choice of these."""
    if settings.source.kind != "files" or settings.sink.kind != "files":
        raise UserError(
            "source.kind and sink.kind: this command is for files; for Kafka run "
            "python -m flink_jobs.kafka_job --config FILE",
            WRONG_CALL,
        )
    for name in settings.flink:
        if name in _OWN_OPTIONS or name.startswith("execution.state-recovery."):
            raise UserError(
                f"[flink] {name}: a run on this machine sets this itself; remove it", WRONG_CALL
            )


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
            if before[table].get(key) != value:
                raise UserError(
                    f"{table}.{key} is {value}, but the run in {folder.root} began with "
                    f"{before[table].get(key)}: resume with the same, "
                    "or start over with --overwrite",
                    WRONG_CALL,
                )
    return plan


def _fixed_settings(settings: Settings) -> bytes:
    """What a checkpoint's state was made with: a resumed run must have the same."""
    tables = {name: getattr(settings, name).model_dump(mode="json") for name in _FIXED}
    tables["contract"]["version"] = settings.contract.load().version
    return msgspec.json.encode(tables)


def _print(report: Report, folder: OutputFolder, json_output: bool) -> int:
    if json_output:
        sys.stdout.write(folder.ledger_json.read_text())
    else:
        report.print_table(Console(), folder.root)
    return 0 if report.balanced else FAILED


# --- the job -------------------------------------------------------------------------------------


def _run(settings: Settings, plan: ReadPlan, folder: OutputFolder, java: Java) -> _Done | None:
    """Run the job from the newest checkpoint; None when it was interrupted."""
    checkpoint = folder.newest_checkpoint()
    progress = Console(stderr=True)
    with (
        _interruptible() as interrupted,
        _flink_process(folder, java) as tmp,
        progress.status("starting Flink") as status,
    ):
        from flink_jobs.main import run  # noqa: PLC0415 - it starts Java, in the place made for it

        with _one_line("the job did not start"):
            job = run(settings, plan, folder.root, _local_options(folder, tmp, checkpoint))
        return _wait(job, plan, folder, interrupted, status if progress.is_terminal else None)


def _local_options(folder: OutputFolder, tmp: Path, checkpoint: Path | None) -> dict[str, str]:
    options = {
        "execution.checkpointing.dir": flink_path(folder.checkpoints),
        "io.tmp.dirs": str(tmp),
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        # How often the counts of the progress line come.
        "heartbeat.interval": "1000",
        # All is one process here: a machine that is starved for a minute has lost no part of it.
        "heartbeat.timeout": "600000",
    }
    if checkpoint is not None:
        # Flink then owns the checkpoint, and removes it when it has a newer one.
        options["execution.state-recovery.path"] = flink_path(checkpoint)
        options["execution.state-recovery.claim-mode"] = "CLAIM"
    return options


@contextmanager
def _flink_process(folder: OutputFolder, java: Java) -> Iterator[Path]:
    """Set the place for the one Java process that PyFlink starts, and end it and clear up after.

    Yields:
        A folder for temporary files; it is gone afterwards, and after a crash with the next run.
    """
    tmp = Path(tempfile.mkdtemp(prefix=TMP_PREFIX))
    for name, value in _environment(folder, tmp, java, os.environ).items():
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


def _environment(
    folder: OutputFolder, tmp: Path, java: Java, environ: Mapping[str, str]
) -> dict[str, str]:
    python_path = [str(PROJECT), *(p for p in sys.path if p), environ.get("PYTHONPATH", "")]
    return {
        "JAVA_HOME": str(java.home),
        "JVM_ARGS": f"{_JVM_ARGS} {environ.get('JVM_ARGS', '')} -Djava.io.tmpdir={tmp}",
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
    job: JobClient,
    plan: ReadPlan,
    folder: OutputFolder,
    interrupted: threading.Event,
    status: Status | None,
) -> _Done | None:
    """Wait for the end of the job, showing how far it is; None when it was interrupted."""
    result = job.get_job_execution_result()
    total = sum(file.splits for file in plan.progress())
    began = time.monotonic()
    counters: dict[str, Any] = {}
    with _one_line("the run failed", f"; nothing is lost, --resume it (log: {folder.log})"):
        while not result.done():
            if interrupted.is_set():
                _cancel(job, folder)
                return None
            with suppress(Exception):  # the job may have ended since it was asked
                counters = dict(job.get_accumulators().result()) or counters
            if status is not None:
                status.update(_progress_line(counters, total, time.monotonic() - began))
            wait_a_moment()
        ended = result.result()
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
def _one_line(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever goes wrong into one line that a person can act on."""
    try:
        yield
    except UserError:
        raise
    except Py4JNetworkError as error:
        raise UserError(f"{what}: the Java process has died{advice}") from error
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}{advice}") from error


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
