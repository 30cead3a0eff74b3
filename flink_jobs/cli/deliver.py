"""breakwater deliver: what a job could not deliver, once its target is well.

`register` adds it to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from flink_jobs.cli.commands import INPUT_OUTPUT, Command
from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.machine.console import say

if TYPE_CHECKING:
    from flink_jobs.dead_letters.deliver import Sent
    from flink_jobs.dead_letters.fallback_folder import FallbackFolder

# The command imports the rest itself: pydantic and PyFlink take seconds.

HOW = "How it is sent"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=Command,
        epilog="[bold]Examples[/bold]\n"
        "breakwater deliver --from out/fallback --config shop.toml\n"
        "breakwater deliver --from out/fallback --config shop.toml --rate-per-second 50\n\n"
        "[bold]Exit code[/bold]\n"
        "0 all is delivered, 1 something is left, 2 wrong call or setting",
    )(deliver)


def deliver(
    *,
    from_: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Folder fallback of a run's output.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The job's settings: target, retries, breaker, contract.",
            rich_help_panel=HOW,
        ),
    ] = None,
    rate_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=0.001,
            max=1_000_000,
            help="Events in a second at most, repeated ones too; by default as the target takes.",
            rich_help_panel=HOW,
        ),
    ] = None,
    give_up_after_seconds: Annotated[
        float,
        typer.Option(
            metavar="N",
            min=1,
            max=30 * 86_400,
            help="End when the target has taken nothing for so long; the same call goes on later.",
            rich_help_panel=HOW,
        ),
    ] = 600,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            metavar="",
            help="Also send what former calls have given up (undelivered.ndjson).",
            rich_help_panel=HOW,
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar="",
            help="Print the numbers as JSON, for programs.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
) -> None:
    """Send what a job could not deliver to its target; goes on where a former call has ended."""
    from flink_jobs.dead_letters.deliver import deliver_folder  # noqa: PLC0415
    from flink_jobs.dead_letters.fallback_folder import FallbackFolder  # noqa: PLC0415
    from flink_jobs.machine.interrupt import interruptible  # noqa: PLC0415
    from flink_jobs.settings import load_settings  # noqa: PLC0415
    from flink_jobs.wiring.rules import delivery_rules  # noqa: PLC0415
    from operators.rules.delivery.pace import Pace  # noqa: PLC0415

    settings = load_settings(config)
    rules = delivery_rules(settings) if settings.delivery.target else None
    if rules is None:
        raise UserError(
            "delivery.target: is missing, there is nothing to deliver to; give the job's settings "
            "with --config",
            WRONG_CALL,
        )
    folder = FallbackFolder(from_)
    with folder.claim(), interruptible() as interrupt:
        if again:
            folder.send_again()
        with _progress() as show:
            sent = deliver_folder(
                folder,
                rules,
                pace=Pace(rate_per_second or math.inf),
                stop=lambda: interrupt.requested,
                give_up_after_ms=round(give_up_after_seconds * 1000),
                show=show,
            )
    if json:
        print(dumps({**sent.to_dict(), "stopped": interrupt.requested}))
    else:
        _print(Console(), folder, sent)
    if interrupt.requested:
        say(Console(stderr=True), "stopped; the same call goes on where this one has ended")
    elif sent.gave_up:
        told = f"{sent.delivered:,} delivered, {sent.left:,} left"
        waited = f"the target has taken nothing for {give_up_after_seconds:g} s"
        say(
            Console(stderr=True),
            f"given up, {waited}: {told}; the same call goes on where this one has ended",
        )
    raise typer.Exit(0 if sent.is_done else FAILED)


@contextmanager
def _progress() -> Iterator[Callable[[Sent], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=None)

        def show(sent: Sent) -> None:
            progress.update(
                task, total=sent.events, completed=sent.events - sent.left, description=_line(sent)
            )

        yield show


def _line(sent: Sent) -> str:
    """What is to be said beside the bar."""
    rate = sent.delivered / sent.wall_s if sent.wall_s > 0 else 0.0
    words = [f"{rate:,.0f}/s"]
    if given_up := sent.undelivered.total():
        words.append(f"{given_up:,} undelivered")
    if sent.state == "open":
        words.append(f"the target fails: left alone for {math.ceil(sent.wait_ms / 1000)} s")
    elif sent.state == "half_open":
        words.append("the target fails: tried out")
    return ", ".join(words)


def _print(console: Console, folder: FallbackFolder, sent: Sent) -> None:
    table = Table("fallback", "", "events", title=None)
    table.columns[2].justify = "right"
    table.add_row("in the folder", "", f"{sent.events:,}", end_section=True)
    table.add_row("delivered", "now", f"{sent.delivered:,}")
    if sent.before:
        table.add_row("", "before", f"{sent.before:,}")
    kinds = sorted(sent.undelivered.items()) or [("", 0)]
    for i, (kind, count) in enumerate(kinds):
        table.add_row("" if i else "undelivered", kind, f"{count:,}")
    table.add_row("left", "", f"{sent.left:,}")
    console.print(table)
    numbers = sent.to_dict()
    console.print(f"{numbers['wall_time_s']} s, {numbers['events_per_s']:,} events/s")
    if sent.undelivered:
        say(console, f"reasons: {folder.undelivered} (send it once more with --again)")
    if sent.is_done:
        console.print("[bold green]done[/]: every event has been delivered")
