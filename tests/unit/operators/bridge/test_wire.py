"""Batches as bytes and back, and the progress that Java reads."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from operators.bridge.wire import (
    RECORDS,
    Progress,
    from_bytes,
    pack_lines,
    pack_progress,
    to_bytes,
)
from operators.rules.splits import UNKNOWN_MS
from tests.unit.operators.bridge.java_input import events_by_partition, read_progress, unpacked

ONE_COLUMN = pa.schema([("line", pa.binary())])
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
PARTITIONS = TEXTS | st.text(st.sampled_from("a\0\x7f\x80é\u07ff\u0800€\uffff😀"), max_size=20)
ROWS = st.fixed_dictionaries(
    {
        "payload": st.none() | st.binary(),
        "source_topic": TEXTS,
        "source_partition": st.integers(0, 2**31 - 1),
        "source_offset": INT64,
        "source_timestamp": st.none() | INT64,
        "key": st.none() | st.binary(),
        "payload_bytes": st.none() | INT64,
        "checksum": st.none() | TEXTS,
        "fault": st.none() | TEXTS,
        "headers": st.none() | st.lists(st.tuples(TEXTS, st.none() | st.binary())),
    }
)


# --- bytes and back


@given(st.lists(ROWS, max_size=5))
def test_a_batch_of_records_comes_back_from_its_bytes(rows: list[dict[str, object]]) -> None:
    back = from_bytes(to_bytes(pa.RecordBatch.from_pylist(rows, RECORDS)))
    assert back.schema.equals(RECORDS)
    assert back.to_pylist() == rows


def test_an_empty_batch_comes_back_from_its_bytes() -> None:
    back = from_bytes(to_bytes(pa.RecordBatch.from_pylist([], RECORDS)))
    assert back.num_rows == 0
    assert back.schema.equals(RECORDS)


def test_a_slice_of_a_batch_is_sent_without_the_rest() -> None:
    batch = pa.RecordBatch.from_pydict({"line": [b"a", b"x" * 100_000, b"b"]}, ONE_COLUMN)
    data = to_bytes(batch.slice(2, 1))
    assert from_bytes(data).to_pylist() == [{"line": b"b"}]
    assert len(data) < 10_000


# --- progress


@given(
    st.lists(
        st.builds(
            Progress,
            partition=PARTITIONS,
            split=st.just(-1) | INT64,
            last=st.booleans(),
            records=st.integers(0, 2**31 - 1),
            newest_ms=st.just(UNKNOWN_MS) | INT64,
        ),
        max_size=4,
    )
)
def test_java_reads_the_progress_that_was_packed(partitions: list[Progress]) -> None:
    assert read_progress(pack_progress(partitions)) == partitions
    # Marks.java does not look at what is behind.
    packed = pack_progress(partitions, 77, np.zeros(3, np.int64))
    assert read_progress(packed) == partitions


def test_the_gate_reads_how_many_events_each_partition_has() -> None:
    a, b = Progress("t/0", -1, False, 3), Progress("t/1", -1, False, 2)
    packed = pack_progress([a, b, a], 77, np.array([0, 1, 1, 2, 0]))
    assert events_by_partition(packed, 5) == {"t/0": 3, "t/1": 2}
    assert events_by_partition(pack_progress([a]), 5) == {"t/0": 5}


def test_progress_is_written_byte_for_byte_as_java_writes_it() -> None:
    """The name is what DataOutputStream.writeUTF gives for it."""
    packed = pack_progress([Progress("a\0é😀", 2, True, 3, -1)])
    name = b"a" + b"\xc0\x80" + b"\xc3\xa9" + b"\xed\xa0\xbd\xed\xb8\x80"
    count, size, split, records = b"\0\0\0\1", b"\0\x0b", b"\0\0\0\0\0\0\0\2", b"\0\0\0\3"
    at_ms = b"\0" * 8
    assert packed == count + size + name + split + b"\1" + records + b"\xff" * 8 + at_ms


def test_the_longest_path_there_can_be_fits_the_progress() -> None:
    path = "/" + "😀" * 1023
    (back,) = read_progress(pack_progress([Progress(path, 0, False, 0)]))
    assert back.partition == path


@given(st.lists(st.binary(max_size=300).map(lambda line: line + b"\n"), max_size=4))
def test_packed_lines_stand_one_behind_the_other(blocks: list[bytes]) -> None:
    assert unpacked(b"".join(map(pack_lines, blocks))) == b"".join(blocks)


def test_nothing_packs_to_nothing() -> None:
    assert pack_lines(b"") == b""


def test_lines_of_one_kind_pack_to_a_fifth() -> None:
    lines = b"".join(b'{"user_id":"user_%05d","source_topic":"/a/path"}\n' % i for i in range(1000))
    assert len(pack_lines(lines)) < len(lines) / 5
