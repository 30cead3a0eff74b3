"""What a run says at its end: the ledger, for a person as a table, for a program as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from flink_jobs.machine.console import say
from operators.rules.ledger import Counts


@dataclass(frozen=True)
class Report:
    """The books of one run.

    Attributes:
        counts: what the stream counted as it ran.
        problems: what is off, a sentence each; none when the books balance and the files agree.
        wall_s: seconds from the start of this command's run to its books, start-up included.
        records_per_s: records that this command's run read, by wall_s.
    """

    counts: Counts
    problems: list[str]
    wall_s: float
    records_per_s: float

    @classmethod
    def of(cls, counts: Counts, problems: list[str], records: int, wall_s: float) -> Report:
        """What an audit has found; records are those that this run has read."""
        rate = records / wall_s if wall_s > 0 else 0.0
        return cls(counts, problems, round(wall_s, 1), round(rate))

    @property
    def balanced(self) -> bool:
        """Whether nothing is off."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ledger.json."""
        return {
            **counts_dict(self.counts),
            "balanced": self.balanced,
            "problems": self.problems,
            "wall_time_s": self.wall_s,
            "records_per_s": self.records_per_s,
        }

    def to_json(self) -> str:
        """The text of ledger.json."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict())).decode() + "\n"

    def write(self, path: Path) -> None:
        """Write ledger.json; whole or not at all."""
        written = path.with_suffix(".tmp")
        written.write_text(self.to_json())
        written.replace(path)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read ledger.json back."""
        stored = msgspec.json.decode(path.read_bytes())
        names = [field.name for field in fields(Counts)]
        # One that an older version has written lacks what that did not know.
        counts = Counts(**{name: stored[name] for name in names if name in stored})
        return cls(counts, stored["problems"], stored["wall_time_s"], stored["records_per_s"])

    def print_table(
        self, console: Console, output: Path | str, *, has_fallback: bool = False
    ) -> None:
        """The ledger as a table, and where the output is."""
        console.print(ledger_table(self.counts, has_fallback=has_fallback))
        rate = f"{self.records_per_s:,.0f} records/s"
        console.print(f"{self.wall_s:.1f} s, {rate}, start-up included")
        if self.balanced:
            console.print("[bold green]balanced[/]: every record is in exactly one place")
        print_problems(console, self.problems)
        console.print(f"output: {output}", highlight=False, soft_wrap=True)


def counts_dict(counts: Counts) -> dict[str, Any]:
    """The books for a program."""
    return {
        "received": counts.received,
        "processed": counts.processed,
        "dead_lettered": dict(sorted(counts.dead_lettered.items())),
        "quarantined": dict(sorted(counts.quarantined.items())),
        "duplicate": counts.duplicate,
        "pending": counts.pending,
        "windowed": counts.windowed,
        "late": counts.late,
        "fallback": counts.fallback,
    }


def print_problems(console: Console, problems: list[str]) -> None:
    """What is off, a line each."""
    for problem in problems:
        console.print("[bold red]off[/]: ", end="")
        say(console, problem)


def ledger_table(counts: Counts, *, has_fallback: bool = False) -> Table:
    """The books as a person reads them.

    Args:
        counts: the books.
        has_fallback: whether there is a fallback store, whose line is shown even at 0.
    """
    table = Table("ledger", "", "records", title=None)
    table.columns[2].justify = "right"
    table.add_row("received", "", f"{counts.received:,}", end_section=True)
    table.add_row("processed", "", f"{counts.processed:,}")
    _add_all(table, "dead-lettered", counts.dead_lettered)
    _add_all(table, "quarantined", counts.quarantined)
    if counts.fallback or has_fallback:
        table.add_row("fallback", "", f"{counts.fallback:,}")
    table.add_row("duplicate", "", f"{counts.duplicate:,}")
    table.add_row("pending", "", f"{counts.pending:,}", end_section=True)
    table.add_row("of processed", "windowed", f"{counts.windowed:,}")
    table.add_row("", "late", f"{counts.late:,}")
    return table


def _add_all(table: Table, name: str, counts: Mapping[str, int]) -> None:
    if not counts:
        table.add_row(name, "", "0")
    for i, (kind, n) in enumerate(sorted(counts.items())):
        table.add_row("" if i else name, kind, f"{n:,}")
