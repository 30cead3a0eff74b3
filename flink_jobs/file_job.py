"""The job on files: a plan of input files in, an output folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyflink.datastream import StreamExecutionEnvironment

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.job import Parts
from flink_jobs.run_folder.folder import refuse_file
from flink_jobs.run_folder.plan import line_limits
from flink_jobs.settings import Settings
from flink_jobs.wiring.environment import goes_on
from flink_jobs.wiring.rules import delivery_rules, intake_rules
from operators.batches.records import PIECE_BYTES, PIECE_RECORDS
from operators.rules.splits import ReadPlan
from operators.sinks.files import FileSinks
from operators.sources.files import FileSource


@dataclass(frozen=True)
class FileJob:
    """The job on files.

    Attributes:
        settings: all of them.
        plan: the files to read.
        output: folder of the outputs.
    """

    settings: Settings
    plan: ReadPlan
    output: Path

    def build(self, env: StreamExecutionEnvironment) -> Parts:
        """Make the parts."""
        settings = self.settings
        sinks = FileSinks(
            folder=self.output.resolve(),
            part_max_bytes=settings.sink.part_max_bytes,
            rollover_interval_ms=settings.sink.rollover_interval_ms,
            block_max_records=min(settings.batch.max_records, PIECE_RECORDS),
            block_max_bytes=min(settings.batch.max_bytes, PIECE_BYTES),
            block_max_age_ms=settings.batch.max_age_ms,
        )
        return Parts(
            source=FileSource(self.plan, line_limits(settings)),
            sinks=sinks,
            rules=intake_rules(settings),
            delivery=delivery_rules(settings),
        )


def refuse_used_folder(output: Path, env: StreamExecutionEnvironment) -> None:
    """Do not write beside the output of another job: nothing would tell the two apart.

    A job that goes on from a savepoint or a checkpoint (``flink run -s``) has to.

    Raises:
        UserError: there is something in the folder, and the job begins anew.
    """
    refuse_file(output)
    if not output.is_dir() or not any(output.iterdir()) or goes_on(env):
        return
    raise UserError(
        f"output folder {output} is not empty: choose another, start from a savepoint or a "
        "checkpoint, or say --append to write beside what is there",
        WRONG_CALL,
    )
