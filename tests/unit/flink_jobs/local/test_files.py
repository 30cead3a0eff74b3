"""What a local run refuses before it starts Flink. The runs themselves are in tests/minicluster."""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pyflink.common import JobStatus

from flink_jobs.errors import UserError
from flink_jobs.local import files as local
from flink_jobs.local.files import run_files
from flink_jobs.local.process import environment
from flink_jobs.machine.interrupt import Interrupt
from flink_jobs.machine.java import Java
from flink_jobs.run_folder.folder import Mode, OutputFolder
from flink_jobs.settings import Settings
from operators.rules.splits import ReadPlan

EVENT = (
    '{"user_id":"u","product_id":"p","action":"view","price":1,'
    '"timestamp":"2026-01-01T00:00:00.000Z"}\n'
)


class Started(BaseException):
    """The job would have been started. No fault: it must not be turned into one."""


@pytest.fixture(autouse=True)
def no_flink(monkeypatch) -> None:
    def start(*_: object) -> bool:
        raise Started

    monkeypatch.setattr(local, "_run", start)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text(EVENT)
    (folder / "b.jsonl").write_text(EVENT)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def call(source: Path, output: Path, mode: Mode = "new", /, **settings: Any) -> UserError | None:
    """How a run is refused; None when it would have started."""
    try:
        run_files(Settings(**settings), [source], output, mode, False)
    except Started:
        return None
    except UserError as error:
        return error
    raise AssertionError("neither started nor refused")


@pytest.mark.parametrize(
    "option",
    [
        "execution.checkpointing.dir",
        "state.checkpoints.dir",
        "execution.checkpointing.mode",
        "execution.checkpointing.storage",
        "execution.checkpointing.create-subdir",
        "execution.checkpointing.externalized-checkpoint-retention",
        "execution.checkpointing.checkpoints-after-tasks-finish",
        "execution.runtime-mode",
        "execution.target",
        "execution.state-recovery.path",
        "execution.state-recovery.claim-mode",
        "execution.savepoint.path",
        "execution.savepoint-restore-mode",
        "io.tmp.dirs",
        "parallelism.default",
        "pipeline.auto-generate-uids",
        "python.execution-mode",
        "table.local-time-zone",
    ],
)
def test_a_flink_option_that_a_run_stands_on_is_refused(source, output, option):
    """The settings win over the run's own options, so it would take effect and break a promise."""
    refused = call(source, output, flink={option: "x"})
    assert refused is not None
    assert refused.exit_code == 2
    assert option in refused.message
    assert not output.exists(), "a wrong call has left a folder behind"


def test_other_flink_options_are_passed_on(source, output):
    assert call(source, output, flink={"state.backend.type": "rocksdb"}) is None


def test_a_run_that_was_begun_is_resumed_with_the_same(source, output):
    assert call(source, output) is None
    assert call(source, output, "resume") is None
    assert call(source, output, "resume", parallelism=7) is None
    assert call(source, output, "resume", checkpoint={"interval_ms": 100}) is None
    assert call(source, output, "resume", deduplicate={"ttl_ms": 1000}) is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"contract": {"value": ""}}, "contract.value"),
        ({"contract": {"key": "product_id"}}, "contract.key"),
        ({"contract": {"identity": "product_id"}}, "contract.identity"),
        ({"deduplicate": {"enabled": True}}, "deduplicate.enabled"),
        ({"delivery": {"lanes": 3}}, "delivery.lanes"),
        ({"delivery": {"target": "http", "fallback": "file"}}, "delivery.fallback"),
        ({"windows": {"size_ms": 1000}}, "windows.size_ms"),
        ({"windows": {"watermark_delay_ms": 0}}, "windows.watermark_delay_ms"),
        ({"source": {"split_bytes": 64}}, "source.split_bytes"),
        ({"source": {"max_future_skew_ms": 0}}, "source.max_future_skew_ms"),
        ({"poison": {"violations": ("unknown_action",)}}, "poison.violations"),
        ({"poison": {"patterns": ({"pattern": "x", "reason": "y"},)}}, "poison.patterns"),
    ],
)
def test_a_run_is_not_resumed_with_other_rules(source, output, changed, named):
    """Half of the output would follow one rule and half the other, and state would not fit."""
    assert call(source, output) is None
    refused = call(source, output, "resume", **changed)
    assert refused is not None
    assert refused.exit_code == 2
    assert refused.message.startswith(f"{named} is ")
    assert "--overwrite" in refused.message
    assert call(source, output, "overwrite", **changed) is None


def test_a_run_is_not_resumed_with_a_contract_that_was_edited(
    source, output, tmp_path, monkeypatch
):
    """The name is the same, what stands there is not."""
    text = (
        "import msgspec\nfrom datetime import datetime\nclass Event(msgspec.Struct):\n"
        "    user_id: str\n    timestamp: datetime\n    price: float\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_before.py").write_text(text)
    (tmp_path / "edited_after.py").write_text(text + "    size: int = 0\n")
    contract = {"type": "edited_before:Event"}
    assert call(source, output, contract=contract) is None
    settings = OutputFolder(output).settings
    settings.write_text(settings.read_text().replace("edited_before", "edited_after"))
    refused = call(source, output, "resume", contract={"type": "edited_after:Event"})
    assert refused is not None
    assert refused.message.startswith("contract.version is ")


def test_a_run_is_not_resumed_with_a_file_more(source, output):
    assert call(source, output) is None
    (source / "c.jsonl").write_text(EVENT)
    refused = call(source, output, "resume")
    assert refused is not None
    assert refused.exit_code == 2
    assert refused.message.startswith(f"{source}/c.jsonl is input of this call or of the run")


def test_a_run_is_not_resumed_with_other_inputs(source, output, tmp_path):
    assert call(source, output) is None
    refused = call(source / "a.jsonl", output, "resume")
    assert refused is not None
    assert f"{source}/b.jsonl is input" in refused.message


def test_a_run_whose_checkpoints_are_gone_is_not_resumed(source, output):
    """It would read all of the input again, beside what it has committed."""
    assert call(source, output) is None
    part = output / "ledger" / "part.jsonl"
    part.parent.mkdir()
    part.write_text(f'{{"received":1,"source_topic":"{source}/a.jsonl","splits":[0]}}\n')
    refused = call(source, output, "resume")
    assert refused is not None
    assert refused.exit_code == 1
    assert "its checkpoints are gone (input: 1 of 2 pieces were not read" in refused.message


@pytest.mark.parametrize("name", ["a b", "a*", "a?", "a[b]", "a\tb"])
def test_a_path_that_pyflinks_start_script_would_cut_is_refused(
    source, output, tmp_path, monkeypatch, name
):
    """It writes a log to wherever the pieces of the path point: over the user's own files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    refused = call(source, output)
    assert refused is not None
    assert refused.exit_code == 2
    assert refused.message.endswith("set TMPDIR to another")
    assert not output.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "ö%20#+"))
    monkeypatch.setattr(sys, "executable", f"/{name}/bin/python")
    refused = call(source, output)
    assert refused is not None
    assert refused.message.startswith(f"Python /{' '.join(name.split())}/bin/python: PyFlink")


def test_the_users_own_java_options_come_after_ours_and_win(tmp_path):
    java = Java(Path("/j"), 17, "PATH")
    found = environment(OutputFolder(tmp_path), tmp_path, java, {"JVM_ARGS": "-XX:+UseG1GC"})
    assert found["JVM_ARGS"].index("UseSerialGC") < found["JVM_ARGS"].index("UseG1GC")
    assert f"-Djava.io.tmpdir={tmp_path}" in found["JVM_ARGS"]


@pytest.mark.parametrize("for_long", [False, True])
def test_java_compiles_for_its_peak_only_where_a_job_runs_for_long(
    tmp_path: Path, for_long: bool
) -> None:
    java = Java(tmp_path, 17, "", "")
    mine = {"JVM_ARGS": "-Xmine"}
    found = environment(OutputFolder(tmp_path), tmp_path, java, mine, for_long=for_long)
    ours = found["JVM_ARGS"].split("-Xmine")[0]
    assert ("-XX:TieredStopAtLevel=1 " in ours) is not for_long
    assert ("-XX:Tier4InvocationThreshold=" in ours) is for_long


# --- waiting for the end of a job -----------------------------------------------------------------


class Answer:
    """What Flink's client hands out: a result that is there or not yet."""

    def __init__(self, value: Any, *, done: bool = True) -> None:
        self._value = value
        self._done = done

    def done(self) -> bool:
        return self._done

    def result(self) -> Any:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


class Job:
    """A job in a time of its own, in which nothing but the pauses and slow answers takes any.

    Attributes:
        now_s: its time.
        asked_s: when it was asked for its counters.
    """

    def __init__(self, ends_s: float, counts_until_s: float, answers_within_s: float) -> None:
        self.now_s = 0.0
        self.asked_s: list[float] = []
        self._ends_s = ends_s
        self._counts_until_s = counts_until_s
        self._answers_within_s = answers_within_s

    def get_job_execution_result(self) -> Any:
        job = self

        class Result(Answer):
            def done(self) -> bool:
                return job.now_s >= job._ends_s

        return Result({})

    def get_job_status(self) -> Answer:
        return Answer(JobStatus.RUNNING)

    def get_accumulators(self) -> Answer:
        self.asked_s.append(self.now_s)
        self.now_s += self._answers_within_s
        if self.now_s > self._counts_until_s:
            return Answer(RuntimeError("the job has ended"))
        return Answer({"received": round(self.now_s)})


class Seen:
    """What the progress line is told."""

    def __init__(self) -> None:
        self.counters: list[dict[str, int]] = []

    def update(self, counters: dict[str, int], checkpoint: Path | None) -> None:
        self.counters.append(counters)


def watched(
    monkeypatch: pytest.MonkeyPatch,
    output: Path,
    ends_s: float,
    counts_until_s: float = 10**6,
    answers_within_s: float = 0.0,
) -> tuple[Job, Seen]:
    """Wait for the end of a job; time goes on only where the job says so."""
    job, seen = Job(ends_s, counts_until_s, answers_within_s), Seen()

    def pause() -> None:
        job.now_s += 0.2

    monkeypatch.setattr(local, "wait_a_moment", pause)
    monkeypatch.setattr(local.time, "monotonic", lambda: job.now_s)
    plan = ReadPlan((), split_bytes=100, lanes=1)
    assert local._wait(job, plan, OutputFolder(output), Interrupt(), seen, 16, None)
    return job, seen


def test_flink_is_asked_once_a_second_and_not_at_each_pause(monkeypatch, output):
    job, _ = watched(monkeypatch, output, ends_s=10)
    between = [after - before for before, after in itertools.pairwise(job.asked_s)]
    assert job.asked_s[0] == 0
    assert len(between) >= 8
    assert min(between) >= local._LOOK_EVERY_S - 1e-6


def test_slow_answers_are_not_made_up_for(monkeypatch, output):
    """A Flink that has no time to answer would be asked without a pause."""
    job, _ = watched(monkeypatch, output, ends_s=60, answers_within_s=5)
    between = [after - before for before, after in itertools.pairwise(job.asked_s)]
    assert len(between) >= 8
    assert min(between) >= 5 + local._LOOK_EVERY_S - 1e-6


def test_the_last_counts_stay_when_a_job_no_longer_tells(monkeypatch, output):
    """It has none while it ends; nothing read would look like a job that has begun anew."""
    _, seen = watched(monkeypatch, output, ends_s=10, counts_until_s=5.5)
    counts = [counters["received"] for counters in seen.counters]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-3] == 5
