"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from flink_jobs.settings import settings_table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_settings_table_is_that_of_the_code() -> None:
    rows = [f"| `{n}` | `{d}` | {b} | {text} |" for n, d, b, text in settings_table()]
    start = README.index("| name | default |")
    table = README[start:].split("\n\n")[0].splitlines()[2:]
    assert table == rows


def test_every_file_that_it_links_to_is_there() -> None:
    root = Path(__file__).resolve().parents[2]
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (root / link).exists()]


def test_no_heading_stands_twice() -> None:
    headings = re.findall(r"^#+ .*", README, re.MULTILINE)
    assert len(headings) == len(set(headings))
