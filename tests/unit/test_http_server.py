"""The server that other tests trust: that it does what it is told, and says what it was asked."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.http_server import (
    MOST_BODY_BYTES,
    HttpServer,
    RemoteServer,
    Rule,
    ServerProcess,
)

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("error")]
LIMIT_S = 10.0


@pytest.fixture(params=[HttpServer, ServerProcess])
def server(request: pytest.FixtureRequest) -> Iterator[RemoteServer]:
    with request.param() as server:
        yield server


def connect(server: RemoteServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)


def ask(
    server: RemoteServer, path: str = "/", *, method: str = "GET", key: str = "", body: str = ""
) -> tuple[int, str]:
    connection = connect(server)
    try:
        connection.request(method, path, body or None, {"Idempotency-Key": key} if key else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def statuses(server: RemoteServer, *paths: str, key: str = "") -> list[int]:
    return [ask(server, path, key=key)[0] for path in paths]


def test_without_rules_everything_is_answered_with_200(server: RemoteServer) -> None:
    assert ask(server) == (200, "{}")
    server.behave(json={"name": "Ada"})
    assert ask(server, "/users/u1") == (200, '{"name": "Ada"}')


def test_requests_are_written_down_as_they_came(server: RemoteServer) -> None:
    before = time.time()
    ask(server, "/users/a%2Fb?x=1", method="POST", key="k1", body="{}" * 1000)
    ask(server, "/other")
    first, second = server.requests()
    assert (first.number, first.method, first.path) == (0, "POST", "/users/a%2Fb?x=1")
    assert (first.key, first.body, first.status, first.ending) == (
        "k1",
        "{}" * 500,
        200,
        "answered",
    )
    assert first.headers["idempotency-key"] == "k1"
    assert before <= first.at_s <= second.at_s <= time.time()
    assert (second.number, second.key, second.body) == (1, "", "")
    assert server.requests(since=1) == [second]


def test_the_first_rule_that_applies_is_followed(server: RemoteServer) -> None:
    server.behave(
        Rule(path="/users/u1", status=503),
        Rule(path="/users", key="k", status=404),
        Rule(method="POST", body_has='"u2"', status=400),
    )
    assert statuses(server, "/users/u1", "/users/u2", "/u2", key="k") == [503, 404, 200]
    assert ask(server, "/u2", method="POST", body='{"id":"u2"}')[0] == 400


def test_a_rule_may_hold_for_the_first_requests_only(server: RemoteServer) -> None:
    server.behave(Rule(path="/a", first=2, status=500))
    assert statuses(server, "/a", "/b", "/a", "/a") == [500, 200, 500, 200]
    server.reset()
    assert statuses(server, "/a") == [500]


def test_a_rule_may_hold_for_the_first_requests_of_each_key(server: RemoteServer) -> None:
    server.behave(Rule(first_of_key=1, status=429))
    assert [ask(server, key=key)[0] for key in ("k1", "k2", "k1", "k2")] == [429, 429, 200, 200]


def test_a_probability_is_drawn_from_the_number_of_the_request() -> None:
    rule = Rule(probability=0.3, seed=7, status=500)
    with HttpServer(rule) as server:
        given = statuses(server, *["/"] * 200)
    assert given == [500 if rule.draws(number) else 200 for number in range(200)]
    assert 30 < given.count(500) < 90


def test_an_answer_may_be_late_and_tell_when_to_come_back(server: RemoteServer) -> None:
    server.behave(Rule(delay_ms=200, status=503, retry_after="7", headers={"X-Of": "a test"}))
    connection = connect(server)
    began = time.monotonic()
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    assert time.monotonic() - began >= 0.2
    assert answer.headers["Retry-After"] == "7"
    assert answer.headers["X-Of"] == "a test"
    connection.request("GET", "/")  # on the same connection
    assert connection.getresponse().status == 503
    connection.close()
    assert server.counts()["connections_made"] == 1


def test_a_hanging_request_is_never_answered(server: RemoteServer) -> None:
    server.behave(Rule(path="/hang", hang=True))
    with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
        client.sendall(b"GET /hang HTTP/1.1\r\n\r\n")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert server.counts()["in_flight"] == 1
        assert ask(server)[0] == 200  # others do not wait for it
    wait_for(server, "in_flight", 0)
    assert [(each.status, each.ending) for each in server.requests()] == [
        (0, "hung"),
        (200, "answered"),
    ]


def test_a_connection_may_be_cut_before_the_answer_or_in_it(server: RemoteServer) -> None:
    server.behave(Rule(path="/before", cut="before"), Rule(path="/in", cut="in_body", text="half"))
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/before")
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(server, "/in")
    assert cut.value.partial == b"half"
    assert [(each.status, each.ending) for each in server.requests()] == [(0, "cut"), (200, "cut")]


def test_it_counts(server: RemoteServer) -> None:
    server.behave(Rule(path="/slow", delay_ms=300, status=500))
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: ask(server, "/slow")[0], range(3))) == [500] * 3
    ask(server)
    counts = server.counts()
    assert counts["by_status"] == {"200": 1, "500": 3}
    assert (counts["requests"], counts["most_in_flight"], counts["in_flight"]) == (4, 3, 0)
    assert counts["connections_made"] == 4
    wait_for(server, "connections", 0)
    server.reset()
    assert server.counts() | {"connections": 0} == {
        "requests": 0,
        "by_status": {},
        "in_flight": 0,
        "most_in_flight": 0,
        "connections": 0,
        "connections_made": 0,
    }


def wait_for(server: RemoteServer, name: str, value: int) -> None:
    until = time.monotonic() + LIMIT_S
    while server.counts()[name] != value:
        assert time.monotonic() < until, server.counts()
        time.sleep(0.01)


def test_only_the_last_requests_and_keys_are_remembered() -> None:
    with HttpServer(Rule(first_of_key=1, status=500), most_requests=3) as server:
        given = [ask(server, key=f"k{i}")[0] for i in (0, 1, 2, 3, 3, 0)]
        assert given == [500, 500, 500, 500, 200, 500]  # k0 was forgotten
        assert [each.number for each in server.requests()] == [3, 4, 5]
        assert server.counts()["requests"] == 6


def test_a_silent_connection_is_closed_in_the_end() -> None:
    with HttpServer(Rule(hang=True), idle_s=0.2) as server:
        with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
            assert client.recv(1) == b""
        with pytest.raises(http.client.RemoteDisconnected):
            ask(server)


def test_it_stops_while_a_request_hangs(server: RemoteServer) -> None:
    server.behave(Rule(hang=True))
    with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_for(server, "in_flight", 1)
        began = time.monotonic()
        server.stop()
        assert client.recv(1) == b""
        assert time.monotonic() - began < LIMIT_S / 2
    until = time.monotonic() + LIMIT_S
    while is_listening(server.port):
        assert time.monotonic() < until
        time.sleep(0.01)


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_its_thread_ends_with_it() -> None:
    with HttpServer() as server:
        ask(server)
    assert "http-server" not in [thread.name for thread in threading.enumerate()]


def test_it_comes_back_on_the_same_port() -> None:
    with HttpServer() as server:
        connection = connect(server)
        connection.request("GET", "/")
        connection.getresponse().read()
    connection.close()
    with HttpServer(Rule(status=503), port=server.port) as again:
        assert again.port == server.port
        assert ask(again)[0] == 503


def test_a_port_that_is_taken_is_said_at_once() -> None:
    with (
        HttpServer() as server,
        pytest.raises(OSError, match="in use"),
        HttpServer(port=server.port),
    ):
        pass


def test_an_order_that_it_does_not_know_is_refused(server: RemoteServer) -> None:
    status, text = ask(server, "/_control", method="POST", body='{"rules": [{"stauts": 500}]}')
    assert (status, "stauts" in text) == (400, True)
    assert ask(server, "/_control", method="POST", body='{"rule": []}')[0] == 400
    assert ask(server, "/_control", method="POST", body="no JSON")[0] == 400
    assert ask(server, "/_nothing")[0] == 404
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    "request_head",
    [
        b"no HTTP\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MOST_BODY_BYTES + 1),
        b"GET / HTTP/1.1\r\nX: " + b"x" * 300_000,
    ],
)
def test_what_it_does_not_serve_costs_only_that_connection(request_head: bytes) -> None:
    with HttpServer() as server:
        with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
            try:
                client.sendall(request_head)
                assert b" 200 " not in client.recv(1000)
            except ConnectionError:
                pass  # closed before all was sent
        assert ask(server)[0] == 200


def test_by_itself_it_serves_until_its_time_is_over(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "tests.http_server", "--port-file", str(port_file)]
    process = subprocess.Popen([*command, "--lifetime-s", "1"])
    try:
        until = time.monotonic() + LIMIT_S
        while not port_file.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        server = RemoteServer(int(port_file.read_text()))
        assert json.loads(ask(server, "/_counts")[1])["requests"] == 0
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait(LIMIT_S)
