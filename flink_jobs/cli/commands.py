"""How commands read their arguments and show their help, beyond what typer does by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

INPUT_OUTPUT = "Input and output"
HOW = "How it runs"

INPUT = typer.Option(
    "--input",
    metavar="PATH...",
    help="Files or folders of JSON lines (.jsonl, .json, also .gz); several, and more than once.",
    rich_help_panel=INPUT_OUTPUT,
)
OUTPUT = typer.Option(metavar="DIR", help="Folder for the output.", rich_help_panel=INPUT_OUTPUT)
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Settings in TOML; BREAKWATER_* variables win over it.",
        rich_help_panel=HOW,
    ),
]


def _as_switch(option: Any) -> Any:
    """A switch takes no value, so its help must not show one."""
    if option is not None:
        option.metavar = ""
    return option


class Command(TyperCommand):
    """A command whose help says no more than it has to, and whose faults name it."""

    def get_help_option(self, ctx: Any) -> Any:
        """The --help option."""
        return _as_switch(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let a fault know its command: click's parser does not tell it."""
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


class ManyInputs(Command):
    """A command whose --input takes all the paths that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spread the paths before they are parsed: click's options take one value at a time."""
        return super().parse_args(ctx, repeat_option(args, "--input", ctx))


class Commands(TyperGroup):
    """All of them."""

    def get_help_option(self, ctx: Any) -> Any:
        """The --help option."""
        return _as_switch(super().get_help_option(ctx))


def repeat_option(args: list[str], option: str, ctx: Any = None) -> list[str]:
    """Write `--input a b` as `--input a --input b`, up to the next option."""
    spread: list[str] = []
    within = False
    for position, arg in enumerate(args):
        if arg == "--":
            return spread + args[position:]
        if arg.startswith("-"):
            within = arg.split("=")[0] == option
            if arg == option:
                _require_value(option, args[position + 1 :], ctx)
                continue
            spread.append(arg)
        else:
            spread += [option, arg] if within else [arg]
    return spread


def _require_value(option: str, following: list[str], ctx: Any) -> None:
    if not following or following[0].startswith("-"):
        raise typer.BadParameter("needs at least one path.", ctx=ctx, param_hint=option)
