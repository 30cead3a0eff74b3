"""Where the records of a batch come from, and what the batch tells of each source partition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.batches import Progress, SplitMark
from operators.rules.splits import UNKNOWN_MS
from operators.rules.verdict import Rejection

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """The source partitions of a batch, and the one of each row.

    Attributes:
        mark: the piece of a planned partition that the batch is, None for other sources.
        partitions: topic and partition, each once.
        of_row: index into partitions by row.
        offsets: offset by row.
    """

    mark: SplitMark | None
    partitions: list[tuple[str, int]]
    of_row: Ints
    offsets: Ints

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Origin:
        """Read the coordinates of a batch of records."""
        mark = SplitMark.of(batch.schema.metadata)
        offsets = batch.column("source_offset").to_numpy()
        if mark is not None:
            return cls(mark, [(mark.partition, 0)], np.zeros(len(offsets), np.int64), offsets)
        topics = batch.column("source_topic").dictionary_encode()
        numbers = batch.column("source_partition").to_numpy().astype(np.int64)
        pairs = topics.indices.to_numpy().astype(np.int64) << 32 | numbers
        distinct, of_row = np.unique(pairs, return_inverse=True)
        names = topics.dictionary.to_pylist()
        partitions = [(names[pair >> 32], int(pair & 0xFFFFFFFF)) for pair in distinct]
        return cls(None, partitions, of_row, offsets)

    def coordinates(self, rows: list[int]) -> tuple[list[str], list[int], list[int]]:
        """Topics, partitions and offsets of some rows."""
        offsets: list[int] = self.offsets[rows].tolist()
        if len(self.partitions) == 1:
            topic, partition = self.partitions[0]
            return [topic] * len(rows), [partition] * len(rows), offsets
        sources = [self.partitions[i] for i in self.of_row[rows]]
        return [topic for topic, _ in sources], [partition for _, partition in sources], offsets

    def progress(self, rows: list[int], times_ms: Ints) -> list[Progress]:
        """What the batch tells the watermark; times are those of the accepted rows."""
        newest = np.full(len(self.partitions), UNKNOWN_MS)
        np.maximum.at(newest, self.of_row[rows], times_ms)
        records = np.bincount(self.of_row, minlength=len(self.partitions))
        if self.mark is not None:
            mark = self.mark
            return [
                Progress(mark.partition, mark.ordinal, mark.last, int(records[0]), int(newest[0]))
            ]
        return [
            Progress(f"{topic}/{partition}", -1, False, int(records[i]), int(newest[i]))
            for i, (topic, partition) in enumerate(self.partitions)
        ]

    def count_lines(self, stage: str, rejected: list[tuple[int, Rejection]]) -> list[bytes]:
        """One line a source partition: what came in, and what of it was turned away.

        Of a planned partition also which piece it was, and whether that ends: a run that has read
        all of its input has one such end for each piece.
        """
        turned_away = Counter((self.of_row[row], r.kind, r.error_type) for row, r in rejected)
        lines = []
        for i, (topic, partition) in enumerate(self.partitions):
            offsets = self.offsets[self.of_row == i]
            row: dict[str, Any] = {
                "stage": stage,
                "source_topic": topic,
                "source_partition": partition,
                "first_offset": int(offsets.min()) if len(offsets) else None,
                "last_offset": int(offsets.max()) if len(offsets) else None,
                "received": len(offsets),
            }
            if self.mark is not None:
                row.update(split=self.mark.ordinal, split_ends=self.mark.last)
            for name, kind in (("dead_lettered", "dead_letter"), ("quarantined", "quarantine")):
                row[name] = {
                    what: n for (at, k, what), n in turned_away.items() if at == i and k == kind
                }
            lines.append(msgspec.json.encode(row) + b"\n")
        return lines
