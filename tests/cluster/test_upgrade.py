"""Savepoints, new versions and other parallelisms, while input keeps flowing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import variants
from tests.cluster.deploy import Deployment, job_in
from tests.kafka.jobs import ROOT
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, lines, skewed

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(900)]

SHOP = {"contract": {"type": "shop:Event"}}
#: A savepoint finds state by uid and name: a change there is a decision, seen in a diff.
GOLDEN = Path(__file__).with_name("states.txt")
#: More than are sent in the time that a test takes.
MANY = 200_000


@pytest.fixture
def events(tmp_path: Path) -> Iterator[tuple[int, bytes | None]]:
    return skewed(lines(tmp_path, MANY, BEYOND_THE_DELAY_S))


def packaged(
    deployment: Deployment, folder: Path, source: Path | None = None, **tables: dict[str, object]
) -> Path:
    """A package of the settings and the contract in a folder, made as a user makes it."""
    config = deployment.settings(kafka={"end": "never"}, **tables)
    config = config.rename(folder / "shop.toml")
    out = folder / "app.zip"
    deployment.did("package", "--config", config, "--out", out, source=source)
    return out


def states_in(savepoint: str) -> list[str]:
    """Uid, name and names of the states of each operator, without the numbers that Flink gives."""
    done = subprocess.run(
        [sys.executable, "-m", "flink_jobs.savepoint", savepoint],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [re.sub(r"\[\d+\]|\$\d+", "", line) for line in done.stdout.splitlines()]


def test_upgrade_and_rescaling_lose_and_double_nothing(
    deployment: Deployment, events: Iterator[tuple[int, bytes | None]], tmp_path: Path
) -> None:
    """2 to 4 with one more field and one more step, then 4 to 1: open windows continue."""
    first = packaged(deployment, variants.contract(tmp_path / "a"), **SHOP)
    second = packaged(
        deployment,
        variants.contract(tmp_path / "b", variants.CONTRACT + variants.ONE_MORE_FIELD),
        variants.source(
            tmp_path / "source-b", "flink_jobs/main.py",
            variants.WINDOWS, variants.WINDOWS + variants.ONE_MORE_STEP,
        ),
        **SHOP,
    )  # fmt: skip
    target = ("--target", deployment.cluster.target)
    with deployment.flowing(deployment.create("in"), events):
        job = deployment.submit("--package", first)
        deployment.wait_for_output("user_windows", 1)
        ended = deployment.breakwater(
            "upgrade", *target, "--job", job, "--old", first, "--package", second,
            BREAKWATER_PARALLELISM="4",
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert deployment.cluster.rest.state(job) == "FINISHED"
        job = job_in(ended.stdout)
        (savepoint,) = re.findall(r"^savepoint (.*)$", ended.stderr, re.MULTILINE)
        assert states_in(savepoint) == GOLDEN.read_text().splitlines()
        steps = deployment.status(job)["steps"]
        assert {step["parallelism"] for step in steps if "gate" in step["name"]} == {4}
        deployment.wait_for_checkpoints(job)
        savepoint = deployment.stop(job)
        added = [line for line in states_in(savepoint) if line.startswith("one-more-step")]
        assert added, "the second version was meant to have one more step"
        job = deployment.submit(
            "--package", second, "--from-savepoint", savepoint, BREAKWATER_PARALLELISM="1"
        )
        deployment.wait_for_checkpoints(job, 2)
    deployment.end_and_drain(job)
    assert assert_topics_are_right(deployment, expect(deployment.sent)) > 0
    versions = {"channel" in row for row in deployment.rows("processed_events")}
    assert versions == {False, True}, "both versions were meant to have processed something"


def test_a_version_that_loses_state_is_refused_and_one_that_fails_is_taken_back(
    deployment: Deployment, events: Iterator[tuple[int, bytes | None]], tmp_path: Path
) -> None:
    target = ("--target", deployment.cluster.target)
    good = packaged(deployment, variants.contract(tmp_path / "a"), **SHOP)
    other_uid = packaged(
        deployment,
        variants.contract(tmp_path / "b"),
        variants.source(
            tmp_path / "source-b", "flink_jobs/main.py", 'uid="marks"', 'uid="watermarks"'
        ),
        **SHOP,
    )
    failing = packaged(
        deployment,
        variants.contract(tmp_path / "c"),
        variants.source(
            tmp_path / "source-c", "operators/intake.py",
            variants.OPEN, variants.OPEN + variants.FAILS,
        ),
        **SHOP, flink={"restart-strategy.type": "none"},
    )  # fmt: skip
    with deployment.flowing(deployment.create("in"), events):
        job = deployment.submit("--package", good)
        deployment.wait_for_output("user_windows", 1)

        refused = deployment.breakwater("upgrade", *target, "--old", good, "--package", other_uid)
        assert refused.returncode == 2, refused.stderr
        assert "holds state of marks (marks)" in refused.stderr
        assert deployment.cluster.rest.state(job) == "RUNNING", "it was stopped before the check"

        failed = deployment.breakwater("upgrade", *target, "--old", good, "--package", failing)
        assert failed.returncode == 1, failed.stdout + failed.stderr
        last = failed.stderr.splitlines()[-1]
        assert "the new version does not run" in last
        assert "this version cannot run" in last
        (again,) = [
            each["jid"] for each in deployment.cluster.rest.jobs() if each["state"] == "RUNNING"
        ]
        assert f"the old one goes on as job {again}" in last
        deployment.wait_for_checkpoints(again)
    deployment.end_and_drain(again)
    assert assert_topics_are_right(deployment, expect(deployment.sent)) > 0
