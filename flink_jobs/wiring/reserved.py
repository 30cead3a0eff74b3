"""What a job sets itself of Flink and of Kafka's clients: its promises stand on it."""

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
#: Client properties that the promises stand on, and the setting to use instead; "" for none.
_OWN_PROPERTIES: Final = {
    "acks": "",
    "auto.offset.reset": "kafka.start",
    "bootstrap.servers": "kafka.bootstrap_servers",
    "enable.auto.commit": "",
    "enable.idempotence": "",
    "group.id": "kafka.group",
    "isolation.level": "",
    "transaction.timeout.ms": "sink.transaction_timeout_ms",
    "transactional.id": "sink.transactional_id_prefix",
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
    """Refuse a `[flink]` table that sets what a run on this machine sets itself.

    Raises:
        UserError: names it.
    """
    refuse_promised(settings)
    for name in settings.flink:
        if name in _HERE or name.startswith(_PREFIXES):
            raise UserError(
                f"[flink] {name}: a run on this machine sets this itself; remove it", WRONG_CALL
            )


def refuse_promised(settings: Settings) -> None:
    """Refuse options and client properties that the job's promises stand on wherever it runs.

    Raises:
        UserError: names the first, and the setting to use instead.
    """
    for table, given, own in (
        ("[flink]", settings.flink, _EVERYWHERE),
        ("kafka.properties:", settings.kafka.properties, _OWN_PROPERTIES),
        ("sink.properties:", settings.sink.properties, _OWN_PROPERTIES),
    ):
        for name in sorted(own.keys() & given.keys()):
            what_to_do = f"set {own[name]} instead" if own[name] else "remove it"
            raise UserError(f"{table} {name}: is set by the job itself; {what_to_do}", WRONG_CALL)
