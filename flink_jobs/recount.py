"""The second count: what the committed output files hold, read without the stream's help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from flink_jobs.output import OutputFolder
from operators.rules.ledger import Counts, from_rows

_BLOCK_BYTES: Final = 1 << 20


class _Window(msgspec.Struct):
    event_count: int


def recount(folder: OutputFolder) -> Counts:
    """Count the lines of the committed files; what windows hold is the sum of their counts."""
    dead = _by_folder(folder.parts("dead_letters"), "error_type")
    quarantined = _by_folder(folder.parts("quarantine"), "reason")
    return Counts(
        processed=count_lines(folder.parts("processed_events")),
        dead_lettered=dead,
        quarantined=quarantined,
        windowed=_windowed(folder.parts("user_windows")),
        late=count_lines(folder.parts("late_events")),
    )


def streamed(folder: OutputFolder) -> Counts:
    """What the stream counted as it ran: its own rows, committed with the outputs."""
    return from_rows(_lines(folder.parts("ledger")))


def count_lines(parts: Iterable[Path]) -> int:
    """Lines in all of the files."""
    return sum(block.count(b"\n") for part in parts for block in _blocks(part))


def _by_folder(parts: Iterable[Path], key: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts:
        (value,) = (p.removeprefix(f"{key}=") for p in part.parts if p.startswith(f"{key}="))
        counts[value] += count_lines([part])
    return dict(counts)


def _windowed(parts: Iterable[Path]) -> int:
    decode = msgspec.json.Decoder(_Window).decode
    return sum(decode(line).event_count for line in _lines(parts))


def _lines(parts: Iterable[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            yield from file


def _blocks(part: Path) -> Iterator[bytes]:
    with part.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
