from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flink_jobs.cli.app import app as cli
from flink_jobs.cli.app import main
from flink_jobs.cli.generate import parse_start
from flink_jobs.errors import UserError
from flink_jobs.local.checks import Check

BREAKWATER = [sys.executable, "-m", "flink_jobs.cli"]
ROOT = Path(__file__).parents[3]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def is_one_line(self) -> bool:
        return self.err.count("\n") == 1 and "Traceback" not in self.err


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch, capsys) -> Call:
    """The command as the console script calls it."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["breakwater", *map(str, args)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Outcome(left.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def local(monkeypatch) -> ModuleType:
    """A job that only remembers how it was started."""
    module = ModuleType("flink_jobs.local.files")
    module.calls = []
    module.code = 0

    def run_files(*args: Any) -> int:
        module.calls.append(args)
        if isinstance(module.code, BaseException):
            raise module.code
        return module.code

    module.run_files = run_files
    monkeypatch.setitem(sys.modules, "flink_jobs.local.files", module)
    return module


# --- the whole -----------------------------------------------------------------------------------


def test_help_names_the_commands_with_one_sentence_each(call):
    outcome = call("--help")
    assert outcome.code == 0
    for command in ("generate", "run", "check"):
        assert f" {command} " in outcome.out


@pytest.mark.parametrize("command", [[], ["generate"], ["run"], ["check"]])
def test_help_has_a_short_name_and_shows_switches_without_a_value(call, command):
    outcome = call(*command, "-h")
    assert outcome.code == 0
    assert outcome.out == call(*command, "--help").out
    assert "<bool>" not in outcome.out


@pytest.mark.parametrize("command", ["generate", "run", "check"])
def test_each_command_shows_examples_that_are_real_calls(call, command):
    outcome = call(command, "--help")
    assert outcome.code == 0
    assert "Examples" in outcome.out
    assert outcome.out.count(f" breakwater {command}") >= 2


def test_help_is_grouped(call):
    panels = call("run", "--help").out
    for panel in ("Input and output", "How it runs", "When the output folder is not empty"):
        assert panel in panels


def test_without_a_command_the_help_is_shown_and_the_call_was_wrong(call):
    outcome = call()
    assert outcome.code == 2
    assert "Usage: breakwater" in outcome.out
    assert outcome.err == ""


def test_the_version_names_what_matters(call):
    outcome = call("--version")
    assert outcome.code == 0
    for name in ("breakwater", "apache-flink 2.3", "pyarrow", "msgspec", "Python 3."):
        assert name in outcome.out


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["fly"], "No such command 'fly'. (see breakwater --help)"),
        (["run"], "--input: is missing; a job on files needs"),
        (["run", "--input"], "--input: needs at least one path. (see breakwater run --help)"),
        (["run", "--input", "x", "--output"], "requires an argument. (see breakwater run --help)"),
        (["run", "--input", "--output", "d"], "--input: needs at least one path"),
        (["run", "--input", "x"], "--output: is missing; a job on files needs"),
        (["run", "--inptu", "x"], "No such option: --inptu"),
        (["run", "--input", "x", "--output", "d", "e"], "unexpected extra argument"),
        (["generate", "--events", "0"], "--events"),
        (["generate", "--events", "many"], "--events"),
        (["generate", "--bad-rate", "1.5"], "--bad-rate"),
        (["generate", "--bad-rate", "nan"], "--bad-rate"),
        (["generate", "--disorder-s", "-1"], "--disorder-s"),
        (["generate", "--users", "0"], "--users"),
        (["generate", "--start", "soon"], "--start soon: is not an ISO-8601 time"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(call, args, told):
    outcome = call(*args)
    assert outcome.code == 2
    assert outcome.is_one_line()
    assert outcome.err.startswith("breakwater")
    assert told in outcome.err


def test_help_starts_fast_and_imports_nothing_heavy():
    """PyFlink, pyarrow and pydantic take seconds together."""
    code = (
        "import sys; from flink_jobs.cli import app; "
        "print({'pyflink', 'pyarrow', 'pydantic'} & set(sys.modules))"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
    assert time.monotonic() - started < 5  # generous: it is 0.4 s on a quiet machine


PRINTS_A_LEDGER = """
import sys, types
local = types.ModuleType("flink_jobs.local.files")
local.run_files = lambda *_: print("{}") or 0
sys.modules["flink_jobs.local.files"] = local
from flink_jobs.cli.app import main
main()
"""


def test_a_reader_that_has_gone_gets_no_stack_trace(tmp_path):
    for command in (
        [*BREAKWATER, "--help"],
        [*BREAKWATER, "--version"],
        [*BREAKWATER, "generate", "--events", "500", "--out", "a.jsonl"],
        [sys.executable, "-c", PRINTS_A_LEDGER, "run", "--input", "a", "--output", "d"],
    ):
        reading, writing = os.pipe()
        os.close(reading)
        result = subprocess.run(
            command,
            cwd=tmp_path,
            # Buffered, as for a user: what is left in the buffer fails only at exit.
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writing)
        assert result.stderr == ""
        assert result.returncode == 1


# --- generate ------------------------------------------------------------------------------------


def test_generate_writes_the_file_and_sums_up(call, tmp_path):
    out = tmp_path / "demo" / "[x] events.jsonl"
    outcome = call("generate", "--events", "2_000", "--bad-rate", "0.5", "--out", out)
    assert outcome.code == 0
    assert out.read_bytes().count(b"\n") == 2000
    assert f"{out}: 2,000 lines, {out.stat().st_size:,} bytes," in outcome.out
    assert "missing_required" in outcome.out
    assert "the next file carries on with --start 2026-01-01T00:00:20.000Z" in outcome.out


def test_generate_takes_up_where_it_said(call, tmp_path):
    first, whole = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    said = call("generate", "--events", "100", "--out", first).out.split("--start ")[1].split()[0]
    assert call("generate", "--events", "100", "--start", said, "--out", whole).code == 0
    assert b'"timestamp":"2026-01-01T00:00:01.' in whole.read_bytes()


def test_generate_passes_everything_on(call, tmp_path):
    plain, same, other = (tmp_path / name for name in "abc")
    asked = ["generate", "--events", "500", "--disorder-s", "1.5", "--users", "3"]
    assert call(*asked, "--seed", "1", "--out", plain).code == 0
    assert call(*asked, "--seed", "1", "--out", same).code == 0
    assert call(*asked, "--seed", "2", "--out", other).code == 0
    assert plain.read_bytes() == same.read_bytes() != other.read_bytes()
    assert b"user_00002" in plain.read_bytes()
    assert b"user_00003" not in plain.read_bytes()


def test_generate_without_damage_shows_no_table(call, tmp_path):
    outcome = call("generate", "--events", "10", "--bad-rate", "0", "--out", tmp_path / "a")
    assert "Damaged" not in outcome.out
    assert "0 damaged" in outcome.out


def test_events_in_the_future_are_pointed_out(call, tmp_path):
    asked = ["generate", "--events", "10", "--out", tmp_path / "a", "--start"]
    assert "in the future" in call(*asked, "2899-01-01").out
    assert "in the future" not in call(*asked, "2020-01-01").out


def test_generate_into_a_folder_is_a_wrong_call(call, tmp_path):
    outcome = call("generate", "--out", tmp_path)
    assert outcome.code == 2
    assert outcome.is_one_line()


def test_generate_that_cannot_write_has_failed(call, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = call("generate", "--events", "10", "--out", tmp_path / "file" / "a.jsonl")
    assert outcome.code == 1
    assert outcome.is_one_line()
    assert "cannot be written" in outcome.err


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01T12:00:00.000z",
        "2026-03-01T12:00",
        "2026-03-01T14:00:00+02:00",
    ],
)
def test_a_start_is_iso_8601_and_utc_unless_it_says_otherwise(text):
    assert parse_start(text) == datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize("text", ["", "Z", "soon", "2026-13-01", "0001-01-01T00:00:00+14:00"])
def test_a_start_that_is_no_time_is_refused(text):
    with pytest.raises(UserError) as caught:
        parse_start(text)
    assert caught.value.exit_code == 2


# --- run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["--input", "a", "b", "c", "--output", "d"],
        ["--output", "d", "--input", "a", "b", "c"],
        ["--input", "a", "--output", "d", "--input", "b", "c"],
        ["--input", "a", "--input", "b", "--input", "c", "--output", "d"],
    ],
)
def test_run_takes_several_inputs_however_they_are_given(call, local, args):
    assert call("run", *args).code == 0
    _, inputs, output, mode, json_output = local.calls[0]
    assert inputs == [Path("a"), Path("b"), Path("c")]
    assert (output, mode, json_output) == (Path("d"), "new", False)


def test_run_passes_settings_mode_and_json_on(call, local, tmp_path):
    config = tmp_path / "my.toml"
    config.write_text("parallelism = 3\n[windows]\nsize_ms = 2000\n")
    base = ["run", "--input", "a", "--output", "d"]
    assert call(*base, "--config", config, "--resume", "--json").code == 0
    assert call(*base, "--config", config, "--parallelism", "4", "--overwrite").code == 0
    settings, _, _, mode, json_output = local.calls[0]
    assert (settings.parallelism, settings.windows.size_ms) == (3, 2000)
    assert (mode, json_output) == ("resume", True)
    assert local.calls[1][0].parallelism == 4
    assert local.calls[1][3:] == ("overwrite", False)


def test_resume_and_overwrite_exclude_each_other(call, local):
    outcome = call("run", "--input", "a", "--output", "d", "--resume", "--overwrite")
    assert outcome.code == 2
    assert outcome.is_one_line()
    assert local.calls == []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_of_the_run_is_the_exit_code(call, local, code):
    local.code = code
    assert call("run", "--input", "a", "--output", "d").code == code


@pytest.mark.parametrize("code", [1, 2])
def test_a_foreseeable_fault_of_the_run_is_one_line_with_its_code(call, local, code):
    local.code = UserError("the output is\nnot empty; use --resume", code)
    outcome = call("run", "--input", "a", "--output", "d")
    assert outcome == Outcome(code, "", "breakwater: the output is not empty; use --resume\n")


def test_ctrl_c_is_one_line_and_a_failure(call, local):
    local.code = KeyboardInterrupt()
    outcome = call("run", "--input", "a", "--output", "d")
    assert outcome == Outcome(1, "", "breakwater: stopped\n")


def test_a_fault_that_nobody_foresaw_is_not_hidden(monkeypatch, local):
    local.code = RuntimeError("a bug")
    monkeypatch.setattr(sys, "argv", ["breakwater", "run", "--input", "a", "--output", "d"])
    with pytest.raises(RuntimeError, match="a bug"):
        main()


def test_a_wrong_setting_is_one_line_and_exit_code_2(call, local, monkeypatch):
    monkeypatch.setenv("BREAKWATER_WINDOWS__SIZE_MS", "0")
    outcome = call("run", "--input", "a", "--output", "d")
    assert outcome.code == 2
    assert outcome.err == (
        'breakwater: windows.size_ms = "0": must be at least 1000; '
        "change BREAKWATER_WINDOWS__SIZE_MS\n"
    )
    assert local.calls == []


def test_a_stranger_in_the_place_of_our_packages_stops_the_run(call, local, monkeypatch):
    stranger = Check("our packages", False, "operators is /x", "take it off PYTHONPATH")
    monkeypatch.setattr(cli.checks, "own_packages_check", lambda: stranger)
    outcome = call("run", "--input", "a", "--output", "d")
    assert outcome.code == 1
    assert outcome.err == "breakwater: operators is /x; take it off PYTHONPATH\n"
    assert local.calls == []


# --- check ---------------------------------------------------------------------------------------


@pytest.fixture
def found(monkeypatch) -> list[Any]:
    """What the checks were asked; they find nothing wrong."""
    asked: list[Any] = []

    def run_checks(*args: Any) -> list[Check]:
        asked.append(args)
        return [Check("java", True, "17 from PATH")]

    monkeypatch.setattr(cli.checks, "run_checks", run_checks)
    return asked


def test_check_prints_a_line_for_each_and_leaves_with_0_when_all_are_ok(call, found):
    outcome = call("check", "--input", "a", "b", "--output", "d")
    assert outcome.code == 0
    assert outcome.out == "ok   java  17 from PATH\n"
    settings, inputs, output = found[0]
    assert settings.parallelism == 2
    assert (inputs, output) == ([Path("a"), Path("b")], Path("d"))


def test_check_says_what_to_do_and_leaves_with_1_when_one_is_not(call, monkeypatch):
    results = [Check("java", True, "17"), Check("disk", False, "1 byte free [/x]", "free some")]
    monkeypatch.setattr(cli.checks, "run_checks", lambda *_: results)
    outcome = call("check")
    assert outcome.code == 1
    assert outcome.out == ("ok   java  17\nFIX  disk  1 byte free [/x]\n           -> free some\n")


def test_check_leaves_with_2_for_a_wrong_setting(call, found, tmp_path):
    outcome = call("check", "--config", tmp_path / "gone.toml")
    assert outcome.code == 2
    assert isinstance(found[0][0], UserError)


def test_check_of_this_machine_finds_the_input(call, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "")
    (tmp_path / "a.jsonl").write_text("{}\n")
    outcome = call("check", "--input", tmp_path / "a.jsonl", "--output", tmp_path / "out")
    assert outcome.code == 0
    assert "ok   input         1 file, 3 bytes" in outcome.out
    assert "FIX" not in outcome.out


def test_check_tells_of_a_stranger_even_when_the_settings_cannot_be_imported(tmp_path):
    stranger = tmp_path / "operators" / "rules" / "__init__.py"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("")
    (tmp_path / "operators" / "__init__.py").write_text("")
    result = subprocess.run(
        [*BREAKWATER, "check"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "FIX  our packages" in result.stdout
    assert "FIX  settings" in result.stdout
    assert "Traceback" not in result.stderr
