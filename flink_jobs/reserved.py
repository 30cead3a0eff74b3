"""The Flink options that a job chooses itself, because its promises stand on them."""

from __future__ import annotations

from typing import Final

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.settings import Settings

#: Wherever it runs; and what to set instead, "" for nothing.
_EVERYWHERE: Final = {
    # Transactions end with the checkpoints, and their timeout has been compared with the interval.
    "execution.checkpointing.interval": "checkpoint.interval_ms",
    "execution.checkpointing.mode": "",
    # The last outputs are committed by a checkpoint that is taken after the sources have ended.
    "execution.checkpointing.checkpoints-after-tasks-finish": "",
    "execution.checkpointing.checkpoints-after-tasks-finish.enabled": "",
    "execution.runtime-mode": "",
    "parallelism.default": "parallelism",
    "pipeline.auto-generate-uids": "",
    "python.execution-mode": "",
    "table.local-time-zone": "",
}
#: On this machine.
_HERE: Final = (
    # Where checkpoints lie, and that they stay: a resumed run looks for them there.
    "execution.checkpointing.create-subdir",
    "execution.checkpointing.dir",
    "execution.checkpointing.externalized-checkpoint-retention",
    "execution.checkpointing.storage",
    "state.checkpoint-storage",
    "state.checkpoints.create-subdir",
    "state.checkpoints.dir",
    "execution.target",
    "io.tmp.dirs",
)
#: What a job starts from; the second is Flink's former name for it, which it still reads.
_PREFIXES: Final = ("execution.state-recovery.", "execution.savepoint")


def refuse_own_options(settings: Settings) -> None:
    """Refuse a `[flink]` table that would set one of them, and a job that is not for files.

    Raises:
        UserError: names it.
    """
    if settings.source.kind != "files" or settings.sink.kind != "files":
        raise UserError(
            "source.kind and sink.kind: this command is for files; for Kafka run "
            "python -m flink_jobs.kafka_job --config FILE",
            WRONG_CALL,
        )
    refuse_promised(settings)
    for name in settings.flink:
        if name in _HERE or name.startswith(_PREFIXES):
            raise UserError(
                f"[flink] {name}: a run on this machine sets this itself; remove it", WRONG_CALL
            )


def refuse_promised(settings: Settings) -> None:
    """Refuse a `[flink]` table with an option that the job's promises stand on wherever it runs.

    Raises:
        UserError: names it, and the setting to use instead.
    """
    for name in settings.flink:
        if name in _EVERYWHERE:
            instead = _EVERYWHERE[name]
            raise UserError(
                f"[flink] {name}: is set by the job itself; "
                + (f"set {instead} instead" if instead else "remove it"),
                WRONG_CALL,
            )
