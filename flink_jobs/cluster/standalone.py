"""A real Flink cluster of one JobManager and one TaskManager, on this machine only: for the tests.

Both are started by the scripts of the installed PyFlink, with a configuration and log folder of
their own. Its ports stay the same, so that clients find it again after a restart.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from flink_jobs.cluster.rest import Rest, RestError
from flink_jobs.cluster.submit import SHORT_LIVED_JVM, flink_home
from flink_jobs.demo.broker import HOST, _free_ports
from flink_jobs.errors import UserError
from flink_jobs.machine.java import find_java
from flink_jobs.machine.tied import tied
from flink_jobs.machine.waiting import wait_a_moment

ANSWERS_WITHIN_S: Final = 180.0
STOPS_WITHIN_S: Final = 30.0
_LOG_TAIL_CHARS: Final = 300

#: Small heaps. A lost TaskManager is noticed at once by its connection; the heartbeat is patient,
#: because a machine that is busy may stop ours for long. Metrics are at most a second old.
_OPTIONS: Final = {
    "jobmanager.rpc.address": HOST,
    "jobmanager.bind-host": HOST,
    "taskmanager.host": HOST,
    "taskmanager.bind-host": HOST,
    "rest.address": HOST,
    "rest.bind-address": HOST,
    "jobmanager.memory.process.size": "800m",
    "taskmanager.memory.process.size": "2200m",
    # Each submitted job loads its own PyFlink and connector, and some of that is never let go.
    "taskmanager.memory.jvm-metaspace.size": "800m",
    "taskmanager.memory.managed.fraction": "0.2",
    "env.java.opts.jobmanager": SHORT_LIVED_JVM,
    "env.java.opts.taskmanager": SHORT_LIVED_JVM,
    "heartbeat.interval": "1000",
    "heartbeat.timeout": "15000",
    "metrics.fetcher.update-interval": "1000",
    "web.refresh-interval": "1000",
}


class ClusterError(UserError):
    """The cluster did not do what it should: one line with what its log says."""


class Cluster:
    """Two processes and their folder. Each may be killed and started again.

    They end with the process that started them, however that one ends.
    """

    def __init__(
        self, folder: Path, slots: int = 4, options: Mapping[str, str] | None = None
    ) -> None:
        """Choose free ports and write the configuration.

        Args:
            folder: for all that it writes; made if it is not there.
            slots: how many subtasks of a step can run.
            options: Flink options besides, or instead of, those that are set here.

        Raises:
            UserError: no Java that Flink runs on.
        """
        self.folder = folder
        self.savepoints = folder / "savepoints"
        self.checkpoints = folder / "checkpoints"
        rest_port, self._rpc_port = _free_ports(2)
        self.target = f"{HOST}:{rest_port}"
        self.rest = Rest(self.target)
        self._java = find_java(os.environ).home
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        places = {
            "rest.port": str(rest_port),
            "jobmanager.rpc.port": str(self._rpc_port),
            "taskmanager.numberOfTaskSlots": str(slots),
            "execution.checkpointing.dir": self.checkpoints.as_uri(),
            "execution.checkpointing.savepoint-dir": self.savepoints.as_uri(),
            "io.tmp.dirs": str(folder / "tmp"),
        }
        for name in ("conf", "log", "tmp", "pid", "savepoints", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._write_configuration({**_OPTIONS, **places, **(options or {})})

    def start(self) -> None:
        """Start both and wait until the slots are offered.

        Raises:
            ClusterError: one of them ended, or gave no answer within the limit.
        """
        self.start_jobmanager()
        self.start_taskmanager()

    def start_jobmanager(self) -> None:
        """Start the JobManager and wait until its REST interface answers."""
        self._start("jobmanager")
        self._wait_for("jobmanager", lambda: self._overview() is not None)

    def start_taskmanager(self) -> None:
        """Start the TaskManager and wait until it has registered with its slots."""
        # By id: one that was killed is still counted for a while.
        before = self._taskmanagers()
        self._start("taskmanager")
        self._wait_for("taskmanager", lambda: bool(self._taskmanagers() - before))

    def pid(self, name: str) -> int:
        """The id of the process "jobmanager" or "taskmanager".

        Raises:
            ClusterError: it is not running.
        """
        if name not in self._processes:
            raise ClusterError(f"the {name} is not running: start it first")
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """End "jobmanager" or "taskmanager" as a crash of its container does (SIGKILL).

        The Python workers go with it: one that has lost its TaskManager may hang for good.
        """
        process = self._processes.pop(name, None)
        if process is not None:
            # It leads the group of all that it has started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOPS_WITHIN_S)

    def stop(self) -> None:
        """End both in order, the one that runs Python workers first; kill what takes too long."""
        for name in ("taskmanager", "jobmanager"):
            process = self._processes.get(name)
            if process is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOPS_WITHIN_S)
                self.kill(name)

    def __enter__(self) -> Cluster:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def _write_configuration(self, options: Mapping[str, str]) -> None:
        """Flink's own file with ours appended: on its own ours would lack Java's flags (T9)."""
        conf = self.folder / "conf"
        shutil.copytree(flink_home() / "conf", conf, dirs_exist_ok=True)
        lines = [f'{name}: "{value}"' for name, value in options.items()]
        with (conf / "config.yaml").open("a") as file:
            file.write("\n" + "\n".join(lines) + "\n")

    def _start(self, name: str) -> None:
        environ = {
            **os.environ,
            "JAVA_HOME": str(self._java),
            "FLINK_HOME": str(flink_home()),
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_LOG_DIR": str(self.folder / "log"),
            "FLINK_PID_DIR": str(self.folder / "pid"),
        }
        # A cluster knows nothing of our sources: what it runs has to come in the package.
        for stranger in ("PYTHONPATH", "_python_worker_execution_mode", "FLINK_LIB_DIR"):
            environ.pop(stranger, None)
        script = ["bash", str(flink_home() / "bin" / f"{name}.sh")]
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            self._processes[name] = subprocess.Popen(  # noqa: S603, PyFlink's own script
                tied([*script, "start-foreground"], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=self.folder,
                start_new_session=True,
            )

    def _wait_for(self, name: str, condition: Callable[[], bool]) -> None:
        process = self._processes[name]
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while not condition():
            code = process.poll()
            if code is not None:
                del self._processes[name]
                raise ClusterError(f"the {name} ended with code {code}: {self._log_tail(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the {name} was not ready within {ANSWERS_WITHIN_S:g} s: "
                    f"{self._log_tail(name)}"
                )
            wait_a_moment()

    def _overview(self) -> dict[str, int] | None:
        with suppress(RestError):
            overview: dict[str, int] = self.rest.get("/overview")
            return overview
        return None

    def _taskmanagers(self) -> set[str]:
        with suppress(RestError):
            return {each["id"] for each in self.rest.get("/taskmanagers")["taskmanagers"]}
        return set()

    def _log_tail(self, name: str) -> str:
        return (self.folder / "log" / f"{name}.out").read_text(errors="replace")[-_LOG_TAIL_CHARS:]
