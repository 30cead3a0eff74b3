"""Files that change between the listing and the reading of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.oracle import assert_run_is_right, expect
from tests.runs import events, run, started, wait_until

pytestmark = pytest.mark.minicluster

#: Flink takes longer than that to start, and far longer to try a job eight times.
FAILS_WITHIN_S = 60


def test_a_file_that_grows_is_read_as_it_was_and_one_that_vanishes_ends_the_run_with_its_name(
    tmp_path: Path,
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    growing, vanishing = folder / "growing.jsonl", folder / "vanishing.jsonl"
    events(growing, 2_000, seed=1, bad_rate=0, disorder_s=0)
    events(vanishing, 2_000, seed=2)
    # The file is listed while a line of it is half written.
    whole = growing.read_bytes()
    growing.write_bytes(whole[:-40])
    call = ["run", "--input", folder, "--output", output, "--json"]
    with started(*call) as process:
        wait_until("the files are listed", (output / ".breakwater" / "plan.json").exists)
        with growing.open("ab") as file:
            file.write(whole[-40:] + whole)
        away = vanishing.rename(tmp_path / "away.jsonl")
        began = time.monotonic()
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert printed == (
        f"breakwater: input file {vanishing} cannot be read any more (No such file or directory): "
        "put it back and run again with --resume\n"
    )
    assert time.monotonic() - began < FAILS_WITHIN_S

    away.rename(vanishing)
    ended = run(*call, "--resume")
    assert ended.returncode == 0, ended.stderr
    # A line that starts before the listed end is read to its own end; what follows is not.
    growing.write_bytes(whole)
    ledger = assert_run_is_right(output, expect([growing, vanishing]))
    assert json.loads(ended.stdout) == ledger
    assert ledger["received"] == 4_000
