"""A folder of the fallback store, and what has become of its events since."""

from __future__ import annotations

import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec

from flink_jobs.errors import WRONG_CALL, UserError

TO_SEND: Final = 0
DELIVERED: Final = ord("d")
UNDELIVERED: Final = ord("u")
#: Not .jsonl: whoever reads the folder's parts must not take it for one.
_UNDELIVERED_NAME: Final = "undelivered.ndjson"
_LEFT_OUT: Final = bytes([UNDELIVERED])
_PART: Final = re.compile(r"(?P<writer>part-.*?)(?P<number>\d*)\.jsonl")


class _Reason(msgspec.Struct):
    """What the folder itself needs of a line of undelivered.ndjson."""

    part: str
    line: int
    error_type: str


class FallbackFolder:
    """The committed parts, and beside them what has been done about each of their lines.

    `.deliver` has a file for each part, with a byte for each of its lines: 0, it is to be sent;
    d, it has been delivered; u, it has not, and undelivered.ndjson says why. A byte is written when
    that is known: a command that is killed repeats what it was doing just then, and no more.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is touched before `claim`."""
        self.root = root.resolve()
        self.undelivered = self.root / _UNDELIVERED_NAME
        self._state = self.root / ".deliver"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder for one command, with all that is left of one that was killed put right.

        Raises:
            UserError: it is no such folder, another command is using it, or it cannot be read and
                written, now or later on.
        """
        if not self.root.is_dir():
            raise UserError(f"--from {self.root}: there is no such folder", WRONG_CALL)
        try:
            self._refuse_another_folder()
            self._state.mkdir(exist_ok=True)
            with (self._state / "lock").open("w") as lock:
                self._lock(lock)
                self._mend()
                yield
        except OSError as error:
            # What has been delivered is written down in it.
            raise UserError(
                f"{self.root} cannot be read and written: {error.strerror or error}"
            ) from error

    def _refuse_another_folder(self) -> None:
        if not self._part_paths() and any(not e.name.startswith(".") for e in self.root.iterdir()):
            raise UserError(
                f"--from {self.root}: has no committed part-*.jsonl; give the folder fallback of a "
                "run's output",
                WRONG_CALL,
            )

    def _lock(self, lock: TextIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another breakwater deliver is sending {self.root}: wait for it, or stop it"
            ) from None

    def parts(self) -> list[Part]:
        """The committed parts, the oldest first."""
        return [Part.of(path, self._marks_of(path)) for path in self._part_paths()]

    def reasons(self) -> Counter[str]:
        """What has not been delivered, by the error's type."""
        return Counter(reason.error_type for _, reason in self._read_undelivered())

    def send_again(self) -> None:
        """Let what has not been delivered be sent once more."""
        for path in self._part_paths():
            marks = self._marks_of(path)
            with suppress(FileNotFoundError):
                _write(marks, marks.read_bytes().replace(_LEFT_OUT, bytes([TO_SEND])))
        self._mend()

    def add_undelivered(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Say why events have not been delivered. Before they are marked: see `_mend`."""
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        if lines:
            with self.undelivered.open("ab") as file:
                file.write(lines)

    def _part_paths(self) -> list[Path]:
        found = [(path, _PART.fullmatch(path.name)) for path in self.root.iterdir()]
        # What is written first should be sent first, as far as the names and times tell.
        placed = [
            (path.stat().st_mtime_ns, match["writer"], int(match["number"] or 0), path)
            for path, match in found
            if match
        ]
        return [path for *_, path in sorted(placed)]

    def _marks_of(self, part: Path) -> Path:
        return self._state / f"{part.name}.marks"

    def _read_undelivered(self) -> Iterator[tuple[bytes, _Reason]]:
        decode = msgspec.json.Decoder(_Reason).decode
        with suppress(FileNotFoundError), self.undelivered.open("rb") as file:
            for line in file:
                with suppress(msgspec.MsgspecError):  # what a killed command was just writing
                    yield line, decode(line)

    def _mend(self) -> None:
        """Take out of undelivered.ndjson what is not marked so, and what is there twice."""
        marks: dict[str, bytes] = {}
        kept: dict[tuple[str, int], bytes] = {}
        for written, reason in self._read_undelivered():
            name, number = reason.part, reason.line
            if name not in marks:
                path = self._marks_of(self.root / name)
                marks[name] = path.read_bytes() if path.exists() else b""
            if marks[name][number - 1 : number] == _LEFT_OUT:
                kept[name, number] = written
        whole = b"".join(kept.values())
        if not whole:
            self.undelivered.unlink(missing_ok=True)
        elif whole != self.undelivered.read_bytes():
            _write(self.undelivered, whole)


@dataclass
class Part:
    """A part: its lines, and what has become of each.

    Attributes:
        path: of the part.
        marks: by line, from 0.
    """

    path: Path
    marks: bytearray
    _marks_path: Path
    _file: int | None = None

    @classmethod
    def of(cls, path: Path, marks_path: Path) -> Part:
        """Read how many lines it has, and what has become of them."""
        with path.open("rb") as file:
            lines = sum(1 for _ in file)
        known = marks_path.read_bytes() if marks_path.exists() else b""
        return cls(path, bytearray(known.ljust(lines, bytes([TO_SEND]))[:lines]), marks_path)

    def count(self, mark: int) -> int:
        """How many lines have a mark."""
        return self.marks.count(mark)

    def to_send(self) -> Iterator[tuple[int, bytes]]:
        """Lines that are to be sent, and which they are, from 0."""
        if TO_SEND not in self.marks:
            return
        with self.path.open("rb") as file:
            # The marks as they are now: a line is read once.
            for number, (line, mark) in enumerate(zip(file, bytes(self.marks), strict=False)):
                if mark == TO_SEND:
                    yield number, line

    def mark(self, numbers: Iterable[int], mark: int) -> None:
        """Write down what has become of some lines."""
        if self._file is None:
            self._file = os.open(self._marks_path, os.O_WRONLY | os.O_CREAT, 0o666)
        for number in numbers:
            self.marks[number] = mark
            os.pwrite(self._file, bytes([mark]), number)
        if TO_SEND not in self.marks:
            self.close()

    def close(self) -> None:
        """Let go of its file, once its marks are on the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    written = path.with_name(path.name + ".tmp")
    written.write_bytes(data)
    written.replace(path)
