"""What comes of a source's element, gathered over its batches: few large rows for the JVM.

Python looks at a piece of records at a time; the border and the windows are best served with more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyflink.common import Row
from pyflink.datastream import OutputTag

from operators.batches.events import Events, EventType, partials_of
from operators.batches.records import Records
from operators.bridge.steps import BYTES, packed_type
from operators.bridge.wire import (
    Ints,
    Progress,
    pack_lines,
    pack_progress,
    to_bytes,
)
from operators.rules.delivery.failure import FailureCategory, category_of, queue_of
from operators.rules.verdict import Rejection

DEAD_LETTER_FOLDERS: Final = ("queue", "date", "error_type")
QUARANTINE_FOLDERS: Final = ("reason",)
DEAD_LETTER_TAG: Final = OutputTag("dead-letters", packed_type(DEAD_LETTER_FOLDERS))
QUARANTINE_TAG: Final = OutputTag("quarantine", packed_type(QUARANTINE_FOLDERS))
COUNTS_TAG: Final = OutputTag("counts", BYTES)


class Size(NamedTuple):
    """How large a row is.

    Attributes:
        travels: bytes as it goes to the JVM and from task to task, its lines packed; more than
            it comes to in the end, where events are added up.
        unpacked: bytes of its lines, as the JVM holds them when it cuts or writes them. Lines of
            little variety pack to a hundredth, so one bound does not do for both.
    """

    travels: int = 0
    unpacked: int = 0

    def plus(self, travels: int, unpacked: int) -> Size:
        """With so much more."""
        return Size(self.travels + travels, self.unpacked + unpacked)


class Accepted:
    """The good events of some batches, as one row of `bridge.ACCEPTED`."""

    def __init__(self, event_type: EventType, window_ms: int) -> None:
        """Nothing yet."""
        self._event_type = event_type
        self._window_ms = window_ms
        self._progress: list[Progress] = []
        self._lines: list[bytes] = []
        self._times: list[Ints] = []
        self._columns: list[pa.RecordBatch] = []
        self._entries: list[Ints | int] = []
        #: The instant whose minute all of it counts in: that of the first batch.
        self.at_ms = 0
        self.size = Size()

    @property
    def is_empty(self) -> bool:
        """Whether no partition has come further, so that there is nothing to tell."""
        return not self._progress

    def add(self, records: Records, rows: Ints, events: Events, now_ms: int) -> None:
        """Take in a batch: its accepted rows and what they hold."""
        origin = records.origin
        times = self._event_type.event_ms(events)
        lines = self._event_type.encoded(events, *origin.coordinates(rows))
        self.at_ms = self.at_ms or now_ms
        first, entries = len(self._progress), origin.entries(rows)
        self._entries.append(first if entries is None else entries + first)
        self._progress += origin.progress(rows, times)
        self._times.append(times)
        self._lines.append(pack_lines(lines))
        self._columns.append(self._event_type.window_columns(events, self._window_ms))
        travels = len(self._lines[-1]) + times.nbytes + self._columns[-1].nbytes
        self.size = self.size.plus(travels, len(lines))

    def rows(self) -> Iterator[Row]:
        """All of it."""
        partials = partials_of(self._columns, self._event_type.contract)
        yield Row(
            lines=b"".join(self._lines),
            progress=pack_progress(self._progress, self.at_ms, self._entry_of_event()),
            times=np.concatenate(self._times).astype(">i8").tobytes(),
            partials=to_bytes(partials),
        )

    def _entry_of_event(self) -> Ints | None:
        """The entry of the progress that each event belongs to; None where all are of one."""
        if len({progress.partition for progress in self._progress}) == 1:
            return None
        of_batch = zip(self._entries, self._times, strict=True)
        entries: Ints = np.concatenate([np.broadcast_to(at, ms.shape) for at, ms in of_batch])
        return entries


class Rejected:
    """What was turned away, as one row a folder for the side outputs, and the counts."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._dead: dict[tuple[str, ...], list[bytes]] = defaultdict(list)
        self._quarantined: dict[tuple[str, ...], list[bytes]] = defaultdict(list)
        self._counts: list[bytes] = []
        self.size = Size()

    def add(self, envelope: bytes, why: Rejection, date: str) -> None:
        """Take in a record's envelope; it goes to the folder that its reason and the day name."""
        if why.kind == "quarantine":
            self._quarantined[why.error_type,].append(self._line(envelope))
        else:
            self.add_dead(envelope, category_of(why.error_type), date, why.error_type)

    def add_dead(
        self, envelope: bytes, category: FailureCategory, date: str, error_type: str
    ) -> None:
        """Take in a dead letter whose category is known already."""
        self._dead[queue_of(category), date, error_type].append(self._line(envelope))

    def _line(self, envelope: bytes) -> bytes:
        line = envelope + b"\n"
        # Packed only when they leave: until then they count in full.
        self.size = self.size.plus(len(line), len(line))
        return line

    def count(self, lines: list[bytes]) -> None:
        """Take in a batch's counts."""
        self._counts += lines

    def rows(self) -> Iterator[tuple[OutputTag, Row | bytes]]:
        """All of it."""
        for tag, folders, turned_away in (
            (DEAD_LETTER_TAG, DEAD_LETTER_FOLDERS, self._dead),
            (QUARANTINE_TAG, QUARANTINE_FOLDERS, self._quarantined),
        ):
            for names, lines in turned_away.items():
                folder = dict(zip(folders, names, strict=True))
                yield tag, Row(lines=pack_lines(b"".join(lines)), **folder)
        if self._counts:
            yield COUNTS_TAG, b"".join(self._counts)
