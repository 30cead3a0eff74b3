"""What a savepoint or checkpoint holds, and whether a new version of the job takes all of it over.

Read by Flink's own classes in the client's JVM, before anything is submitted: Flink itself would
say only the hash of an operator, after the old job has been stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from py4j.protocol import Py4JError, Py4JJavaError
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.machine.java import find_java

#: Flink's option to leave state behind on purpose.
IGNORE: Final = "execution.state-recovery.ignore-unclaimed-state"
_METADATA: Final = "_metadata"


class SavepointError(UserError):
    """It cannot be read, or the job does not fit it: one line with the path or the operator."""


@dataclass(frozen=True)
class SavedOperator:
    """An operator's part of a savepoint.

    Attributes:
        uid: what state is found by; "" where the savepoint does not say it.
        name: for people.
        has_state: whether anything would be lost without it.
        states: names of its states, keyed ones and those of the operator; only when asked for.
    """

    uid: str
    name: str
    has_state: bool
    states: tuple[str, ...] = ()


def read_savepoint(path: str, with_states: bool = False) -> list[SavedOperator]:
    """What is in a savepoint or a retained checkpoint.

    Args:
        path: its folder, as Flink names it.
        with_states: also open the state itself for the names of the states.

    Raises:
        SavepointError: there is none, or it cannot be read.
    """
    jvm = get_gateway().jvm
    loader = jvm.Thread.currentThread().getContextClassLoader()
    try:
        file = jvm.org.apache.flink.core.fs.Path(path, _METADATA)
        stream = jvm.java.io.DataInputStream(file.getFileSystem().open(file))
        try:
            load = jvm.org.apache.flink.runtime.checkpoint.Checkpoints.loadCheckpointMetadata
            found = list(load(stream, loader, path).getOperatorStates())
        finally:
            stream.close()
    except Py4JJavaError as error:
        raise SavepointError(f"{path}: cannot be read as a savepoint ({_cause(error)})") from None
    return sorted((_operator(each, with_states) for each in found), key=lambda each: each.uid)


def newest_beside(checkpoint: str) -> str:
    """The newest complete checkpoint of the same job; it may have followed the one that is named.

    Raises:
        SavepointError: there is none any more, or its folder cannot be read from here.
    """
    jvm = get_gateway().jvm
    try:
        folder = jvm.org.apache.flink.core.fs.Path(checkpoint).getParent()
        system = folder.getFileSystem()
        found = [status.getPath() for status in system.listStatus(folder) or ()]
        complete = [
            path
            for path in found
            if path.getName().startswith("chk-")
            and system.exists(jvm.org.apache.flink.core.fs.Path(path, _METADATA))
        ]
    except Py4JJavaError as error:
        raise SavepointError(f"{checkpoint}: cannot be looked at ({_cause(error)})") from None
    if not complete:
        raise SavepointError(f"{checkpoint}: is gone, and there is none beside it")
    return str(max(complete, key=lambda path: int(path.getName()[4:])).toString())


def refuse_lost_state(
    env: StreamExecutionEnvironment, saved: list[SavedOperator], path: str
) -> None:
    """See that every operator that has state in a savepoint is in the job too.

    Args:
        env: the job, built and not yet started.
        saved: what is in the savepoint.
        path: where it is, for the message.

    Raises:
        SavepointError: names the operators whose state would be lost.
    """
    uids = set(graph_uids(env))
    lost = [each for each in saved if each.has_state and each.uid and each.uid not in uids]
    if lost:
        named = ", ".join(f"{each.uid} ({each.name})" for each in lost)
        raise SavepointError(
            f"{path} holds state of {named}, which this version of the job does not have: it would "
            f'be lost; keep the uid, or set [flink] "{IGNORE}" = true to lose it',
            WRONG_CALL,
        )


def graph_uids(env: StreamExecutionEnvironment) -> Iterator[str]:
    """The uids of the job as it would run."""
    # As execute() does it: chained Python steps become one, sinks become writer and committer.
    graph = env._generate_stream_graph(False)
    for node in get_gateway().jvm.java.util.ArrayList(graph.getStreamNodes()):
        uid = node.getTransformationUID()
        if uid is not None:
            yield str(uid)


def _operator(state: Any, with_states: bool) -> SavedOperator:
    subtasks = list(get_gateway().jvm.java.util.ArrayList(state.getSubtaskStates().values()))
    has_state = state.getCoordinatorState() is not None or any(s.hasState() for s in subtasks)
    names = {name for s in subtasks for name in _state_names(s)} if with_states else set()
    return SavedOperator(
        state.getOperatorUid().orElse("") or "",
        state.getOperatorName().orElse("") or state.getOperatorID().toHexString(),
        has_state,
        tuple(sorted(names)),
    )


def _state_names(subtask: Any) -> Iterator[str]:
    jvm = get_gateway().jvm
    for handle in jvm.java.util.ArrayList(subtask.getManagedOperatorState()):
        yield from (str(name) for name in handle.getStateNameToPartitionOffsets())
    for handle in jvm.java.util.ArrayList(subtask.getManagedKeyedState()):
        loader = jvm.Thread.currentThread().getContextClassLoader()
        header = jvm.org.apache.flink.runtime.state.KeyedBackendSerializationProxy(loader)
        stream = handle.openInputStream()
        try:
            header.read(jvm.org.apache.flink.core.memory.DataInputViewStreamWrapper(stream))
        finally:
            stream.close()
        yield from (str(each.getName()) for each in header.getStateMetaInfoSnapshots())


def _cause(error: Py4JError) -> str:
    java = getattr(error, "java_exception", None)
    return str(java.toString()).rpartition("Exception: ")[2] if java is not None else str(error)


def main() -> None:
    """List what is in a savepoint: ``python -m flink_jobs.cluster.savepoint PATH``."""
    try:
        if len(sys.argv) != 2:
            raise UserError(
                "give one path: python -m flink_jobs.cluster.savepoint PATH", WRONG_CALL
            )
        os.environ["JAVA_HOME"] = str(find_java(os.environ).home)
        for each in read_savepoint(sys.argv[1], with_states=True):
            print(f"{each.uid} | {each.name} | {', '.join(each.states) or '-'}")
    except UserError as error:
        print(f"breakwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    get_gateway().shutdown()


if __name__ == "__main__":
    main()
