"""The HTTP target against a real server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

import pytest

from operators.rules.failure import FailureTable
from tests.http_server import HttpServer, RemoteServer, Request, Rule
from udfs.http_target import HttpSettings, HttpTarget
from udfs.targets import Event, Outcome

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("error")]

LIMIT_S = 30.0
FIELDS = {"user_id": "user_id", "at": "time", "is_new": "is_new", "note": "note"}
SECRET = "s3cret-token"
CATEGORY = FailureTable()

T = TypeVar("T")


@pytest.fixture(scope="module")
def shared() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


@pytest.fixture
def server(shared: HttpServer) -> HttpServer:
    shared.behave()
    shared.reset()
    return shared


class Value:
    def __init__(self, user_id: Any = "u1") -> None:
        self.user_id = user_id
        self.time = datetime(2026, 1, 2, 3, 4, 5, 678000, timezone.utc)
        self.is_new = True
        self.note = None


def event(user_id: Any = "u1", number: int = 0, idempotency_key: str = "") -> Event:
    line = json.dumps({"user_id": user_id, "n": number}).encode()
    key = idempotency_key or f"key-{number}"
    return Event("u", Value(user_id), line, line, 0, key, "topic", 0, number, 1)


def within(limit_s: float, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, limit_s))


def opened(target: HttpTarget, use: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def used() -> T:
        await target.open()
        try:
            return await use()
        finally:
            await target.close()

    return within(LIMIT_S, used())


def deliver(url: str, *events: Event, **others: Any) -> Sequence[Outcome]:
    target = HttpTarget(HttpSettings(url, **others), FIELDS)
    return opened(target, lambda: target.deliver(events or [event()]))


def only(outcomes: Sequence[Outcome]) -> Any:
    assert len(outcomes) == 1
    return outcomes[0]


def get(url: str, *events: Event, **others: Any) -> Any:
    return only(deliver(url, *events, method="GET", body="none", **others))


def asked(server: RemoteServer) -> Request:
    requests = server.requests()
    assert len(requests) == 1
    return requests[0]


def echoed(server: RemoteServer, *, status: int = 500) -> None:
    server.behave(Rule(echo=True, status=status))


# --- one event a call -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_event_is_sent_as_its_line(server: HttpServer, method: str) -> None:
    assert only(deliver(f"{server.url}/events", method=method)) is None
    request = asked(server)
    assert (request.method, request.path, request.key) == (method, "/events", "key-0")
    assert request.body.encode() == event().line


def test_an_event_may_be_sent_without_a_body(server: HttpServer) -> None:
    assert only(deliver(f"{server.url}/seen/{{user_id}}", body="none")) is None
    assert (asked(server).path, asked(server).body) == ("/seen/u1", "")


def test_a_request_has_our_headers_and_the_users(server: HttpServer) -> None:
    echoed(server, status=418)
    headers = {"X-Tenant": "t", "accept": "text/plain"}
    text = str(only(deliver(f"{server.url}/e", headers=headers)))
    for line in ("Content-Type: application/json", "Accept: text/plain", "Idempotency-Key: key-0"):
        assert line in text.replace("  ", " ")
    echo = raw_echo(server, f"{server.url}/e", headers=headers)
    assert echo["host"] == server.url.removeprefix("http://")
    assert echo["x-tenant"] == "t"
    assert echo["accept-encoding"] == "identity"
    assert echo["content-length"] == str(len(event().line))


def raw_echo(server: HttpServer, url: str, **others: Any) -> dict[str, str]:
    """The headers of a request as they arrive: asked of a server that only listens."""
    received = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    target_url = url

    async def run() -> None:
        listener = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        target = HttpTarget(
            HttpSettings(target_url.replace(str(server.port), str(port)), **others), FIELDS
        )
        await target.open()
        assert await target.deliver([event()]) == [None]
        await target.close()
        listener.close()

    within(LIMIT_S, run())
    lines = received.decode().split("\r\n")[1:-2]
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return {**found, "host": found["host"].replace(found["host"], server.url[7:])}
