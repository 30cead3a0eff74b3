"""The file source: each line of a file once, whatever the cut, the order, a restart or damage."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.batches.records import Oddity, Records
from operators.bridge.wire import SplitMark
from operators.rules.splits import InputFile, Lines, Oversized, ReadPlan, Split
from operators.sources import files as file_source
from operators.sources.files import (
    DamagedFile,
    FileReader,
    GzipCursor,
    LineLimits,
    SourceFileError,
    batches_of,
    find_files,
    list_file,
    read_plain,
)
from tests.unit.operators.rules.lines import BOM, LIMITS, MARKED_FILES, Line, as_lines, naive_lines

WIDE = LineLimits(10_000, payload_limit_bytes=100, max_records=1000, max_bytes=10**6)
PIECES = st.integers(1, 40) | st.just(1 << 14)
SPLITS = st.integers(1, 80) | st.just(10**6)

Fault = tuple[int, bytes]
Outcome = tuple[list[Line], Fault | None]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the examples of hypothesis write over."""
    return tmp_path_factory.mktemp("scratch") / "events.jsonl"


def write(path: Path, data: bytes) -> InputFile:
    """A file with these bytes, as it is listed."""
    path.write_bytes(data)
    return InputFile(str(path), len(data), data.startswith(b"\x1f\x8b"), None)


def limits_of(limits: tuple[int, int]) -> LineLimits:
    return LineLimits(*limits, max_records=1000, max_bytes=10**6)


def splits_of(file: InputFile, split_bytes: int) -> list[Split]:
    return ReadPlan((file,), split_bytes, 1).splits(file)


def piecewise(pieces: int) -> pytest.MonkeyPatch:
    """The source with other pieces than its own; undo it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(file_source, "_PIECE_BYTES", pieces)
    return patch


# --- plain files


@given(MARKED_FILES, SPLITS, PIECES, LIMITS, st.randoms(use_true_random=False))
def test_the_splits_of_a_plain_file_give_each_line_once_in_any_order(
    scratch: Path,
    data: bytes,
    split_bytes: int,
    pieces: int,
    limits: tuple[int, int],
    shuffler: random.Random,
) -> None:
    splits = splits_of(write(scratch, data), split_bytes)
    shuffler.shuffle(splits)
    patch = piecewise(pieces)
    try:
        found = {s: as_lines(read_plain(s, limits_of(limits))) for s in splits}
    finally:
        patch.undo()
    in_order = [line for split in sorted(found, key=lambda s: s.start) for line in found[split]]
    assert in_order == naive_lines(data, *limits)


@given(MARKED_FILES, SPLITS)
def test_a_line_belongs_to_the_split_in_which_it_begins(
    scratch: Path, data: bytes, split_bytes: int
) -> None:
    for split in splits_of(write(scratch, data), split_bytes):
        for line in as_lines(read_plain(split, WIDE)):
            begins = 0 if line.offset == len(BOM) and data.startswith(BOM) else line.offset
            assert split.start <= begins < split.end


def test_a_line_longer_than_many_splits_is_read_once_and_cut_to_the_limit(tmp_path: Path) -> None:
    long = b"y" * 300_000
    file = write(tmp_path / "a", b"a\n" + long + b"\nb\n")
    lines = [as_lines(read_plain(s, WIDE)) for s in splits_of(file, 1000)]
    assert [line.offset for split in lines for line in split] == [0, 2, 300_003]
    assert lines[0][1].payload == long[:100]
    assert lines[0][1].size == len(long)


def test_a_plain_file_that_grew_is_read_as_far_as_it_was_listed(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"a\nbc\n")
    with Path(file.path).open("ab") as more:
        more.write(b"d\ne\n")
    for split_bytes in (1, 2, 5, 100):
        found = [as_lines(read_plain(s, WIDE)) for s in splits_of(file, split_bytes)]
        assert [line for lines in found for line in lines] == [Line(0, b"a"), Line(2, b"bc")]


def test_a_line_that_was_not_ended_when_listed_is_read_to_its_end(tmp_path: Path) -> None:
    file = write(tmp_path / "a", b"a\nbc")
    with Path(file.path).open("ab") as more:
        more.write(b"d\ne\n")
    for split_bytes in (1, 2, 3, 100):
        found = [as_lines(read_plain(s, WIDE)) for s in splits_of(file, split_bytes)]
        assert [line for lines in found for line in lines] == [Line(0, b"a"), Line(2, b"bcd")]


# --- gzip files


def packed(data: bytes, level: int = 6, cuts: tuple[int, ...] = ()) -> bytes:
    """A gzip member, flushed at these places of the data."""
    deflate = zlib.compressobj(level, wbits=31)
    at = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    parts = [
        deflate.compress(data[i:j]) + deflate.flush(zlib.Z_SYNC_FLUSH) for i, j in pairwise(at)
    ]
    return b"".join(parts) + deflate.flush()


MEMBERS = st.builds(
    packed,
    MARKED_FILES | MARKED_FILES.map(lambda data: data + b"\none\ntwo\n"),
    st.sampled_from((0, 1, 9)),
    st.lists(st.integers(0, 60)).map(tuple),
)
#: Whole gzip files: several members, zeros between and after them.
GZIP_FILES = st.lists(
    st.tuples(MEMBERS, st.integers(0, 3).map(bytes)).map(b"".join), min_size=1, max_size=3
).map(b"".join)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A gzip file that is cut, has a byte changed, or goes on with something else."""
    data = draw(GZIP_FILES.filter(lambda data: len(data) > 30))  # an empty file has 20 bytes
    at = draw(st.sampled_from(range(2, len(data))))
    how = draw(st.sampled_from(("cut", "change", "change", "append")))
    if how == "cut":
        return data[:at]
    if how == "change":
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    return data + draw(st.sampled_from((b"x", b"\x1f", b"\x1f\x8b\x08", b"\x1f\x8b\x08" + data)))


def naive_gzip(data: bytes, limits: tuple[int, int]) -> Outcome:
    """All lines of a gzip file and its one fault, taken in byte by byte."""
    text, member, broken = b"", None, False
    try:
        for i in range(len(data)):
            byte = data[i : i + 1]
            if member is None or member.eof:
                if byte == b"\0":
                    continue
                member = zlib.decompressobj(wbits=31)
            text += member.decompress(byte)
    except zlib.error:
        broken = True
    lines = naive_lines(text, *limits)
    if not broken and member is not None and member.eof:
        return lines, None
    if text and not text.endswith(b"\n"):
        cut = lines.pop()
        return lines, (cut.offset, cut.payload)
    return lines, (len(text), b"")


def read_on(cursor: GzipCursor, split: Split) -> Outcome:
    """A split by a cursor that stands anywhere before it."""
    cursor.skip_to(split.start)
    lines: list[Line] = []
    try:
        for some in cursor.read_to(split):
            lines += as_lines([some])
    except DamagedFile as damage:
        return lines, (damage.offset, damage.payload)
    return lines, None


def joined(outcomes: list[Outcome]) -> tuple[list[Line], list[Fault]]:
    lines = [line for lines, _ in outcomes for line in lines]
    return lines, [fault for _, fault in outcomes if fault]


@given(GZIP_FILES | damaged_files(), SPLITS, PIECES, LIMITS)
@example(packed(b"a\nb\nc")[:-8] + bytes(8), 1000, 1000, (9, 9))
@example(packed(b"a\nb\n") + packed(b"c\nd\n", 0)[:-6], 15, 1000, (9, 9))
def test_a_gzip_file_gives_each_line_once_and_one_fault_where_it_is_damaged(
    scratch: Path, data: bytes, split_bytes: int, pieces: int, limits: tuple[int, int]
) -> None:
    """Read in order by one cursor, and again by a fresh one for each split, as after a restart."""
    file = replace(write(scratch, data), compressed=True)
    splits = splits_of(file, split_bytes)
    lines, fault = naive_gzip(data, limits)
    patch = piecewise(pieces)
    try:
        cursor = GzipCursor(file, limits_of(limits))
        in_order = [read_on(cursor, split) for split in splits]
        restarted = [read_on(GzipCursor(file, limits_of(limits)), split) for split in splits]
    finally:
        patch.undo()
    assert joined(in_order) == (lines, [fault] if fault else [])
    assert restarted == in_order


def test_a_cursor_skips_more_than_one_split(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % i for i in range(50))
    splits = splits_of(write(tmp_path / "a.gz", packed(data, 0)), 40)
    cursor = GzipCursor(splits[0].file, WIDE)
    first = read_on(cursor, splits[0])
    third = read_on(cursor, splits[3])
    assert first == read_on(GzipCursor(splits[0].file, WIDE), splits[0])
    assert third == read_on(GzipCursor(splits[0].file, WIDE), splits[3])
    assert third[0]


@pytest.fixture(scope="module")
def big_gzip(tmp_path_factory: pytest.TempPathFactory) -> tuple[InputFile, bytes]:
    """Some hundred thousand compressed bytes: real pieces, windows and blocks."""
    some = random.Random(4)  # noqa: S311
    lines = (f'{{"n":{i},"x":"{some.getrandbits(some.randrange(1, 400)):x}"}}' for i in range(8000))
    data = "\n".join(lines).encode()
    return write(tmp_path_factory.mktemp("big") / "a.jsonl.gz", gzip.compress(data)), data


def test_a_big_gzip_file_is_the_same_in_order_and_after_a_restart_at_any_split(
    big_gzip: tuple[InputFile, bytes],
) -> None:
    file, data = big_gzip
    assert file.size > 10 * file_source._PIECE_BYTES
    splits = splits_of(file, 30_000)
    cursor = GzipCursor(file, WIDE)
    in_order = [read_on(cursor, split) for split in splits]
    assert joined(in_order) == (naive_lines(data), [])
    for k in (1, len(splits) // 2, len(splits) - 1):
        assert read_on(GzipCursor(file, WIDE), splits[k]) == in_order[k]


def test_a_wrong_checksum_at_the_end_costs_no_line(
    big_gzip: tuple[InputFile, bytes], tmp_path: Path
) -> None:
    """The bug it catches: all that the last piece holds is lost, for a small file all of it."""
    whole, data = big_gzip
    bad = bytearray(Path(whole.path).read_bytes())
    bad[-6] ^= 1
    (split,) = splits_of(write(tmp_path / "a.gz", bytes(bad)), 10**9)
    lines, fault = read_on(GzipCursor(split.file, WIDE), split)
    *most, last = naive_lines(data)
    assert lines == most
    assert fault == (last.offset, last.payload)


def test_damage_in_the_middle_costs_nothing_before_it(
    big_gzip: tuple[InputFile, bytes], tmp_path: Path
) -> None:
    whole, data = big_gzip
    good = Path(whole.path).read_bytes()
    at = len(good) * 2 // 3
    bad = good[:at] + b"\xff" * 50 + good[at + 50 :]
    before = naive_lines(zlib.decompressobj(31).decompress(good[:at]))[:-1]
    file = write(tmp_path / "a.gz", bad)
    cursor = GzipCursor(file, WIDE)
    lines, faults = joined([read_on(cursor, split) for split in splits_of(file, 30_000)])
    assert lines[: len(before)] == before
    assert len(faults) == 1
    assert len(lines) < len(naive_lines(data))


def test_a_gzip_file_that_grew_is_read_as_far_as_it_was_listed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gz", packed(b"a\nb\n"))
    with Path(file.path).open("ab") as more:
        more.write(packed(b"c\n"))
    for split_bytes in (1, 7, 1000):
        cursor = GzipCursor(file, WIDE)
        found = [read_on(cursor, split) for split in splits_of(file, split_bytes)]
        assert joined(found) == ([Line(0, b"a"), Line(2, b"b")], [])


# --- files that are not as they were listed


def file_of(path: Path, compressed: bool) -> InputFile:
    data = b"".join(b"%d\n" % i for i in range(40_000))
    return write(path, packed(data, 0) if compressed else data)


def read_first(file: InputFile, split_bytes: int = 10**9) -> Iterator[Lines]:
    split = splits_of(file, split_bytes)[0]
    return GzipCursor(file, WIDE).read_to(split) if file.compressed else read_plain(split, WIDE)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_vanished_stops_the_job_with_its_name_and_what_to_do(
    tmp_path: Path, compressed: bool
) -> None:
    file = file_of(tmp_path / "a", compressed)
    Path(file.path).unlink()
    with pytest.raises(SourceFileError, match="put it back and run again with --resume") as error:
        list(read_first(file))
    assert file.path in str(error.value)
    assert "No such file" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_shrank_stops_the_job_with_both_sizes_and_what_to_do(
    tmp_path: Path, compressed: bool
) -> None:
    file = file_of(tmp_path / "a", compressed)
    os.truncate(file.path, file.size - 1)
    with pytest.raises(SourceFileError, match="put the whole file back and run again") as error:
        list(read_first(file))
    assert file.path in str(error.value)
    assert f"from {file.size} to {file.size - 1} bytes" in str(error.value)


@pytest.mark.timeout(10)
def test_a_gzip_file_that_shrinks_while_it_is_read_stops_the_job(tmp_path: Path) -> None:
    """The bug it catches: reading nothing, for ever, and waiting for the rest."""
    file = file_of(tmp_path / "a", compressed=True)
    pieces = read_first(file)
    next(pieces)
    os.truncate(file.path, 20_000)
    with pytest.raises(SourceFileError, match=f"from {file.size} to 20000 bytes"):
        list(pieces)


def test_a_plain_file_that_shrinks_while_it_is_read_stops_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path / "a", compressed=False)
    opened = file_source.open_listed(file)
    os.truncate(file.path, 20_000)
    monkeypatch.setattr(file_source, "open_listed", lambda _: opened)
    with pytest.raises(SourceFileError, match=f"from {file.size} to 20000 bytes"):
        list(read_first(file))


def test_a_folder_in_the_place_of_a_file_stops_the_job(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", compressed=False)
    Path(file.path).unlink()
    Path(file.path).mkdir()
    with pytest.raises(SourceFileError, match="cannot be read any more"):
        list(read_first(file))


# --- batches


@given(
    st.lists(st.lists(st.sampled_from((b"a", b"bc", b"d" * 30)), max_size=6), max_size=6),
    st.sets(st.integers(0, 30)),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_batches_keep_to_their_bounds_and_lose_no_line_however_they_come(
    pieces: list[list[bytes]], big: set[int], max_records: int, max_bytes: int
) -> None:
    split = Split(InputFile("/in/a", 1000, False, None), 0, 0, 1000)
    given_lines: list[Lines] = []
    offset = number = 0
    for piece in pieces:
        lines = Lines()
        for payload in piece:
            if number in big:
                lines.oversized[len(lines)] = Oversized(1000 + number, str(number))
            lines.offsets.append(offset)
            lines.payloads.append(payload)
            offset, number = offset + len(payload) + 1, number + 1
        given_lines.append(lines)
    expected = as_lines(given_lines)
    limits = replace(WIDE, max_records=max_records, max_bytes=max_bytes)
    batches = list(batches_of(iter(given_lines), split, limits))
    assert [line for batch in batches for line in lines_of(batch)] == expected
    assert all(len(batch) <= max_records for batch in batches)
    assert all(len(batch) > 0 for batch in batches[:-1])
    for batch in batches:
        held = sum(len(payload) + 1 for payload in batch.payloads)
        assert held - 1 <= max_bytes or len(batch) == 1
    assert all(batch.origin.mark is not None for batch in batches)
    ends = [batch.origin.mark.last for batch in batches if batch.origin.mark]
    assert ends == [False] * (len(batches) - 1) + [True]


def lines_of(batch: Records) -> list[Line]:
    """The records of a batch as the naive reader gives lines."""
    return [
        Line(offset, payload, *(batch.odd[row][:2] if row in batch.odd else (None, None)))
        for row, (offset, payload) in enumerate(
            zip(batch.origin.offsets, batch.payloads, strict=True)
        )
    ]


def test_a_batch_says_which_split_it_is_of_and_the_last_one_that_it_ends(tmp_path: Path) -> None:
    split = replace(splits_of(write(tmp_path / "a", b"a\nb\nc\n"), 100)[0], ordinal=7)
    batches = list(batches_of(read_plain(split, WIDE), split, replace(WIDE, max_records=2)))
    assert [batch.origin.mark for batch in batches] == [
        SplitMark(split.file.path, 7, last=False),
        SplitMark(split.file.path, 7, last=True),
    ]
    assert [len(batch) for batch in batches] == [2, 1]


def test_an_oversized_line_keeps_its_full_length_and_checksum_in_the_batch(tmp_path: Path) -> None:
    limits = replace(WIDE, max_record_bytes=5, payload_limit_bytes=3)
    (split,) = splits_of(write(tmp_path / "a", b"a\n123456\nbc\n"), 100)
    (batch,) = batches_of(read_plain(split, limits), split, limits)
    assert batch.payloads == [b"a", b"123", b"bc"]
    assert batch.origin.offsets == [0, 2, 9]
    assert batch.odd == {1: Oddity(6, "e10adc3949ba59abbe56e057f20f883e")}


def test_the_fault_of_a_damaged_file_is_the_record_that_ends_its_split(tmp_path: Path) -> None:
    (split,) = splits_of(write(tmp_path / "a.gz", packed(b"a\nbcd", 0)[:-2]), 1000)
    *_, last = batches_of(GzipCursor(split.file, WIDE).read_to(split), split, WIDE)
    assert last.origin.mark == SplitMark(split.file.path, 0, last=True)
    assert last.odd == {0: Oddity(fault="the gzip file ends too early")}
    assert (last.payloads, last.origin.offsets) == ([b"bcd"], [2])
    assert last.origin.partition_of(0) == (split.file.path, 0)


# --- the reader


def opened(plan: ReadPlan, limits: LineLimits = WIDE) -> FileReader:
    """A reader as a worker has it: it has travelled there."""
    reader: FileReader = pickle.loads(cloudpickle.dumps(FileReader(plan, limits)))  # noqa: S301
    reader.open()
    return reader


def rows(batches: Iterable[Records]) -> list[tuple[str, int, bytes, str | None]]:
    return [
        (
            batch.origin.partition_of(row)[0],
            batch.origin.offsets[row],
            payload,
            batch.odd[row].fault if row in batch.odd else None,
        )
        for batch in batches
        for row, payload in enumerate(batch.payloads)
    ]


def expected_rows(file: InputFile, data: bytes) -> list[tuple[str, int, bytes, str | None]]:
    return [(file.path, line.offset, line.payload, None) for line in naive_lines(data)]


def test_every_ticket_of_a_plan_gives_its_splits_records_and_ends_it_once(tmp_path: Path) -> None:
    plain = b"".join(b'{"n":%d}\n' % i for i in range(300))
    files = (
        write(tmp_path / "a", plain),
        write(tmp_path / "b.gz", packed(plain, 1)),
        write(tmp_path / "c", b""),
        write(tmp_path / "d", b"\r\n" + plain + b"no end"),
    )
    plan = ReadPlan(files, 500, 3)
    reader = opened(plan, replace(WIDE, max_records=7))
    found = []
    for number, split in enumerate(plan.tickets()):
        batches = list(reader.read(number))
        found += rows(batches)
        assert all(len(batch) <= 7 for batch in batches)
        marks = [batch.origin.mark for batch in batches]
        if split is None:
            assert batches == []
        else:
            ends = [False] * (len(batches) - 1) + [True]
            assert marks == [SplitMark(split.file.path, split.ordinal, end) for end in ends]
    assert sorted(found) == sorted(
        expected_rows(files[0], plain)
        + expected_rows(files[1], plain)
        + expected_rows(files[3], b"\r\n" + plain + b"no end")
    )


def test_the_padding_ticket_gives_nothing(tmp_path: Path) -> None:
    plan = ReadPlan((write(tmp_path / "a", b"a\n" * 15),), 10, 2)
    assert [split is None for split in plan.tickets()] == [False, False, False, True]
    assert list(opened(plan).read(3)) == []


@settings(max_examples=40)
@given(
    st.lists(GZIP_FILES | damaged_files() | MARKED_FILES, min_size=1, max_size=3),
    st.integers(8, 80),
    st.data(),
)
def test_tickets_give_the_same_in_any_order_again_and_by_another_worker(
    scratch: Path, contents: list[bytes], split_bytes: int, data: st.DataObject
) -> None:
    """As after a restart from any checkpoint, and when a lane changes from file to file."""
    files = tuple(
        write(scratch.with_name(f"{i}.jsonl"), content) for i, content in enumerate(contents)
    )
    plan = ReadPlan(files, split_bytes, 1)
    tickets = range(len(plan.tickets()))
    straight = opened(plan)
    expected = [list(straight.read(n)) for n in tickets]
    reader = opened(plan)
    for n in data.draw(st.lists(st.sampled_from(tickets), max_size=8)):
        if data.draw(st.booleans()):
            reader = opened(plan)
        assert list(reader.read(n)) == expected[n]


def test_two_gzip_files_may_be_read_in_turns(tmp_path: Path) -> None:
    """The bug it catches: going on in one file where the other one was left."""
    files = tuple(
        write(tmp_path / f"{i}.gz", packed(b"".join(b"%d %d\n" % (i, k) for k in range(99)), 0))
        for i in range(2)
    )
    plan = ReadPlan(files, 50, 1)
    n = len(plan.tickets()) // 2
    straight = opened(plan)
    expected = [list(straight.read(ticket)) for ticket in range(2 * n)]
    reader = opened(plan)
    for i in range(n - 1):
        for ticket in (i, n + i + 1):
            assert list(reader.read(ticket)) == expected[ticket]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 9])
def test_a_gzip_file_is_unpacked_once_however_many_splits_and_damaged_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    """The bug it catches: starting over for each split, hours for a file of gigabytes."""
    data = packed(b"".join(b"%d\n" % i for i in range(1000)), 0)
    plan = ReadPlan((write(tmp_path / "a.gz", data[:10] + damage + data[10:]),), 100, 1)
    made = []

    class Counted(GzipCursor):
        def __init__(self, file: InputFile, limits: LineLimits) -> None:
            made.append(file)
            super().__init__(file, limits)

    monkeypatch.setattr(file_source, "GzipCursor", Counted)
    monkeypatch.setattr(file_source, "_PIECE_BYTES", 30)
    reader = opened(plan)
    batches = [batch for number in range(len(plan.tickets())) for batch in reader.read(number)]
    assert len(made) == 1
    faults = [fault for *_, fault in rows(batches) if fault]
    assert len(faults) == (1 if damage else 0)


def test_a_split_that_was_left_half_read_is_read_again_from_its_start(tmp_path: Path) -> None:
    data = b"".join(b"%d\n" % i for i in range(20_000))
    plan = ReadPlan((write(tmp_path / "a.gz", packed(data, 0)),), 50_000, 1)
    expected = list(opened(plan).read(0))
    reader = opened(plan)
    half = iter(reader.read(0))
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert list(reader.read(0)) == expected


# --- listing


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.resolve()


def test_a_folder_gives_its_json_lines_files_at_any_depth_sorted(tmp_path: Path) -> None:
    names = ("b.jsonl", "a.json", "x/c.jsonl.gz", "x/y/d.json.gz")
    wanted = [touch(tmp_path / "in" / name) for name in names]
    for name in ("e.csv", "f.gz", "g.jsonl.tmp", "jsonl"):
        touch(tmp_path / "in" / name)
    (tmp_path / "in" / "folder.jsonl").mkdir()
    assert find_files([tmp_path / "in"], tmp_path / "out") == sorted(wanted)


def test_a_file_that_is_named_is_read_whatever_its_suffix(tmp_path: Path) -> None:
    file = touch(tmp_path / "events.log")
    assert find_files([tmp_path / "events.log"], tmp_path / "out") == [file]


def test_a_file_that_is_named_in_several_ways_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = touch(tmp_path / "in" / "a.jsonl")
    (tmp_path / "in" / "b.jsonl").symlink_to(file)
    ways = [Path("in"), tmp_path / "in", Path("in/a.jsonl"), Path("in/../in/a.jsonl")]
    assert find_files(ways, Path("out")) == [file]


def test_nothing_below_the_output_folder_is_input(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.jsonl")
    inside = touch(tmp_path / "out" / "processed_events" / "part.jsonl")
    beside = touch(tmp_path / "out2" / "part.jsonl")
    found = find_files([tmp_path, inside], tmp_path / "x" / ".." / "out")
    assert found == sorted([file, beside])


def test_a_path_that_does_not_exist_is_refused_with_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "a.jsonl")
    with pytest.raises(SourceFileError, match=r"no-such\.jsonl does not exist"):
        find_files([tmp_path, tmp_path / "no-such.jsonl"], tmp_path / "out")


def test_no_file_at_all_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path / "a.csv")
    with pytest.raises(SourceFileError, match=r"no input file in .*: looked for .*\.jsonl\.gz"):
        find_files([tmp_path], tmp_path / "out")


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_instead_of_being_read_as_an_empty_file(tmp_path: Path) -> None:
    """The bug it catches: `--input <(zcat old.z)` reads nothing and is called a success."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceFileError, match="pipe is neither a file nor a folder"):
        find_files([tmp_path / "pipe"], tmp_path / "out")


def number_ms(payload: bytes) -> int | None:
    """The event time of a test's record: a whole number is good, all else is not."""
    return int(payload) if payload.isdigit() else None


def listed(path: Path, data: bytes, limits: LineLimits = WIDE) -> InputFile:
    path.write_bytes(data)
    return list_file(path, limits, number_ms)


@pytest.mark.parametrize("pack", [bytes, packed])
def test_a_file_is_listed_with_its_size_and_its_first_good_events_time(
    tmp_path: Path, pack: type[bytes]
) -> None:
    data = pack(b"bad\n\n17\r\n5\n")
    path = tmp_path / "a"
    assert listed(path, data) == InputFile(str(path), len(data), pack is not bytes, 17)


@pytest.mark.parametrize("pack", [bytes, packed])
def test_the_first_event_may_be_the_only_one_without_a_newline(
    tmp_path: Path, pack: type[bytes]
) -> None:
    assert listed(tmp_path / "a", pack(b"bad\n17")).first_event_ms == 17


def test_an_event_at_the_epoch_is_one(tmp_path: Path) -> None:
    assert listed(tmp_path / "a", b"bad\n0\n5\n").first_event_ms == 0


def test_an_oversized_line_is_no_event(tmp_path: Path) -> None:
    limits = replace(WIDE, max_record_bytes=3, payload_limit_bytes=2)
    assert listed(tmp_path / "a", b"1234\n5\n", limits).first_event_ms == 5


@pytest.mark.parametrize("data", [b"", b"bad\nworse\n", packed(b""), packed(b"17\n")[:9]])
def test_without_a_good_event_the_first_events_time_is_unknown(tmp_path: Path, data: bytes) -> None:
    assert listed(tmp_path / "a", data).first_event_ms is None


@pytest.mark.parametrize("level", [None, 0])
def test_an_event_is_looked_for_only_near_the_start(tmp_path: Path, level: int | None) -> None:
    looked_at: list[bytes] = []

    def count(payload: bytes) -> int | None:
        looked_at.append(payload)
        return number_ms(payload)

    data = b"bad\n" * 200_000 + b"17\n"
    path = tmp_path / "a"
    path.write_bytes(data if level is None else packed(data, level))
    assert list_file(path, WIDE, count).first_event_ms is None
    assert 10_000 < len(looked_at) < 20_000


def test_the_event_of_a_damaged_file_is_found_before_its_damage(tmp_path: Path) -> None:
    data = packed(b"17\n" + os.urandom(1000), 0)
    assert listed(tmp_path / "a", data[:500]).first_event_ms == 17


def test_gzip_is_known_by_its_first_bytes_not_by_its_name(tmp_path: Path) -> None:
    assert listed(tmp_path / "a.jsonl", packed(b"17\n")).compressed
    assert not listed(tmp_path / "b.jsonl.gz", b"17\n").compressed


def test_a_file_whose_name_is_not_text_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jsonl"))
    path.write_bytes(b"17\n")
    with pytest.raises(SourceFileError, match="name that is not UTF-8: rename it") as error:
        list_file(path, WIDE, number_ms)
    str(error.value).encode()


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceFileError, match=r"no-such cannot be read: No such file"):
        list_file(tmp_path / "no-such", WIDE, number_ms)
    with pytest.raises(SourceFileError, match="cannot be read: Is a directory"):
        list_file(tmp_path, WIDE, number_ms)


def test_a_file_that_shrinks_while_it_is_listed_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"17\n")

    def shrink(file: InputFile, *_: object) -> None:
        os.truncate(path, 1)
        file_source.open_listed(file)

    monkeypatch.setattr(file_source, "_first_event_ms", shrink)
    with pytest.raises(SourceFileError, match="has shrunk from 3 to 1 bytes"):
        list_file(path, WIDE, number_ms)
