"""One mini-cluster process for all tests that drive operators by themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.machine.java import find_java


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Makes a fresh environment; the Java process behind it ends with the test session."""
    os.environ["JAVA_HOME"] = str(find_java(os.environ).home)
    # Real worker processes, as on a cluster, not threads of this process (trap T1).
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112 - Flink's name
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    os.environ["FLINK_LOG_DIR"] = str(tmp_path_factory.mktemp("log"))
    from pyflink.common import Configuration
    from pyflink.datastream import StreamExecutionEnvironment

    def environment(**options: str) -> Any:
        configuration = Configuration()
        settings = {
            "parallelism.default": "1",
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
            "pipeline.object-reuse": "true",
            "pipeline.auto-generate-uids": "true",
            "table.local-time-zone": "UTC",
            "restart-strategy.type": "none",
            "rest.bind-address": "127.0.0.1",
            **{
                name.replace("___", "-").replace("_", "."): value for name, value in options.items()
            },
        }
        for name, value in settings.items():
            configuration.set_string(name, value)
        return StreamExecutionEnvironment.get_execution_environment(configuration)

    yield environment
    from pyflink.java_gateway import get_gateway

    get_gateway().shutdown()


@pytest.fixture
def committing(flink: Callable[..., Any], tmp_path: Path) -> Any:
    """An environment whose sinks commit often, an element of Python at a time."""
    return flink(
        execution_checkpointing_interval="200 ms",
        execution_checkpointing_dir=(tmp_path / "checkpoints").as_uri(),
        python_fn___execution_bundle_size="1",
    )
