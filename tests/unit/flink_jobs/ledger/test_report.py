from __future__ import annotations

import json
from dataclasses import replace

from rich.console import Console

from flink_jobs.ledger.report import Report
from operators.rules.ledger import Counts

GOOD = Counts(
    received=10, processed=7, dead_lettered={"b": 1, "a": 1}, quarantined={"q": 1}, windowed=7
)


#: Longer than a line of the console, and with what looks like markup in it.
LONG = f"/in/[bold]{'x' * 100}/0: received 10, but processed 7 + dead-lettered 2 = 9 (1 too few)"


def printed(report: Report, tmp_path, **shown: bool) -> str:
    console = Console(width=100, record=True, quiet=False, file=(tmp_path / "x").open("w"))
    report.print_table(console, tmp_path / "out [1]", **shown)
    return console.export_text()


def test_books_that_balance_say_so(tmp_path):
    report = Report.of(GOOD, [], 10, 2.0)
    assert report.balanced
    assert report.records_per_s == 5
    text = printed(report, tmp_path)
    assert "balanced: every record is in exactly one place" in text
    assert "off" not in text


def test_why_books_do_not_balance_is_told(tmp_path):
    report = Report.of(GOOD, ["input: 1 of 2 pieces were not read", LONG], 1, 1)
    assert not report.balanced
    text = printed(report, tmp_path)
    assert "off: input: 1 of 2 pieces were not read\n" in text
    assert f"off: {LONG}\n" in text
    assert "balanced" not in text


def test_what_is_written_reads_back_the_same(tmp_path):
    report = Report.of(GOOD, [], 10, 2.0)
    path = tmp_path / "ledger.json"
    report.write(path)
    assert Report.read(path) == report
    assert list(json.loads(path.read_text())["dead_lettered"]) == ["a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]


def test_the_table_names_each_kind_and_where_the_output_is(tmp_path):
    text = printed(Report.of(GOOD, [], 10, 2.0), tmp_path)
    for word in ("received", "dead-lettered", "quarantined", "duplicate", "windowed", "late"):
        assert word in text
    assert f"output: {tmp_path}/out [1]" in text
    assert "2.0 s, 5 records/s" in text


def test_the_store_of_what_was_not_delivered_has_a_line_where_there_is_one(tmp_path):
    report = Report.of(GOOD, [], 10, 2.0)
    assert "fallback" not in printed(report, tmp_path)
    assert "fallback" in printed(report, tmp_path, has_fallback=True)
    stored = replace(GOOD, received=1_244, fallback=1_234)
    assert " 1,234 " in printed(Report.of(stored, [], 10, 2.0), tmp_path)


def test_books_of_an_older_version_read_back(tmp_path):
    path = tmp_path / "ledger.json"
    Report.of(GOOD, [], 10, 2.0).write(path)
    stored = json.loads(path.read_text())
    del stored["fallback"]
    path.write_text(json.dumps(stored))
    assert Report.read(path).counts == GOOD


def test_no_time_is_no_rate():
    assert Report.of(GOOD, [], 10, 0).records_per_s == 0
