"""The border between Python and the JVM: the few operators that Breakwater runs on the JVM itself.

Batches cross the border, records do not: in Arrow what is computed with, as packed lines what is
written. The Java source stands in ``operators/jvm/``; Flink compiles it on its task managers, by
the mechanism its own SQL operators use (``GeneratedOperator`` and ``CodeGenOperatorFactory``):
there is no jar to build or to ship. This module is the only one that touches Flink's internals;
`require_bridge` tells in one line when a Flink version has changed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, Final

from py4j.protocol import Py4JError
from pyflink.common import Types
from pyflink.common.typeinfo import RowTypeInfo
from pyflink.datastream import OutputTag
from pyflink.datastream.data_stream import DataStream, KeyedStream
from pyflink.java_gateway import get_gateway
from pyflink.table import DataTypes, StreamTableEnvironment, Table
from pyflink.table.types import DataType, RowType, _to_java_data_type

from operators.batches.origin import MAX_SPANS
from operators.rules.splits import FileProgress

BYTES: Final = Types.PRIMITIVE_ARRAY(Types.BYTE())
#: A batch of accepted events: the events as JSON lines (`batches.pack_lines`), how far its source
#: partitions have come (`batches.pack_progress`), as many times as events in the same order
#: (big-endian longs, ms), and the events added up by key and window (an Arrow batch of
#: `events.partials_schema`).
ACCEPTED: Final = Types.ROW_NAMED(["lines", "progress", "times", "partials"], [BYTES] * 4)
#: Flink's key groups of delivery: the most subtasks that it can have, ever.
LANE_GROUPS: Final = 128
LINE: Final = DataTypes.ROW([DataTypes.FIELD("line", DataTypes.BYTES())])
#: What a subtask of the gate holds back at most of what is far ahead of the watermark. Of ten
#: million events of 1000 keys whose partitions are far apart (bench/) it is all.
AHEAD_BYTES: Final = 32 << 20


def packed_type(folders: tuple[str, ...]) -> RowTypeInfo:
    """Lines of one partition of an output (`batches.pack_lines`), behind them the partition."""
    return Types.ROW_NAMED(["lines", *folders], [BYTES, *[Types.STRING()] * len(folders)])


_INTERNALS: Final = (
    "org.apache.flink.table.runtime.generated.GeneratedOperator",
    "org.apache.flink.table.runtime.operators.CodeGenOperatorFactory",
    "org.apache.flink.table.runtime.arrow.serializers.ArrowSerializer",
    "org.apache.flink.table.runtime.typeutils.RowDataSerializer",
    "org.apache.flink.connector.file.table.FileSystemTableSink$TableBucketAssigner",
    "org.apache.flink.connector.file.table.SerializationSchemaAdapter",
    "org.apache.flink.formats.raw.RawFormatSerializationSchema",
    "org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory",
    "org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser",
    "org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken",
    "org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.io.JsonStringEncoder",
    "org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper",
    "net.jpountz.lz4.LZ4Factory",
    "net.jpountz.lz4.LZ4SafeDecompressor",
)
#: Private fields that KafkaLines.java reaches for, by class.
_INTERNAL_FIELDS: Final = (
    ("org.apache.flink.streaming.runtime.tasks.StreamTask", "operatorChain"),
    ("org.apache.flink.streaming.runtime.operators.sink.SinkWriterOperator", "sinkWriter"),
)


class BridgeError(RuntimeError):
    """This Flink does not have the internals that the bridge stands on."""


def require_bridge() -> None:
    """Fail at start, in one line, when this Flink lacks what the bridge needs.

    Raises:
        BridgeError: names the missing class or field and the Flink version that has it.
    """
    jvm = get_gateway().jvm
    loader = jvm.Thread.currentThread().getContextClassLoader()
    for name, field in (*((name, "") for name in _INTERNALS), *_INTERNAL_FIELDS):
        try:
            found = jvm.Class.forName(name, False, loader)
            if field:
                found.getDeclaredField(field)
        except Py4JError as error:
            missing = f"field {field} of {name}" if field else f"class {name}"
            raise BridgeError(
                f"Flink's {missing} is missing: Breakwater's bridge was built for apache-flink "
                "2.3, install the version in constraints.txt"
            ) from error


def books(counts: DataStream, *, uid: str) -> DataStream:
    """Counts of batches to the rows of the ledger (Books.java).

    Args:
        counts: lines of `Origin.count_lines` and of the gate.
        uid: uid and name of the step; it has one subtask.
    """
    return _add(counts, "Books", uid, [MAX_SPANS], _row_info(LINE), 1)


def gate(
    stream: DataStream,
    partial: RowType,
    *,
    uid: str,
    window_ms: int,
    slack_ms: int,
    parallelism: int,
    ahead_bytes: int = AHEAD_BYTES,
) -> tuple[DataStream, DataStream, DataStream]:
    """Accepted events to what the windows add up, those whose window has closed apart (Gate.java).

    What is far ahead of the watermark waits here: windows that stay open for long cost more.

    Args:
        stream: rows of `ACCEPTED`, with watermarks.
        partial: the type of the partials: key, time, total, count.
        uid: uid and name of the step.
        window_ms: length of the tumbling windows.
        slack_ms: partials of windows that begin more than this after the watermark are held back
            until it comes nearer: a backlog's, whose partitions are far apart.
        parallelism: that of the step that makes the watermarks, so that they share a thread and
            the lines are handed over, not copied.
        ahead_bytes: so many bytes of them; the windows get the rest at once.

    Returns:
        Partials for the windows; lines of late events (`LINE`); count lines (bytes) for `books`.
    """
    late, counts = _tag("late", _row_info(LINE)), _tag("counts", BYTES.get_java_type_info())
    refs = [_logical(partial), window_ms, late, counts, slack_ms, ahead_bytes]
    rows = _add(stream, "Gate", uid, refs, _row_info(partial), parallelism)
    return rows, _side(rows, late), _side(rows, counts)


def marks(
    stream: DataStream,
    plan: Iterable[FileProgress],
    *,
    uid: str,
    delay_ms: int,
    idle_ms: int,
    parallelism: int,
) -> DataStream:
    """Watermarks from the least of the source partitions (Marks.java).

    Args:
        stream: rows of `ACCEPTED` or of `lanes.LANED`.
        plan: the partitions that are known beforehand and will end (files); empty for topics.
        uid: uid and name of the step.
        delay_ms: how far the watermark stays behind the newest event of the slowest partition.
        idle_ms: an unplanned partition without a record for so long is left aside.
        parallelism: 1 where any subtask may read any partition.

    Returns:
        The same rows, with watermarks between them.
    """
    entries = get_gateway().jvm.java.util.ArrayList()
    for file in plan:
        entries.add(_array([file.partition, file.splits, file.first_event_ms]))
    refs = [entries, delay_ms, idle_ms]
    rows = stream._j_data_stream.getType()
    return _add(stream, "Marks", uid, refs, rows, parallelism)


def lane_keys(lanes: int) -> tuple[int, ...]:
    """The keys of lanes, such that Flink spreads them evenly at any parallelism.

    Flink hashes a key to one of `LANE_GROUPS` groups, and each subtask has a run of groups. So each
    lane gets the first number whose group is where it should be.
    """
    jvm = get_gateway().jvm
    assign = jvm.org.apache.flink.runtime.state.KeyGroupRangeAssignment.assignToKeyGroup
    wanted = {lane * LANE_GROUPS // lanes: lane for lane in range(lanes)}
    keys: dict[int, int] = {}
    for number in range(1_000_000):
        group = assign(jvm.org.apache.flink.types.Row.of(_array([number])), LANE_GROUPS)
        if group in wanted:
            keys.setdefault(wanted[group], number)
            if len(keys) == lanes:
                return tuple(keys[lane] for lane in range(lanes))
    raise BridgeError("Flink's hash of a key has changed: there is none for a lane")


def wake(stream: DataStream, lanes: tuple[int, ...], *, uid: str, parallelism: int) -> DataStream:
    """Rows of `lanes.LANED`, and each second an empty one for each lane (Wake.java).

    Args:
        stream: rows of `lanes.LANED`, with watermarks.
        lanes: their keys.
        uid: uid and name of the step.
        parallelism: that of the step before.
    """
    keys = get_gateway().jvm.java.util.ArrayList()
    for key in lanes:
        keys.add(key)
    return _add(stream, "Wake", uid, [keys], stream._j_data_stream.getType(), parallelism)


def by_lane(stream: DataStream, value: RowTypeInfo) -> KeyedStream:
    """Rows of a lane's key and a value, keyed: `DataStream.key_by` without a Python step for it."""
    jvm = get_gateway().jvm
    key = Types.ROW([Types.INT()]).get_java_type_info()
    return KeyedStream(stream._j_data_stream.keyBy(jvm.KeyByKeySelector(), key), value, stream)


def dedup(stream: KeyedStream, value: RowTypeInfo, *, uid: str, ttl_ms: int) -> KeyedStream:
    """Which events have come before (Dedup.java).

    Args:
        stream: rows of `lanes.LANED`, by lane; their events' digests are behind them.
        value: the type of a row's value.
        uid: uid and name of the step.
        ttl_ms: so long after the first one an event is a duplicate.

    Returns:
        The same rows, with the places of duplicates instead of the digests.
    """
    jvm = get_gateway().jvm
    rows = stream._j_data_stream.getType()
    step = _add(stream, "Dedup", uid, [ttl_ms], rows)
    transformation = step._j_data_stream.getTransformation()
    transformation.setStateKeySelector(jvm.KeyByKeySelector())
    transformation.setStateKeyType(stream._j_data_stream.getKeyType())
    transformation.setMaxParallelism(LANE_GROUPS)
    # By lane they are already: they need not go through the network once more, and stay in the
    # thread, as the next step has as many subtasks and groups.
    keyed = jvm.org.apache.flink.streaming.api.datastream.DataStreamUtils.reinterpretAsKeyedStream(
        step._j_data_stream, jvm.KeyByKeySelector(), stream._j_data_stream.getKeyType()
    )
    return KeyedStream(keyed, value, step)


def from_lanes(stream: DataStream, lanes: int, *, uid: str, parallelism: int) -> DataStream:
    """What comes out of delivery to accepted events and watermarks (Lanes.java).

    Args:
        stream: rows of `departures.DELIVERED`, of a step with `LANE_GROUPS` as its max parallelism.
        lanes: how many there are: fixed as long as the job lives.
        uid: uid and name of the step.
        parallelism: that of delivery: a lane and what it holds back are in one place.

    Returns:
        Rows of `ACCEPTED`.
    """
    refs = [LANE_GROUPS, lanes]
    step = _add(stream, "Lanes", uid, refs, ACCEPTED.get_java_type_info(), parallelism)
    step._j_data_stream.getTransformation().setMaxParallelism(LANE_GROUPS)
    return step


def join_lines(
    lines: DataStream,
    row: DataType,
    *,
    uid: str,
    max_records: int,
    max_bytes: int,
    max_age_ms: int,
    partition_fields: int = 0,
    parallelism: int = 0,
) -> DataStream:
    """Lines to blocks of lines, one a partition (LineJoiner.java).

    Args:
        lines: rows of the type, or rows of `ACCEPTED` or of a `packed_type`.
        row: the first field is the line, ended by a newline; the next ones name the partition.
        uid: uid and name of the step.
        max_records: rows after which the blocks are handed on; packed lines are one row.
        max_bytes: bytes after which they are.
        max_age_ms: how long the first line waits at most.
        partition_fields: how many fields name the partition.
        parallelism: the job's own if 0.
    """
    refs = [_logical(row), partition_fields, max_records, max_bytes, max_age_ms]
    return _add(lines, "LineJoiner", uid, refs, _row_info(row), parallelism)


def side_output(stream: DataStream, tag: OutputTag) -> DataStream:
    """A Python step's side output as it is.

    `DataStream.get_side_output` sends each element through a Python worker once more for nothing.
    """
    return DataStream(stream._j_data_stream.getSideOutput(tag.get_java_output_tag()))


def union(streams: Iterable[DataStream]) -> DataStream:
    """Streams of one type as one."""
    first, *others = streams
    return first.union(*others) if others else first


def rows_of(table_env: StreamTableEnvironment, table: Table) -> DataStream:
    """A table as a stream of Flink's internal rows, without a conversion."""
    data_type = table._j_table.getResolvedSchema().toPhysicalRowDataType()
    internal = data_type.bridgedTo(_class("org.apache.flink.table.data.RowData"))
    return DataStream(table_env._j_tenv.toDataStream(table._j_table, internal))


def name_sql_steps(stream: DataStream, prefix: str) -> None:
    """Give the steps that SQL was translated to stable uids: savepoints find state by them.

    Flink numbers them by order of translation; what is kept here is their kind and their place
    between the stream and the next step above that has a uid of ours.
    """
    step = stream._j_data_stream.getTransformation()
    seen: dict[str, int] = {}
    while step.getUid() is None:
        kind = step.getName().split("[")[0].lower()
        seen[kind] = seen.get(kind, 0) + 1
        if step.getClass().getSimpleName() != "PartitionTransformation":
            step.setUid(f"{prefix}-{kind}" + (f"-{seen[kind]}" if seen[kind] > 1 else ""))
        (step,) = step.getInputs()


def block_encoder() -> Any:
    """An encoder for `FileSink` that writes a row's first field (bytes) and a newline."""
    jvm = get_gateway().jvm
    return jvm.org.apache.flink.connector.file.table.SerializationSchemaAdapter(_raw_format())


def partition_folders(columns: list[str]) -> Any:
    """A bucket assigner for `FileSink`: ``a=1/b=2`` from the fields after the row's first."""
    jvm = get_gateway().jvm
    types = [
        _to_java_data_type(t) for t in [DataTypes.BYTES(), *[DataTypes.STRING()] * len(columns)]
    ]
    computer = jvm.org.apache.flink.connector.file.table.RowDataPartitionComputer(
        "none",
        _array(["line", *columns], jvm.String),
        _array(types, jvm.org.apache.flink.table.types.DataType),
        _array(columns, jvm.String),
    )
    name = "org.apache.flink.connector.file.table.FileSystemTableSink$TableBucketAssigner"
    contract = _class("org.apache.flink.connector.file.table.PartitionComputer")
    return (
        _class(name).getConstructor(_array([contract], jvm.Class)).newInstance(_array([computer]))
    )


def _add(
    stream: DataStream, operator: str, uid: str, refs: list[Any], out: Any, parallelism: int = 0
) -> DataStream:
    """Put one of the Java operators behind a stream; uid and name are set together."""
    jvm = get_gateway().jvm
    upstream = stream._j_data_stream.getTransformation()
    generated = jvm.org.apache.flink.table.runtime.generated.GeneratedOperator(
        operator,
        _source(operator),
        _array(refs),
        jvm.org.apache.flink.configuration.Configuration(),
    )
    step = jvm.org.apache.flink.streaming.api.transformations.OneInputTransformation(
        upstream,
        uid,
        jvm.org.apache.flink.table.runtime.operators.CodeGenOperatorFactory(generated),
        out,
        parallelism or stream._j_data_stream.getExecutionEnvironment().getParallelism(),
    )
    step.setUid(uid)
    env = stream._j_data_stream.getExecutionEnvironment()
    env.addOperator(step)
    wrap = jvm.org.apache.flink.python.util.PythonConfigUtil.createSingleOutputStreamOperator
    return DataStream(wrap(env, step))


def _source(operator: str) -> str:
    folder = files("operators.bridge").joinpath("jvm")
    names = ("Flushing", "Packed", operator)
    return "".join(folder.joinpath(f"{name}.java").read_text() for name in names)


def _logical(row: DataType) -> Any:
    return _to_java_data_type(row).getLogicalType()


def _row_info(row: DataType) -> Any:
    jvm = get_gateway().jvm
    return jvm.org.apache.flink.table.runtime.typeutils.InternalTypeInfo.of(_logical(row))


def _tag(name: str, info: Any) -> Any:
    return get_gateway().jvm.org.apache.flink.util.OutputTag(name, info)


def _side(stream: DataStream, tag: Any) -> DataStream:
    return DataStream(stream._j_data_stream.getSideOutput(tag))


def _class(name: str) -> Any:
    jvm = get_gateway().jvm
    return jvm.Class.forName(name, True, jvm.Thread.currentThread().getContextClassLoader())


def _array(values: list[Any], of: Any = None) -> Any:
    gateway = get_gateway()
    array = gateway.new_array(of or gateway.jvm.Object, len(values))
    for i, value in enumerate(values):
        array[i] = value
    return array


# --- Kafka ---------------------------------------------------------------------------------------

#: What `kafka_lines` hands to a Kafka sink: of envelopes, and of all others.
KAFKA_RECORD: Final = DataTypes.ROW(
    [
        DataTypes.FIELD("topic", DataTypes.STRING()),
        DataTypes.FIELD("key", DataTypes.BYTES()),
        DataTypes.FIELD("value", DataTypes.BYTES()),
        DataTypes.FIELD("headers", DataTypes.MAP(DataTypes.STRING(), DataTypes.BYTES())),
    ]
)
KAFKA_VALUE: Final = DataTypes.ROW([DataTypes.FIELD("value", DataTypes.BYTES())])


def kafka_batch(
    table_env: StreamTableEnvironment,
    table: Table,
    records: DataType,
    *,
    uid: str,
    parallelism: int,
    max_records: int,
    max_bytes: int,
    max_age_ms: int,
    max_payload_bytes: int,
    keep_bytes: int,
) -> DataStream:
    """Rows of Flink's Kafka source to Arrow batches (KafkaBatcher.java).

    Args:
        table_env: the table environment the table belongs to.
        table: payload, key, topic, partition, headers, offset, timestamp.
        records: the type of a batch's rows.
        uid: uid and name of the step; the source's is the same with ``-source``.
        parallelism: of both.
        max_records: rows in a batch at most.
        max_bytes: bytes after which a batch is handed on.
        max_age_ms: how long the first row of a batch waits at most.
        max_payload_bytes: a longer payload is cut.
        keep_bytes: to this.
    """
    rows = rows_of(table_env, table)
    _name_source(rows, f"{uid}-source")
    limits = [max_records, max_bytes, max_age_ms, max_payload_bytes, keep_bytes]
    refs = [_logical(records), *limits]
    return _add(rows, "KafkaBatcher", uid, refs, BYTES.get_java_type_info(), parallelism)


def kafka_lines(
    lines: DataStream,
    row: DataType,
    *,
    uid: str,
    topic: str,
    names: tuple[str, ...],
    envelopes: bool,
    parallelism: int = 0,
) -> DataStream:
    """Lines to `KAFKA_VALUE` or `KAFKA_RECORD` rows, one a line (KafkaLines.java).

    Args:
        lines: as `join_lines` takes them.
        row: the first field is the line, the next ones fill the topic's names.
        uid: uid and name of the step.
        topic: name of the topic, with ``{names}``.
        names: the row's fields after the first.
        envelopes: whether the lines are envelopes, of which key and headers are made.
        parallelism: the job's own if 0.
    """
    fields = get_gateway().jvm.java.util.ArrayList()
    for name in names:
        fields.add(name)
    refs = [_logical(row), topic, fields, envelopes]
    rows = _row_info(KAFKA_RECORD if envelopes else KAFKA_VALUE)
    return _add(lines, "KafkaLines", uid, refs, rows, parallelism)


def topic_reader(properties: Mapping[str, str], patience_ms: int) -> Any:
    """A reader of topics in this process's own JVM (TopicReader.java).

    Args:
        properties: of its consumer; the connector's jar must be on the class path already.
        patience_ms: how long the brokers may be silent.
    """
    jvm = get_gateway().jvm
    java_properties = jvm.java.util.Properties()
    for name, value in properties.items():
        java_properties.setProperty(name, value)
    loader = jvm.Thread.currentThread().getContextClassLoader()
    source = files("operators.bridge").joinpath("jvm").joinpath("TopicReader.java").read_text()
    compiled = jvm.org.apache.flink.table.runtime.generated.CompileUtils.compile(
        loader, "TopicReader", source
    )
    kinds = _array([_class("java.util.Properties"), jvm.java.lang.Long.TYPE], jvm.Class)
    return compiled.getConstructor(kinds).newInstance(
        _array([java_properties, jvm.java.lang.Long.valueOf(patience_ms)])
    )


def kafka_values(topic: str) -> Any:
    """`KAFKA_VALUE` rows as the values of Kafka records."""
    schema = get_gateway().jvm.org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema
    return schema.builder().setTopic(topic).setValueSerializationSchema(_raw_format()).build()


def kafka_records(topic: str) -> Any:
    """`KAFKA_RECORD` rows as Kafka records: the SQL connector's own serializer.

    A topic, a key and headers for each record: the public interface has nothing like it (T39).

    Args:
        topic: name of the topic; one with ``{names}`` lets each row have its own.

    Raises:
        BridgeError: this connector's is another one.
    """
    jvm = get_gateway().jvm
    name = "org.apache.flink.streaming.connectors.kafka.table.DynamicKafkaRecordSerializationSchema"
    raw = _raw_format()
    key, value = _field_getter(1), _field_getter(2)
    # Where the topic, the headers and the timestamp stand; -1: nowhere.
    positions = _array([0, 3, -1], jvm.int)
    fixed = None if "{" in topic else jvm.java.util.Collections.singletonList(topic)
    any_topic = jvm.java.util.regex.Pattern.compile("[a-zA-Z0-9._-]+") if fixed is None else None
    try:
        (constructor,) = _class(name).getDeclaredConstructors()
        constructor.setAccessible(True)
        return constructor.newInstance(
            _array([fixed, any_topic, None, raw, raw, key, value, True, positions, False])
        )
    except (Py4JError, ValueError) as error:
        raise BridgeError(
            f"the Kafka connector's {name.rpartition('.')[2]} has changed: Breakwater was built "
            "for the version in docker/pom.xml, run `make jars`"
        ) from error


def _raw_format() -> Any:
    """A row's first field (bytes) as it is."""
    jvm = get_gateway().jvm
    return jvm.org.apache.flink.formats.raw.RawFormatSerializationSchema(
        _to_java_data_type(DataTypes.BYTES()).getLogicalType(), "UTF-8", True
    )


def _field_getter(at: int) -> Any:
    """An array of one getter, of a field that holds bytes."""
    jvm = get_gateway().jvm
    getter = _class("org.apache.flink.table.data.RowData$FieldGetter")
    array = jvm.java.lang.reflect.Array.newInstance(getter, 1)
    array[0] = jvm.org.apache.flink.table.data.RowData.createFieldGetter(
        _logical(DataTypes.BYTES()), at
    )
    return array


def _name_source(rows: DataStream, uid: str) -> None:
    """Give the steps from a table's source to a stream stable uids, like `name_sql_steps`."""
    step = rows._j_data_stream.getTransformation()
    seen = 0
    while step.getInputs():
        seen += 1
        _pin(step, f"{uid}-{seen}")
        (step,) = step.getInputs()
    _pin(step, uid)


def _pin(step: Any, uid: str) -> None:
    """Uid and name together; Flink's own names have numbers that change with the flow."""
    step.setUid(uid)
    step.setName(uid)
