"""Deduplication on the mini-cluster: the Java step by itself, and the whole job with it."""

from __future__ import annotations

import ast
import dataclasses
import json
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyflink.common import Types, WatermarkStrategy
from pyflink.datastream.connectors.number_seq import NumberSequenceSource

from operators.bridge.steps import steps as bridge
from operators.intake.lanes import LANED, LANED_VALUE
from tests.minicluster.steps import Digests, Places
from tests.oracle import assert_outputs_are_right, at, expect, lines_of, rows
from tests.runs import checkpoints, events, run, settings_file, started, wait_until

pytestmark = pytest.mark.minicluster

Flink = Callable[..., Any]
Script = list[tuple[int, bytes, list[bytes], int]]
BACKENDS = ["hashmap", "rocksdb"]
WINDOW_MS, DELAY_MS = 10_000, 20_000


# --- the step ------------------------------------------------------------------------------------


def digest(number: int) -> bytes:
    """Digests that differ in one half only are different ones."""
    return divmod(number, 10)[0].to_bytes(8, "big") + divmod(number, 10)[1].to_bytes(8, "little")


def duplicates(env: Any, script: Script, ttl_ms: int) -> list[tuple[int, bytes, list[int]]]:
    """Run rows through the step: lane, name and the places of duplicates, lane by lane."""
    source = NumberSequenceSource(0, len(script) - 1)
    numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")
    laned = numbers.set_parallelism(1).process(Digests(script), LANED).set_parallelism(1)
    found = bridge.dedup(
        bridge.by_lane(laned, LANED_VALUE), LANED_VALUE, uid="dedup", ttl_ms=ttl_ms
    )
    with found.process(Places(), Types.STRING()).execute_and_collect() as results:
        places = [ast.literal_eval(each) for each in results]
    for _, name, behind, _ in places:
        assert behind == name + b" events", "the rest of the row has changed"
    return sorted(((lane, name, list(p)) for lane, name, _, p in places), key=lambda row: row[0])


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_duplicate_is_found_in_its_row_and_in_the_next_ones_of_its_lane(
    flink: Flink, backend: str, parallelism: int
) -> None:
    env = flink(state_backend_type=backend, parallelism_default=str(parallelism))
    a, b, c, d = map(digest, (10, 11, 20, 21))
    one, two, three = bridge.lane_keys(3)
    script = [
        (one, b"1", [a, b, a, a, c], 0),
        (two, b"2", [a, b], 0),
        (one, b"3", [], 0),
        (one, b"4", [d, c, d], 0),
        (three, b"5", [a], 0),
        (two, b"6", [d, b], 0),
    ]
    assert duplicates(env, script, 3_600_000) == sorted(
        [
            (one, b"1", [2, 3]),
            (one, b"3", []),
            (one, b"4", [1, 2]),
            (two, b"2", []),
            (two, b"6", [1]),
            (three, b"5", []),
        ],
        key=lambda row: row[0],
    )


TTL_MS = 6_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_its_time_to_live_an_event_is_new_and_a_duplicate_does_not_prolong_it(
    flink: Flink, backend: str
) -> None:
    (lane,) = bridge.lane_keys(1)
    a = digest(1)
    script = [
        (lane, b"first", [a], 0),
        (lane, b"again", [a], 1_000),
        (lane, b"later", [a, a], TTL_MS - 500),
        (lane, b"again later", [a], 0),
    ]
    # An element of Python at a time, else the pauses would all be before the first one.
    env = flink(state_backend_type=backend, python_fn___execution_bundle_size="1")
    found = duplicates(env, script, TTL_MS)
    assert found == [
        (lane, b"first", []),
        (lane, b"again", [0]),
        (lane, b"later", [1]),
        (lane, b"again later", [0]),
    ]


# --- the job -------------------------------------------------------------------------------------


def settings(path: Path, **more: dict[str, object]) -> Path:
    """Small splits and batches, so that few events make many of each."""
    tables: dict[str, dict[str, object]] = {
        "source": {"split_bytes": 20_000},
        "windows": {"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
        "batch": {"max_records": 100},
        "checkpoint": {"interval_ms": 300},
        "sink": {"rollover_interval_ms": 100},  # so that each checkpoint commits
        "deduplicate": {"enabled": True},
    }
    return settings_file(path, **{**tables, **more})


def by_payload(row: dict[str, Any], line: bytes) -> object:
    return line


def assert_deduplicated(
    output: Path,
    paths: list[Path],
    identity: Callable[[dict[str, Any], bytes], object] = by_payload,
) -> dict[str, Any]:
    """Recount the input: each identity is written once, and the rest is in the books."""
    expected = expect(paths)
    lines = {(str(p.resolve()), offset): line for p in paths for offset, line in lines_of(p)}
    groups: dict[object, list[tuple[str, int]]] = defaultdict(list)
    for place, event in expected.processed.items():
        groups[identity(event, lines[place])].append(place)
    identities = {place: each for each, places in groups.items() for place in places}

    kept = [at(row) for row in rows(output / "processed_events")]
    written = Counter(identities[place] for place in kept)
    assert not [each for each, n in written.items() if n > 1], "a duplicate was written"
    assert written.keys() == groups.keys()
    of_kept = {place: expected.processed[place] for place in kept}
    late = assert_outputs_are_right(
        output,
        dataclasses.replace(expected, processed=of_kept),
        window_ms=WINDOW_MS,
        delay_ms=DELAY_MS,
    )

    ledger: dict[str, Any] = json.loads((output / "ledger.json").read_text())
    assert ledger["balanced"], ledger["problems"]
    assert ledger["received"] == expected.received
    assert ledger["processed"] == ledger["windowed"] + ledger["late"] == len(groups)
    assert ledger["duplicate"] == len(expected.processed) - len(groups)
    assert ledger["dead_lettered"] == dict(Counter(expected.dead.values()))
    assert ledger["quarantined"] == dict(Counter(expected.quarantined.values()))
    assert (ledger["late"], ledger["pending"]) == (late, 0)

    left_out = Counter(path for path, _ in expected.processed.keys() - set(kept))
    booked: Counter[str] = Counter()
    for row in rows(output / "ledger"):
        booked[row["source_topic"]] += row["duplicate"]
    assert +booked == left_out, "duplicates are counted where they came from"
    return ledger


def with_copies(folder: Path, source: Path, files: int, seed: int = 1) -> list[Path]:
    """The lines over some files, a third of them again: at once, soon, much later, elsewhere."""
    folder.mkdir()
    chance = random.Random(seed)  # noqa: S311 - a test that is the same each time
    contents: list[list[tuple[float, bytes]]] = [[] for _ in range(files)]
    for i, line in enumerate(source.read_bytes().splitlines(keepends=True)):
        contents[i % files].append((i, line))
        while chance.random() < 0.33:
            behind = chance.choice([0.1, 10.5, 1_000.5, 10_000.5])
            contents[chance.randrange(files)].append((i + behind, line))
    paths = [folder / f"{i}.jsonl" for i in range(files)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(b"".join(line for _, line in sorted(content, key=lambda each: each[0])))
    return paths


@pytest.mark.parametrize(("parallelism", "backend"), [(1, "hashmap"), (3, "rocksdb")])
def test_each_event_is_written_once_however_often_it_comes_without_a_target_too(
    tmp_path: Path, parallelism: int, backend: str
) -> None:
    source = events(tmp_path / "events.jsonl", 20_000, disorder_s=19)
    paths = with_copies(tmp_path / "in", source, 3)
    config = settings(tmp_path / "s.toml", flink={"state.backend.type": backend})
    output = tmp_path / "out"
    ended = run(
        "run", "--input", tmp_path / "in", "--output", output, "--config", config,
        "--parallelism", parallelism, "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    ledger = assert_deduplicated(output, paths)
    assert ledger["duplicate"] > 5_000
    assert json.loads(ended.stdout) == ledger


def test_in_one_file_read_in_order_the_first_one_is_kept(tmp_path: Path) -> None:
    source = events(tmp_path / "events.jsonl", 5_000, disorder_s=19)
    (path,) = with_copies(tmp_path / "in", source, 1)
    output = tmp_path / "out"
    ended = run(
        "run", "--input", path, "--output", output, "--config", settings(tmp_path / "s.toml"),
        "--parallelism", 1,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert_deduplicated(output, [path])
    first: dict[bytes, int] = {}
    for offset, line in lines_of(path):
        first.setdefault(line, offset)
    for row in rows(output / "processed_events"):
        assert row["source_offset"] in first.values()


TARGET = """
import pathlib

def take(events):
    with pathlib.Path({path!r}).open("a") as file:
        for event in events:
            file.write(f"{{event.key}} {{event.value.product_id}} {{event.idempotency_key}}\\n")

take.keeps_order = True
"""


def test_a_field_may_tell_events_of_a_key_apart_and_a_target_is_called_once_for_each(
    tmp_path: Path,
) -> None:
    """Here the product does: an event with the same one is a duplicate, whatever else it says."""
    source = events(tmp_path / "events.jsonl", 5_000, disorder_s=19)
    called = tmp_path / "called.txt"
    (tmp_path / "shelf_target.py").write_text(TARGET.format(path=str(called)))
    config = settings(
        tmp_path / "s.toml",
        contract={"identity": "product_id"},
        delivery={"target": "shelf_target:take", "batch_max_events": 100},
    )
    output = tmp_path / "out"
    ended = run("run", "--input", source, "--output", output, "--config", config)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ledger = assert_deduplicated(
        output, [source], lambda event, _: (event["user_id"], event["product_id"])
    )
    assert ledger["duplicate"] > 0
    written = rows(output / "processed_events")
    keys = Counter(f"{row['user_id']} {row['product_id']}" for row in written)
    calls = [line.split() for line in called.read_text().splitlines()]
    assert Counter(f"{user} {product}" for user, product, _ in calls) == keys
    assert len({key for *_, key in calls}) == len(keys)


def test_without_it_all_of_them_are_written(tmp_path: Path) -> None:
    """Positive control: it is deduplication that the tests above see."""
    source = events(tmp_path / "events.jsonl", 2_000, disorder_s=19)
    paths = with_copies(tmp_path / "in", source, 2)
    config = settings(tmp_path / "s.toml", deduplicate={"enabled": False})
    output = tmp_path / "out"
    ended = run("run", "--input", tmp_path / "in", "--output", output, "--config", config)
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AssertionError, match="a duplicate was written"):
        assert_deduplicated(output, paths)


# --- killed and resumed --------------------------------------------------------------------------


def booked(output: Path) -> int:
    """Duplicates in the rows that have been committed."""
    return sum(row["duplicate"] for row in rows(output / "ledger"))


def thrice(path: Path, source: Path, block: int = 500) -> Path:
    """Blocks of lines, each twice; and all lines once more at the end."""
    lines = source.read_bytes().splitlines(keepends=True)
    blocks = [lines[i : i + block] for i in range(0, len(lines), block)]
    path.write_bytes(b"".join(line for each in blocks for line in each * 2) + b"".join(lines))
    return path


@pytest.fixture
def killed(tmp_path: Path, request: pytest.FixtureRequest) -> list[object]:
    """The call of a run that was killed when it had left duplicates out, and had more to come."""
    backend = getattr(request, "param", "hashmap")
    source = thrice(tmp_path / "in.jsonl", events(tmp_path / "events.jsonl", 12_000, disorder_s=19))
    config = settings(tmp_path / "s.toml", flink={"state.backend.type": backend})
    output = tmp_path / "out"
    call = ["run", "--input", source, "--output", output, "--config", config]
    with started(*call) as process:
        wait_until("duplicates are in the books", lambda: booked(output))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert not (output / "ledger.json").exists(), "the run was over before it was killed"
    assert checkpoints(output)
    return call


@pytest.mark.parametrize("killed", BACKENDS, indirect=True)
def test_what_was_there_before_a_crash_is_a_duplicate_after_it_at_another_parallelism_too(
    tmp_path: Path, killed: list[object]
) -> None:
    output = tmp_path / "out"
    before = booked(output)
    ended = run(*killed, "--resume", "--parallelism", 3, "--json")
    assert ended.returncode == 0, ended.stderr
    ledger = assert_deduplicated(output, [tmp_path / "in.jsonl"])
    assert 0 < before < ledger["duplicate"]


FORGETS_THE_EVENTS = """
import operators.bridge.steps as bridge
source = bridge._source
bridge._source = lambda operator: source(operator).replace("seen.v1", "seen.v2")
"""


def test_state_that_is_lost_in_a_crash_would_be_found_out(
    tmp_path: Path, killed: list[object]
) -> None:
    """Positive control of the test above."""
    ended = run(*killed, "--resume", change=FORGETS_THE_EVENTS)
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AssertionError, match="a duplicate was written"):
        assert_deduplicated(tmp_path / "out", [tmp_path / "in.jsonl"])
