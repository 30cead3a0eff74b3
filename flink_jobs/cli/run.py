"""breakwater run: the job on this machine, on files or on Kafka, as the settings say.

`register` adds it to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flink_jobs.cli.commands import HOW, INPUT, INPUT_OUTPUT, OUTPUT, Config, ManyInputs
from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.local import checks

if TYPE_CHECKING:
    from flink_jobs.settings import Settings

# The command imports the rest itself: PyFlink, pydantic and pyarrow together take seconds.

NOT_EMPTY = "When the output folder is not empty"
DEFAULT_STATE = Path("breakwater-state")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=ManyInputs,
        epilog="[bold]Examples[/bold]\n"
        "breakwater run --input demo/events.jsonl --output demo/out\n"
        "breakwater run --input monday.jsonl.gz tuesday/ --output out --parallelism 4\n"
        "breakwater run --input events/ --output out --resume\n"
        "breakwater run --config shop.toml --state shop-state\n\n"
        "[bold]Exit code[/bold]\n"
        "0 done and balanced, 1 failed or not balanced, 2 wrong call or setting",
    )(run)


def run(
    *,
    input_: Annotated[list[Path] | None, INPUT] = None,
    output: Annotated[Path | None, OUTPUT] = None,
    config: Config = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="On Kafka: folder for checkpoints and logs; the job goes on from the newest "
            f"checkpoint there. [dim]\\[default: {DEFAULT_STATE}][/dim]",
            rich_help_panel=HOW,
        ),
    ] = None,
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
    """Run the job on this machine, and show that its books balance."""
    mode = _mode(resume, overwrite)
    if config is None:
        # Without settings it is a job on files; known before anything is loaded.
        _require_folders(input_, output)
    _require_own_packages()
    from flink_jobs.wiring.load import load_job_settings  # noqa: PLC0415

    settings = load_job_settings(config, {"parallelism": parallelism})
    if settings.connector == "kafka":
        _refuse_file_options(input_, output, resume, overwrite)
        from flink_jobs.local.topics import run_topics  # noqa: PLC0415

        raise typer.Exit(run_topics(settings, state or DEFAULT_STATE, json))
    inputs, folder = _require_folders(input_, output)
    _refuse_state(settings, state)
    from flink_jobs.local.files import run_files  # noqa: PLC0415

    raise typer.Exit(run_files(settings, inputs, folder, mode, json))


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


def _require_folders(inputs: list[Path] | None, output: Path | None) -> tuple[list[Path], Path]:
    if not inputs or output is None:
        missing = "--input" if not inputs else "--output"
        raise UserError(
            f"{missing}: is missing; a job on files needs --input and --output, a job on Kafka "
            'settings with connector = "kafka" (--config)',
            WRONG_CALL,
        )
    return inputs, output


def _refuse_file_options(
    inputs: list[Path] | None, output: Path | None, resume: bool, overwrite: bool
) -> None:
    given = {"--input": inputs, "--output": output, "--resume": resume, "--overwrite": overwrite}
    for name, value in given.items():
        if value:
            raise UserError(
                f'{name}: is for files, but the settings say connector = "kafka"; leave it out '
                "(topics are in [kafka] and [sink], and the job goes on from its --state folder)",
                WRONG_CALL,
            )


def _refuse_state(settings: Settings, state: Path | None) -> None:
    if state is not None:
        raise UserError(
            f'--state: is for Kafka, but the settings say connector = "{settings.connector}"; '
            "leave it out (a job on files keeps its state in the output folder)",
            WRONG_CALL,
        )
