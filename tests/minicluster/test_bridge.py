"""The Java operators, each by itself on the mini-cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyflink.common import Types, WatermarkStrategy
from pyflink.datastream.connectors.number_seq import NumberSequenceSource
from pyflink.table import DataTypes, StreamTableEnvironment

from operators.bridge.steps import steps as bridge
from operators.bridge.wire import Progress
from operators.rules.splits import UNKNOWN_MS, FileProgress
from operators.sinks.files import FileSinks
from operators.sources.kafka import empty_partition, open_partition, record_type
from tests.minicluster.steps import AS_RECORDS, WINDOW_MS, Describe, Origins, Script
from tests.oracle import rows

pytestmark = pytest.mark.minicluster

Flink = Callable[..., Any]
PARTIAL_ROW = DataTypes.ROW(
    [
        DataTypes.FIELD("event_key", DataTypes.STRING()),
        DataTypes.FIELD("event_time", DataTypes.TIMESTAMP_LTZ(3)),
        DataTypes.FIELD("total_value", DataTypes.DOUBLE()),
        DataTypes.FIELD("event_count", DataTypes.BIGINT()),
    ]
)
ON_TIME_LINE = (
    "SELECT ENCODE(CAST(event_count AS STRING) || U&'\\000A', 'UTF-8') AS line FROM on_time"
)
DELAY_MS = 100


def numbers(env: Any, n: int) -> Any:
    source = NumberSequenceSource(0, n - 1)
    return env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").set_parallelism(1)


def collect(stream: Any) -> list[Any]:
    with stream.execute_and_collect() as found:
        return list(found)


# --- KafkaBatcher, and with it when anything is held back and handed on (Flushing) ---------------


def batched(tables: Any, query: str, **limits: int) -> list[list[str]]:
    """The payloads of the batches that rows become."""
    bounds = {
        "max_records": 10**6,
        "max_bytes": 10**9,
        "max_age_ms": 10**6,
        "max_payload_bytes": 10**6,
        "keep_bytes": 10**6,
        **limits,
    }
    stream = bridge.kafka_batch(
        tables, tables.sql_query(query), record_type(), uid="batch", parallelism=1, **bounds
    )
    return [line.split(" ") for line in collect(stream.process(Describe(), Types.STRING()))]


def batches(env: Any, payloads: list[bytes], **limits: int) -> list[list[str]]:
    values = ", ".join(f"('{payload.decode()}')" for payload in payloads)
    query = AS_RECORDS.format(payload="v", table=f"(VALUES {values}) AS t (v)")
    return batched(StreamTableEnvironment.create(env), query, **limits)


def test_a_batch_is_flushed_by_count_and_at_the_end(flink: Flink) -> None:
    found = batches(flink(), [b"a", b"b", b"c", b"d", b"e"], max_records=2)
    assert found == [["a", "b"], ["c", "d"], ["e"]]


def test_a_batch_is_flushed_by_bytes(flink: Flink) -> None:
    found = batches(flink(), [b"aaaa", b"bbbb", b"c", b"dddddddd"], max_bytes=8)
    assert found == [["aaaa", "bbbb"], ["c", "dddddddd"]]


SLOW_ROWS = AS_RECORDS.format(payload="CAST(n AS STRING)", table="slow")
SLOW_TABLE = """
CREATE TEMPORARY TABLE slow (n BIGINT) WITH (
  'connector' = 'datagen', 'number-of-rows' = '{rows}', 'rows-per-second' = '{per_s}',
  'fields.n.kind' = 'sequence', 'fields.n.start' = '0', 'fields.n.end' = '{rows}')
"""


def slow_batches(env: Any, rows_: int, per_s: int, **limits: int) -> list[list[str]]:
    tables = StreamTableEnvironment.create(env)
    tables.execute_sql(SLOW_TABLE.format(rows=rows_, per_s=per_s))
    return batched(tables, SLOW_ROWS, **limits)


def test_a_quiet_source_does_not_wait_for_a_full_batch(flink: Flink) -> None:
    """By age: rows a second apart do not share a batch that is 50 ms old at most."""
    found = slow_batches(flink(), 3, 1, max_age_ms=50)
    assert [len(p) for p in found] == [1, 1, 1]


def test_a_batch_does_not_wait_without_the_age(flink: Flink) -> None:
    """Positive control of the test above: without the age all rows come at the end, together."""
    found = slow_batches(flink(), 3, 1)
    assert [len(p) for p in found] == [3]


def test_a_batch_is_flushed_before_the_checkpoint_barrier(flink: Flink, tmp_path: Path) -> None:
    """Nothing else flushes here before the end, so more than one batch is the barrier's doing."""
    env = flink(
        execution_checkpointing_interval="100 ms",
        execution_checkpointing_dir=tmp_path.as_uri(),
    )
    found = slow_batches(env, 3, 1)
    assert sum(len(p) for p in found) == 3
    assert len(found) > 1


def test_a_batch_is_flushed_before_a_watermark(flink: Flink) -> None:
    """A watermark after each row, from the table's own declaration."""
    env = flink(pipeline_auto___watermark___interval="0 ms")
    tables = StreamTableEnvironment.create(env)
    tables.execute_sql(
        SLOW_TABLE.format(rows=4, per_s=1000).replace(
            "(n BIGINT)",
            "(n BIGINT, t AS TO_TIMESTAMP_LTZ(n * 1000 + 1000, 3), WATERMARK FOR t AS t)",
        )
    )
    assert [len(p) for p in batched(tables, SLOW_ROWS)] == [1, 1, 1, 1]


# --- Marks and Gate ------------------------------------------------------------------------------


def run_gate(
    env: Any,
    folder: Path,
    script: list[tuple[list[Progress], list[int], int]],
    plan: list[FileProgress],
    *,
    idle_ms: int,
    slack_ms: int,
    ahead_bytes: int = bridge.AHEAD_BYTES,
) -> None:
    """Write what a script of batches comes to: processed, late, counts, and sizes of partials."""
    steps = numbers(env, len(script)).process(Script(script), bridge.ACCEPTED)
    marked = bridge.marks(
        steps, plan, uid="marks", delay_ms=DELAY_MS, idle_ms=idle_ms, parallelism=1
    )
    partials, late, counts = bridge.gate(
        marked,
        PARTIAL_ROW,
        uid="gate",
        window_ms=WINDOW_MS,
        slack_ms=slack_ms,
        parallelism=1,
        ahead_bytes=ahead_bytes,
    )
    sinks = FileSinks(folder, 10**9, 10**6, 1000, 10**6, 100)
    sinks.add("processed", steps, bridge.LINE)
    sinks.add("late", late, bridge.LINE)
    sinks.add("counts", bridge.books(counts, uid="books"), bridge.LINE, parallelism=1)
    tables = StreamTableEnvironment.create(env)
    tables.create_temporary_view("on_time", tables.from_data_stream(partials))
    sinks.add("on_time", bridge.rows_of(tables, tables.sql_query(ON_TIME_LINE)), bridge.LINE)
    env.execute("gate")


def gate(
    env: Any,
    folder: Path,
    script: list[tuple[list[Progress], list[int], int]],
    plan: list[FileProgress],
    idle_ms: int = 0,
) -> tuple[list[int], list[int]]:
    """Run a script of batches through the watermark and the gate: on time, late."""
    run_gate(env, folder, script, plan, idle_ms=idle_ms, slack_ms=DELAY_MS)
    # A line of the script is an event's time, and of the partials a number of events: both JSON.
    processed: list[Any] = rows(folder / "processed")
    too_late: list[Any] = rows(folder / "late")
    counted = rows(folder / "counts")
    on_time = sorted((Counter(processed) - Counter(too_late)).elements())
    assert sum(row["late"] for row in counted) == len(too_late)
    assert sum(row["processed"] for row in counted) == len(processed)
    assert sum(row["windowed"] for row in counted) == len(on_time)
    assert sum(rows(folder / "on_time")) == len(on_time), "the windows get something else"  # type: ignore[arg-type]
    return on_time, sorted(too_late)


def file(name: str, split: int, newest: int, last: bool = True) -> list[Progress]:
    return [Progress(name, split, last, 1, newest)]


def topic(name: str, newest: int) -> list[Progress]:
    return [Progress(name if "/" in name else f"{name}/0", -1, False, 1, newest)]


def test_an_event_is_late_exactly_when_its_window_has_closed(
    committing: Any, tmp_path: Path
) -> None:
    """The watermark is 1009 - 100 = 909 after the first batch: it closes the window up to 909."""
    script = [(topic("t", 1009), [1009], 0), (topic("t", 1009), [899, 900, 909, 910], 0)]
    on_time, late = gate(committing, tmp_path, script, [])
    assert (on_time, late) == ([910, 1009], [899, 900, 909])


def test_the_slowest_partition_makes_the_watermark(committing: Any, tmp_path: Path) -> None:
    script = [
        (topic("slow", 0), [0], 0),
        (topic("fast", 10_000), [10_000], 0),
        (topic("slow", 50), [50], 0),
    ]
    assert gate(committing, tmp_path, script, []) == ([0, 50, 10_000], [])


def test_an_idle_partition_is_left_aside(committing: Any, tmp_path: Path) -> None:
    """It is quiet for longer than the idle timeout while the other goes on: its window closes."""
    script = [
        (topic("idle", 0), [0], 0),
        *[(topic("busy", 10_000), [10_000], 100)] * 8,
        (topic("idle", 50), [50], 0),
    ]
    on_time, late = gate(committing, tmp_path, script, [], idle_ms=300)
    assert (on_time, late) == ([0] + [10_000] * 8, [50])


def test_a_silence_of_all_partitions_makes_none_of_them_idle(
    committing: Any, tmp_path: Path
) -> None:
    """A broker that was away: the partition that comes back first must not make others late."""
    script = [
        (topic("slow", 0), [0], 0),
        (topic("busy", 10_000), [10_000], 0),
        (topic("busy", 10_000), [10_000], 1_500),
        (topic("slow", 50), [50], 0),
    ]
    on_time, late = gate(committing, tmp_path, script, [], idle_ms=1_000)
    assert (on_time, late) == ([0, 50, 10_000, 10_000], [])


def test_a_planned_partition_of_a_topic_holds_the_watermark_back_until_its_first_record(
    committing: Any, tmp_path: Path
) -> None:
    """Trap T56 at the start of a backlog; a partition that is known to be empty holds nothing."""
    plan = [open_partition("slow", 0), open_partition("busy", 0), empty_partition("empty", 0)]
    script = [
        (topic("busy/0", 10_000), [10_000], 0),
        (topic("slow/0", 50), [50], 0),
        (topic("slow/0", 10_000), [10_000], 0),
        (topic("empty/0", 60), [60], 0),
    ]
    on_time, late = gate(committing, tmp_path, script, plan, idle_ms=60_000)
    assert (on_time, late) == ([50, 10_000, 10_000], [60])


def test_a_planned_partition_that_stays_silent_is_left_aside_at_last(
    committing: Any, tmp_path: Path
) -> None:
    """Its offsets may be nothing but the markers of transactions."""
    script = [
        *[(topic("busy/0", 10_000), [10_000], 100)] * 8,
        (topic("markers/0", 50), [50], 0),
    ]
    plan = [open_partition("markers", 0)]
    on_time, late = gate(committing, tmp_path, script, plan, idle_ms=300)
    assert (on_time, late) == ([10_000] * 8, [50])


def test_an_unread_file_holds_the_watermark_back_and_a_finished_one_does_not(
    committing: Any, tmp_path: Path
) -> None:
    plan = [FileProgress("a", 1, UNKNOWN_MS), FileProgress("b", 2, UNKNOWN_MS)]
    script = [
        (file("a", 0, 10_000), [10_000], 0),
        (file("b", 0, 0), [0], 0),
        (file("b", 1, 20_000, last=False), [20_000], 0),
        (file("b", 1, 20_000), [5, 15_000, 19_950], 0),
    ]
    on_time, late = gate(committing, tmp_path, script, plan)
    assert (on_time, late) == ([0, 10_000, 19_950, 20_000], [5, 15_000])


def test_a_file_whose_first_time_is_known_holds_back_only_that_far(
    committing: Any, tmp_path: Path
) -> None:
    plan = [FileProgress("a", 1, 0), FileProgress("b", 1, 5_000)]
    script = [
        (file("a", 0, 9_000), [9_000], 0),
        (file("b", 0, 5_000), [4_900, 4_890, 5_000], 0),
    ]
    on_time, late = gate(committing, tmp_path, script, plan)
    assert (on_time, late) == ([4_900, 5_000, 9_000], [4_890])


def test_splits_read_out_of_order_count_only_as_an_unbroken_run(
    committing: Any, tmp_path: Path
) -> None:
    plan = [FileProgress("a", 4, UNKNOWN_MS)]
    script = [
        (file("a", 2, 30_000), [30_000], 0),
        (file("a", 1, 20_000, last=False), [20_000], 0),
        (file("a", 0, 10_000), [9_950], 0),
        # The run is now split 0 and what there is of split 1: 20 000.
        (file("a", 1, 20_000, last=False), [19_910, 19_800], 0),
        (file("a", 1, 20_000), [19_950], 0),
        # And now it goes up to the end of split 2: 30 000.
        (file("a", 3, 30_000, last=False), [29_000, 29_950], 0),
    ]
    on_time, late = gate(committing, tmp_path, script, plan)
    assert late == [19_800, 29_000]
    assert on_time == [9_950, 19_910, 19_950, 20_000, 29_950, 30_000]


def order_of_partials(env: Any, folder: Path, ahead_bytes: int) -> list[int]:
    """Numbers of events, as the windows get them: a slow partition's, and those of a fast one.

    The watermark behind each batch is unknown, 1905, 1905, 3800 and 3801.
    """
    env.set_parallelism(1)
    script = [
        (topic("fast", 10_000), [10_000] * 5, 0),
        (topic("slow", 2005), [2005] * 3, 0),
        (topic("slow", 2005), [4000, 4000, 2108], 0),
        (topic("slow", 3900), [2005] * 4, 0),
        (topic("slow", 3901), [4001] * 6, 0),
    ]
    plan = [open_partition("slow", 0), open_partition("fast", 0)]
    run_gate(env, folder, script, plan, idle_ms=0, slack_ms=200, ahead_bytes=ahead_bytes)
    found: list[Any] = rows(folder / "on_time")
    return found


def test_what_is_far_ahead_of_the_watermark_is_held_back_until_it_comes_near(
    committing: Any, tmp_path: Path
) -> None:
    """By more than 200 ms: 4000 waits for the watermark of 3800; 2005 and 2108 do not wait."""
    assert order_of_partials(committing, tmp_path, bridge.AHEAD_BYTES) == [3, 1, 4, 2, 6, 5]


def test_what_finds_no_room_among_what_is_held_back_goes_on_at_once(
    committing: Any, tmp_path: Path
) -> None:
    """The first is held, and fills it."""
    assert order_of_partials(committing, tmp_path, 1) == [3, 2, 1, 4, 6, 5]


# --- the rest ------------------------------------------------------------------------------------


def test_a_worker_has_our_packages_and_no_others(flink: Flink) -> None:
    """Trap T3: their names are common, and the first on the worker's path wins."""
    project = Path(__file__).resolve().parents[2]
    found = collect(numbers(flink(), 1).process(Origins(), Types.STRING()))
    assert sorted(found) == sorted(
        str(project / name / "__init__.py") for name in ("flink_jobs", "operators", "sql", "udfs")
    )


def test_a_flink_without_the_internals_is_refused_in_one_line(
    flink: Flink, monkeypatch: pytest.MonkeyPatch
) -> None:
    flink()
    bridge.require_bridge()
    monkeypatch.setattr(bridge, "_INTERNALS", ("org.apache.flink.NoSuchClass",))
    with pytest.raises(bridge.BridgeError, match=r"NoSuchClass is missing.*constraints\.txt"):
        bridge.require_bridge()
    monkeypatch.setattr(bridge, "_INTERNALS", ())
    monkeypatch.setattr(bridge, "_INTERNAL_FIELDS", (("java.lang.Thread", "noSuchField"),))
    with pytest.raises(bridge.BridgeError, match=r"field noSuchField of java.lang.Thread is missi"):
        bridge.require_bridge()
