"""The second count: what the committed output files hold, read without the stream's help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from flink_jobs.run_folder.folder import OutputFolder
from operators.rules.ledger import Counts
from operators.rules.splits import ReadPlan

_BLOCK_BYTES: Final = 1 << 18  # fits the cache of a core
_NEWLINE: Final = ord("\n")


class _Window(msgspec.Struct):
    event_count: int


class _Pieces(msgspec.Struct):
    source_topic: str = ""
    splits: list[int] = []


def recount(folder: OutputFolder) -> Counts:
    """Count the lines of the committed files; what windows hold is the sum of their counts."""
    dead = _by_folder(folder, "dead_letters", "error_type")
    quarantined = _by_folder(folder, "quarantine", "reason")
    return Counts(
        processed=count_lines(folder.parts("processed_events")),
        dead_lettered=dead,
        quarantined=quarantined,
        windowed=_windowed(folder.parts("user_windows")),
        late=count_lines(folder.parts("late_events")),
        fallback=count_lines(folder.parts("fallback")),
    )


def ledger_rows(folder: OutputFolder) -> Iterator[bytes]:
    """What the stream counted as it ran: its own rows, committed with the outputs."""
    return _lines(folder.parts("ledger"))


def count_lines(parts: Iterable[Path]) -> int:
    """Lines in all of the files."""
    buffer = bytearray(_BLOCK_BYTES)
    return sum(_count_newlines(part, buffer) for part in parts)


@dataclass(frozen=True)
class Coverage:
    """Whether the input was read: each piece of the plan has to end once in the stream's own rows.

    Attributes:
        planned: how many pieces there are.
        missing: those that were not read, as (path, number).
        again: those that were read more than once.
    """

    planned: int
    missing: list[tuple[str, int]]
    again: list[tuple[str, int]]

    def problems(self) -> list[str]:
        """A sentence for what was not read, and one for what was read more than once."""
        return [
            f"input: {len(pieces)} of {self.planned} pieces were {what}, the first is piece "
            f"{pieces[0][1]} of {pieces[0][0]}"
            for pieces, what in ((self.missing, "not read"), (self.again, "read more than once"))
            if pieces
        ]


def coverage(folder: OutputFolder, plan: ReadPlan) -> Coverage:
    """Look for each piece of the plan in the stream's own rows."""
    decode = msgspec.json.Decoder(_Pieces).decode
    ends: Counter[tuple[str, int]] = Counter()
    for line in ledger_rows(folder):
        row = decode(line)
        ends.update((row.source_topic, split) for split in row.splits)
    planned = [(file.partition, split) for file in plan.progress() for split in range(file.splits)]
    missing = [piece for piece in planned if not ends[piece]]
    return Coverage(len(planned), missing, [piece for piece, n in ends.items() if n > 1])


def _by_folder(folder: OutputFolder, output: str, key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in folder.parts(output):
        below = part.relative_to(folder.root / output).parts
        (value,) = (name.removeprefix(f"{key}=") for name in below if name.startswith(f"{key}="))
        counts[value] += count_lines([part])
    return dict(counts)


def _windowed(parts: Iterable[Path]) -> int:
    decode = msgspec.json.Decoder(_Window).decode
    return sum(decode(line).event_count for line in _lines(parts))


def _lines(parts: Iterable[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            yield from file


def _count_newlines(part: Path, buffer: bytearray) -> int:
    # numpy compares many bytes at once: several times as fast as bytes.count.
    lines, held = 0, np.frombuffer(buffer, np.uint8)
    with part.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            lines += int(np.count_nonzero(held[:size] == _NEWLINE))
    return lines
