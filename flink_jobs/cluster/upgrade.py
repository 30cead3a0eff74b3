"""Stopping a job with a savepoint, and putting a new version in its place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from flink_jobs.cluster.package import Package
from flink_jobs.cluster.rest import ENDED, Rest, RestError, SavepointFormat
from flink_jobs.cluster.submit import Submission, SubmitError, check, submit
from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.machine.waiting import wait_a_moment

STOPS_WITHIN_S: Final = 600.0
_CANCELS_WITHIN_S: Final = 60.0
#: Without a record a version has passed when it has run for so long.
_QUIET_MS: Final = 20_000
_PACKAGE: Final = "breakwater.package"

Say = Callable[[str], None]


class UpgradeError(UserError):
    """The new version does not run: one line with the reason, and what runs now."""


@dataclass(frozen=True)
class Upgrade:
    """What replaces what.

    Attributes:
        job_id: the job that runs.
        old: its package, to go back to.
        new: what to submit instead; its `from_savepoint` is filled in.
        folder: where the savepoint goes; "" for the cluster's own folder.
        kind: the savepoint's format.
        within_s: how long the new version may take to its first checkpoint.
    """

    job_id: str
    old: Submission
    new: Submission
    folder: str
    kind: SavepointFormat
    within_s: float


def the_job(rest: Rest, job_id: str) -> str:
    """The job that is meant: the one that is named, else the only one that runs.

    Raises:
        RestError: there is no such job, or there are several to choose from.
    """
    if job_id:
        rest.job(job_id)
        return job_id
    running = [job["jid"] for job in rest.jobs() if job["state"] not in ENDED]
    if len(running) == 1:
        return str(running[0])
    if not running:
        raise RestError(f"{rest.target} runs no job", WRONG_CALL)
    raise RestError(
        f"--job is missing: {rest.target} runs several: {', '.join(running)}", WRONG_CALL
    )


def stop(rest: Rest, job_id: str, folder: str, kind: SavepointFormat, drain: bool = False) -> str:
    """Stop a job with a savepoint; returns where it is.

    Raises:
        RestError: the job has ended before, or no savepoint could be made: then the job goes on.
    """
    _require_absolute(folder)
    state = rest.state(job_id)
    if state in ENDED:
        raise RestError(f"job {job_id} is {state} already, there is nothing to stop")
    savepoint = rest.stop(job_id, folder, kind, STOPS_WITHIN_S, drain)
    rest.wait(job_id, "at its end", lambda: rest.state(job_id) in ENDED, _CANCELS_WITHIN_S)
    return savepoint


def upgrade(plan: Upgrade, say: Say) -> str:
    """Put a new version in place of a job; returns the id of the new job.

    1. See that the old package is the one that runs.
    2. See that the new version would start, and takes over all the state of the old one.
    3. Stop the old one with a savepoint.
    4. Start the new one from it, and wait until it has completed a checkpoint with records.
    5. If it does not: cancel it, and start the old one again.

    Guarantee: nothing is lost or doubled either way. The old one goes on from the savepoint, or,
    if the new one has completed a checkpoint, from that: what it has committed is part of it.

    Raises:
        UserError: refused before anything was stopped, or gone back to the old version.
    """
    rest = Rest(plan.old.target)
    # Step 1
    _require_absolute(plan.folder)
    require_running(rest, plan.job_id, plan.old.package)
    # Step 2
    say("checking the new version")
    if note := check(plan.new, plan.job_id):
        say(f"its state is compared only once the old one is stopped: {note}")
    # Step 3
    say(f"stopping {plan.job_id} with a savepoint")
    savepoint = stop(rest, plan.job_id, plan.folder, plan.kind)
    say(f"savepoint {savepoint}")
    # Step 4
    say("starting the new version")
    job_id = ""
    try:
        job_id = submit(replace(plan.new, from_savepoint=savepoint))
        _wait_for_checkpoint(rest, job_id, plan.within_s)
    except UserError as error:
        # Step 5
        say(f"it does not run: {error.message}")
        # A client that was cut off does not know of the job that the cluster has taken.
        job_id = job_id or _job_of(rest, plan.new.package)
        before = replace(plan.old, from_savepoint=savepoint)
        again, start = _go_back(rest, job_id, before, plan.within_s)
        raise UpgradeError(
            f"the new version does not run ({error.message}); the old one goes on as job {again}, "
            f"from {start}"
        ) from None
    return job_id


def require_running(rest: Rest, job_id: str, package: Package) -> None:
    """See that a job runs, and from this package.

    Raises:
        UpgradeError: it does not: going back to it would start something else.
    """
    state = rest.state(job_id)
    if state in ENDED:
        raise UpgradeError(
            f"job {job_id} is {state}: submit the new version with breakwater submit "
            "--from-savepoint",
            WRONG_CALL,
        )
    runs = _package_of(rest, job_id)
    if runs != package.checksum:
        what = f"from the package with sha256 {runs}" if runs else "from no package"
        raise UpgradeError(
            f"--old {package.path}: job {job_id} runs {what}, and not from this one "
            f"(sha256 {package.checksum}); name the one that it was submitted with",
            WRONG_CALL,
        )


def _package_of(rest: Rest, job_id: str) -> str:
    """The checksum of the package that a job was submitted with; "" without one."""
    parameters = rest.get(f"/jobs/{job_id}/config")["execution-config"]["user-config"]
    return str(parameters.get(_PACKAGE, ""))


def _job_of(rest: Rest, package: Package) -> str:
    """The job that runs from a package; "" when none does."""
    running = [job["jid"] for job in rest.jobs() if job["state"] not in ENDED]
    return next((job for job in running if _package_of(rest, job) == package.checksum), "")


class _Trial:
    """Whether a new version works: it has completed a checkpoint after records went through it.

    The first checkpoint alone says little: it may be complete before the first record comes, and
    before a Python worker has started. Where no record comes, some time without a restart does.
    """

    def __init__(self, rest: Rest, job_id: str) -> None:
        self._rest, self._job_id = rest, job_id
        self._flowing_since_ms: int | None = None

    def passed(self) -> bool:
        """Look once.

        Raises:
            UpgradeError: it has restarted, so it does not work.
        """
        job = self._rest.job(self._job_id)
        if self._rest.metrics(f"/jobs/{self._job_id}", ["numRestarts"]).get("numRestarts", 0) > 0:
            raise UpgradeError(f"it had to restart: {self._rest.failure(self._job_id)}")
        flowing = any(vertex["metrics"]["write-records"] > 0 for vertex in job["vertices"])
        if flowing and self._flowing_since_ms is None:
            self._flowing_since_ms = job["now"]
        since_ms = self._flowing_since_ms
        if since_ms is None:
            since_ms = job["timestamps"]["RUNNING"] + _QUIET_MS
        latest = (self._rest.checkpoints(self._job_id).get("latest") or {}).get("completed")
        if latest is None or job["state"] != "RUNNING":
            return False
        return bool(latest["trigger_timestamp"] > since_ms)


def _wait_for_checkpoint(rest: Rest, job_id: str, within_s: float) -> None:
    rest.wait(job_id, "past a checkpoint", _Trial(rest, job_id).passed, within_s)


def left_by(rest: Rest, job_id: str) -> str:
    """The newest checkpoint of a job that has ended; "" when it has completed none.

    Flink answers what it knew up to a refresh interval ago: with an older checkpoint, which is gone
    by now, or with none, though the job has committed output. So the answer that counts is one that
    was asked for later than that after the end.

    Raises:
        UpgradeError: it has completed one that is nowhere: going back would double or lose.
    """
    settled = time.monotonic() + rest.get("/config")["refresh-interval"] / 1000
    while time.monotonic() <= settled:
        wait_a_moment()
    path = rest.newest_checkpoint(job_id)
    if not path and rest.checkpoints(job_id)["counts"]["completed"]:
        raise UpgradeError(
            f"the new version (job {job_id}) has committed output with a checkpoint that was kept "
            "in the JobManager's memory only; the old one is not started: set "
            "execution.checkpointing.dir, and submit from where the books say it stopped"
        )
    return path


def _go_back(rest: Rest, failed: str, old: Submission, within_s: float) -> tuple[str, str]:
    """Cancel the new version and start the old one; returns the id of its job, and from where.

    What the new version has committed with a checkpoint must not be committed again: then the old
    one goes on from that checkpoint, and from the savepoint only if there is none.
    """
    if failed:
        _cancel(rest, failed)
        old = replace(old, from_savepoint=left_by(rest, failed) or old.from_savepoint)
    try:
        again = submit(old)
        _wait_for_checkpoint(rest, again, within_s)
    except UserError as error:
        raise UpgradeError(
            f"neither the new version nor the old one runs ({error.message}); look with breakwater "
            f"status, mend it, and breakwater submit --package {old.package.path} "
            f"--from-savepoint {old.from_savepoint}"
        ) from None
    return again, old.from_savepoint


def _cancel(rest: Rest, job_id: str) -> None:
    if rest.state(job_id) in ENDED:
        return
    rest.cancel(job_id)
    deadline = time.monotonic() + _CANCELS_WITHIN_S
    while rest.state(job_id) not in ENDED:
        if time.monotonic() > deadline:
            raise UpgradeError(
                f"the new version (job {job_id}) does not end within {_CANCELS_WITHIN_S:g} s; the "
                "old one is not started beside it: cancel it, and submit from the savepoint"
            )
        wait_a_moment()


def _require_absolute(folder: str) -> None:
    if folder and not re.match(r"/|[a-z][a-z0-9+.-]*:", folder):
        raise SubmitError(
            f"--savepoint {folder}: write it as the cluster reaches it, as an absolute path or a "
            "URL like s3://bucket/savepoints",
            WRONG_CALL,
        )
