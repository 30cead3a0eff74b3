"""What the yardsticks share: plain Flink, set up as a good data engineer would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pyflink.common import Configuration
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment


def environment(
    work: Path, parallelism: int, checkpoint_interval_ms: int, options: dict[str, str]
) -> StreamExecutionEnvironment:
    """Checkpoints and temporary files in a folder of the program's own; the options win."""
    configuration = Configuration()
    settings = {
        "parallelism.default": str(parallelism),
        "pipeline.object-reuse": "true",
        "table.local-time-zone": "UTC",
        "execution.checkpointing.interval": f"{checkpoint_interval_ms} ms",
        "execution.checkpointing.dir": (work / "checkpoints").as_uri(),
        "restart-strategy.type": "none",
        "io.tmp.dirs": str(work),
        **options,
    }
    for name, value in settings.items():
        configuration.set_string(name, value)
    return StreamExecutionEnvironment.get_execution_environment(configuration)


def run_statements(tables: StreamTableEnvironment, statements: Mapping[str, str]) -> None:
    """Tables and views in order, then all inserts as one job, to its end."""
    inserts = tables.create_statement_set()
    for name, statement in statements.items():
        if name.startswith("insert "):
            inserts.add_insert_sql(statement)
        else:
            tables.execute_sql(statement)
    inserts.execute().wait()


def named_statements(text: str) -> dict[str, str]:
    """The statements of a SQL file, by the comment above each."""
    parts = [part.split("\n", 1) for part in text.split("-- ") if part]
    return {name: statement.strip() for name, statement in parts}
