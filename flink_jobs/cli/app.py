"""The command line: each command stands in a file of its own, and is registered here.

Exit codes: 0 done and balanced, 1 failed or not balanced, 2 wrong call or setting.
Every foreseeable fault is one line on standard error.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from flink_jobs.cli import check, cluster, deliver, generate, ledger, run
from flink_jobs.cli.commands import Commands
from flink_jobs.errors import FAILED, WRONG_CALL, UserError

# Commands import PyFlink, pydantic and pyarrow themselves: together they take seconds.

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


generate.register(app)
run.register(app)
check.register(app)
ledger.register(app)
deliver.register(app)
cluster.register(app)


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
    sys.exit(code)


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
