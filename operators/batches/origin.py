"""Where the records of a batch come from, and what the batch tells of each source partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress, pairwise, repeat
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from operators.bridge.wire import Ints, Progress, SplitMark
from operators.rules.splits import UNKNOWN_MS
from operators.rules.verdict import Rejection

MINUTE_MS: Final = 60_000
#: A topic of one-record transactions has a gap behind every record: a row must not name them all.
MAX_SPANS: Final = 64


@dataclass(frozen=True)
class Origin:
    """The source partitions of a batch, and the one of each row.

    Attributes:
        mark: the piece of a planned partition that the batch is, None for other sources.
        partitions: topic and partition, each once.
        of_row: index into partitions by row; None where there is only one.
        offsets: offset by row.
    """

    mark: SplitMark | None
    partitions: list[tuple[str, int]]
    of_row: Ints | None
    offsets: list[int]

    @classmethod
    def of_split(cls, mark: SplitMark, offsets: list[int]) -> Origin:
        """Records of a piece of a file."""
        return cls(mark, [(mark.partition, 0)], None, offsets)

    @classmethod
    def of_batch(cls, batch: pa.RecordBatch) -> Origin:
        """Read the coordinates of a batch of `RECORDS`."""
        offsets = batch.column("source_offset").to_numpy().tolist()
        topics = batch.column("source_topic").dictionary_encode()
        numbers = batch.column("source_partition").to_numpy().astype(np.int64)
        pairs = topics.indices.to_numpy().astype(np.int64) << 32 | numbers
        # A partition's records come many in a row: only where it changes is looked at.
        begins = np.flatnonzero(np.diff(pairs, prepend=-1))
        distinct, of_run = np.unique(pairs[begins], return_inverse=True)
        of_row = np.repeat(of_run, np.diff(begins, append=len(pairs)))
        names = topics.dictionary.to_pylist()
        partitions = [(names[pair >> 32], int(pair & 0xFFFFFFFF)) for pair in distinct]
        return cls(None, partitions, of_row if len(partitions) > 1 else None, offsets)

    def partition_of(self, row: int) -> tuple[str, int]:
        """Topic and partition of a row."""
        return self.partitions[self._entry(row)]

    def coordinates(self, rows: Ints) -> tuple[Iterable[str], Iterable[int], Iterable[int]]:
        """Topics, partitions and offsets of some rows, which are in order."""
        wanted = np.zeros(len(self.offsets), np.uint8)
        wanted[rows] = 1
        offsets = compress(self.offsets, wanted.tobytes())
        if len(self.partitions) == 1:
            topic, partition = self.partitions[0]
            return repeat(topic, len(rows)), repeat(partition, len(rows)), offsets
        topics = [topic for topic, _ in self.partitions]
        partitions = [partition for _, partition in self.partitions]
        sources = self._of_row()[rows].tolist()
        return map(topics.__getitem__, sources), map(partitions.__getitem__, sources), offsets

    def progress(self, rows: Ints, times_ms: Ints) -> list[Progress]:
        """What the batch tells the watermark; rows and times are those of the accepted records."""
        if self.mark is not None:
            newest_ms = int(times_ms.max(initial=UNKNOWN_MS))
            records = len(self.offsets)
            return [
                Progress(self.mark.partition, self.mark.ordinal, self.mark.last, records, newest_ms)
            ]
        of_row = self._of_row()
        newest = np.full(len(self.partitions), UNKNOWN_MS)
        np.maximum.at(newest, of_row[rows], times_ms)
        counts = np.bincount(of_row, minlength=len(self.partitions))
        return [
            Progress(f"{topic}/{partition}", -1, False, int(counts[i]), int(newest[i]))
            for i, (topic, partition) in enumerate(self.partitions)
        ]

    def entries(self, rows: Ints) -> Ints | None:
        """The entry of `progress` that each of some rows belongs to; None where there is one."""
        return None if self.of_row is None else self.of_row[rows]

    def count_lines(self, at_ms: int, rejected: list[tuple[int, Rejection]]) -> list[bytes]:
        """One line a source partition for Books.java: what came in, and what was turned away.

        Of a planned partition also whether the batch ends a piece of it: a run that has read all
        of its input has one such end for each piece. Of another one the offsets' spans, where
        there are gaps between them.

        Args:
            at_ms: the instant whose minute the batch counts in.
            rejected: rows that were turned away.
        """
        turned_away = Counter((self._entry(row), r.kind, r.error_type) for row, r in rejected)
        lines = []
        for i, ((topic, partition), here) in enumerate(
            zip(self.partitions, self._offsets_by_partition(), strict=True)
        ):
            line: dict[str, Any] = {
                "minute_ms": at_ms - at_ms % MINUTE_MS,
                "source_topic": topic,
                "source_partition": partition,
                "received": len(here),
            }
            if len(here):
                line.update(first_offset=int(here[0]), last_offset=int(here[-1]))
            if self.mark is not None:
                line["splits"] = [self.mark.ordinal] if self.mark.last else []
            elif len(spans := spans_of(np.asarray(here))) > 1:
                line["spans"] = spans
            for name, kind in (("dead_lettered", "dead_letter"), ("quarantined", "quarantine")):
                line[name] = {
                    what: n for (at, k, what), n in turned_away.items() if at == i and k == kind
                }
            lines.append(msgspec.json.encode(line) + b"\n")
        return lines

    def _entry(self, row: int) -> int:
        return 0 if self.of_row is None else int(self.of_row[row])

    def _offsets_by_partition(self) -> Iterator[list[int] | Ints]:
        """In order; those of a planned partition come so."""
        if self.mark is not None:
            yield self.offsets
            return
        offsets = np.array(self.offsets, np.int64)
        for i in range(len(self.partitions)):
            yield np.sort(offsets if self.of_row is None else offsets[self.of_row == i])

    def _of_row(self) -> Ints:
        return np.zeros(len(self.offsets), np.int64) if self.of_row is None else self.of_row


def spans_of(offsets: Ints) -> list[list[int]]:
    """Offsets, in order, as spans: first, last, and how many there are.

    Without gaps, unless there are more than `MAX_SPANS`: then neighbours share a span.
    """
    breaks = np.flatnonzero(np.diff(offsets) != 1) + 1
    step = len(breaks) // MAX_SPANS + 1
    edges = np.concatenate(([0], breaks[step - 1 :: step], [len(offsets)]))
    return [
        [int(offsets[begin]), int(offsets[end - 1]), int(end - begin)]
        for begin, end in pairwise(edges)
        if end > begin
    ]
