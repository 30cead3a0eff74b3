"""The progress line counts on over restarts of the job and of the command."""

from __future__ import annotations

from pathlib import Path

from flink_jobs.local.progress import Progress, Read

FIRST, SECOND = Path("job/chk-1"), Path("job/chk-2")


def counters(records: int, splits: int) -> dict[str, int]:
    return {"received": records, "splits": splits}


def test_a_run_from_the_beginning_counts_what_the_job_counts(tmp_path):
    progress = Progress(tmp_path / "p.json", splits=10, checkpoint=None)
    assert progress.line(1) == "starting Flink (1 s)"
    progress.update(counters(50_000, 4), None)
    assert progress.line(10) == " 40% read, 50,000 records, 5,000/s, 10 s"


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path):
    """Otherwise it would begin at 0 % and end far below 100 %."""
    path = tmp_path / "p.json"
    killed = Progress(path, splits=10, checkpoint=None)
    killed.update(counters(100, 3), None)
    killed.update(counters(150, 5), FIRST)
    killed.update(counters(190, 6), FIRST)
    resumed = Progress(path, splits=10, checkpoint=FIRST)
    assert resumed.before == Read(100, 3)
    resumed.update(counters(200, 7), FIRST)
    assert resumed.line(4) == "100% read, 300 records, 50/s, 4 s"


def test_a_run_that_is_killed_twice_counts_both_parts(tmp_path):
    path = tmp_path / "p.json"
    first = Progress(path, splits=10, checkpoint=None)
    first.update(counters(100, 3), None)
    first.update(counters(100, 3), FIRST)
    second = Progress(path, splits=10, checkpoint=FIRST)
    second.update(counters(40, 2), FIRST)
    second.update(counters(60, 3), SECOND)
    assert Progress(path, splits=10, checkpoint=SECOND).before == Read(140, 5)


def test_a_job_that_restarts_by_itself_goes_on_from_its_checkpoint(tmp_path):
    progress = Progress(tmp_path / "p.json", splits=10, checkpoint=None)
    progress.update(counters(100, 3), None)
    progress.update(counters(120, 4), FIRST)
    progress.update(counters(300, 8), FIRST)
    progress.update(counters(10, 1), FIRST)
    assert progress.read == Read(110, 4)


def test_a_job_that_restarts_before_its_first_checkpoint_starts_over(tmp_path):
    progress = Progress(tmp_path / "p.json", splits=10, checkpoint=None)
    progress.update(counters(300, 8), None)
    progress.update(counters(10, 1), None)
    assert progress.read == Read(10, 1)


def test_a_resume_without_a_checkpoint_starts_over(tmp_path):
    (tmp_path / "p.json").write_text('{"records": 5, "splits": 1}')
    assert Progress(tmp_path / "p.json", splits=10, checkpoint=None).before == Read()


def test_a_damaged_file_does_not_stop_the_run(tmp_path):
    (tmp_path / "p.json").write_text('{"records"')
    assert Progress(tmp_path / "p.json", splits=10, checkpoint=FIRST).before == Read()


def test_input_without_anything_to_read_is_read(tmp_path):
    progress = Progress(tmp_path / "p.json", splits=0, checkpoint=None)
    progress.update(counters(1, 0), None)
    assert progress.line(1).startswith("100% read")
