"""Flink's REST interface: the few calls that we need, each with a time limit and a one-line fault.

Standard library only: a request now and then needs no client that pools connections.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.machine.waiting import wait_a_moment

ANSWERS_WITHIN_S: Final = 20.0
#: A job in one of these does not run again by itself.
ENDED: Final = ("FINISHED", "FAILED", "CANCELED")
_NOT_FOUND: Final = 404

SavepointFormat = Literal["canonical", "native"]


class RestError(UserError):
    """The cluster did not answer, or refused: one line with its own reason."""


class Rest:
    """A cluster, by the address of its REST interface."""

    def __init__(self, target: str, answers_within_s: float = ANSWERS_WITHIN_S) -> None:
        """Nothing is asked yet.

        Args:
            target: "host:port", also with http:// or https:// before it.
            answers_within_s: limit of each call.

        Raises:
            RestError: the target cannot be an address.
        """
        self.target = target
        self.url = _url(target)
        self._answers_within_s = answers_within_s

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Ask for something; the answer as Python values."""
        return self._call("GET", path + (f"?{urllib.parse.urlencode(query)}" if query else ""))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Ask for something to be done."""
        return self._call("POST", path, json.dumps(body).encode())

    # --- jobs ------------------------------------------------------------------------------------

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that the cluster knows, the newest first."""
        found: list[dict[str, Any]] = self.get("/jobs/overview")["jobs"]
        return sorted(found, key=lambda job: -job["start-time"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's state, steps and times.

        Raises:
            RestError: the cluster has no such job; the message has those that it has.
        """
        if not re.fullmatch(r"[0-9a-f]{32}", job_id):
            raise RestError(f"--job {job_id}: is not a job's id{self._known()}", WRONG_CALL)
        try:
            found: dict[str, Any] = self.get(f"/jobs/{job_id}")
        except _NotFoundError:
            raise RestError(
                f"--job {job_id}: {self.target} has no such job{self._known()}", WRONG_CALL
            ) from None
        return found

    def state(self, job_id: str) -> str:
        """A job's state, as Flink calls it."""
        return str(self.job(job_id)["state"])

    def checkpoints(self, job_id: str) -> dict[str, Any]:
        """Counts and the newest checkpoint of each kind."""
        found: dict[str, Any] = self.get(f"/jobs/{job_id}/checkpoints")
        return found

    def newest_checkpoint(self, job_id: str) -> str:
        """Where a job's newest checkpoint is; "" when it has none outside of the JobManager."""
        latest: dict[str, Any] = self.checkpoints(job_id).get("latest") or {}
        path = str((latest.get("completed") or {}).get("external_path") or "")
        return "" if path.startswith("<") else path

    def failure(self, job_id: str) -> str:
        """Why a job failed last, in one line; "" when it did not."""
        history = self.get(f"/jobs/{job_id}/exceptions").get("exceptionHistory", {})
        entries = history.get("entries") or []
        return reason_of(entries[0]["stacktrace"]) if entries else ""

    def metrics(self, path: str, names: Iterable[str] | None = None) -> dict[str, float]:
        """Metrics below a path; all of them, or those that are named, as far as there are."""
        if names is None:
            return {each["id"]: 0.0 for each in self.get(f"{path}/metrics")}
        wanted = ",".join(names)
        if not wanted:
            return {}
        answer = self.get(f"{path}/metrics", {"get": wanted})
        return {each["id"]: float(each["value"]) for each in answer if _is_number(each["value"])}

    def cancel(self, job_id: str) -> None:
        """Ask for a job's end without a savepoint."""
        self._call("PATCH", f"/jobs/{job_id}?mode=cancel")

    def stop(
        self, job_id: str, folder: str, kind: SavepointFormat, within_s: float, drain: bool = False
    ) -> str:
        """Stop a job with a savepoint, and wait for it.

        Args:
            job_id: the job.
            folder: where the savepoint goes, as the cluster reaches it; "" for its own folder.
            kind: canonical can be read by any state backend, native is faster and smaller.
            within_s: limit.
            drain: end for ever: windows close and everything pending comes out.

        Returns:
            Where the savepoint is.

        Raises:
            RestError: no savepoint could be made, with Flink's reason; the job goes on.
        """
        body = {"targetDirectory": folder or None, "drain": drain, "formatType": kind.upper()}
        trigger = self.post(f"/jobs/{job_id}/stop", body)["request-id"]
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            answer = self.get(f"/jobs/{job_id}/savepoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                return _savepoint_of(answer["operation"])
            wait_a_moment()
        raise RestError(f"no savepoint of job {job_id} within {within_s:g} s; the job may go on")

    def wait(self, job_id: str, what: str, condition: Callable[[], bool], within_s: float) -> None:
        """Wait until something holds of a job.

        Raises:
            RestError: not within the limit, or the job has ended without it.
        """
        deadline = time.monotonic() + within_s
        while not condition():
            state = self.state(job_id)
            if state in ENDED and not condition():
                raise RestError(f"job {job_id} is {state}, not {what}{_because(self, job_id)}")
            if time.monotonic() > deadline:
                raise RestError(
                    f"job {job_id} is {state}, but not {what} within {within_s:g} s"
                    f"{_because(self, job_id)}"
                )
            wait_a_moment()

    def _known(self) -> str:
        running = [job["jid"] for job in self.jobs() if job["state"] not in ENDED]
        return f"; running are: {', '.join(running)}" if running else "; none is running there"

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310, _url lets only http and https through
            self.url + path, data=body, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._answers_within_s) as answer:  # noqa: S310
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise self._refused(method, path, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise RestError(
                f"--target {self.target}: no Flink cluster answers there ({_words(error)}); "
                "check the address of the JobManager's REST interface"
            ) from None
        except ValueError:
            raise RestError(
                f"--target {self.target}: what answers there is no Flink cluster"
            ) from None

    def _refused(self, method: str, path: str, error: urllib.error.HTTPError) -> RestError:
        try:
            said = json.loads(error.read())["errors"]
            reason = reason_of("\n".join(said))
        except (ValueError, KeyError, TypeError, OSError):
            return RestError(
                f"--target {self.target}: what answers there is no Flink cluster "
                f"(HTTP {error.code})"
            )
        of = _NotFoundError if error.code == _NOT_FOUND else RestError
        return of(f"{self.target} refused {method} {path.partition('?')[0]}: {reason}")


class _NotFoundError(RestError):
    """There is no such thing."""


def reason_of(trace: str) -> str:
    """The one line of a stack trace that tells what happened: Python's own, else Java's cause."""
    _, found, python = trace.rpartition("Traceback (most recent call last)")
    if found and (errors := re.findall(r"^[A-Za-z_][\w.]*(?:: .*)?$", python, re.MULTILINE)):
        return str(errors[0])
    # Py4J puts ": " before the first class, Java itself "Caused by: " before the inner ones.
    causes = re.findall(r"^(?:Caused by|): (?:[\w$]+\.)*([\w$]+(?:: .*)?)$", trace, re.MULTILINE)
    if causes:
        return str(causes[-1])
    lines = [line.strip() for line in trace.splitlines() if _tells(line)]
    return re.sub(r"^(?:[\w$]+\.)+(?=[\w$]+(?::|$))", "", lines[0]) if lines else "no reason given"


def _tells(line: str) -> bool:
    frames = ("\tat ", "Internal server error", "<Exception", "End of exception on server side>")
    return bool(line.strip()) and not line.startswith(frames)


def _because(rest: Rest, job_id: str) -> str:
    reason = rest.failure(job_id)
    return f" ({reason})" if reason else ""


def _savepoint_of(operation: Mapping[str, Any]) -> str:
    if "failure-cause" in operation:
        reason = reason_of(operation["failure-cause"].get("stack-trace", ""))
        raise RestError(f"the savepoint failed, the job goes on: {reason}")
    return str(operation["location"])


def _url(target: str) -> str:
    text = target if "://" in target else f"http://{target}"
    try:
        parts = urllib.parse.urlsplit(text)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port
    except ValueError:
        right = None
    if not right:
        raise RestError(f"--target {target}: is no address; write it as host:8081", WRONG_CALL)
    return text.rstrip("/")


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
