"""breakwater ledger: do the books of a run balance, and has every record been counted?

`register` adds it to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flink_jobs.cli.commands import Command
from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.machine.console import say

if TYPE_CHECKING:
    from flink_jobs.ledger.audit import Audit
    from operators.rules.ledger import Counts

# The command imports the rest itself: pydantic and PyFlink take seconds.

WHERE = "Where the ledger is: one of them"
HOW = "What is shown"

By = Literal["total", "partition", "minute"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=Command,
        epilog="[bold]Examples[/bold]\n"
        "breakwater ledger --dir out\n"
        "breakwater ledger --kafka localhost:9092\n"
        "breakwater ledger --config shop.toml --by partition\n\n"
        "[bold]Exit code[/bold]\n"
        "0 balanced, 1 not balanced or not to be read, 2 wrong call or setting",
    )(ledger)


def ledger(
    *,
    dir_: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="A run's output folder.", rich_help_panel=WHERE),
    ] = None,
    kafka: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Brokers; by default those of the settings.",
            rich_help_panel=WHERE,
        ),
    ] = "",
    topic: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The ledger's topic; by default that of the settings.",
            rich_help_panel=WHERE,
        ),
    ] = "",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The job's settings: brokers, login, topic, and where it began to read.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    by: Annotated[
        By, typer.Option(help="Also the numbers of each of these.", rich_help_panel=HOW)
    ] = "total",
    json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="Print all of it as JSON, for programs.", rich_help_panel=HOW
        ),
    ] = False,
) -> None:
    """Add up the committed rows of a ledger; say what is off, and which offsets are missing."""
    if dir_ is not None and (kafka or topic or config):
        raise UserError("--dir stands for itself: leave --kafka, --topic and --config", WRONG_CALL)
    audit = _of_folder(dir_) if dir_ is not None else _of_topics(kafka, topic, config)
    if json:
        print(dumps(audit.to_dict()))
    else:
        print_audit(audit, by, Console())
    raise typer.Exit(0 if audit.balanced else FAILED)


def _of_folder(folder: Path) -> Audit:
    from flink_jobs.ledger.audit import audit_folder  # noqa: PLC0415

    return audit_folder(folder)


def _of_topics(servers: str, topic: str, config: Path | None) -> Audit:
    from flink_jobs.settings import load_settings  # noqa: PLC0415

    settings = load_settings(config, {"kafka.bootstrap_servers": servers or None})
    if not settings.kafka.bootstrap_servers:
        raise UserError(
            "--dir, --kafka or --config: give one of them (the settings must name "
            "kafka.bootstrap_servers)",
            WRONG_CALL,
        )
    from flink_jobs.kafka.jars import KAFKA, find_jar  # noqa: PLC0415
    from flink_jobs.ledger.audit import audit_topics  # noqa: PLC0415
    from flink_jobs.local.process import client_process  # noqa: PLC0415
    from flink_jobs.machine.java import find_java  # noqa: PLC0415

    jar = find_jar(KAFKA, settings.jars, os.environ)
    with client_process(find_java(os.environ)):
        from flink_jobs.kafka.parts import client_properties  # noqa: PLC0415
        from flink_jobs.kafka.reader import connected  # noqa: PLC0415

        with connected(client_properties(settings), jar) as topics:
            return audit_topics(topics, topic or settings.sink.ledger_topic, settings)


# --- for people ----------------------------------------------------------------------------------


def print_audit(audit: Audit, by: By, console: Console) -> None:
    """The table of a run's end, what more was asked for, and what is off."""
    from flink_jobs.ledger.report import ledger_table, print_problems  # noqa: PLC0415

    book = audit.book
    if by == "minute":
        minutes = sorted(book.by_minute.items())
        _print_wide(console, _table("minute", [], [(m, [], counts) for m, counts in minutes]))
    elif by == "partition":
        _print_wide(console, _by_partition(audit))
    console.print(ledger_table(book.total))
    if book.by_minute:
        ends = dict.fromkeys((book.first_minute(), book.last_minute()))
        say(console, f"rows of {' to '.join(ends)}, {_read(audit)}")
    for note in audit.notes:
        say(console, note)
    if audit.balanced and book.by_partition:
        console.print("[bold green]balanced[/]: every record is in exactly one place")
    print_problems(console, audit.problems)


def _read(audit: Audit) -> str:
    partitions = f"{len(audit.partitions())} source partitions"
    if not audit.behind:
        return partitions
    behind = sum(audit.behind.values())
    return f"{partitions}, {behind:,} offsets not read yet" if behind else partitions


def _by_partition(audit: Audit) -> Table:
    from operators.rules.ledger import Counts  # noqa: PLC0415

    rows: list[tuple[str, list[str], Counts]] = []
    for place in audit.partitions():
        spans = audit.book.spans.get(place)
        offsets = [
            str(min(span.first for span in spans)) if spans else "",
            str(max(span.last for span in spans)) if spans else "",
            f"{sum(each.gap.missing for each in audit.findings.get(place, [])):,}" if spans else "",
            f"{audit.behind[place]:,}" if place in audit.behind else "",
        ]
        name = f"{place[0]}/{place[1]}" if place in audit.behind or spans else place[0]
        rows.append((name, offsets, audit.book.by_partition.get(place, Counts())))
    more = ["first", "last", "left out", "not read"]
    if not any(offset for _, offsets, _ in rows for offset in offsets):
        more, rows = [], [(name, [], counts) for name, _, counts in rows]
    return _table("source partition", more, rows)


def _table(what: str, more: list[str], rows: Iterable[tuple[str, list[str], Counts]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(what, no_wrap=True)
    rows = list(rows)
    fallback = ["fallback"] if any(counts.fallback for _, _, counts in rows) else []
    names = ["received", "processed", "dead", "quarantined", *fallback, "windowed", "late"]
    for name in (*names, *more):
        table.add_column(name, justify="right", no_wrap=True)
    for name, offsets, counts in rows:
        dead, quarantined = sum(counts.dead_lettered.values()), sum(counts.quarantined.values())
        numbers = [counts.received, counts.processed, dead, quarantined]
        numbers += [counts.fallback] if fallback else []
        numbers += [counts.windowed, counts.late]
        table.add_row(name, *(f"{number:,}" for number in numbers), *offsets)
    return table


def _print_wide(console: Console, table: Table) -> None:
    """As wide as it is: numbers that are cut short are worse than lines that are too long."""
    unbounded = console.options.update(max_width=10_000)
    width = max(console.width, console.measure(table, options=unbounded).maximum)
    Console(file=console.file, width=width).print(table)
