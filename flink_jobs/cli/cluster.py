"""The commands that need a cluster: breakwater package, submit, status, stop and upgrade.

`register` adds them to the command line of `flink_jobs.cli`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Final, Literal

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


Job = Annotated[
    str,
    typer.Option(
        metavar="ID",
        help="The job; not needed where only one runs.",
        rich_help_panel=WHERE,
    ),
]
SavepointFolder = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="Where the savepoint goes, as the cluster reaches it; its own folder by default.",
        rich_help_panel="The savepoint",
    ),
]
Format = Annotated[
    Literal["canonical", "native"],
    typer.Option(
        "--format",
        help="canonical fits any state backend, native is faster.",
        rich_help_panel="The savepoint",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command, examples in _COMMANDS.items():
        app.command(epilog="[bold]Examples[/bold]\n" + "\n".join(examples))(command)


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
    from flink_jobs.cluster.package import build  # noqa: PLC0415

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
    from flink_jobs.cluster.package import Package, build  # noqa: PLC0415
    from flink_jobs.cluster.submit import Submission  # noqa: PLC0415
    from flink_jobs.cluster.submit import submit as hand_over  # noqa: PLC0415

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


def status(
    *,
    target: Target,
    job: Job = "",
    json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print it as JSON, for programs.")
    ] = False,
) -> None:
    """Show a job's state, last checkpoint, restarts, lag and backpressure; or all jobs."""
    from flink_jobs.cluster.rest import ENDED, Rest  # noqa: PLC0415
    from flink_jobs.cluster.status import print_jobs, print_status, status_of  # noqa: PLC0415

    rest, console = Rest(target), Console(highlight=False)
    running = [each["jid"] for each in rest.jobs() if each["state"] not in ENDED]
    job = job or (running[0] if len(running) == 1 else "")
    if not job and json:
        print(dumps({"jobs": rest.jobs()}))
    elif not job:
        print_jobs(rest, console)
    elif json:
        print(dumps(status_of(rest, job).to_dict()))
    else:
        print_status(status_of(rest, job), console)


def stop(
    *,
    target: Target,
    job: Job = "",
    savepoint: SavepointFolder = "",
    kind: Format = "canonical",
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            metavar="",
            help="End for ever: open windows are closed and written, and what is not delivered "
            "within delivery.drain_timeout_ms is given up.",
            rich_help_panel="The savepoint",
        ),
    ] = False,
) -> None:
    """Stop a job with a savepoint, from which it or another version can go on."""
    from flink_jobs.cluster.rest import Rest  # noqa: PLC0415
    from flink_jobs.cluster.upgrade import stop as stop_job  # noqa: PLC0415
    from flink_jobs.cluster.upgrade import the_job  # noqa: PLC0415

    rest = Rest(target)
    job = the_job(rest, job)
    print(f"savepoint {stop_job(rest, job, savepoint, kind, drain)}")
    _hint(f"go on with: breakwater submit --target {target} --from-savepoint PATH ...")


def upgrade(
    *,
    target: Target,
    old: Annotated[
        Path,
        typer.Option(
            metavar="ZIP",
            help="The package that the job runs, to go back to.",
            rich_help_panel=WHAT,
        ),
    ],
    package: Annotated[
        Path, typer.Option(metavar="ZIP", help="The new version.", rich_help_panel=WHAT)
    ],
    job: Job = "",
    savepoint: SavepointFolder = "",
    kind: Format = "canonical",
    within_s: Annotated[
        float,
        typer.Option(
            "--within",
            metavar="SECONDS",
            min=1,
            help="The new version must have completed a checkpoint by then.",
            rich_help_panel=WHAT,
        ),
    ] = 300,
    worker_python: WorkerPython = "",
) -> None:
    """Put a new version in place of a job, or go back to the old one when it does not run.

    It is checked before the old one is stopped: settings, topics, and that no state is lost.
    """
    from flink_jobs.cluster.package import Package  # noqa: PLC0415
    from flink_jobs.cluster.rest import Rest  # noqa: PLC0415
    from flink_jobs.cluster.submit import Submission  # noqa: PLC0415
    from flink_jobs.cluster.upgrade import Upgrade, the_job  # noqa: PLC0415
    from flink_jobs.cluster.upgrade import upgrade as put_in_place  # noqa: PLC0415

    before = Submission(target, Package.open(old), worker_python=worker_python)
    after = Submission(target, Package.open(package), worker_python=worker_python)
    job = the_job(Rest(target), job)
    plan = Upgrade(job, before, after, savepoint, kind, within_s)
    _say_submitted(target, put_in_place(plan, _hint))


def _hint(text: str) -> None:
    """For people, beside what a program may read."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def _say_submitted(target: str, job_id: str) -> None:
    from flink_jobs.cluster.rest import Rest  # noqa: PLC0415

    print(f"job {job_id}")
    print(f"UI  {Rest(target).url}/#/job/{job_id}/overview")
    _hint(f"look after it with: breakwater status --target {target} --job {job_id}")


_COMMANDS: Final[dict[Callable[..., None], list[str]]] = {
    package: ["breakwater package --config breakwater.toml --out app.zip"],
    submit: [
        "breakwater submit --target localhost:8081 --config breakwater.toml",
        "breakwater submit --target localhost:8081 --package app.zip --from-savepoint PATH",
    ],
    status: ["breakwater status --target localhost:8081"],
    stop: ["breakwater stop --target localhost:8081 --job ID --savepoint s3://bucket/savepoints"],
    upgrade: ["breakwater upgrade --target localhost:8081 --old app-1.zip --package app-2.zip"],
}
