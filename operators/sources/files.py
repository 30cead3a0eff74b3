"""The file source: JSON lines in plain or gzip files, read in splits by Python itself.

Flink's number source hands out tickets and keeps count of them in its checkpoints; the reader turns
a ticket into a split of a file and reads that. Flink finishes a Python bundle before it takes a
checkpoint, so a split is wholly before a checkpoint or wholly after it.

Guarantee: each line of a file, as long as it was when the run was planned, is read exactly once in
what the job commits, whatever crashes. A file that is appended to is read as far as it was listed;
a line that starts before that is read to its end. A file that has vanished or shrunk stops the job
with its name, and nothing is lost: put it back and resume.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pyflink.common import WatermarkStrategy
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.connectors.number_seq import NumberSequenceSource
from pyflink.datastream.data_stream import DataStream

from operators.batches.records import Records
from operators.bridge.wire import SplitMark
from operators.rules.splits import (
    GZIP_MAGIC,
    NEWLINE,
    FileProgress,
    InputFile,
    LineAssembler,
    Lines,
    ReadPlan,
    Split,
)

SUFFIXES: Final = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_PEEK_BYTES: Final = 1 << 16
# Small, since gzip may inflate it a thousand times.
_PIECE_BYTES: Final = 1 << 14


class SourceFileError(OSError):
    """An input file is not as it was listed; the message says which and what to do."""


@dataclass(frozen=True)
class LineLimits:
    """Bounds on lines and batches.

    Attributes:
        max_record_bytes: a longer line is oversized.
        payload_limit_bytes: how much of an oversized line is kept.
        max_records: lines in a batch at most.
        max_bytes: bytes in a batch at most; a single line may have more.
    """

    max_record_bytes: int
    payload_limit_bytes: int
    max_records: int
    max_bytes: int

    def assembler(self, offset: int) -> LineAssembler:
        """A line assembler with these limits."""
        return LineAssembler(offset, self.max_record_bytes, self.payload_limit_bytes)


@dataclass(frozen=True)
class FileSource:
    """Files as a source of records."""

    plan: ReadPlan
    limits: LineLimits

    @property
    def parallelism(self) -> int:
        """As many readers as lanes, also when a run is resumed with another parallelism.

        The tickets that a checkpoint holds were cut for so many.
        """
        return self.plan.lanes

    def elements(self, env: StreamExecutionEnvironment) -> DataStream:
        """A stream of ticket numbers."""
        last = len(self.plan.tickets()) - 1
        tickets = env.from_source(
            NumberSequenceSource(0, last), WatermarkStrategy.no_watermarks(), "tickets"
        )
        return tickets.uid("tickets").set_parallelism(self.parallelism)

    def reader(self) -> FileReader:
        """Turns a ticket into the records of its split."""
        return FileReader(self.plan, self.limits)

    def partitions(self) -> list[FileProgress]:
        """The files that hold the watermark back until they have been read."""
        return self.plan.progress()


class FileReader:
    """Tickets to records."""

    def __init__(self, plan: ReadPlan, limits: LineLimits) -> None:
        """Take the plan; it travels to the workers with the reader."""
        self._plan = plan
        self._limits = limits

    def open(self) -> None:
        """Deal the splits out again: cheaper than shipping them."""
        self._tickets = self._plan.tickets()
        self._gzip: GzipCursor | None = None

    def read(self, element: int) -> Iterable[Records]:
        """Read the ticket's split; the padding at the end of a lane has none."""
        split = self._tickets[element]
        if split is None:
            return
        pieces = (
            self._read_gzip(split) if split.file.compressed else read_plain(split, self._limits)
        )
        yield from batches_of(pieces, split, self._limits)

    def _read_gzip(self, split: Split) -> Iterator[Lines]:
        # The next split of the same file goes on where the last one stopped; after a restart, or
        # when a split is read again, decompression starts over from the beginning of the file.
        cursor = self._gzip
        if cursor is None or cursor.path != split.file.path or cursor.position != split.start:
            cursor = GzipCursor(split.file, self._limits)
        self._gzip = None
        cursor.skip_to(split.start)
        try:
            yield from cursor.read_to(split)
        except DamagedFile:
            # The cursor knows it: the file's other splits need not find it out again.
            self._gzip = cursor
            raise
        self._gzip = cursor


class DamagedFile(Exception):
    """The rest of a file cannot be read; carries the reason and the line that it cuts."""

    def __init__(self, reason: str, offset: int, payload: bytes) -> None:
        """What is wrong, and where the line begins in the uncompressed file and how."""
        super().__init__(reason)
        self.offset = offset
        self.payload = payload


def batches_of(pieces: Iterator[Lines], split: Split, limits: LineLimits) -> Iterator[Records]:
    """Lines as batches, the last of which says that the split ends.

    What cannot be read of a damaged file becomes one record that says so.
    """
    more = SplitMark(split.file.path, split.ordinal, last=False)
    end = SplitMark(split.file.path, split.ordinal, last=True)
    held = Lines()
    try:
        for lines in pieces:
            held.extend(lines)
            while len(held) > limits.max_records or held.size > limits.max_bytes:
                full, held = held.cut(limits.max_records, limits.max_bytes)
                yield Records.of_lines(full, more)
    except DamagedFile as damage:
        if len(held):
            yield Records.of_lines(held, more)
        yield Records.unreadable(damage.offset, damage.payload, str(damage), end)
    else:
        yield Records.of_lines(held, end)


def read_plain(split: Split, limits: LineLimits) -> Iterator[Lines]:
    """The lines of an uncompressed file that start in a split."""
    with open_listed(split.file) as file:
        start = _first_line_start(file, split)
        if start is None:
            return
        assembler = limits.assembler(start)
        data = file.read(split.end - start)
        if len(data) < split.end - start:
            raise _shrunk(split.file, start + len(data))
        yield assembler.feed(data)
        while assembler.open:
            piece = file.read(_PIECE_BYTES)
            if not piece:
                yield assembler.finish()
                return
            yield assembler.feed(piece[: piece.find(NEWLINE) + 1] or piece)


def _first_line_start(file: BinaryIO, split: Split) -> int | None:
    """Where the first line of the split starts (the file stands there), None when none does."""
    if split.start == 0:
        return 0
    # A line starts after a newline: one just before the split counts, one that ends it does not.
    file.seek(split.start - 1)
    found = file.read(split.end - split.start).find(NEWLINE)
    if found < 0:
        return None
    file.seek(split.start + found)
    return split.start + found


def open_listed(file: InputFile) -> BinaryIO:
    """Open a file of the plan.

    Raises:
        SourceFileError: it has vanished, is not readable, or is shorter than it was.
    """
    try:
        opened = Path(file.path).open("rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise SourceFileError(
            f"input file {file.path} cannot be read any more ({error.strerror}): "
            "put it back and run again with --resume"
        ) from error
    size = opened.seek(0, 2)
    opened.seek(0)
    if size < file.size:
        opened.close()
        raise _shrunk(file, size)
    return opened


def _shrunk(file: InputFile, size: int) -> SourceFileError:
    return SourceFileError(
        f"input file {file.path} has shrunk from {file.size} to {size} bytes since the run "
        "began: put the whole file back and run again with --resume"
    )


class GzipCursor:
    """Reads a gzip file in pieces of compressed bytes, each line once.

    A line belongs to the split in whose compressed bytes it ends.
    """

    def __init__(self, file: InputFile, limits: LineLimits) -> None:
        """Stand at the beginning of the file."""
        self.path = file.path
        self.position = 0
        self._file = file
        self._lines = limits.assembler(0)
        self._inflate = zlib.decompressobj(wbits=31)
        self._damaged = False

    def skip_to(self, start: int) -> None:
        """Read on to a position; its lines are another split's."""
        with suppress(DamagedFile):
            for _ in self._advance(start):
                pass

    def read_to(self, split: Split) -> Iterator[Lines]:
        """The lines that end in the split, and at the end of the file the one that lacks its end.

        Raises:
            DamagedFile: once a file, where its data stop making sense or end too early.
        """
        yield from self._advance(split.end)
        if split.last_of_file and not self._damaged:
            if not self._inflate.eof:
                raise self._damage("the gzip file ends too early")
            yield self._lines.finish()

    def _advance(self, end: int) -> Iterator[Lines]:
        with open_listed(self._file) as file:
            file.seek(self.position)
            while self.position < end:
                piece = file.read(min(_PIECE_BYTES, end - self.position))
                if not piece:
                    raise _shrunk(self._file, self.position)
                self.position += len(piece)
                try:
                    yield from self._feed(piece)
                except zlib.error as error:
                    self.position = end
                    raise self._damage(f"the gzip data are damaged ({error})") from None

    def _feed(self, piece: bytes) -> Iterator[Lines]:
        while piece and not self._damaged:
            if self._inflate.eof:
                # Another member follows in a file made by appending; zeros are padding.
                piece = piece.lstrip(b"\0")
                if not piece:
                    return
                self._inflate = zlib.decompressobj(wbits=31)
            before = self._inflate.copy()
            try:
                text = self._inflate.decompress(piece)
            except zlib.error:
                yield self._lines.feed(_up_to_damage(before, piece))
                raise
            yield self._lines.feed(text)
            piece = self._inflate.unused_data

    def _damage(self, reason: str) -> DamagedFile:
        self._damaged = True
        offset = self._lines.offset
        cut = self._lines.finish()
        if cut.offsets:
            return DamagedFile(reason, cut.offsets[0], cut.payloads[0])
        return DamagedFile(reason, offset, b"")


def _up_to_damage(inflate: zlib._Decompress, piece: bytes) -> bytes:
    """What a damaged piece holds before its damage; taken at once, zlib would give none of it."""
    text = bytearray()
    with suppress(zlib.error):
        for i in range(len(piece)):
            text += inflate.decompress(piece[i : i + 1])
    return bytes(text)


def find_files(paths: Iterable[Path], exclude: Path) -> list[Path]:
    """The input files under the paths: files as they are named, folders' JSON-lines files.

    Args:
        paths: files or folders.
        exclude: the output folder; nothing below it is input.

    Raises:
        SourceFileError: a path does not exist or is a pipe or the like, or there is no file at all.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(_files_below(path))
        elif path.is_file():
            found.add(path)
        elif path.exists():
            raise SourceFileError(
                f"input {path} is neither a file nor a folder: write what it gives to a file first"
            )
        else:
            raise SourceFileError(f"input {path} does not exist")
    kept = sorted(
        p for p in {f.resolve() for f in found} if not p.is_relative_to(exclude.resolve())
    )
    if not kept:
        names = ", ".join(str(p) for p in paths)
        raise SourceFileError(
            f"no input file in {names}: looked for names in {', '.join(SUFFIXES)}"
        )
    return kept


def _files_below(folder: Path) -> Iterator[Path]:
    """The folder's files, at any depth; a folder that cannot be looked into is a fault."""

    def refuse(error: OSError) -> None:
        raise SourceFileError(f"input folder {error.filename} cannot be read: {error.strerror}")

    for parent, _, names in os.walk(folder, onerror=refuse):
        paths = (Path(parent) / name for name in names if name.endswith(SUFFIXES))
        yield from (path for path in paths if path.is_file())


def list_file(path: Path, limits: LineLimits, event_ms: Callable[[bytes], int | None]) -> InputFile:
    """Look at a file as it is now.

    Args:
        path: where it is.
        limits: bounds on its lines.
        event_ms: the event time of a good record, None for a bad one.

    Raises:
        SourceFileError: it cannot be read, or its name is not text.
    """
    try:
        str(path).encode()
        size = path.stat().st_size
        with path.open("rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
        listed = InputFile(str(path), size, compressed, None)
        return InputFile(str(path), size, compressed, _first_event_ms(listed, limits, event_ms))
    except UnicodeEncodeError:
        raise SourceFileError(
            f"input file {path!r} has a name that is not UTF-8: rename it"
        ) from None
    except SourceFileError:
        raise
    except OSError as error:
        raise SourceFileError(f"input file {path} cannot be read: {error.strerror}") from error


def _first_event_ms(
    file: InputFile, limits: LineLimits, event_ms: Callable[[bytes], int | None]
) -> int | None:
    head = Split(file, 0, 0, min(file.size, _PEEK_BYTES))
    pieces = GzipCursor(file, limits).read_to(head) if file.compressed else read_plain(head, limits)
    try:
        for lines in pieces:
            for i, payload in enumerate(lines.payloads):
                time = None if i in lines.oversized else event_ms(payload)
                if time is not None:
                    return time
    except DamagedFile:
        pass
    return None
