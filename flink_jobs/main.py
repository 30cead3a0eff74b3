"""The main job: records in, every one of them to exactly one place, windows over the good ones.

`main` reads the settings, `run` chooses the parts that they name, `define_workflow` is the flow:
read it from top to bottom to find where anything happens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, Protocol

import msgspec
import pyarrow as pa
from pyflink.common import Configuration, JobClient
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.data_stream import DataStream
from pyflink.java_gateway import get_gateway
from pyflink.table import DataTypes, Schema, StreamTableEnvironment
from pyflink.table.types import RowType

from flink_jobs.deliveries import delivery_rules
from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.faults import one_line
from flink_jobs.files import line_limits, plan_files
from flink_jobs.output import refuse_file
from flink_jobs.restarts import restart_options
from flink_jobs.settings import Settings, WindowSettings, load_settings
from operators.bridge import (
    ACCEPTED,
    LANE_GROUPS,
    LINE,
    books,
    by_lane,
    dedup,
    from_lanes,
    gate,
    lane_keys,
    marks,
    name_sql_steps,
    require_bridge,
    rows_of,
    side_output,
    union,
    wake,
)
from operators.delivery import Delivery
from operators.delivery_rules import DeliveryRules
from operators.departures import DELIVERED
from operators.events import partials_schema
from operators.fallback import FALLBACK_TAG
from operators.file_source import FileSource
from operators.intake import Intake, IntakeRules
from operators.lanes import LANED, LANED_VALUE
from operators.outgoing import (
    COUNTS_TAG,
    DEAD_LETTER_FOLDERS,
    DEAD_LETTER_TAG,
    QUARANTINE_FOLDERS,
    QUARANTINE_TAG,
)
from operators.records import PIECE_BYTES, PIECE_RECORDS, Reader
from operators.rules.contract import Contract
from operators.rules.splits import FileProgress, ReadPlan
from operators.sinks import FileSinks, Sinks
from sql import statement

#: What is turned away, and the folders of its output.
TURNED_AWAY: Final = (
    ("dead_letters", DEAD_LETTER_TAG, DEAD_LETTER_FOLDERS),
    ("quarantine", QUARANTINE_TAG, QUARANTINE_FOLDERS),
)
#: So much makes a row: with the last piece it stays below the 5 MiB from which Flink writes a
#: record to disk first when it goes from one task to another.
ROW_BYTES: Final = 3_500_000
#: And so much of lines before they are packed, which the JVM unpacks at once.
LINES_BYTES: Final = 16_000_000
WINDOW_LINE: Final = DataTypes.ROW([DataTypes.FIELD("line", DataTypes.STRING())])


#: Gets an environment and the parallelism of its widest step; returns what runs a job by its name.
Prepare = Callable[[StreamExecutionEnvironment, int], Callable[[str], JobClient]]


class Source(Protocol):
    """Where records come from."""

    @property
    def parallelism(self) -> int:
        """How many subtasks read; intake runs beside each of them."""

    def elements(self, env: StreamExecutionEnvironment) -> DataStream:
        """A stream of what the reader reads."""

    def reader(self) -> Reader:
        """Turns its elements into records, in the worker."""

    def partitions(self) -> list[FileProgress]:
        """The partitions that are known at the start; none where nothing is."""


def main(arguments: list[str] | None = None) -> None:
    """Submit the job as Flink runs it: ``python -m flink_jobs.main --input ... --output ...``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files or folders")
    parser.add_argument("--output", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--append", action="store_true", help="write beside what is in the output folder"
    )
    call = parser.parse_args(arguments)
    try:
        settings = load_settings(call.config)
        plan = plan_files(settings, call.input, call.output)
        with one_line("the run failed"):
            before_start = _nothing if call.append else partial(refuse_used_folder, call.output)
            job = run(settings, plan, call.output, {}, before_start)
            job.get_job_execution_result().result()
    except UserError as error:
        print(f"breakwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def refuse_used_folder(output: Path, env: StreamExecutionEnvironment) -> None:
    """Do not write beside the output of another job: nothing would tell the two apart.

    A job that goes on from a savepoint or a checkpoint (``flink run -s``) has to.

    Raises:
        UserError: there is something in the folder, and the job begins anew.
    """
    refuse_file(output)
    if not output.is_dir() or not any(output.iterdir()):
        return
    option = get_gateway().jvm.org.apache.flink.configuration.StateRecoveryOptions.SAVEPOINT_PATH
    if env._j_stream_execution_environment.getConfiguration().getOptional(option).isPresent():
        return
    raise UserError(
        f"output folder {output} is not empty: choose another, start from a savepoint or a "
        "checkpoint, or say --append to write beside what is there",
        WRONG_CALL,
    )


def _nothing(_: StreamExecutionEnvironment) -> None:
    pass


def by_itself(env: StreamExecutionEnvironment, _: int) -> Callable[[str], JobClient]:
    """Have Flink run the job as the environment says."""
    execute: Callable[[str], JobClient] = env.execute_async
    return execute


def run(
    settings: Settings,
    plan: ReadPlan,
    output: Path,
    options: Mapping[str, str],
    before_start: Callable[[StreamExecutionEnvironment], None] = _nothing,
    prepare: Prepare = by_itself,
) -> JobClient:
    """Start the job with the parts that the settings name, and return without waiting for it.

    Args:
        settings: all of them.
        plan: the files to read.
        output: folder of the outputs.
        options: Flink options of this place (where checkpoints go, what to start from); those of
            the settings win.
        before_start: looks at the job that has been built, and may refuse to start it.
        prepare: gets what runs the job, before it is built.
    """
    configuration = Configuration()
    for name, value in {**flink_options(settings), **options, **settings.flink}.items():
        configuration.set_string(name, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    execute = prepare(env, max(settings.parallelism, plan.lanes))
    sinks = FileSinks(
        folder=output.resolve(),
        part_max_bytes=settings.sink.part_max_bytes,
        rollover_interval_ms=settings.sink.rollover_interval_ms,
        block_max_records=min(settings.batch.max_records, PIECE_RECORDS),
        block_max_bytes=min(settings.batch.max_bytes, PIECE_BYTES),
        block_max_age_ms=settings.batch.max_age_ms,
    )
    source = FileSource(plan, line_limits(settings))
    rules = intake_rules(settings)
    delivery = delivery_rules(settings)
    define_workflow(
        env, source, sinks, sinks, rules=rules, windows=settings.windows, delivery=delivery
    )
    before_start(env)
    return execute("breakwater")


def define_workflow(
    env: StreamExecutionEnvironment,
    source: Source,
    sinks: Sinks,
    error_sinks: Sinks,
    *,
    rules: IntakeRules,
    windows: WindowSettings,
    delivery: DeliveryRules | None = None,
) -> None:
    """The flow of the main job.

    Args:
        env: where it runs.
        source: the records.
        sinks: processed_events, user_windows, late_events, fallback and ledger.
        error_sinks: dead_letters and quarantine.
        rules: what intake decides by.
        windows: their size, the watermark's delay, the idle timeout.
        delivery: what delivery goes by; None for no delivery.
    """
    require_bridge()
    table_env = StreamTableEnvironment.create(env)

    # Each record gets its verdict. Files are read there too, in the same Python process.
    lanes = lane_keys(delivery.lanes) if delivery else ()
    duplicates_ttl_ms = delivery.duplicates_ttl_ms if delivery else 0
    intake = Intake(rules, source.reader(), lanes, deduplicates=bool(duplicates_ttl_ms))
    judged = source.elements(env).process(intake, LANED if delivery else ACCEPTED)
    judged.uid("intake").name("intake").set_parallelism(source.parallelism)

    # Any reader may read any file, and which one reads a topic's partition changes with the
    # parallelism, so only one place can know how far each has come: one subtask has the watermark,
    # through which whole batches pass. Where nothing is known beforehand each reader has its own.
    partitions = source.partitions()
    at_marks = 1 if partitions else source.parallelism
    marked = marks(
        judged,
        partitions,
        uid="marks",
        delay_ms=windows.watermark_delay_ms,
        idle_ms=windows.idle_timeout_ms,
        parallelism=at_marks,
    )

    # Each event is delivered before it counts as processed; the watermark does not wait for long.
    # One that has come before is left out.
    accepted, turned_away, at_gate = marked, [judged], at_marks
    if delivery:
        at_gate = env.get_parallelism()
        laned = by_lane(wake(marked, lanes, uid="wake", parallelism=at_marks), LANED_VALUE)
        if duplicates_ttl_ms:
            laned = dedup(laned, LANED_VALUE, uid="dedup", ttl_ms=duplicates_ttl_ms)
        delivered = laned.process(Delivery(delivery, lanes), DELIVERED)
        delivered.uid("delivery").name("delivery").set_max_parallelism(LANE_GROUPS)
        accepted = from_lanes(delivered, len(lanes), uid="lanes", parallelism=at_gate)
        turned_away.append(delivered)
        # What could not be delivered in its time is kept, to be sent later.
        if delivery.to_fallback:
            sinks.add("fallback", side_output(delivered, FALLBACK_TAG), LINE)
    sinks.add("processed_events", accepted, LINE)

    # What is turned away goes to its folder, in its envelope.
    for name, tag, folders in TURNED_AWAY:
        envelopes = union(side_output(step, tag) for step in turned_away)
        error_sinks.add(name, envelopes, row_type(*folders), folders)

    # An event whose window has closed is late, and in no window. One that is further ahead of the
    # watermark than disorder explains, as in a backlog, waits here and not in a window's state.
    partial_row = partial_row_type(rules.contract)
    events, late, counted = gate(
        accepted,
        partial_row,
        uid="gate",
        window_ms=windows.size_ms,
        slack_ms=windows.watermark_delay_ms,
        parallelism=at_gate,
    )
    sinks.add("late_events", late, LINE)

    # Windows are Flink SQL, over the events as intake has added them up, an element at a time.
    sinks.add("user_windows", _windows(table_env, events, rules.contract, windows), WINDOW_LINE)

    # The books: what came in and was turned away; what was processed, windowed and late.
    counts = union([*(side_output(step, COUNTS_TAG) for step in turned_away), counted])
    rows = books(counts, uid="books")
    sinks.add("ledger", rows, LINE, parallelism=1)


def _windows(
    table_env: StreamTableEnvironment,
    events: DataStream,
    contract: Contract,
    windows: WindowSettings,
) -> DataStream:
    """Partials added up by key and window, as lines."""
    partials = table_env.from_data_stream(events, partials_table(contract))
    table_env.create_temporary_view("partials", partials)
    user_windows = rows_of(table_env, table_env.sql_query(windows_sql(contract, windows)))
    name_sql_steps(user_windows, "user-windows")
    return user_windows


def flink_options(settings: Settings) -> dict[str, str]:
    """The Flink options that the job needs wherever it runs."""
    return {
        "parallelism.default": str(settings.parallelism),
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.execution-mode": "process",
        # An element of a Python operator is a whole batch or split, so few make a bundle; a bundle
        # is finished before each checkpoint and is held in memory (packed) until then.
        "python.fn-execution.bundle.size": "8",
        "python.fn-execution.bundle.time": "100",
        # Nothing is gained by waiting for more: an element between the steps is a whole batch, and
        # an event passes two or three of these waits (Flink's default is 100 ms each).
        "execution.buffer-timeout.interval": "10 ms",
        # What delivery writes to its state stays there, and not in the worker's memory.
        "python.map-state.read-cache-size": "1",
        # Our Python steps have no metrics of their own, and Flink asks for them after each bundle.
        "python.metric.enabled": "false",
        "pipeline.object-reuse": "true",
        "pipeline.auto-generate-uids": "false",
        # Intake has added up each batch by key and window: a second time before the shuffle gains
        # nothing.
        "table.optimizer.agg-phase-strategy": "ONE_PHASE",
        "table.local-time-zone": "UTC",
        "execution.checkpointing.interval": f"{settings.checkpoint.interval_ms} ms",
        "execution.checkpointing.tolerable-failed-checkpoints": "10",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        **restart_options(settings),
    }


def intake_rules(settings: Settings) -> IntakeRules:
    """What intake decides by, from the settings."""
    return IntakeRules(
        contract=settings.contract.load(),
        poison=settings.poison.rules(),
        max_record_bytes=settings.source.max_record_bytes,
        max_future_skew_ms=settings.source.max_future_skew_ms,
        window_ms=settings.windows.size_ms,
        payload_limit_bytes=settings.source.payload_limit_bytes,
        row_bytes=ROW_BYTES,
        lines_bytes=LINES_BYTES,
        code_version=version("breakwater"),
    )


def row_type(*folders: str) -> RowType:
    """A line and the folders it goes to."""
    return DataTypes.ROW(
        [DataTypes.FIELD("line", DataTypes.BYTES())]
        + [DataTypes.FIELD(name, DataTypes.STRING()) for name in folders]
    )


def partial_row_type(contract: Contract) -> RowType:
    """Rows of `events.partials_schema`."""
    schema = partials_schema(contract)
    is_int = schema.field("total_value").type == pa.decimal128(38, 0)
    total = DataTypes.DECIMAL(38, 0) if is_int else DataTypes.DOUBLE()
    types = (DataTypes.STRING(), DataTypes.TIMESTAMP_LTZ(3), total, DataTypes.BIGINT())
    return DataTypes.ROW([DataTypes.FIELD(n, t) for n, t in zip(schema.names, types, strict=True)])


def partials_table(contract: Contract) -> Schema:
    """The table of partials: its watermark is the one that `marks` has made."""
    builder = Schema.new_builder().from_row_data_type(partial_row_type(contract))
    return builder.watermark("event_time", "SOURCE_WATERMARK()").build()


def windows_sql(contract: Contract, windows: WindowSettings) -> str:
    """The windows' statement for a contract."""
    return statement(
        "user_windows",
        key_json=msgspec.json.encode(contract.key).decode().replace("'", "''"),
        window_s=f"{windows.size_ms // 1000}.{windows.size_ms % 1000:03d}",
    )


if __name__ == "__main__":
    main()
