"""Arrow batches as they travel: their schemas, and how they become bytes and come back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.rules.splits import UNKNOWN_MS

#: Records that come from the JVM, one row each. A source that has no keys or timestamps leaves
#: them null. `payload_bytes` and `checksum` are set where the source has already cut the payload,
#: `fault` where the source could not read the record and says why.
RECORDS: Final = pa.schema(
    [
        pa.field("payload", pa.binary()),
        pa.field("source_topic", pa.string()),
        pa.field("source_partition", pa.int32()),
        pa.field("source_offset", pa.int64()),
        pa.field("source_timestamp", pa.int64()),
        pa.field("key", pa.binary()),
        pa.field("payload_bytes", pa.int64()),
        pa.field("checksum", pa.string()),
        pa.field("fault", pa.string()),
        pa.field("headers", pa.map_(pa.string(), pa.binary())),
    ]
)

#: Accepted events on their way to a target, one row each: the record as it came, the contract's key
#: and time of the event, and its place among those that arrived with it.
EVENTS: Final = pa.schema(
    [
        *(RECORDS.field(name) for name in RECORDS.names[:6]),
        RECORDS.field("headers"),
        pa.field("event_key", pa.string()),
        pa.field("event_ms", pa.int64()),
        pa.field("place", pa.int32()),
    ]
)

Ints = npt.NDArray[np.int64]

_IPC_OUT: Final = pa.ipc.IpcWriteOptions(use_threads=False)
_IPC_PACKED: Final = pa.ipc.IpcWriteOptions(use_threads=False, compression="lz4")
_IPC_IN: Final = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True)
class SplitMark:
    """Which piece of a planned partition a batch holds.

    Attributes:
        partition: name of the partition, the file's path.
        ordinal: which of its splits.
        last: whether the split ends with this batch.
    """

    partition: str
    ordinal: int
    last: bool


@dataclass(frozen=True)
class Progress:
    """How far one source partition has come with a batch: what the watermark is made of.

    Attributes:
        partition: its name.
        split: the split's ordinal, -1 for a partition that is read in order.
        last: whether the split ends here.
        records: records in the batch.
        newest_ms: newest event time among the accepted ones, UNKNOWN_MS if none was.
    """

    partition: str
    split: int
    last: bool
    records: int
    newest_ms: int = UNKNOWN_MS


def pack_progress(
    partitions: list[Progress], at_ms: int = 0, entry_of_event: Ints | None = None
) -> bytes:
    """The form that Marks.java and Gate.java read: big-endian, strings as DataInput.readUTF does.

    Args:
        partitions: an entry each; several may be of the same partition.
        at_ms: the instant whose minute the events count in.
        entry_of_event: the entry that each event belongs to; None where all are of one partition,
            as it costs four bytes an event.
    """
    packed = [struct.pack(">i", len(partitions))]
    for p in partitions:
        name = _java_utf(p.partition)
        packed.append(struct.pack(">H", len(name)) + name)
        packed.append(struct.pack(">qbiq", p.split, p.last, p.records, p.newest_ms))
    packed.append(struct.pack(">q", at_ms))
    if entry_of_event is not None:
        packed.append(entry_of_event.astype(">i4").tobytes())
    return b"".join(packed)


def _java_utf(text: str) -> bytes:
    # Java's modified UTF-8: a surrogate pair is written as two surrogates of three bytes each, and
    # the null character as two bytes. A path may hold either.
    units = text.encode("utf-16-be", "surrogatepass")
    plain = (chr(int.from_bytes(units[i : i + 2], "big")) for i in range(0, len(units), 2))
    return b"".join(b"\xc0\x80" if c == "\0" else c.encode("utf-8", "surrogatepass") for c in plain)


def pack_lines(lines: bytes) -> bytes:
    """Lines without their last newline as an LZ4 block behind its packed and its full length.

    That is what Packed.java reads, and file sinks write a newline behind each element.

    Lines of one kind pack to a fifth and less, which costs less than the copies that the border
    and the network make of what crosses them. Blocks may stand one behind the other.
    """
    if not lines:
        return b""
    packed = pa.compress(memoryview(lines)[:-1], "lz4_raw", asbytes=True)
    return b"".join([struct.pack("<ii", len(packed), len(lines) - 1), packed])


def to_bytes(batch: pa.RecordBatch, *, packed: bool = False) -> bytes:
    """An Arrow IPC stream of one batch; packed is for what only Python reads."""
    sink = pa.BufferOutputStream()
    options = _IPC_PACKED if packed else _IPC_OUT
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def from_bytes(data: bytes) -> pa.RecordBatch:
    """The batch of an Arrow IPC stream of one batch."""
    return pa.ipc.open_stream(data, options=_IPC_IN).read_next_batch()
