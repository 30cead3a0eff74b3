"""The lines of a file cut the naive way, and the bytes that hypothesis makes files of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from hypothesis import strategies as st

from operators.rules.splits import Lines

BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line as the source hands it on; size and md5 are those of an oversized one."""

    offset: int
    payload: bytes
    size: int | None = None
    md5: str | None = None


def naive_lines(data: bytes, max_bytes: int = 10**9, keep_bytes: int = 10**9) -> list[Line]:
    """All lines of a whole file, with the file in memory."""
    if not data:
        return []
    offset = len(BOM) if data.startswith(BOM) else 0
    bodies = data[offset:].split(b"\n")
    if data.endswith(b"\n"):
        bodies.pop()
    lines = []
    for body in bodies:
        line = body[:-1] if body.endswith(b"\r") else body
        if len(line) > max_bytes:
            md5 = hashlib.md5(line).hexdigest()  # noqa: S324
            lines.append(Line(offset, line[:keep_bytes], len(line), md5))
        else:
            lines.append(Line(offset, line))
        offset += len(body) + 1
    return lines


def as_lines(parts: Iterable[Lines]) -> list[Line]:
    """What an assembler or a reader gave, one after the other."""
    found = []
    for part in parts:
        assert len(part) == len(part.offsets) == len(part.payloads)
        assert part.oversized.keys() <= set(range(len(part)))
        for i, (offset, payload) in enumerate(zip(part.offsets, part.payloads, strict=True)):
            big = part.oversized.get(i)
            found.append(
                Line(offset, payload, big.size, big.checksum) if big else Line(offset, payload)
            )
    return found


#: Files of short, empty and long lines, with every kind of end, and marks where none belong.
FILES = st.lists(
    st.sampled_from(
        (
            *(b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\r", b"a", b"bc", b"{}", b"\0", b"0123456789"),
            *(BOM, BOM[:1], BOM[1:2], BOM[2:], b"a long line " * 4, b"\xff", "é😀".encode()),
        )
    ),
    max_size=30,
).map(b"".join)
MARKED_FILES = st.builds(bytes.__add__, st.sampled_from((b"", b"", BOM, BOM[:2])), FILES)
LIMITS = st.tuples(st.integers(0, 20), st.integers(0, 30))
