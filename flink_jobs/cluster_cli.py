"""The commands that need a cluster: breakwater package, submit, status, stop, cancel and upgrade.

`register` adds them to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flink_jobs.errors import WRONG_CALL, UserError

# Commands import the rest themselves: pydantic and PyFlink take seconds.

WHERE = "The cluster"
WHAT = "What runs"

Target = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="REST interface of the JobManager, http:// or https:// may stand before it.",
        rich_help_panel=WHERE,
    ),
]
PackageFile = Annotated[
    Path | None,
    typer.Option(
        "--package", metavar="ZIP", help="Made by breakwater package.", rich_help_panel=WHAT
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Settings in TOML, instead of those in the package.",
        rich_help_panel=WHAT,
    ),
]
WorkerPython = Annotated[
    str,
    typer.Option(
        metavar="PATH",
        help="Python on the cluster's machines, with PyFlink; the one that runs this by default.",
        rich_help_panel=WHERE,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="[bold]Examples[/bold]\nbreakwater package --config breakwater.toml --out app.zip"
    )(package)
    app.command(
        epilog="[bold]Examples[/bold]\n"
        "breakwater submit --target localhost:8081 --config breakwater.toml\n"
        "breakwater submit --target localhost:8081 --package app.zip --from-savepoint DIR"
    )(submit)


def package(
    *,
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="Settings in TOML; they go into the package.")
    ],
    out: Annotated[Path, typer.Option(metavar="ZIP", help="The package to write.")] = Path(
        "app.zip"
    ),
) -> None:
    """Put code, SQL, contract and settings into one zip, and list them.

    The settings go in as they stand: a password in them is in the package too.
    """
    from flink_jobs.package import build  # noqa: PLC0415

    made = build(config, out)
    for name in made.names:
        print(name)
    print(f"{out}: {len(made.names)} files, {made.path.stat().st_size:,} bytes")
    print(f"sha256 {made.checksum}")


def submit(
    *,
    target: Target,
    config: Config = None,
    package: PackageFile = None,
    from_savepoint: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Go on from this savepoint, or from a checkpoint that a job has left.",
            rich_help_panel=WHAT,
        ),
    ] = "",
    worker_python: WorkerPython = "",
) -> None:
    """Hand the job to a cluster, and say its id; it does not wait for what the job does."""
    from flink_jobs.package import Package, build  # noqa: PLC0415
    from flink_jobs.submit import Submission  # noqa: PLC0415
    from flink_jobs.submit import submit as hand_over  # noqa: PLC0415

    if package is None and config is None:
        raise UserError("--config or --package: give one of them", WRONG_CALL)
    with tempfile.TemporaryDirectory(prefix="breakwater-package-") as tmp:
        if package is not None:
            made = Package.open(package)
        else:
            assert config is not None  # noqa: S101, for mypy
            made = build(config, Path(tmp) / "app.zip")
        job_id = hand_over(Submission(target, made, config, from_savepoint, worker_python))
    _say_submitted(target, job_id)


def _say_submitted(target: str, job_id: str) -> None:
    from flink_jobs.rest import Rest  # noqa: PLC0415

    print(f"job {job_id}")
    print(f"UI  {Rest(target).url}/#/job/{job_id}/overview")
    Console(stderr=True, highlight=False).print(
        f"look after it with: breakwater status --target {target} --job {job_id}", soft_wrap=True
    )
    sys.stdout.flush()
