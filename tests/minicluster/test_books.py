"""The books of a real run, and positive controls: whatever is lost or doubled must be found.

One run serves all: its folder is copied, spoilt in one place, and counted again by `--resume`,
which finds the run done and only its ledger missing. The oracle has to see the same by itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flink_jobs.errors import UserError
from flink_jobs.local.files import run_files
from flink_jobs.run_folder.folder import OutputFolder
from flink_jobs.settings import Settings, load_settings
from operators.rules.splits import InputFile, ReadPlan
from tests.oracle import Expected, assert_run_is_right, expect
from tests.runs import events, run, settings_file

pytestmark = pytest.mark.minicluster

WINDOW_MS, DELAY_MS = 10_000, 20_000


@dataclass(frozen=True)
class Done:
    """A run that is done."""

    settings: Settings
    source: Path
    output: Path
    expected: Expected

    def is_right(self, output: Path) -> None:
        assert_run_is_right(output, self.expected, window_ms=WINDOW_MS, delay_ms=DELAY_MS)

    def counted_again(self, output: Path) -> tuple[int, dict[str, Any]]:
        """Exit code and ledger of a resume; it does not start Flink, as nothing is left to do."""
        code = run_files(self.settings, [self.source], output, "resume", True)
        return code, json.loads((output / "ledger.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("done")
    (folder / "in").mkdir()
    paths = [
        events(folder / "in" / f"{seed}.jsonl", 6_000, disorder_s=50, bad_rate=0.1, seed=seed)
        for seed in (1, 2)
    ]
    config = settings_file(
        folder / "s.toml",
        source={"split_bytes": 100_000},
        windows={"size_ms": WINDOW_MS, "watermark_delay_ms": DELAY_MS},
        batch={"max_records": 300},
    )
    ended = run("run", "--input", folder / "in", "--output", folder / "out", "--config", config)
    assert ended.returncode == 0, ended.stderr
    return Done(load_settings(config), folder / "in", folder / "out", expect(paths))


@pytest.fixture
def copy(done: Done, tmp_path: Path) -> Path:
    """The output as a run leaves it that was killed just before it wrote its ledger."""
    copied = tmp_path / "out"
    shutil.copytree(done.output, copied)
    (copied / "ledger.json").unlink()
    return copied


def test_a_run_whose_ledger_is_missing_is_counted_and_not_repeated(done: Done, copy: Path) -> None:
    parts = sorted(copy.rglob("part-*"))
    code, ledger = done.counted_again(copy)
    assert (code, ledger["balanced"]) == (0, True)
    done.is_right(copy)
    assert sorted(copy.rglob("part-*")) == parts
    told = json.loads((done.output / "ledger.json").read_text())
    same = ledger.keys() - {"wall_time_s", "records_per_s"}
    assert {k: ledger[k] for k in same} == {k: told[k] for k in same}


def lose_a_line(part: Path) -> None:
    part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[1:]))


def double_a_line(part: Path) -> None:
    part.write_bytes(part.read_bytes() + part.read_bytes().splitlines(keepends=True)[0])


def lose_a_part(part: Path) -> None:
    part.unlink()


def double_a_part(part: Path) -> None:
    shutil.copy(part, part.with_name(f"{part.stem}-again.jsonl"))


@pytest.mark.parametrize("spoil", [lose_a_line, double_a_line, lose_a_part, double_a_part])
@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("processed_events", "processed"),
        ("user_windows", "windowed"),
        ("late_events", "late"),
        ("dead_letters", "dead_lettered"),
        ("quarantine", "quarantined"),
    ],
)
def test_whatever_is_lost_or_doubled_is_found_by_the_books_and_by_the_oracle(
    done: Done, copy: Path, output: str, line: str, spoil: Callable[[Path], None]
) -> None:
    spoil(OutputFolder(copy).parts(output)[0])
    code, ledger = done.counted_again(copy)
    assert (code, ledger["balanced"]) == (1, False)
    assert [p for p in ledger["problems"] if p.startswith(line)], ledger["problems"]
    ledger["balanced"] = True
    (copy / "ledger.json").write_text(json.dumps(ledger))
    with pytest.raises(AssertionError):
        done.is_right(copy)


def test_a_piece_of_input_that_was_read_twice_is_found(done: Done, copy: Path) -> None:
    double_a_part(OutputFolder(copy).parts("ledger")[0])
    code, ledger = done.counted_again(copy)
    assert code == 1
    assert "pieces were read more than once, the first is piece" in ledger["problems"][0]


def test_what_one_file_has_too_few_and_another_too_many_of_is_found(done: Done, copy: Path) -> None:
    """The totals are right, and so is each other line of the books."""
    parts = {part: ledger_rows(part) for part in OutputFolder(copy).parts("ledger")}
    for name, more in (("1.jsonl", -1), ("2.jsonl", 1)):
        row = next(r for rs in parts.values() for r in rs if r["source_topic"].endswith(name))
        row["received"] += more
    for part, rows in parts.items():
        part.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    code, ledger = done.counted_again(copy)
    assert (code, ledger["balanced"], ledger["received"]) == (1, False, 12_000)
    told = [problem.split(",")[0] for problem in ledger["problems"]]
    assert told == [
        f"{done.source}/1.jsonl/0: received 5999",
        f"{done.source}/2.jsonl/0: received 6001",
    ]


def ledger_rows(part: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in part.open()]


def test_a_file_of_the_plan_that_was_never_read_is_found(done: Done, copy: Path) -> None:
    """All that was read balances: only the plan can tell that something is missing."""
    path = OutputFolder(copy).plan
    plan = msgspec.json.decode(path.read_bytes(), type=ReadPlan)
    unread = InputFile(str(done.source / "3.jsonl"), 1, False, None)
    more = ReadPlan((*plan.files, unread), plan.split_bytes, plan.lanes)
    path.write_bytes(msgspec.json.encode(more))
    with pytest.raises(UserError, match=r"pieces were not read, .* piece 0 of .*/3\.jsonl") as e:
        done.counted_again(copy)
    assert e.value.exit_code == 1


def test_a_run_that_is_done_says_so_again(done: Done) -> None:
    before = (done.output / "ledger.json").read_bytes()
    ended = run("run", "--input", done.source, "--output", done.output, "--resume",
                env={"BREAKWATER_WINDOWS__SIZE_MS": str(WINDOW_MS),
                     "BREAKWATER_WINDOWS__WATERMARK_DELAY_MS": str(DELAY_MS),
                     "BREAKWATER_SOURCE__SPLIT_BYTES": "100000"})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "balanced: every record is in exactly one place" in ended.stdout
    assert (done.output / "ledger.json").read_bytes() == before


def test_the_ledger_command_says_the_same_and_what_each_file_has(done: Done) -> None:
    ended = run("ledger", "--dir", done.output, "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    told = json.loads((done.output / "ledger.json").read_text())
    assert {name: found[name] for name in told.keys() & found.keys()} == {
        name: told[name] for name in told if name not in ("wall_time_s", "records_per_s")
    }
    assert (found["balanced"], found["problems"]) == (True, [])
    assert [p["received"] for p in found["partitions"]] == [6_000, 6_000]
    assert all(p["received"] == accounted(p) for p in found["partitions"] + found["minutes"])


def accounted(books: dict[str, Any]) -> int:
    rejected = [*books["dead_lettered"].values(), *books["quarantined"].values()]
    assert books["processed"] == books["windowed"] + books["late"]
    return int(books["processed"] + sum(rejected))


def test_the_rows_of_the_ledger_are_few(done: Done) -> None:
    """One a file, minute and checkpoint, not one a batch of 300 records."""
    rows = [row for part in OutputFolder(done.output).parts("ledger") for row in ledger_rows(part)]
    assert len(rows) < 12_000 / 300 / 2


def test_a_row_of_the_ledger_that_is_lost_is_found(done: Done, copy: Path) -> None:
    lose_a_line(OutputFolder(copy).parts("ledger")[0])
    ended = run("ledger", "--dir", copy)
    assert ended.returncode == 1
    assert "off: " in ended.stdout
    with pytest.raises(UserError, match="pieces were not read") as e:
        done.counted_again(copy)
    assert e.value.exit_code == 1
