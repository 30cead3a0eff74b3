"""What Java reads of ours: packed progress, as java.io.DataInput documents it, and packed lines."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from operators.bridge.wire import Progress


@dataclass
class DataInput:
    """Big-endian numbers, one after the other."""

    data: bytes
    at: int = 0

    def read(self, form: str) -> Any:
        (value,) = struct.unpack_from(f">{form}", self.data, self.at)
        self.at += struct.calcsize(f">{form}")
        return value

    def read_utf(self) -> str:
        """A length of two bytes, then UTF-16 units of one, two or three bytes each."""
        units: list[int] = []
        end = self.read("H") + self.at
        while self.at < end:
            first = self.read("B")
            if first < 0x80:
                assert first, "the null character has two bytes"
                units.append(first)
            elif first >> 5 == 0b110:
                units.append((first & 0x1F) << 6 | self.tail())
            else:
                assert first >> 4 == 0b1110, "Java knows no longer units"
                units.append((first & 0x0F) << 12 | self.tail() << 6 | self.tail())
        assert self.at == end
        return struct.pack(f">{len(units)}H", *units).decode("utf-16-be", "surrogatepass")

    def tail(self) -> int:
        byte: int = self.read("B")
        assert byte >> 6 == 0b10
        return byte & 0x3F


def read_progress(data: bytes) -> list[Progress]:
    """What Marks.java reads."""
    return _entries(DataInput(data))


def events_by_partition(data: bytes, events: int) -> dict[str, int]:
    """What Gate.java reads: of which partition the events are."""
    java = DataInput(data)
    names = [progress.partition for progress in _entries(java)]
    java.read("q")
    if java.at == len(data):
        return {names[0]: events}
    found = Counter(names[java.read("i")] for _ in range(events))
    assert java.at == len(data)
    return dict(found)


def _entries(java: DataInput) -> list[Progress]:
    return [
        Progress(
            partition=java.read_utf(),
            split=java.read("q"),
            last=java.read("b") != 0,
            records=java.read("i"),
            newest_ms=java.read("q"),
        )
        for _ in range(java.read("i"))
    ]


def unpacked(blocks: bytes) -> bytes:
    """What Packed.java makes of packed lines, and a newline behind it."""
    lines = b""
    while blocks:
        packed, full = struct.unpack_from("<ii", blocks)
        lines += pa.decompress(blocks[8 : 8 + packed], full, "lz4_raw", asbytes=True) + b"\n"
        blocks = blocks[8 + packed :]
    return lines
