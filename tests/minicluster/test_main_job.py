"""The main job on Flink's mini-cluster, against the oracle's independent recount."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.oracle import assert_run_is_right, expect, rows
from tests.runs import events, run, settings_file

pytestmark = pytest.mark.minicluster

WINDOW_MS, DELAY_MS = 10_000, 20_000
BEYOND_THE_DELAY_S, WITHIN_THE_DELAY_S = 40, 19
SMALL = {
    # Small splits, batches and windows, so that few events make many of each.
    "source": {"split_bytes": 100_000},
    "windows": {"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
    "batch": {"max_records": 300},
    "checkpoint": {"interval_ms": 500},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return settings_file(tmp_path_factory.mktemp("settings") / "small.toml", **SMALL)


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_every_record_is_in_its_one_place_with_all_damage_and_disorder_beyond_the_delay(
    tmp_path: Path, small: Path, parallelism: int
) -> None:
    source = events(tmp_path / "events.jsonl", 60_000, disorder_s=BEYOND_THE_DELAY_S)
    output = tmp_path / "out"
    ended = run(
        "run", "--input", source, "--output", output, "--config", small,
        "--parallelism", parallelism, "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    ledger = assert_run_is_right(output, expect([source]), window_ms=WINDOW_MS, delay_ms=DELAY_MS)
    assert ledger["late"] > 0, "the input was meant to have late events"
    assert json.loads(ended.stdout) == ledger
    assert not list(output.rglob("*inprogress*"))
    assert sorted(p.name for p in (output / ".breakwater").iterdir()) == [
        "lock", "plan.json", "settings.json",
    ]  # fmt: skip


def shuffled_into(folder: Path, source: Path, files: int) -> list[Path]:
    """The lines dealt out in turn: files that cover the same hour."""
    lines = source.read_bytes().splitlines(keepends=True)
    return write_all(folder, [b"".join(lines[i::files]) for i in range(files)])


def cut_into(folder: Path, source: Path, files: int) -> list[Path]:
    """One piece after the other, their names in the reverse order; every other one compressed."""
    lines = source.read_bytes().splitlines(keepends=True)
    size = -(-len(lines) // files)
    return write_all(folder, [b"".join(lines[i * size : (i + 1) * size]) for i in range(files)])


def write_all(folder: Path, contents: list[bytes]) -> list[Path]:
    folder.mkdir()
    paths = []
    for i, content in enumerate(contents):
        packed = i % 2 == 1
        path = folder / f"{len(contents) - i:02d}.jsonl{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
        paths.append(path)
    return paths


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("layout", [shuffled_into, cut_into])
def test_disorder_within_the_delay_makes_no_event_late_whatever_the_files(
    tmp_path: Path, small: Path, parallelism: int, layout: object
) -> None:
    source = events(tmp_path / "events.jsonl", 30_000, disorder_s=WITHIN_THE_DELAY_S)
    paths = layout(tmp_path / "in", source, 10)  # type: ignore[operator]
    output = tmp_path / "out"
    ended = run(
        "run", "--input", tmp_path / "in", "--output", output, "--config", small,
        "--parallelism", parallelism, "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    ledger = assert_run_is_right(output, expect(paths), window_ms=WINDOW_MS, delay_ms=DELAY_MS)
    assert ledger["late"] == 0


IGNORES_UNREAD_FILES = """
from operators.sources.files import FileSource
FileSource.partitions = lambda self: []
"""


def test_without_the_marks_of_unread_files_events_would_be_late(
    tmp_path: Path, small: Path
) -> None:
    """Positive control of the promise: the oracle sees it when the watermark does not wait."""
    source = events(tmp_path / "events.jsonl", 10_000, disorder_s=WITHIN_THE_DELAY_S)
    paths = shuffled_into(tmp_path / "in", source, 4)
    output = tmp_path / "out"
    ended = run(
        "run", "--input", tmp_path / "in", "--output", output, "--config", small,
        "--parallelism", 1, change=IGNORES_UNREAD_FILES,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AssertionError, match="was within the delay, but is late"):
        assert_run_is_right(output, expect(paths), window_ms=WINDOW_MS, delay_ms=DELAY_MS)


CONTRACT = """
from datetime import datetime
from typing import Annotated, Literal, Optional
import msgspec

class Reading(msgspec.Struct, rename="camel"):
    device_id: Annotated[str, msgspec.Meta(min_length=1)]
    measured_at: datetime
    degrees: Annotated[int, msgspec.Meta(ge=-90, le=90)]
    ok: bool
    unit: Literal["C", "F"] = "C"
    humidity: Optional[float] = None
    calibrated: Optional[datetime] = None
"""


def test_another_domain_needs_nothing_but_its_contract(tmp_path: Path) -> None:
    """A second contract with every supported type; it stands beside the settings."""
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "__init__.py").touch()
    (tmp_path / "plant" / "sensors.py").write_text(CONTRACT)
    good = (
        b'{"deviceId":"d1","measuredAt":"2026-01-01T00:00:01+01:00","degrees":20,"ok":true}\n'
        b'{"deviceId":"d1","measuredAt":"2026-01-01T00:00:02.0005+01:00","degrees":-5,"ok":false,'
        b'"unit":"F","humidity":0.5,"calibrated":"2025-12-31T23:00:00Z"}\n'
    )
    bad = (
        b'{"deviceId":"d1","measuredAt":"2026-01-01T00:00:01Z","degrees":91,"ok":true}\n'
        b'{"deviceId":"d1","measuredAt":"2026-01-01T00:00:01Z","degrees":1,"ok":true,"unit":"K"}\n'
        b'{"deviceId":"","measuredAt":"2026-01-01T00:00:01Z","degrees":1,"ok":true}\n'
    )
    (tmp_path / "in.jsonl").write_bytes(good + bad)
    config = settings_file(
        tmp_path / "plant.toml",
        contract={
            "type": "plant.sensors:Reading",
            "key": "deviceId",
            "event_time": "measuredAt",
            "value": "degrees",
        },
        poison={"violations": ["unknown_unit"]},
    )
    ended = run(
        "run", "--input", "in.jsonl", "--output", "out", "--config", config, "--json", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    ledger = json.loads(ended.stdout)
    assert ledger["dead_lettered"] == {"invalid_degrees": 1, "missing_required": 1}
    assert ledger["quarantined"] == {"unknown_unit": 1}
    path = str((tmp_path / "in.jsonl").resolve())
    assert rows(tmp_path / "out" / "processed_events") == [
        {
            "deviceId": "d1", "measuredAt": "2025-12-31T23:00:01.000Z", "degrees": 20, "ok": True,
            "unit": "C", "humidity": None, "calibrated": None,
            "source_topic": path, "source_partition": 0, "source_offset": 0,
        },
        {
            "deviceId": "d1", "measuredAt": "2025-12-31T23:00:02.000Z", "degrees": -5, "ok": False,
            "unit": "F", "humidity": 0.5, "calibrated": "2025-12-31T23:00:00.000Z",
            "source_topic": path, "source_partition": 0, "source_offset": 82,
        },
    ]  # fmt: skip
    (window,) = rows(tmp_path / "out" / "user_windows")
    assert window == {
        "deviceId": "d1", "window_start": "2025-12-31T23:00:00.000Z",
        "window_end": "2025-12-31T23:05:00.000Z", "total_value": 15,
        "latest_event": "2025-12-31T23:00:02.000Z", "event_count": 2,
    }  # fmt: skip


def test_odd_files_each_have_a_defined_result(tmp_path: Path) -> None:
    """No newline at the end, CRLF, a byte order mark, an empty file, a 50 MB line, damaged gzip."""
    folder = tmp_path / "in"
    folder.mkdir()
    event = (
        b'{"user_id":"u","product_id":"p","action":"view","price":1,'
        b'"timestamp":"2026-01-01T00:00:00Z"}'
    )
    (folder / "no_newline.jsonl").write_bytes(event + b"\n" + event)
    (folder / "crlf.jsonl").write_bytes(event + b"\r\n" + event + b"\r\n")
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + event + b"\n")
    (folder / "empty.jsonl").touch()
    (folder / "long.jsonl").write_bytes(event + b"\n" + b"x" * 50_000_000 + b"\n" + event + b"\n")
    whole = gzip.compress(b"".join(b"%s\n" % event for _ in range(1000)), mtime=0)
    (folder / "members.json.gz").write_bytes(gzip.compress(event + b"\n") + gzip.compress(event))
    plain = sorted(p for p in folder.iterdir())
    (folder / "cut.jsonl.gz").write_bytes(whole[:-20])
    (folder / "ignored.txt").write_bytes(event)
    output = tmp_path / "out"
    ended = run("run", "--input", folder, "--output", output, "--json")
    assert ended.returncode == 0, ended.stderr
    ledger = json.loads(ended.stdout)
    expected = expect(plain)
    unreadable = [r for r in rows(output / "quarantine") if r["error_type"] == "unreadable"]
    assert [r["source_topic"] for r in unreadable] == [str(folder / "cut.jsonl.gz")]
    assert ledger["quarantined"] == {"oversized": 1, "unreadable": 1}
    from_whole_files = [
        r
        for r in rows(output / "processed_events")
        if not r["source_topic"].endswith("cut.jsonl.gz")
    ]
    assert {(r["source_topic"], r["source_offset"]) for r in from_whole_files} == set(
        expected.processed
    )
    (long,) = [r for r in rows(output / "quarantine") if r["error_type"] == "oversized"]
    assert long["message_bytes"] == 50_000_000
    assert len(long["original_message"]) == 65_536
    assert [long["message_checksum"]] == list(expected.checksums.values())
