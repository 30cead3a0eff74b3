"""Faults of the REST interface; what a real cluster answers is in tests/cluster."""

from __future__ import annotations

import socket

import pytest

from flink_jobs.cluster.rest import Rest, RestError, reason_of
from flink_jobs.cluster.submit import refusal
from tests.unit.flink_jobs.cluster.server import answering

TRACE = """org.apache.flink.util.FlinkException: Could not submit.
\tat org.apache.flink.A.b(A.java:1)
Caused by: java.util.concurrent.CompletionException: it failed
\tat org.apache.flink.C.d(C.java:2)
Caused by: java.io.FileNotFoundException: /nowhere/_metadata
\t... 3 more
"""

PYTHON = """java.lang.RuntimeException: Failed to close
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 1: \
Traceback (most recent call last):
  File "x.py", line 1, in open
    raise RuntimeError("this one")
RuntimeError: this one

\tat org.apache.beam.X.y(X.java:1)
"""


def fault(target: str) -> RestError:
    with pytest.raises(RestError) as caught:
        Rest(target, answers_within_s=1).get("/overview")
    assert target in caught.value.message
    return caught.value


@pytest.mark.parametrize("target", ["", "host", "host:", "host:none", "ftp://host:1", ":8081"])
def test_what_is_no_address_is_a_wrong_call(target: str) -> None:
    with pytest.raises(RestError, match="write it as host:8081") as caught:
        Rest(target)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("target", ["host:8081", "http://host:8081", "http://host:8081/"])
def test_an_address_may_have_its_scheme(target: str) -> None:
    assert Rest(target).url == "http://host:8081"


def test_nobody_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{held.getsockname()[1]}"
        assert "no Flink cluster answers there (Connection refused)" in fault(target).message


def test_somebody_who_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        assert "no Flink cluster answers there (no answer in time)" in fault(target).message


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (404, b"gone"), (500, b"{}")])
def test_another_server(status: int, body: bytes) -> None:
    with answering(lambda _: body, status) as target:
        assert "what answers there is no Flink cluster" in fault(target).message


def test_flinks_own_reason_is_told() -> None:
    with answering(
        lambda _: b'{"errors": ["java.lang.IllegalStateException: no slots"]}', 500
    ) as target:
        assert fault(target).message.endswith("GET /overview: IllegalStateException: no slots")


def test_the_reason_is_the_innermost_cause() -> None:
    assert reason_of(TRACE) == "FileNotFoundException: /nowhere/_metadata"
    assert reason_of("org.apache.flink.E: what it says\n\tat x") == "E: what it says"
    assert reason_of("An error occurred.\n: java.lang.Illegal: not so\n\tat x") == "Illegal: not so"
    assert reason_of(PYTHON) == "RuntimeError: this one"
    assert reason_of("") == "no reason given"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (f"noise\nbreakwater: kafka.topics: is missing\n{TRACE}", "kafka.topics: is missing"),
        (f"noise\n{TRACE}", "FileNotFoundException: /nowhere/_metadata"),
        ("Traceback\n  File\nModuleNotFoundError: No module named 'x'\n", "ModuleNotFoundError"),
    ],
)
def test_what_flinks_client_prints_is_one_line(said: str, wanted: str) -> None:
    assert wanted in refusal(said)
