"""A real HTTP/1.1 server on loopback that is told how to behave, and writes down what it was asked.

In a thread of the test::

    with HttpServer(Rule(path="/users/u1", status=503, retry_after="2", first=3)) as server:
        ...  # httpx against server.url
        assert [request.status for request in server.requests()] == [503, 503, 503, 200]

or as a process of its own, which survives the processes that are tested, with the same methods::

    with ServerProcess() as server:
        server.behave(Rule(hang=True))

By hand: `python -m tests.http_server --port-file F`; then, of any program:

- POST /_control  {"rules": [{"path": "/users", "status": 503}], "json": {}, "reset": true,
  "stop": true}: whatever is left out stays as it is;
- GET /_requests?since=N  JSON lines, of the requests from number N on that are still remembered;
- GET /_counts.

A request is answered by the first rule that applies to it, and if there is none with 200.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

Cut = Literal["", "before", "in_body"]

#: A limit for whatever is waited for: a start, a stop, an answer of the server to its test.
WAIT_S: Final = 20.0
#: A connection that nothing has happened on for so long is closed, a hanging one too.
IDLE_S: Final = 300.0
#: A server of its own ends by itself after so long, whatever becomes of its test.
LIFETIME_S: Final = 3600.0
MOST_HEAD_BYTES: Final = 200_000
MOST_BODY_BYTES: Final = 64_000_000


@dataclass(frozen=True)
class Rule:
    """What is done about some requests. It applies if all of what is set does.

    Attributes:
        path: the path begins so.
        method: GET, POST, ...
        key: the Idempotency-Key is this.
        body_has: the body has this in it.
        first: only for the first so many requests that it would apply to; 0 for all.
        first_of_key: the same, for each Idempotency-Key by itself.
        probability: of 1. Drawn from `seed` and the number of the request, so that a test can tell
            afterwards which it was.
        seed: of the probability.
        status: what is answered.
        json: the body.
        text: the body, if it is not to be JSON.
        echo: the body is the request's own head and body.
        headers: of the answer.
        retry_after: the header: seconds or a date.
        delay_ms: so long before the answer.
        drip_ms: so long before each single byte of the body.
        hang: no answer, until the client or the server's idle limit closes the connection.
        cut: the connection is closed: "before" the answer, or "in_body".
    """

    path: str = ""
    method: str = ""
    key: str = ""
    body_has: str = ""
    first: int = 0
    first_of_key: int = 0
    probability: float = 1.0
    seed: int = 0
    status: int = 200
    json: Any = None
    text: str | None = None
    echo: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    retry_after: str = ""
    delay_ms: float = 0
    drip_ms: float = 0
    hang: bool = False
    cut: Cut = ""

    def draws(self, number: int) -> bool:
        """Whether the request of this number is among those that the probability is for."""
        if self.probability >= 1:
            return True
        return random.Random(f"{self.seed}/{number}").random() < self.probability  # noqa: S311


class Request(NamedTuple):
    """A request as it came.

    `number` counts them from 0, `at_s` is seconds since 1970; of `head` and `body` the beginning is
    kept. `status` is what was answered, 0 if nothing was; `ending` says how it ended: "answered",
    "hung", "cut".
    """

    number: int
    at_s: float
    method: str
    path: str
    key: str
    head: str
    body: str
    status: int
    ending: str

    @property
    def headers(self) -> dict[str, str]:
        """By their names in small letters."""
        pairs = (line.partition(":") for line in self.head.split("\r\n")[1:] if line)
        return {name.lower(): value.strip() for name, _, value in pairs}


# --- what is answered -----------------------------------------------------------------------------


class _Answers:
    """The rules with what they have counted, and what has been asked. Of one thread."""

    def __init__(
        self, rules: Sequence[Rule], default: Any, most_requests: int, body_bytes: int
    ) -> None:
        self.rules = [_Counting(rule, most_requests) for rule in rules]
        self.default = _Prepared(Rule(json=default))
        self.most_requests = most_requests
        self.body_bytes = body_bytes
        self.reset()

    def behave(self, rules: Sequence[Rule]) -> None:
        self.rules = [_Counting(rule, self.most_requests) for rule in rules]

    def reset(self) -> None:
        self.requests: deque[Request] = deque(maxlen=self.most_requests)
        self.count = 0
        self.by_status: Counter[int] = Counter()
        self.most_in_flight = 0
        self.rules = [_Counting(each.rule, self.most_requests) for each in self.rules]

    def answer(self, method: str, path: str, key: str, head: bytes, body: bytes) -> _Prepared:
        number = self.count
        self.count += 1
        answer = self.default
        for rule in self.rules:
            if rule.applies(number, method, path, key, body):
                answer = rule.prepared
                break
        shown = head[: self.body_bytes].decode("latin-1")
        kept = body[: self.body_bytes].decode("utf-8", "replace")
        status, ending = answer.status, answer.ending
        asked = Request(number, time.time(), method, path, key, shown, kept, status, ending)
        self.requests.append(asked)
        self.by_status[answer.status] += 1
        return answer


class _Prepared:
    """A rule's answer, as bytes."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.is_plain = not (rule.delay_ms or rule.drip_ms or rule.hang or rule.cut or rule.echo)
        self.ending = "hung" if rule.hang else "cut" if rule.cut else "answered"
        self.status = 0 if rule.hang or rule.cut == "before" else rule.status
        text = (
            json.dumps({} if rule.json is None else rule.json) if rule.text is None else rule.text
        )
        self.body = b"" if rule.status in (204, 304) else text.encode()
        self.whole = self.head(len(self.body)) + self.body

    def head(self, length: int) -> bytes:
        rule = self.rule
        known = rule.status in HTTPStatus._value2member_map_
        headers = {
            "Content-Type": "text/plain" if rule.text is not None else "application/json",
            **({} if rule.status == 204 else {"Content-Length": str(length)}),
            **({"Retry-After": rule.retry_after} if rule.retry_after else {}),
            **rule.headers,
        }
        lines = [f"HTTP/1.1 {rule.status} {HTTPStatus(rule.status).phrase if known else 'Status'}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Counting:
    """A rule, and how often it has applied."""

    def __init__(self, rule: Rule, most_keys: int) -> None:
        self.rule = rule
        self.prepared = _Prepared(rule)
        self.body_has = rule.body_has.encode()
        self.count = 0
        self.most_keys = most_keys
        self.of_key: OrderedDict[str, int] = OrderedDict()

    def applies(self, number: int, method: str, path: str, key: str, body: bytes) -> bool:
        rule = self.rule
        if not (
            path.startswith(rule.path)
            and (not rule.method or rule.method == method)
            and (not rule.key or rule.key == key)
            and (not self.body_has or self.body_has in body)
            and rule.draws(number)
        ):
            return False
        self.count += 1
        if rule.first and self.count > rule.first:
            return False
        return not rule.first_of_key or self._count_of(key) <= rule.first_of_key

    def _count_of(self, key: str) -> int:
        count = self.of_key[key] = self.of_key.get(key, 0) + 1
        self.of_key.move_to_end(key)
        if len(self.of_key) > self.most_keys:
            self.of_key.popitem(last=False)
        return count


# --- the server -----------------------------------------------------------------------------------


class _Connection:
    """One connection, from when it is made until it is closed."""

    def __init__(
        self, server: _Loop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.used_s = time.monotonic()
        self.counts = False

    async def serve(self) -> None:
        server = self.server
        while not server.stopping.is_set():
            head = await self.reader.readuntil(b"\r\n\r\n")
            self.used_s = time.monotonic()
            method, path, _ = head[: head.index(b"\r\n")].decode("latin-1").split(" ")
            lower = head.lower()
            if b"\r\ntransfer-encoding:" in lower:
                self.writer.write(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n")
                return
            length = int(_header(head, lower, b"content-length") or "0")
            if length > MOST_BODY_BYTES:
                self.writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
                return
            body = await self.reader.readexactly(length) if length else b""
            if path.startswith("/_"):
                self.writer.write(server.own_answer(method, path, body))
            else:
                self._count()
                key = _header(head, lower, b"idempotency-key")
                answer = server.answers.answer(method, path, key, head, body)
                if not await self._give(answer, head + body):
                    return
            await self.writer.drain()
            if b"\r\nconnection: close\r\n" in lower:
                return

    def _count(self) -> None:
        """A connection counts once it asks for something else than our own answers."""
        if not self.counts:
            self.counts = True
            self.server.connections_made += 1

    async def _give(self, answer: _Prepared, asked: bytes) -> bool:
        """Whether the connection goes on."""
        server = self.server
        server.in_flight += 1
        server.answers.most_in_flight = max(server.answers.most_in_flight, server.in_flight)
        try:
            if answer.is_plain:
                self.writer.write(answer.whole)
                return True
            return await self._give_slowly(answer, asked)
        finally:
            server.in_flight -= 1

    async def _give_slowly(self, answer: _Prepared, asked: bytes) -> bool:
        rule = answer.rule
        if rule.hang:
            await self.reader.read(1)  # until the client has enough, or the sweep
            return False
        if rule.delay_ms:
            await asyncio.sleep(rule.delay_ms / 1000)
        if rule.cut == "before":
            return False
        body = asked if rule.echo else answer.body
        self.writer.write(answer.head(len(body) + 100 * (rule.cut == "in_body")))
        if rule.drip_ms:
            for each in body:
                await asyncio.sleep(rule.drip_ms / 1000)
                if self.writer.is_closing():
                    return False
                self.writer.write(bytes([each]))
        else:
            self.writer.write(body)
        return not rule.cut


def _header(head: bytes, lower: bytes, name: bytes) -> str:
    start = lower.find(b"\r\n" + name + b":")
    if start < 0:
        return ""
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].decode("latin-1").strip()


class _Loop:
    """The server on its event loop."""

    def __init__(self, answers: _Answers, port: int, idle_s: float) -> None:
        self.answers = answers
        self.port = port
        self.idle_s = idle_s
        self.in_flight = 0
        self.stopping = asyncio.Event()
        self.connections_made = 0
        self.connections: dict[asyncio.Task[None], _Connection] = {}

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until it is told to stop."""
        server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, limit=MOST_HEAD_BYTES, backlog=1000
        )
        self.port = server.sockets[0].getsockname()[1]
        started()
        try:
            while not self.stopping.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), min(1.0, self.idle_s / 2))
                self._sweep()
        finally:
            server.close()  # and what is still connected is cancelled with the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connection = self.connections[task] = _Connection(self, reader, writer)
        try:
            await connection.serve()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or does not speak HTTP
        except asyncio.CancelledError:
            pass  # ended here: the streams would make a message of it
        finally:
            del self.connections[task]
            writer.close()

    def _sweep(self) -> None:
        oldest = time.monotonic() - self.idle_s
        for task, connection in list(self.connections.items()):
            if connection.used_s < oldest:
                task.cancel()

    # Control

    def own_answer(self, method: str, path: str, body: bytes) -> bytes:
        parts = urlsplit(path)
        try:
            if (method, parts.path) == ("POST", "/_control"):
                return _ok(self.control(json.loads(body)))
            if (method, parts.path) == ("GET", "/_counts"):
                return _ok(json.dumps(self.counts()))
            if (method, parts.path) == ("GET", "/_requests"):
                since = int(parse_qs(parts.query).get("since", ["0"])[0])
                return _ok("".join(json.dumps(r._asdict()) + "\n" for r in self.requests(since)))
        except (ValueError, TypeError, AttributeError) as error:
            return _ok(f"{type(error).__name__}: {error}\n", b"400 Bad Request")
        return _ok("POST /_control, GET /_requests?since=N, GET /_counts\n", b"404 Not Found")

    def control(self, orders: dict[str, Any]) -> str:
        if unknown := set(orders) - {"rules", "json", "reset", "stop"}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        if "rules" in orders:
            self.answers.behave([Rule(**each) for each in orders["rules"]])
        if "json" in orders:
            self.answers.default = _Prepared(Rule(json=orders["json"]))
        if orders.get("reset"):
            self.answers.reset()
            self.connections_made = 0
        if orders.get("stop"):
            self.stopping.set()
        return "{}"

    def requests(self, since: int) -> list[Request]:
        return [request for request in self.answers.requests if request.number >= since]

    def counts(self) -> dict[str, Any]:
        return {
            "requests": self.answers.count,
            "by_status": {str(status): n for status, n in sorted(self.answers.by_status.items())},
            "in_flight": self.in_flight,
            "most_in_flight": self.answers.most_in_flight,
            "connections": sum(each.counts for each in self.connections.values()),
            "connections_made": self.connections_made,
        }


def _ok(text: str, status: bytes = b"200 OK") -> bytes:
    body = text.encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


# --- what a test sees of it -----------------------------------------------------------------------


class RemoteServer:
    """A server somewhere on this machine, by its port."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def behave(self, *rules: Rule, json: Any = None) -> None:
        """From now on by these rules, and where none applies with 200 and this body."""
        self._control({"rules": [_changed(rule) for rule in rules], "json": json})

    def reset(self) -> None:
        """Forget the requests, the counts and what the rules have counted."""
        self._control({"reset": True})

    def stop(self) -> None:
        """Tell it to end."""
        self._control({"stop": True})

    def requests(self, since: int = 0) -> list[Request]:
        """The last requests, oldest first, from this number on."""
        text = self._ask("GET", f"/_requests?since={since}")
        return [Request(**json.loads(line)) for line in text.splitlines()]

    def counts(self) -> dict[str, Any]:
        """Counts: requests, by_status, in flight and the most of them, connections now and ever."""
        counts: dict[str, Any] = json.loads(self._ask("GET", "/_counts"))
        return counts

    def _control(self, orders: dict[str, Any]) -> None:
        self._ask("POST", "/_control", json.dumps(orders))

    def _ask(self, method: str, path: str, body: str | None = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {"Connection": "close"})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} {path}: {answer.status} {text.strip()}")
        return text


def _changed(rule: Rule) -> dict[str, Any]:
    """Only what is not as it would be anyway."""
    return {
        each.name: value
        for each in fields(rule)
        if (value := getattr(rule, each.name)) != getattr(Rule(), each.name)
    }


class HttpServer(RemoteServer):
    """A server in a thread of this process.

    Args:
        rules: how it behaves at first.
        json: what is answered where no rule applies.
        port: 0 for any that is free.
        most_requests: so many requests are remembered, and so many keys are counted by a rule.
        body_bytes: so much is remembered of a body, and of a head.
        idle_s: a connection that nothing has happened on for so long is closed.
    """

    def __init__(
        self,
        *rules: Rule,
        json: Any = None,
        port: int = 0,
        most_requests: int = 100_000,
        body_bytes: int = 1000,
        idle_s: float = IDLE_S,
    ) -> None:
        super().__init__(port)
        self._answers = _Answers(rules, json, most_requests, body_bytes)
        self._idle_s = idle_s
        self._started = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="http-server", daemon=True)

    def __enter__(self) -> HttpServer:
        """Start it."""
        self._thread.start()
        if not self._started.wait(WAIT_S):
            raise TimeoutError(f"the HTTP server has not started within {WAIT_S} s")
        if self._fault:
            raise self._fault
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all connections and end."""
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._server.stopping.set)
        self._thread.join(WAIT_S)
        if self._thread.is_alive():
            raise TimeoutError(f"the HTTP server has not stopped within {WAIT_S} s")
        if self._fault:
            raise self._fault

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._fault = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _Loop(self._answers, self.port, self._idle_s)
        await self._server.run(self._now_started)

    def _now_started(self) -> None:
        self.port = self._server.port
        self._started.set()


class ServerProcess(RemoteServer):
    """A server in a process of its own, which is started and stopped here."""

    def __init__(
        self,
        *rules: Rule,
        json: Any = None,
        port: int = 0,
        most_requests: int = 100_000,
        body_bytes: int = 1000,
    ) -> None:
        super().__init__(port)
        self._rules = rules
        self._json = json
        bounds = ["--most-requests", str(most_requests), "--body-bytes", str(body_bytes)]
        self._options = ["--port", str(port), *bounds]

    def __enter__(self) -> ServerProcess:
        """Start it, and wait until it answers."""
        with tempfile.TemporaryDirectory() as folder:
            port_file = Path(folder) / "port"
            command = [sys.executable, "-m", "tests.http_server", "--port-file", str(port_file)]
            self._process = subprocess.Popen(
                [*command, *self._options], cwd=Path(__file__).parent.parent
            )
            try:
                self.port = self._wait_for(port_file)
                self.behave(*self._rules, json=self._json)
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self._end()

    def _wait_for(self, port_file: Path) -> int:
        until = time.monotonic() + WAIT_S
        while not port_file.exists():
            if self._process.poll() is not None:
                raise ChildProcessError(f"the HTTP server has ended: {self._process.returncode}")
            if time.monotonic() > until:
                raise TimeoutError(f"the HTTP server has not started within {WAIT_S} s")
            time.sleep(0.02)
        return int(port_file.read_text())

    def _end(self) -> None:
        """By force if it does not by itself."""
        self._process.terminate()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(WAIT_S)


# --- by itself ------------------------------------------------------------------------------------


async def _serve_alone(arguments: argparse.Namespace) -> None:
    answers = _Answers((), None, arguments.most_requests, arguments.body_bytes)
    server = _Loop(answers, arguments.port, arguments.idle_s)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stopping.set)
    loop.call_later(arguments.lifetime_s, server.stopping.set)

    def write_port() -> None:
        # Whoever waits for the file finds all of it.
        new = arguments.port_file.with_name(arguments.port_file.name + ".new")
        new.write_text(str(server.port))
        os.replace(new, arguments.port_file)

    await server.run(write_port)


def main() -> None:
    """Serve until SIGTERM, Ctrl-C, an order or the end of the time."""
    parser = argparse.ArgumentParser(prog="python -m tests.http_server")
    parser.add_argument("--port-file", type=Path, required=True, help="its port is written here")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--lifetime-s", type=float, default=LIFETIME_S)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    parser.add_argument("--most-requests", type=int, default=100_000)
    parser.add_argument("--body-bytes", type=int, default=1000)
    asyncio.run(_serve_alone(parser.parse_args()))


if __name__ == "__main__":
    main()
