"""Savepoints, new versions and other parallelisms, while input keeps flowing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.cluster.package import Package
from tests.cluster import variants
from tests.cluster.deploy import Deployment, job_in
from tests.kafka.jobs import ROOT
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import skewed
from tests.runs import tell

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(900)]

SHOP = {"contract": {"type": "shop:Event"}}
#: A savepoint finds state by uid and name: a change there is a decision, seen in a diff.
GOLDEN = Path(__file__).with_name("states.txt")
#: What status tells of each step.
SHARES = ("busy", "backpressured")


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
        [sys.executable, "-m", "flink_jobs.cluster.savepoint", savepoint],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [re.sub(r"\[\d+\]|\$\d+", "", line) for line in done.stdout.splitlines()]


def measured(deployment: Deployment, job: str) -> dict[str, Any]:
    """A job's status once Flink has fetched its metrics: on a busy machine the first has gaps."""
    found: dict[str, Any] = {}

    def complete() -> bool:
        found.update(deployment.status(job))
        shares = [step[name] for step in found["steps"] for name in SHARES]
        return bool(found["partitions"]) and None not in [found["restarts"], *shares]

    deployment.wait(f"the metrics of {job}", complete)
    return found


def test_upgrade_and_rescaling_lose_and_double_nothing(
    deployment: Deployment,
    many_lines: list[bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """2 to 4 with one more field and one more step, then 4 to 1 by a savepoint in native format.

    Windows that were open continue.
    """
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
    with deployment.flowing(deployment.create("in"), skewed(many_lines)):
        job = deployment.submit("--package", first)
        deployment.wait_for_output("user_windows")
        sent, began = len(deployment.sent), time.monotonic()
        ended = deployment.breakwater(
            "upgrade", *target, "--job", job, "--old", first, "--package", second,
            BREAKWATER_PARALLELISM="4",
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        deployment.wait_for_event_after(sent)
        tell(capsys, "breakwater upgrade, 2 to 4", time.monotonic() - began)
        assert deployment.cluster.rest.state(job) == "FINISHED"
        job = job_in(ended.stdout)
        (savepoint,) = re.findall(r"^savepoint (.*)$", ended.stderr, re.MULTILINE)
        assert states_in(savepoint) == GOLDEN.read_text().splitlines()
        status = measured(deployment, job)
        last = status["last_checkpoint"]
        assert last["number"] > 0
        assert last["path"].endswith(f"/{job}/chk-{last['number']}")
        assert status["restarts"] == 0
        shares = [step[name] for step in status["steps"] for name in SHARES]
        # Flink adds up two kinds of backpressure that it measures a moment apart.
        assert all(0 <= share < 1.1 for share in shares), shares
        assert {s["parallelism"] for s in status["steps"] if "intake" in s["name"]} == {4}
        assert [p["partition"] for p in status["partitions"]] == [0, 1, 2, 3]
        deployment.wait_for_checkpoints(job)
        sent, began = len(deployment.sent), time.monotonic()
        savepoint = deployment.stop(job, "--format", "native")
        added = [line for line in states_in(savepoint) if line.startswith("one-more-step")]
        assert added, "the second version was meant to have one more step"
        job = deployment.submit(
            "--package", second, "--from-savepoint", savepoint, BREAKWATER_PARALLELISM="1"
        )
        deployment.wait_for_event_after(sent)
        tell(capsys, "stopped and submitted again, 4 to 1", time.monotonic() - began)
        deployment.wait_for_checkpoints(job, 2)
    deployment.end_and_drain(job)
    assert assert_topics_are_right(deployment, expect(deployment.sent)) > 0
    versions = {"channel" in row for row in deployment.rows("processed_events")}
    assert versions == {False, True}, "both versions were meant to have processed something"


def test_a_version_that_loses_state_and_a_wrong_old_package_are_refused(
    deployment: Deployment, many_lines: list[bytes], tmp_path: Path
) -> None:
    """Before anything is stopped: each is one line, and the job goes on."""
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
    deployment.send(deployment.create("in"), islice(skewed(many_lines), 5_000))
    job = deployment.submit("--package", good)
    deployment.wait_for_checkpoints(job)

    refused = deployment.breakwater("upgrade", *target, "--old", good, "--package", other_uid)
    assert refused.returncode == 2, refused.stderr
    assert "holds state of marks (marks)" in refused.stderr

    refused = deployment.breakwater("upgrade", *target, "--old", other_uid, "--package", good)
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert f"--old {other_uid}: job {job} runs from the package with sha256" in line
    assert all(Package.open(path).checksum in line for path in (good, other_uid))
    assert deployment.cluster.rest.state(job) == "RUNNING", "it was stopped before the check"


def test_a_version_that_fails_is_taken_back(
    deployment: Deployment,
    many_lines: list[bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One fails in open(), the other after it has committed output with its own checkpoint.

    The second is gone back from by that checkpoint: from the savepoint its output would come twice.
    """
    good = packaged(deployment, variants.contract(tmp_path / "a"), **SHOP)
    no_restart: dict[str, object] = {"restart-strategy.type": "none"}
    failing = packaged(
        deployment,
        variants.contract(tmp_path / "b"),
        variants.source(
            tmp_path / "source-b", "operators/intake/intake.py",
            variants.OPEN, variants.OPEN + variants.FAILS,
        ),
        **SHOP, flink=no_restart,
    )  # fmt: skip
    later = variants.FAILS_LATER.format(checkpoints=deployment.cluster.checkpoints)
    failing_later = packaged(
        deployment,
        variants.contract(tmp_path / "c", variants.CONTRACT + variants.ONE_MORE_FIELD),
        variants.source(
            tmp_path / "source-c",
            "operators/intake/intake.py",
            variants.READ,
            later + variants.READ,
        ),
        **SHOP, flink=no_restart, checkpoint={"interval_ms": 200},
    )  # fmt: skip
    with deployment.flowing(deployment.create("in"), skewed(many_lines)):
        job = deployment.submit("--package", good)
        deployment.wait_for_output("user_windows")
        began = time.monotonic()
        job, _ = taken_back(deployment, good, failing, "this version cannot run")
        tell(capsys, "upgrade and back, open() fails", time.monotonic() - began)
        began = time.monotonic()
        job, start = taken_back(deployment, good, failing_later, "this version cannot run for long")
        tell(capsys, "upgrade and back, fails after a commit", time.monotonic() - began)
        assert "/chk-" in start, "it was meant to go on from the new version's own checkpoint"
        deployment.wait_for_checkpoints(job)
    deployment.end_and_drain(job)
    assert assert_topics_are_right(deployment, expect(deployment.sent)) > 0
    versions = {"channel" in row for row in deployment.rows("processed_events")}
    assert versions == {False, True}, "the failing version was meant to have committed something"


def taken_back(deployment: Deployment, old: Path, new: Path, why: str) -> tuple[str, str]:
    """Upgrade to a version that fails: the id of the old one's new job, and where it began."""
    failed = deployment.breakwater(
        "upgrade", "--target", deployment.cluster.target, "--old", old, "--package", new
    )
    assert failed.returncode == 1, failed.stdout + failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert "the new version does not run" in last
    assert why in last
    (again,) = [
        each["jid"] for each in deployment.cluster.rest.jobs() if each["state"] == "RUNNING"
    ]
    assert f"the old one goes on as job {again}, from " in last
    return again, last.rpartition(" from ")[2]
