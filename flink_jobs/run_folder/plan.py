"""What a run reads: the files are listed once, and the list is kept for a resumed run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.settings import Settings
from operators.batches.records import PIECE_BYTES, PIECE_RECORDS
from operators.rules.splits import ReadPlan, reading_order
from operators.rules.times import epoch_ms
from operators.rules.verdict import Judge, Rejection
from operators.sources.files import (
    LineLimits,
    SourceFileError,
    find_files,
    list_file,
    open_listed,
)


def plan_files(settings: Settings, inputs: Sequence[Path], output: Path) -> ReadPlan:
    """List the input files and decide how they are read.

    Raises:
        UserError: a path does not exist, cannot be read, or holds no file.
    """
    limits = line_limits(settings)
    try:
        found = find_input(inputs, output)
        event_ms = _event_ms(settings)
        listed = [list_file(path, limits, event_ms) for path in found]
    except SourceFileError as error:
        raise UserError(str(error), WRONG_CALL) from error
    except OSError as error:
        raise UserError(
            f"input {error.filename} cannot be read: {error.strerror}", WRONG_CALL
        ) from error
    return ReadPlan(reading_order(listed), settings.source.split_bytes, settings.parallelism)


def refuse_changed_files(plan: ReadPlan) -> None:
    """Look whether the files are still there, as long as they were.

    Raises:
        UserError: one has vanished or shrunk; says which and what to do.
    """
    try:
        for file in plan.files:
            if file.size:  # nothing is read of an empty one
                open_listed(file).close()
    except SourceFileError as error:
        raise UserError(str(error)) from error


def line_limits(settings: Settings) -> LineLimits:
    """Bounds on lines and batches of the file source, from the settings.

    Its batches are made in the worker, so they are never larger than the pieces that it judges.
    """
    return LineLimits(
        settings.source.max_record_bytes,
        settings.source.payload_limit_bytes,
        min(settings.batch.max_records, PIECE_RECORDS),
        min(settings.batch.max_bytes, PIECE_BYTES),
    )


def _event_ms(settings: Settings) -> Callable[[bytes], int | None]:
    """Event time of a record that intake would accept, None for any other."""
    contract = settings.contract.load()
    judge = Judge(
        contract,
        settings.poison.rules(),
        settings.source.max_record_bytes,
        settings.source.max_future_skew_ms,
    )
    attribute = contract.column(contract.event_time).attribute
    now_ms = time.time_ns() // 1_000_000

    def event_ms(payload: bytes) -> int | None:
        verdict = judge.judge(payload, now_ms)
        return None if isinstance(verdict, Rejection) else epoch_ms(getattr(verdict, attribute))

    return event_ms


def find_input(inputs: Sequence[Path], output: Path) -> list[Path]:
    """The files to read.

    Raises:
        SourceFileError: a path does not exist, all lie in the output folder, or there is no file.
    """
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(output.resolve()):
            raise SourceFileError(
                f"input {path} lies in the output folder {output}, which is never read: "
                "choose another --output"
            )
    return find_files(inputs, exclude=output)


def save_plan(plan: ReadPlan, path: Path) -> None:
    """Write the plan; whole or not at all."""
    written = path.with_suffix(".tmp")
    written.write_bytes(msgspec.json.format(msgspec.json.encode(plan)))
    written.replace(path)


def load_plan(path: Path) -> ReadPlan:
    """Read a plan back.

    Raises:
        UserError: it is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReadPlan)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{path} cannot be read ({error}): start again with --overwrite") from error
