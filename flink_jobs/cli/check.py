"""breakwater check: whether this machine has all that a run needs.

`register` adds it to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flink_jobs.cli.commands import INPUT, OUTPUT, Config, ManyInputs
from flink_jobs.errors import FAILED, UserError
from flink_jobs.local import checks
from flink_jobs.machine.console import say

if TYPE_CHECKING:
    from flink_jobs.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=ManyInputs,
        epilog="[bold]Examples[/bold]\n"
        "breakwater check\n"
        "breakwater check --input events/ --output out --config breakwater.toml",
    )(check)


def check(
    *,
    input_: Annotated[list[Path] | None, INPUT] = None,
    output: Annotated[Path | None, OUTPUT] = None,
    config: Config = None,
) -> None:
    """Look whether this machine has all that a run needs; each line is ok or says what to do."""
    settings = _settings_or_error(config)
    results = checks.run_checks(settings, input_ or [], output)
    _show_checks(results)
    if isinstance(settings, UserError):
        raise typer.Exit(settings.exit_code)
    raise typer.Exit(0 if all(result.ok for result in results) else FAILED)


def _settings_or_error(config: Path | None) -> Settings | UserError:
    try:
        from flink_jobs.wiring.load import load_job_settings  # noqa: PLC0415

        return load_job_settings(config)
    except UserError as error:
        return error
    except ImportError as error:
        return UserError(f"not looked at ({error}); mend the lines above first")


def _show_checks(results: list[checks.Check]) -> None:
    console = Console(highlight=False)
    width = max(len(result.name) for result in results)
    for result in results:
        mark = "[green]ok [/green]" if result.ok else "[bold red]FIX[/bold red]"
        console.print(mark, end="  ")
        say(console, f"{result.name:<{width}}  {result.detail}")
        if not result.ok and result.advice:
            say(console, f"{'':<{width + 7}}-> {result.advice}")
