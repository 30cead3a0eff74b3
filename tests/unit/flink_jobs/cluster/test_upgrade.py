"""What an upgrade makes of Flink's answers; what a real cluster does is in tests/cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flink_jobs.cluster.rest import Rest
from flink_jobs.cluster.upgrade import UpgradeError, left_by
from tests.unit.flink_jobs.cluster.server import answering

JOB = "0" * 32
REFRESH_S = 0.5
OLD, NEW = "file:/checkpoints/chk-1", "file:/checkpoints/chk-2"


def checkpoints(completed: int, path: str) -> dict[str, Any]:
    latest = {"completed": {"external_path": path}} if completed else {}
    return {"counts": {"completed": completed}, "latest": latest}


@contextmanager
def flink(answer: Callable[[], dict[str, Any]]) -> Iterator[Rest]:
    """A server on loopback that answers about checkpoints as Flink does, from its memory."""

    config = {"refresh-interval": REFRESH_S * 1000}

    def said(path: str) -> bytes:
        return json.dumps(answer() if path.endswith("/checkpoints") else config).encode()

    with answering(said) as target:
        yield Rest(target)


@pytest.mark.parametrize("before", [checkpoints(0, ""), checkpoints(1, OLD)])
def test_what_flink_knew_before_the_job_ended_is_not_believed(before: dict[str, Any]) -> None:
    """Believed, the old version would start from the savepoint, and output would come twice."""
    known_until = time.monotonic() + REFRESH_S
    with flink(lambda: before if time.monotonic() < known_until else checkpoints(2, NEW)) as rest:
        assert left_by(rest, JOB) == NEW


def test_a_job_that_has_completed_no_checkpoint_has_left_none() -> None:
    with flink(lambda: checkpoints(0, "")) as rest:
        assert left_by(rest, JOB) == ""


def test_a_checkpoint_in_memory_only_is_no_place_to_go_back_to() -> None:
    with (
        flink(lambda: checkpoints(1, "<checkpoint-not-externally-addressable>")) as rest,
        pytest.raises(UpgradeError, match=r"set execution\.checkpointing\.dir"),
    ):
        left_by(rest, JOB)
