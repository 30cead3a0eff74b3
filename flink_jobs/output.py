"""The output folder: who may write there, what a run keeps there, and what it holds at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from flink_jobs.errors import WRONG_CALL, UserError

Mode = Literal["new", "resume", "overwrite"]
#: Nothing is in the way; a run can be resumed; what an overwriting run that was killed has left;
#: something that no run has written.
Content = Literal["nothing", "run", "remains", "strangers"]

OUTPUTS: Final = (
    "processed_events",
    "user_windows",
    "late_events",
    "dead_letters",
    "quarantine",
    "fallback",
    "ledger",
)
TMP_PREFIX: Final = "breakwater-"
_MOMENT_S: Final = 0.2
_GLANCE_S: Final = 0.02
_FORMER_RUN_ENDS_WITHIN_S: Final = 30


class RunMark(msgspec.Struct, frozen=True):
    """Which processes and temporary folder a run has, for the one that comes after a crash."""

    driver_pid: int
    jvm_pid: int | None
    tmp: str


class OutputFolder:
    """One run's outputs, and beside them in ``.breakwater`` what a resumed run needs."""

    def __init__(self, root: Path) -> None:
        """Nothing is touched before `claim`."""
        self.root = root.resolve()
        self.state = self.root / ".breakwater"
        self.plan = self.state / "plan.json"
        self.settings = self.state / "settings.json"
        self.progress = self.state / "progress.json"
        self.checkpoints = self.state / "checkpoints"
        self.log = self.state / "log"
        self.ledger_json = self.root / "ledger.json"
        self._run_mark = self.state / "run.json"

    @contextmanager
    def claim(self, mode: Mode) -> Iterator[None]:
        """Hold the folder for one run.

        Args:
            mode: "new" wants it empty or absent, "resume" wants a run in it, "overwrite" removes
                what Breakwater has written there, and nothing else.

        Raises:
            UserError: the folder is not as the mode wants it, or another run is using it.
        """
        self._check(mode)
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = (self.state / "lock").open("w")
        except OSError as error:
            raise UserError(
                f"output folder {self.root} cannot be written ({error.strerror}): choose another",
                WRONG_CALL,
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another run is writing to {self.root}: wait for it, or stop it"
                ) from None
            self._end_former_run()
            if mode == "overwrite":
                self._remove_outputs()
            yield

    def content(self) -> Content:
        """What the folder holds, as far as a run has to know."""
        if self.plan.is_file():
            return "run"
        # A folder with nothing but a state without a plan is that of a run that never began.
        if not self.root.is_dir() or {e.name for e in self.root.iterdir()} <= {self.state.name}:
            return "nothing"
        return "remains" if self.state.is_dir() else "strangers"

    def _check(self, mode: Mode) -> None:
        refuse_file(self.root)
        content = self.content()
        if mode == "new" and content == "run":
            raise UserError(
                f"output folder {self.root} is not empty: continue the run in it with --resume, "
                "start over with --overwrite, or choose another folder",
                WRONG_CALL,
            )
        if mode == "new" and content == "remains":
            raise UserError(
                f"output folder {self.root} holds what is left of a run: remove it with "
                "--overwrite, or choose another folder",
                WRONG_CALL,
            )
        if mode != "resume" and content == "strangers":
            raise UserError(
                f"output folder {self.root} holds something that no run of Breakwater has written: "
                "it is not overwritten; choose another folder",
                WRONG_CALL,
            )
        if mode == "resume" and content != "run":
            raise UserError(
                f"nothing to resume in {self.root}: no run has begun there; "
                "run without --resume, or check the folder's name",
                WRONG_CALL,
            )

    def mark_run(self, jvm_pid: int | None, tmp: Path) -> None:
        """Say which processes and temporary folder this run has; no JVM before it has started."""
        mark = RunMark(os.getpid(), jvm_pid, str(tmp))
        self._run_mark.write_bytes(msgspec.json.encode(mark))

    def _end_former_run(self) -> None:
        """Wait for the JVM of a killed driver: it goes by itself, but it may still write."""
        try:
            former = msgspec.json.decode(self._run_mark.read_bytes(), type=RunMark)
        except (OSError, msgspec.MsgspecError):
            return
        deadline = time.monotonic() + _FORMER_RUN_ENDS_WITHIN_S
        while former.jvm_pid is not None and is_our_jvm(former.jvm_pid):
            if time.monotonic() > deadline:
                raise UserError(
                    f"the Java process {former.jvm_pid} of a former run is still writing to "
                    f"{self.root}: end it (kill {former.jvm_pid}) and try again"
                )
            wait_a_moment()
        if Path(former.tmp).name.startswith(TMP_PREFIX):
            shutil.rmtree(former.tmp, ignore_errors=True)
        self._run_mark.unlink(missing_ok=True)

    def _remove_outputs(self) -> None:
        """Remove a run so that what is left after a crash in between is never taken for one.

        1. Its books and its plan: without them there is nothing to resume and nothing is done.
        2. Its checkpoints.
        3. Its outputs.
        """
        try:
            self.ledger_json.unlink(missing_ok=True)
            for entry in self.state.iterdir():
                if entry.is_file() and entry.name != "lock":
                    entry.unlink()
            for folder in (self.checkpoints, self.log, *(self.root / name for name in OUTPUTS)):
                if folder.exists():
                    shutil.rmtree(folder)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be removed: {error.strerror}") from error

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint (one with its metadata), None when there is none."""
        complete = [path.parent for path in self.checkpoints.glob("*/chk-*/_metadata")]
        # Flink goes on counting when it starts from one.
        return max(complete, key=lambda path: int(path.name.removeprefix("chk-")), default=None)

    def parts(self, output: str) -> list[Path]:
        """The committed files of an output."""
        found = (self.root / output).rglob("*.jsonl")
        return sorted(path for path in found if not path.name.startswith("."))

    def has_parts(self) -> bool:
        """Whether anything at all has been committed."""
        return any(self.parts(name) for name in OUTPUTS)

    def clean_up(self) -> None:
        """After a run that is done: nothing stays but what it has produced, and its plan."""
        for name in OUTPUTS:
            for left_over in (self.root / name).rglob(".*.inprogress.*"):
                left_over.unlink()
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.rmtree(self.log, ignore_errors=True)
        self.progress.unlink(missing_ok=True)
        self._run_mark.unlink(missing_ok=True)


def refuse_file(output: Path) -> None:
    """Refuse an output that is there and is no folder.

    Raises:
        UserError: it is.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is not a folder: choose another", WRONG_CALL)


def is_our_jvm(pid: int) -> bool:
    """Whether a process is still there and is PyFlink's JVM, not a later one of the same number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    command = Path(f"/proc/{pid}/cmdline")
    try:
        return b"PythonGatewayServer" in command.read_bytes()
    except FileNotFoundError:
        # No /proc on this system, or the process has gone meanwhile: the signal decides.
        return not Path("/proc").is_dir()


def wait_a_moment() -> None:
    """The pause of every polling loop."""
    time.sleep(_MOMENT_S)


class MayBeDone(Protocol):
    """What will be done at some time."""

    def done(self) -> bool:
        """Whether it is."""


def wait_for(result: MayBeDone) -> None:
    """The same pause, which ends as soon as something is done."""
    ends = time.monotonic() + _MOMENT_S
    while time.monotonic() < ends and not result.done():
        time.sleep(_GLANCE_S)
