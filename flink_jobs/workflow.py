"""The flow of the job: read `define_workflow` from top to bottom to find where anything happens."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
import pyarrow as pa
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.data_stream import DataStream
from pyflink.table import DataTypes, Schema, StreamTableEnvironment
from pyflink.table.types import RowType

from flink_jobs.settings import WindowSettings
from operators.batches.events import partials_schema
from operators.batches.records import Reader
from operators.bridge.steps import (
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
from operators.delivery.delivery import Delivery
from operators.delivery.delivery_rules import DeliveryRules
from operators.delivery.departures import DELIVERED
from operators.delivery.fallback import FALLBACK_TAG
from operators.intake.intake import Intake, IntakeRules
from operators.intake.lanes import LANED, LANED_VALUE
from operators.intake.outgoing import (
    COUNTS_TAG,
    DEAD_LETTER_FOLDERS,
    DEAD_LETTER_TAG,
    QUARANTINE_FOLDERS,
    QUARANTINE_TAG,
)
from operators.rules.contract import Contract
from operators.rules.splits import FileProgress
from operators.sinks.files import Sinks
from sql import statement

#: What is turned away, and the folders of its output.
TURNED_AWAY: Final = (
    ("dead_letters", DEAD_LETTER_TAG, DEAD_LETTER_FOLDERS),
    ("quarantine", QUARANTINE_TAG, QUARANTINE_FOLDERS),
)
WINDOW_LINE: Final = DataTypes.ROW([DataTypes.FIELD("line", DataTypes.STRING())])


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
