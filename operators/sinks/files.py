"""Two-phase-commit file sinks: what a run has produced appears when a checkpoint is complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pyflink.common import Encoder
from pyflink.datastream.connectors import Sink
from pyflink.datastream.connectors.file_system import (
    BucketAssigner,
    FileSink,
    OutputFileConfig,
    RollingPolicy,
)
from pyflink.datastream.data_stream import DataStream
from pyflink.table.types import DataType

from operators.bridge.steps import block_encoder, join_lines, partition_folders


def flink_path(path: Path) -> str:
    """An absolute local path as Flink reads it: it does not decode what a URI would escape."""
    return f"file://{path}"


@dataclass(frozen=True)
class Output:
    """What goes to one of the outputs, see `Sinks.add`."""

    name: str
    rows: DataStream
    row: DataType
    partition_by: tuple[str, ...]
    parallelism: int


class Sinks(ABC):
    """Where a kind of output goes."""

    def add(
        self,
        name: str,
        rows: DataStream,
        row: DataType,
        partition_by: tuple[str, ...] = (),
        parallelism: int = 0,
    ) -> None:
        """Write the rows' lines to the output of this name.

        Args:
            name: the output, which is also the prefix of the steps' uids.
            rows: internal rows; the first field is the line, the next ones name the partition.
            row: their type.
            partition_by: names of the partition fields.
            parallelism: the job's own if 0; 1 where what a checkpoint has must appear together.
        """
        output = Output(name, rows, row, partition_by, parallelism)
        written = self._prepared(output).sink_to(self._sink(output)).uid(name).name(name)
        if parallelism:
            written.set_parallelism(parallelism)

    @abstractmethod
    def _prepared(self, output: Output) -> DataStream:
        """The rows as the sink takes them."""

    @abstractmethod
    def _sink(self, output: Output) -> Sink:
        """What writes them."""


@dataclass(frozen=True)
class FileSinks(Sinks):
    """Folders of JSON-lines files below one output folder.

    Guarantee: exactly once. Parts are written under hidden names, and renamed when the checkpoint
    that holds them is complete; a part that was open when the job died is cut back to where the
    checkpoint had it. At the end of the input the last parts appear with the last checkpoint.
    """

    folder: Path
    part_max_bytes: int
    rollover_interval_ms: int
    block_max_records: int
    block_max_bytes: int
    block_max_age_ms: int

    def _prepared(self, output: Output) -> DataStream:
        """Blocks of lines."""
        return join_lines(
            output.rows,
            output.row,
            uid=f"{output.name}-blocks",
            max_records=self.block_max_records,
            max_bytes=self.block_max_bytes,
            max_age_ms=self.block_max_age_ms,
            partition_fields=len(output.partition_by),
            parallelism=output.parallelism,
        )

    def _sink(self, output: Output) -> Sink:
        """Files below the folder of the output's name."""
        assigner = (
            BucketAssigner(partition_folders(list(output.partition_by)))
            if output.partition_by
            else BucketAssigner.base_path_bucket_assigner()
        )
        rolling = RollingPolicy.default_rolling_policy(
            part_size=self.part_max_bytes,
            rollover_interval=self.rollover_interval_ms,
            inactivity_interval=self.rollover_interval_ms,
        )
        return (
            FileSink.for_row_format(flink_path(self.folder / output.name), Encoder(block_encoder()))
            .with_bucket_assigner(assigner)
            .with_rolling_policy(rolling)
            .with_bucket_check_interval(self.rollover_interval_ms)
            .with_output_file_config(OutputFileConfig.builder().with_part_suffix(".jsonl").build())
            .build()
        )
