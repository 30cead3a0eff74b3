"""Accepted events on their way to delivery: parted by lane, a few large rows for the JVM."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyflink.common import Row, Types

from operators.batches.events import Events, EventType
from operators.batches.records import Records
from operators.bridge.steps import BYTES
from operators.bridge.wire import EVENTS, Ints, Progress, pack_progress, to_bytes
from operators.intake.outgoing import Size
from operators.rules.identity import DIGEST_BYTES

#: What delivery is handed: how far the source partitions have come (`batches.pack_progress`), of
#: which only the last row of an element speaks; a batch of `batches.EVENTS`; and, where there is
#: deduplication, what tells these events apart (`events.EventType.digests`), of which
#: `bridge.dedup` makes the places of the duplicates (big-endian ints).
LANED_VALUE: Final = Types.ROW([BYTES, BYTES, BYTES])
LANED: Final = Types.ROW([Types.INT(), LANED_VALUE])
AT_MS: Final = b"at_ms"
#: Records of one kind pack to a third and less (of e-commerce events 111,004 bytes to 32,832), and
#: an element's are shared out among the lanes; of others rows are larger, which costs time alone.
_PACKS_TO: Final = 3
_DIGEST: Final = np.dtype((np.void, DIGEST_BYTES))


def lane_of(key: str, lanes: int) -> int:
    """The lane of a key: the same on each machine, and for as long as there are so many."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % lanes


class Laned:
    """The good events of some batches, as rows of `LANED`: one a lane that has any."""

    def __init__(
        self, event_type: EventType, lanes: tuple[int, ...], *, deduplicates: bool = False
    ) -> None:
        """Nothing yet.

        Args:
            event_type: what the events are.
            lanes: the numbers that Flink's keys have, see `bridge.lane_keys`.
            deduplicates: whether anyone asks what tells the events apart.
        """
        self._event_type = event_type
        self._lanes = lanes
        self._deduplicates = deduplicates
        self._progress: list[Progress] = []
        self._batches: dict[int, list[pa.RecordBatch]] = defaultdict(list)
        self._digests: dict[int, list[bytes]] = defaultdict(list)
        #: The instant whose minute all of it counts in: that of the first batch.
        self.at_ms = 0
        self.size = Size()

    @property
    def is_empty(self) -> bool:
        """Whether no partition has come further, so that there is nothing to tell."""
        return not self._progress

    def add(self, records: Records, rows: Ints, events: Events, now_ms: int) -> None:
        """Take in a batch: its accepted rows and what they hold."""
        times = self._event_type.event_ms(events)
        self.at_ms = self.at_ms or now_ms
        self._progress += records.origin.progress(rows, times)
        keys = pa.array(self._event_type.keys(events), pa.string())
        batch = _batch(records, rows, keys, times)
        digests = self._digests_of(records, rows, events)
        for lane, begin, end, order in _parted(keys, len(self._lanes)):
            here = order[begin:end]
            self._batches[lane].append(batch.take(here))
            if self._deduplicates:
                self._digests[lane].append(digests[here.to_numpy()].tobytes())
        size = batch.nbytes + digests.nbytes
        self.size = self.size.plus(size // _PACKS_TO, size)

    def _digests_of(self, records: Records, rows: Ints, events: Events) -> npt.NDArray[np.void]:
        """What tells the events apart, one row each; nothing where nobody asks."""
        if not self._deduplicates:
            return np.empty(0, _DIGEST)
        payloads = [records.payloads[row] for row in rows.tolist()]
        return np.frombuffer(self._event_type.digests(payloads, events), _DIGEST)

    def rows(self) -> Iterator[Row]:
        """All of it; the last one tells how far the partitions have come."""
        told = pack_progress(self._progress, self.at_ms)
        nothing = pack_progress([])
        lanes = sorted(self._batches)
        for lane in lanes:
            progress = told if lane == lanes[-1] else nothing
            events, digests = self._packed(self._batches[lane]), b"".join(self._digests[lane])
            yield Row(self._lanes[lane], Row(progress, events, digests))
        if not lanes:
            yield Row(self._lanes[0], Row(told, b"", b""))

    def _packed(self, batches: list[pa.RecordBatch]) -> bytes:
        table = pa.Table.from_batches(batches)
        (batch,) = table.combine_chunks().to_batches()
        place = pa.array(np.arange(batch.num_rows, dtype=np.int32))
        whole = pa.record_batch([*batch.columns, place], schema=EVENTS)
        return to_bytes(
            whole.replace_schema_metadata({AT_MS: str(self.at_ms).encode()}), packed=True
        )


def _batch(records: Records, rows: Ints, keys: pa.Array, times: Ints) -> pa.RecordBatch:
    """The accepted rows as columns of `EVENTS`, all but the last."""
    names = EVENTS.names[:-1]
    if records.batch is not None:
        index = pa.array(rows)
        columns = [records.batch.column(name).take(index) for name in names[:-2]]
    else:
        topics, partitions, offsets = records.origin.coordinates(rows)
        payloads = records.payloads
        columns = [
            pa.array([payloads[row] for row in rows.tolist()], pa.binary()),
            pa.array(list(topics), pa.string()),
            pa.array(list(partitions), pa.int32()),
            pa.array(list(offsets), pa.int64()),
            *(pa.nulls(len(rows), EVENTS.field(name).type) for name in names[4:-2]),
        ]
    types = EVENTS.types[:-1]
    all_columns = [*columns, keys, pa.array(times)]
    cast = [c if c.type == t else c.cast(t) for c, t in zip(all_columns, types, strict=True)]
    return pa.record_batch(cast, names)


def _parted(keys: pa.Array, lanes: int) -> Iterator[tuple[int, int, int, pa.Array]]:
    """Each lane that has rows: its number, and where they stand in an order of all rows."""
    if not len(keys):
        return
    coded = keys.dictionary_encode()
    of_key = np.array([lane_of(key, lanes) for key in coded.dictionary.to_pylist()], np.int64)
    of_row = of_key[coded.indices.to_numpy()]
    order = np.argsort(of_row, kind="stable")
    sorted_lanes = of_row[order]
    begins = np.flatnonzero(np.diff(sorted_lanes, prepend=-1))
    ends = np.append(begins[1:], len(order))
    positions = pa.array(order)
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        yield int(sorted_lanes[begin]), begin, end, positions
