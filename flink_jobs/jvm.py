"""The one Java process of a local run: where it finds things, and that nothing of it stays."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Final

from py4j.java_gateway import JavaGateway
from py4j.protocol import Py4JError

from flink_jobs.class_archive import ClassArchive, open_archive
from flink_jobs.faults import one_line
from flink_jobs.java import Java
from flink_jobs.java_start import JavaStartError, flink_jars, start_java
from flink_jobs.output import TMP_PREFIX, OutputFolder
from flink_jobs.warm_workers import WarmWorkers

PROJECT: Final = Path(__file__).resolve().parent.parent
_ENDS_WITHIN_S: Final = 20
#: The signals of a Java that has come upon memory that cannot be.
_CRASHES: Final = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGABRT)
#: Another Flink on this machine is not the one that this PyFlink is made for.
_OTHER_FLINK: Final = ("FLINK_HOME", "FLINK_CONF_DIR", "FLINK_LIB_DIR", "FLINK_OPT_DIR")
#: Collecting in parallel costs more than it brings on a small machine; with room for classes and
#: for some batches from the start it collects little. The user's own JVM_ARGS come later and win.
_JVM_ARGS: Final = (
    "-XX:+UseSerialGC -XX:MetaspaceSize=256m -XX:InitialRAMPercentage=12.5 -XX:MaxNewSize=600m"
)
#: Compiling for the peak pays where there is much to do a record in Java and time to earn it back:
#: a job from Kafka to Kafka has. Batches of files leave Java too little.
_NOT_FOR_THE_PEAK: Final = "-XX:TieredStopAtLevel=1"
#: With Java's own thresholds it takes much of the first minute's processor time. With ten times as
#: high ones it is done for what runs for each record, and not for the rest.
_FOR_THE_PEAK: Final = (
    "-XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 "
    "-XX:Tier4CompileThreshold=150000 -XX:Tier4BackEdgeThreshold=400000"
)
#: A worker asks for some megabytes for each batch: glibc is to keep them for the next one, not to
#: give them back to the system each time (mallopt(3)).
_KEPT_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}


class FlinkProcess:
    """The Java process of a run, and what is to know of it.

    Attributes:
        tmp: a folder for temporary files; it is gone afterwards, after a crash with the next run.
        options: Flink options that this place needs.
        done: whether the job has ended well: all is committed, nothing is left to be put in order.
    """

    def __init__(self, tmp: Path) -> None:
        """Nothing has been done."""
        self.tmp = tmp
        self.options: dict[str, str] = {}
        self.done = False


@contextmanager
def flink_process(
    folder: OutputFolder, java: Java, *, jars: Sequence[Path] = (), for_long: bool = False
) -> Iterator[FlinkProcess]:
    """Set the place for the one Java process that PyFlink uses, and end it and clear up after.

    Args:
        folder: for logs, and for word of the process.
        java: which one.
        jars: what the class path has beside Flink's own.
        for_long: whether Java is to compile for its peak.

    Yields:
        The process, connected to PyFlink.
    """
    tmp = Path(tempfile.mkdtemp(prefix=TMP_PREFIX))
    outside = tempfile.tempdir
    try:
        tempfile.tempdir = str(tmp)  # for what PyFlink puts there in this process
        # Before Java starts: whenever this process is killed, the next one finds the folder.
        folder.mark_run(None, tmp)
        for name in _OTHER_FLINK:
            os.environ.pop(name, None)
        folder.log.mkdir(parents=True, exist_ok=True)
        tuned = tuning(os.environ, for_long=for_long)["JVM_ARGS"].split()
        archive = open_archive(java, (*flink_jars(), *jars), tuned, tmp, os.environ)
        os.environ.update(environment(folder, tmp, java, os.environ, for_long=for_long))
        with WarmWorkers(tmp) as workers:
            with one_line("Java did not start"):
                gateway, process = _started(java, archive, tmp)
            run = FlinkProcess(tmp)
            try:
                folder.mark_run(process.pid, tmp)
                run.options = workers.start(os.environ)
                yield run
            finally:
                crashed = process.poll() in _CRASHES
                _end(gateway, process, at_once=run.done and archive.recorded is None)
                if crashed and archive.in_use:
                    archive.give_up()
        if run.done:
            archive.make_later(java, tuned)
    finally:
        tempfile.tempdir = outside
        shutil.rmtree(tmp, ignore_errors=True)


@contextmanager
def client_process(java: Java) -> Iterator[None]:
    """The one Java process of a command that only asks; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix=TMP_PREFIX) as tmp:
        os.environ["JAVA_HOME"] = str(java.home)
        os.environ["JVM_ARGS"] = f"{_JVM_ARGS} -Djava.io.tmpdir={tmp}"
        os.environ["FLINK_LOG_DIR"] = tmp
        for name in _OTHER_FLINK:
            os.environ.pop(name, None)
        with one_line("Java did not start"):
            gateway, process = _started(java, ClassArchive(flink_jars()), Path(tmp))
        try:
            yield
        finally:
            _end(gateway, process)


def _started(java: Java, archive: ClassArchive, tmp: Path) -> tuple[JavaGateway, Popen[bytes]]:
    """Java, connected to PyFlink; without its archive if it does not start with it."""
    started = start_java(java, archive, tmp, os.environ)
    try:
        return started.gateway(), started.process
    except JavaStartError:
        if not archive.in_use:
            raise
    started = start_java(java, archive.without(), tmp, os.environ)
    return started.gateway(), started.process


def environment(
    folder: OutputFolder,
    tmp: Path,
    java: Java,
    environ: Mapping[str, str],
    *,
    for_long: bool = False,
) -> dict[str, str]:
    """The variables that PyFlink and the Java process go by."""
    tuned = tuning(environ, for_long=for_long)
    python_path = [str(PROJECT), *(p for p in sys.path if p), environ.get("PYTHONPATH", "")]
    return {
        "JAVA_HOME": str(java.home),
        **tuned,
        "JVM_ARGS": f"{tuned['JVM_ARGS']} -Djava.io.tmpdir={tmp}",
        "TMPDIR": str(tmp),
        "FLINK_LOG_DIR": str(folder.log),
        # Otherwise PyFlink runs the workers as threads of this process (trap T1).
        "_python_worker_execution_mode": "process",
        # Workers find our packages first, whatever else has their names (trap T3).
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in python_path if p)),
    }


def tuning(environ: Mapping[str, str], *, for_long: bool) -> dict[str, str]:
    """The variables that make Java and the workers fast; what the environment says wins."""
    compiling = _FOR_THE_PEAK if for_long else _NOT_FOR_THE_PEAK
    jvm_args = filter(None, [_JVM_ARGS, compiling, environ.get("JVM_ARGS", "")])
    kept_memory = {name: environ.get(name, value) for name, value in _KEPT_MEMORY.items()}
    return {"JVM_ARGS": " ".join(jvm_args), **kept_memory}


def _end(gateway: JavaGateway, process: Popen[bytes], *, at_once: bool = False) -> None:
    """End the Java process, which ends its workers, and wait until it is gone.

    Args:
        gateway: PyFlink's connection to it.
        process: Java.
        at_once: whether there is nothing that it has to put in order.
    """
    process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
    try:
        process.wait(_ENDS_WITHIN_S)
    except TimeoutExpired:
        process.kill()
        process.wait()
    # No farewell to it before: a Java process that hangs would not answer, and there is no limit
    # to that wait.
    with suppress(Py4JError, OSError):
        gateway.close(keep_callback_server=False, close_callback_server_connections=True)
