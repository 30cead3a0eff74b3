"""The Flink options that a run on this machine chooses itself: its promises stand on them."""

from __future__ import annotations

from typing import Final

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.settings import Settings

_NAMES: Final = (
    # Where checkpoints lie, and that they stay: a resumed run looks for them there.
    "execution.checkpointing.create-subdir",
    "execution.checkpointing.dir",
    "execution.checkpointing.externalized-checkpoint-retention",
    "execution.checkpointing.mode",
    "execution.checkpointing.storage",
    "state.checkpoint-storage",
    "state.checkpoints.create-subdir",
    "state.checkpoints.dir",
    # The last outputs are committed by a checkpoint that is taken after the sources have ended.
    "execution.checkpointing.checkpoints-after-tasks-finish",
    "execution.checkpointing.checkpoints-after-tasks-finish.enabled",
    "execution.runtime-mode",
    "execution.target",
    "io.tmp.dirs",
    "parallelism.default",
    "pipeline.auto-generate-uids",
    "python.execution-mode",
    "table.local-time-zone",
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
    for name in settings.flink:
        if name in _NAMES or name.startswith(_PREFIXES):
            raise UserError(
                f"[flink] {name}: a run on this machine sets this itself; remove it", WRONG_CALL
            )
