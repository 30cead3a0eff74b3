"""The main job on a real cluster, submitted as a user does, against the recount; and its faults."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flink_jobs.demo.broker import HOST
from tests.cluster.deploy import Deployment
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, lines, skewed
from tests.runs import settings_file

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(900)]


def refused(deployment: Deployment, *arguments: object, code: int, **environ: str) -> str:
    """Run a command that must refuse in one line; returns the line."""
    ended = deployment.breakwater(*arguments, **environ)
    assert ended.returncode == code, ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("breakwater: ")
    return line


def test_a_bounded_run_on_the_cluster_is_right(deployment: Deployment) -> None:
    deployment.send(
        deployment.create("in"), skewed(lines(deployment.folder, 20_000, BEYOND_THE_DELAY_S))
    )
    job = deployment.submit("--config", deployment.settings())
    deployment.wait_for_end(job)
    assert assert_topics_are_right(deployment, expect(deployment.sent)) > 0
    told = deployment.status(job)
    assert (told["state"], told["restarts"], told["last_failure"]) == ("FINISHED", 0, "")
    line = refused(deployment, "stop", "--target", deployment.cluster.target, "--job", job, code=1)
    assert "is FINISHED already" in line


def test_no_cluster_there(deployment: Deployment) -> None:
    with socket.socket() as held:
        held.bind((HOST, 0))
        target = f"{HOST}:{held.getsockname()[1]}"
        for command in (("submit", "--config", deployment.settings()), ("status",), ("stop",)):
            line = refused(deployment, *command, "--target", target, code=1)
            assert f"--target {target}: no Flink cluster answers there" in line


def test_what_is_missing_is_found_before_anything_is_submitted(
    deployment: Deployment, tmp_path: Path
) -> None:
    before = len(deployment.cluster.rest.jobs())
    to = ("submit", "--target", deployment.cluster.target)
    wrong = settings_file(tmp_path / "wrong.toml", kafka={"topic": "a"})
    assert "did you mean kafka.topics?" in refused(deployment, *to, "--config", wrong, code=2)
    assert "--config or --package" in refused(deployment, *to, code=2)
    config = deployment.settings()
    line = refused(deployment, *to, "--config", config, code=1)
    assert f"kafka.topics: there is no topic {deployment.topic('in')}" in line
    (tmp_path / "empty").mkdir()
    line = refused(
        deployment, *to, "--config", config, code=1, BREAKWATER_JARS=str(tmp_path / "empty")
    )
    assert "flink-sql-connector-kafka-*.jar is missing" in line
    deployment.create("in")
    line = refused(
        deployment, *to, "--config", config, "--from-savepoint", tmp_path / "nowhere", code=1
    )
    assert "nowhere: cannot be read as a savepoint" in line
    assert len(deployment.cluster.rest.jobs()) == before


def test_a_job_that_is_not_there(deployment: Deployment) -> None:
    at = ("--target", deployment.cluster.target)
    for command in ("status", "stop"):
        line = refused(deployment, command, *at, "--job", "0" * 32, code=2)
        assert f"--job {'0' * 32}: {deployment.cluster.target} has no such job" in line
        assert "is not a job's id" in refused(deployment, command, *at, "--job", "x", code=2)
    assert "runs no job" in refused(deployment, "stop", *at, code=2)
