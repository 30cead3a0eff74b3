"""Which bytes of which file are read when, and what is a line: pure decisions of the file source.

A file is cut into splits of a fixed number of bytes (of compressed bytes where it is compressed).
A line belongs to the split in which its first byte lies (of a compressed file, to the one in which
it ends), so each line is read exactly once whatever the cut. Splits are dealt out to lanes, one
lane a reader, in order of event time.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

UNKNOWN_MS: Final = -(2**63)
NEWLINE: Final = b"\n"
BOM: Final = b"\xef\xbb\xbf"
GZIP_MAGIC: Final = b"\x1f\x8b"
PACKED_TIMES: Final = 8
"""JSON lines become about so many times smaller by gzip."""


@dataclass(frozen=True)
class InputFile:
    """A file as it was listed: what is read of it is fixed then, even if it grows afterwards.

    Attributes:
        path: absolute path; the records' source topic.
        size: bytes on disk when it was listed.
        compressed: whether it is gzip.
        first_event_ms: event time of its first good event, None when none was found near its start.
    """

    path: str
    size: int
    compressed: bool
    first_event_ms: int | None


@dataclass(frozen=True)
class FileProgress:
    """What the watermark has to know of a file before it is read."""

    partition: str
    splits: int
    first_event_ms: int


@dataclass(frozen=True)
class Split:
    """A piece of a file: bytes start to end, the ordinal-th of its pieces."""

    file: InputFile
    ordinal: int
    start: int
    end: int

    @property
    def last_of_file(self) -> bool:
        """Whether the file ends here."""
        return self.end == self.file.size


@dataclass(frozen=True)
class ReadPlan:
    """What one run reads, in which pieces, in how many lanes. A resumed run has the same plan.

    Attributes:
        files: in the order in which they are read.
        split_bytes: size of a split, of text; of a compressed file a part of that.
        lanes: how many readers share the work.
    """

    files: tuple[InputFile, ...]
    split_bytes: int
    lanes: int

    def splits(self, file: InputFile) -> list[Split]:
        """The file's splits, in order; none for an empty file."""
        step = max(1, self.split_bytes // PACKED_TIMES) if file.compressed else self.split_bytes
        starts = range(0, file.size, step)
        return [
            Split(file, i, start, min(start + step, file.size)) for i, start in enumerate(starts)
        ]

    def progress(self) -> list[FileProgress]:
        """What holds the watermark back from the start: every file that has something to read."""
        return [
            FileProgress(
                file.path,
                len(self.splits(file)),
                UNKNOWN_MS if file.first_event_ms is None else file.first_event_ms,
            )
            for file in self.files
            if file.size
        ]

    def lane_splits(self) -> list[list[Split]]:
        """The splits of each lane, in the order in which the lane reads them.

        The pieces of a plain file go round the lanes, so that all read at about the same event time
        and few windows are open at once. A compressed file can only be read from its start, so it
        stays in one lane.
        """
        lanes: list[list[Split]] = [[] for _ in range(self.lanes)]
        for file in self.files:
            if file.compressed:
                min(lanes, key=len).extend(self.splits(file))
            else:
                for split in self.splits(file):
                    min(lanes, key=len).append(split)
        return lanes

    def tickets(self) -> list[Split | None]:
        """Ticket number to split: equal runs of numbers, one a lane, padded with None at the end.

        Flink's number source hands an equal, unbroken run of its numbers to each of its readers and
        keeps their positions in its checkpoints.
        """
        lanes = self.lane_splits()
        longest = max(1, *(len(lane) for lane in lanes))
        return [split for lane in lanes for split in [*lane, *[None] * (longest - len(lane))]]


def reading_order(files: Iterable[InputFile]) -> tuple[InputFile, ...]:
    """Files by their first event's time; the unknown first, as they hold all windows open."""
    return tuple(
        sorted(
            files,
            key=lambda f: (UNKNOWN_MS if f.first_event_ms is None else f.first_event_ms, f.path),
        )
    )


@dataclass(frozen=True)
class Oversized:
    """What is kept of a line that is too long, beside its first bytes.

    Attributes:
        size: its full length in bytes.
        checksum: md5 of all of it, hex.
    """

    size: int
    checksum: str


@dataclass
class Lines:
    """Lines of a piece of a file, without their ends of line.

    Attributes:
        offsets: byte offset of each line's first byte in the (uncompressed) file.
        payloads: each line; of an oversized one only its first bytes.
        oversized: which of them are oversized, by index.
    """

    offsets: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    oversized: dict[int, Oversized] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many lines."""
        return len(self.payloads)

    @property
    def size(self) -> int:
        """Bytes from the first line's first one to the last line's end."""
        if not self.offsets:
            return 0
        return self.offsets[-1] - self.offsets[0] + len(self.payloads[-1])

    def extend(self, more: Lines) -> None:
        """Put the lines that follow behind these."""
        n = len(self)
        self.offsets += more.offsets
        self.payloads += more.payloads
        self.oversized.update({n + i: line for i, line in more.oversized.items()})

    def cut(self, max_lines: int, max_bytes: int) -> tuple[Lines, Lines]:
        """The first lines, as many as the bounds allow but at least one, and the rest."""
        begin = self.offsets[0] if self.offsets else 0
        at = max(1, min(max_lines, bisect_right(self.offsets, begin + max_bytes) - 1))
        return self._part(0, at), self._part(at, len(self))

    def _part(self, begin: int, end: int) -> Lines:
        odd = {i - begin: line for i, line in self.oversized.items() if begin <= i < end}
        return Lines(self.offsets[begin:end], self.payloads[begin:end], odd)


class LineAssembler:
    """Cuts bytes that come piece by piece into lines; a line may span any number of pieces.

    A line ends with a newline, with or without a carriage return before it; the last one may lack
    it. A byte order mark at the beginning of the file is not part of its first line. Memory is
    bounded by the piece and the two limits, however long a line is.
    """

    def __init__(self, offset: int, max_bytes: int, keep_bytes: int) -> None:
        """Start at a line's first byte.

        Args:
            offset: where that is in the file.
            max_bytes: a longer line is oversized.
            keep_bytes: how many first bytes of an oversized line are kept.
        """
        self.offset = offset
        self._max_bytes = max_bytes
        self._keep_bytes = keep_bytes
        self._open: _OpenLine | None = None

    @property
    def open(self) -> bool:
        """Whether a line has begun and not ended."""
        return self._open is not None

    def feed(self, data: bytes) -> Lines:
        """The lines that end in the next piece."""
        lines, begin = Lines(), 0
        if self._open is not None:
            begin = data.find(NEWLINE) + 1
            self._open.add(data[: begin - 1] if begin else data)
            if begin:
                self._close(lines)
        if self._open is None:
            end = data.rfind(NEWLINE) + 1
            self._add_whole(lines, data[begin:end] if end > begin else b"", self.offset + begin)
            rest = max(begin, end)
            if rest < len(data):
                self._open = _OpenLine(self.offset + rest, max(self._max_bytes, self._keep_bytes))
                self._open.add(data[rest:])
        self.offset += len(data)
        return lines

    def finish(self) -> Lines:
        """The last line, when the input ends without a newline."""
        lines = Lines()
        if self._open is not None:
            self._close(lines)
        return lines

    def _add_whole(self, lines: Lines, data: bytes, offset: int) -> None:
        if offset == 0 and data.startswith(BOM):
            data, offset = data[len(BOM) :], len(BOM)
        payloads = data.split(NEWLINE)
        payloads.pop()
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
        lines.offsets.extend((np.cumsum(sizes + 1) - sizes - 1 + offset).tolist())
        if b"\r" in data:
            payloads = [p[:-1] if p.endswith(b"\r") else p for p in payloads]
        for at in np.flatnonzero(sizes > self._max_bytes):
            payload = payloads[at]
            if len(payload) > self._max_bytes:  # it may have been so only by a carriage return
                md5 = hashlib.md5(payload, usedforsecurity=False).hexdigest()
                lines.oversized[len(lines) + int(at)] = Oversized(len(payload), md5)
                payloads[at] = payload[: self._keep_bytes]
        lines.payloads.extend(payloads)

    def _close(self, lines: Lines) -> None:
        line, self._open = self._open, None
        assert line is not None  # noqa: S101 - for the type checker; the callers have looked
        line.end()
        head = line.head
        if line.size > self._max_bytes:
            lines.oversized[len(lines)] = Oversized(line.size, line.checksum)
            head = head[: self._keep_bytes]
        lines.offsets.append(line.offset)
        lines.payloads.append(head)


class _OpenLine:
    """A line taken in piece by piece: its first bytes are kept, the rest counted and hashed."""

    def __init__(self, offset: int, keep_bytes: int) -> None:
        self.offset = offset
        self.size = 0
        self._keep = keep_bytes
        self._head = bytearray()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._held = b""

    @property
    def head(self) -> bytes:
        return bytes(self._head)

    @property
    def checksum(self) -> str:
        return self._md5.hexdigest()

    def add(self, piece: bytes) -> None:
        piece = self._held + piece
        if self.offset == 0 and self.size == 0:
            if len(piece) < len(BOM) and BOM.startswith(piece):
                self._held = piece
                return
            if piece.startswith(BOM):
                self.offset, piece = len(BOM), piece[len(BOM) :]
        # A carriage return at the very end belongs to the end of line: hold it until more follows.
        self._held = piece[-1:] if piece.endswith(b"\r") else b""
        self._take(piece[: len(piece) - len(self._held)])

    def end(self) -> None:
        """Nothing follows: what may have become a byte order mark is none."""
        if self._held != b"\r":
            self._take(self._held)

    def _take(self, body: bytes) -> None:
        self.size += len(body)
        self._md5.update(body)
        self._head += body[: max(0, self._keep - len(self._head))]
