"""The command line: breakwater run, check and what is registered here.

Exit codes: 0 done and balanced, 1 failed or not balanced, 2 wrong call or setting.
Every foreseeable fault is one line on standard error.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from typer.exceptions import TyperException

from flink_jobs import check as checks
from flink_jobs import cluster_cli, deliver_cli, generate_cli, ledger_cli
from flink_jobs.commands import INPUT_OUTPUT, Commands, ManyInputs, say
from flink_jobs.errors import FAILED, WRONG_CALL, UserError
from flink_jobs.leave import leave

if TYPE_CHECKING:
    from flink_jobs.settings import Settings

# Commands import PyFlink, pydantic and pyarrow themselves: together they take seconds.

NOT_EMPTY = "When the output folder is not empty"
HOW = "How it runs"

_CTRL_C = 130  # what typer makes of a KeyboardInterrupt

app = typer.Typer(
    name="breakwater",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="[bold]Start with[/bold]\n"
    "breakwater generate\n"
    "breakwater run --input demo/events.jsonl --output demo/out",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


# --- options -------------------------------------------------------------------------------------

_INPUT = typer.Option(
    "--input",
    metavar="PATH...",
    help="Files or folders of JSON lines (.jsonl, .json, also .gz); several, and more than once.",
    rich_help_panel=INPUT_OUTPUT,
)
Inputs = Annotated[list[Path], _INPUT]
_OUTPUT = typer.Option(metavar="DIR", help="Folder for the output.", rich_help_panel=INPUT_OUTPUT)
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Settings in TOML; BREAKWATER_* variables win over it.",
        rich_help_panel=HOW,
    ),
]


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    names = ("breakwater", "apache-flink", "pyarrow", "msgspec")
    versions = [f"{name} {_installed(name)}" for name in names]
    typer.echo(", ".join([*versions, f"Python {platform.python_version()}"]))
    raise typer.Exit


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def breakwater(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_show_version,
            is_eager=True,
            help="Show the versions and leave.",
        ),
    ] = False,
) -> None:
    """Take events in, and keep working when they are broken: each ends in one place, counted."""


generate_cli.register(app)


# --- run -----------------------------------------------------------------------------------------


@app.command(
    cls=ManyInputs,
    epilog="[bold]Examples[/bold]\n"
    "breakwater run --input demo/events.jsonl --output demo/out\n"
    "breakwater run --input monday.jsonl.gz tuesday/ --output out --parallelism 4\n"
    "breakwater run --input events/ --output out --resume\n\n"
    "[bold]Exit code[/bold]\n"
    "0 done and balanced, 1 failed or not balanced, 2 wrong call or setting",
)
def run(
    *,
    input_: Inputs,
    output: Annotated[Path, _OUTPUT],
    config: Config = None,
    parallelism: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=128, help="Subtasks of every step.", rich_help_panel=HOW
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Go on from the last checkpoint.",
            rich_help_panel=NOT_EMPTY,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", metavar="", help="Throw it away and start.", rich_help_panel=NOT_EMPTY
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar="",
            help="Print the ledger as JSON, for programs.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
) -> None:
    """Run the job on files, on this machine, and show that its books balance."""
    mode = _mode(resume, overwrite)
    _require_own_packages()
    from flink_jobs.settings import load_settings  # noqa: PLC0415

    settings = load_settings(config, {"parallelism": parallelism})
    from flink_jobs.local import run_local  # noqa: PLC0415

    raise typer.Exit(run_local(settings, input_, output, mode, json))


def _require_own_packages() -> None:
    """Say so when a stranger has the name of one of our packages: its import would fail oddly."""
    ours = checks.own_packages_check()
    if not ours.ok:
        raise UserError(f"{ours.detail}; {ours.advice}")


def _mode(resume: bool, overwrite: bool) -> Literal["new", "resume", "overwrite"]:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one", WRONG_CALL)
    if resume:
        return "resume"
    return "overwrite" if overwrite else "new"


# --- check ---------------------------------------------------------------------------------------


@app.command(
    cls=ManyInputs,
    epilog="[bold]Examples[/bold]\n"
    "breakwater check\n"
    "breakwater check --input events/ --output out --config breakwater.toml",
)
def check(
    *,
    input_: Annotated[list[Path] | None, _INPUT] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
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
        from flink_jobs.settings import load_settings  # noqa: PLC0415

        return load_settings(config)
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


ledger_cli.register(app)
deliver_cli.register(app)
cluster_cli.register(app)


# --- the entry -----------------------------------------------------------------------------------


def main() -> None:
    """The `breakwater` command."""
    try:
        code = _call()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    leave(code)


def _call() -> int:
    """Run the command; one line on standard error for a fault that a person can mend."""
    try:
        code: int = app(prog_name="breakwater", standalone_mode=False) or 0
    except UserError as error:
        print(f"breakwater: {error.message}", file=sys.stderr)
        return error.exit_code
    except TyperException as error:
        return _wrong_call(error)
    if code == _CTRL_C:
        print("breakwater: stopped", file=sys.stderr)
        return FAILED
    return code


def _wrong_call(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "breakwater"
    if message := error.format_message():  # empty when the help was shown instead
        print(f"{command}: {message} (see {command} --help)", file=sys.stderr)
    return WRONG_CALL


if __name__ == "__main__":
    main()
