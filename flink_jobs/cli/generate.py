"""breakwater generate: e-commerce events as a file, with every kind of damage.

`register` adds it to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flink_jobs.cli.commands import INPUT_OUTPUT, Command
from flink_jobs.demo import generate as data
from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.machine.console import say

CONTENT = "What the file holds"

EventCount = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=1_000_000_000, help="Number of lines.", rich_help_panel=CONTENT
    ),
]
BadRate = Annotated[
    float,
    typer.Option(
        metavar="RATE",
        min=0,
        max=1,
        help="Share of damaged records; every kind of damage takes its turn.",
        rich_help_panel=CONTENT,
    ),
]
Disorder = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=0,
        max=86_400,
        help="No event lags further behind the newest one before it.",
        rich_help_panel=CONTENT,
    ),
]
Users = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=10_000_000, help="Number of users.", rich_help_panel=CONTENT
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", help="The same seed gives the same bytes.", rich_help_panel=CONTENT),
]
Start = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help=f"ISO-8601 time of the first event; {data.EVENTS_PER_S} events a second follow.",
        rich_help_panel=CONTENT,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="The file to write; a name that ends in .gz compresses it.",
        rich_help_panel=INPUT_OUTPUT,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=Command,
        epilog="[bold]Examples[/bold]\n"
        "breakwater generate\n"
        "breakwater generate --events 2_000_000 --bad-rate 0 --out big.jsonl.gz\n"
        "breakwater generate --start 2026-01-01T00:33:20Z --out demo/next.jsonl",
    )(generate)


def generate(
    *,
    out: Out = Path("demo/events.jsonl"),
    events: EventCount = 200_000,
    bad_rate: BadRate = 0.02,
    disorder_s: Disorder = 300,
    users: Users = 1000,
    seed: Seed = 42,
    start: Start = "2026-01-01T00:00:00Z",
) -> None:
    """Write e-commerce events as JSON lines, with every kind of damage that a stream meets."""
    first = parse_start(start)
    with _progress(events) as done:
        summary = data.generate(events, bad_rate, disorder_s, users, seed, first, out, done)
    _show_summary(out, summary)


def parse_start(text: str) -> datetime:
    """An ISO-8601 time; without an offset it is UTC."""
    # Python 3.10 does not know the Z.
    readable = f"{text[:-1]}+00:00" if text[-1:] in ("Z", "z") else text
    try:
        time = datetime.fromisoformat(readable)
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise UserError(
            f"--start {text}: is not an ISO-8601 time; write it like 2026-01-01T00:00:00Z",
            WRONG_CALL,
        ) from None


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("events", total=total)
        yield lambda done: progress.update(task, completed=done)


def _show_summary(out: Path, summary: data.Summary) -> None:
    console = Console(highlight=False)
    damaged = sum(summary.damaged.values())
    if damaged:
        console.print(_damage_table(summary))
    say(console, f"{out}: {summary.lines:,} lines, {summary.bytes:,} bytes, {damaged:,} damaged")
    end = summary.end.replace(tzinfo=None).isoformat(timespec="milliseconds")
    say(console, f"the next file carries on with --start {end}Z")
    if summary.end > datetime.now(timezone.utc):
        say(console, "its last events lie in the future: a run makes them dead letters for now")


def _damage_table(summary: data.Summary) -> Table:
    """The damage by what becomes of it, as the ledger of a run will list it."""
    table = Table("becomes", title="Damaged records", title_justify="left")
    table.add_column("records", justify="right")
    table.add_column("damage")
    for verdict, count in summary.by_verdict.items():
        names = [each.name for each in data.DAMAGES if each.verdict == verdict]
        kinds = "; ".join(name for name in names if name in summary.damaged)
        table.add_row(verdict, f"{count:,}", kinds)
    return table
