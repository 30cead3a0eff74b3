"""How far a run has come, over restarts of its job and of the command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class Read(msgspec.Struct, frozen=True):
    """What has been read: records, and pieces (splits) of the input."""

    records: int = 0
    splits: int = 0

    def __add__(self, other: Read) -> Read:
        """Both together."""
        return Read(self.records + other.records, self.splits + other.splits)


class Progress:
    """Counts on where the job's own counters begin again at 0: when it goes on from a checkpoint.

    What a checkpoint holds is taken to be what had been counted when it was first seen, less the
    last look: never too much, and too little by some two seconds of work at most. It serves the
    progress line and the rate only, the ledger is counted by the stream itself.
    """

    def __init__(self, path: Path, *, splits: int, checkpoint: Path | None) -> None:
        """Begin, or go on from what a former run has left.

        Args:
            path: where it is kept.
            splits: how many the whole input has; 0 where it has no end that is known.
            checkpoint: what the job starts from, None when it starts from nothing.
        """
        self._path = path
        self._splits = splits
        self._checkpoint = checkpoint
        self.before = Read() if checkpoint is None else _load(path)
        self._at_checkpoint = self._base = self.before
        self._attempt = Read()

    @property
    def read(self) -> Read:
        """What has been read in all."""
        return self._base + self._attempt

    def update(self, counters: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Take in what the job says now.

        Args:
            counters: the job's counters; empty when it has none yet.
            checkpoint: the newest complete one, None when there is none.
        """
        if checkpoint != self._checkpoint:
            self._checkpoint = checkpoint
            self._at_checkpoint = self.read
            _save(self._path, self._at_checkpoint)
        now = Read(int(counters.get("received", 0)), int(counters.get("splits", 0)))
        if now.records < self._attempt.records:
            self._base = self._at_checkpoint
        self._attempt = now

    def line(self, seconds: float) -> str:
        """The progress line of a command that has run for so long."""
        if not self._attempt.records:
            return f"starting Flink ({seconds:.0f} s)"
        read = self.read
        share = f"{min(1.0, read.splits / self._splits):4.0%} read, " if self._splits else ""
        rate = (read.records - self.before.records) / seconds
        return f"{share}{read.records:,} records, {rate:,.0f}/s, {seconds:.0f} s"


def _load(path: Path) -> Read:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Read)
    except (OSError, msgspec.MsgspecError):
        return Read()  # a run is not stopped for its progress line


def _save(path: Path, read: Read) -> None:
    written = path.with_suffix(".tmp")
    written.write_bytes(msgspec.json.encode(read))
    written.replace(path)
