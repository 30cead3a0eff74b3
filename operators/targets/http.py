"""A target that is an HTTP service: a request for each event, or for a batch of events.

It is called at least once for each event. A call that is made again carries the same
`Idempotency-Key`, and a service that must not do things twice has to go by it. For a batch the key
is made of the keys of all its events: it is the same for the same batch only, and a batch that is
made again may be another one; within it the events' own identity has to do.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import ssl
import string
from base64 import b64encode
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, cast, get_args
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import anyio
import httpx
import msgspec

from operators.rules.times import epoch_ms, iso_utc_ms
from udfs.targets import Event, Outcome, Target, TargetError

Method = Literal["GET", "POST", "PUT"]
Body = Literal["event", "none"]

#: Of an answer that is a failure so much is shown, and of an address.
_SHOWN: Final = 200
#: So much of it is looked through for secrets first.
_LOOKED_AT: Final = 4096
#: Parts of headers and addresses that are shorter are no secrets.
_SHORTEST_SECRET: Final = 4
#: Of a call's time so much is for TCP and again for TLS. Less than half: a handshake that is ended
#: by its own timeout is cleaned up, but one that is cancelled leaves its socket to the garbage.
_CONNECT_SHARE: Final = 0.4
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[!-~\x80-\xff]([ -~\t\x80-\xff]*[!-~\x80-\xff])?")
#: Each request has its own, or what httpx makes of the answer depends on them.
_OURS: Final = frozenset(
    ("accept-encoding", "connection", "content-length", "idempotency-key", "transfer-encoding")
)
_NO_SECRETS: Final = frozenset(("accept", "accept-language", "content-type", "host", "user-agent"))


class HttpEventError(ValueError):
    """An event that no request can be made of. It will not get better by itself."""


class HttpAnswerError(Exception):
    """An answer that is not what was agreed: no JSON, a field that is not there, too long."""


@dataclass(frozen=True)
class HttpSettings:
    """What an `HttpTarget` goes by.

    Attributes:
        url: where to, with `{field}` of the event in its path or query: `http://host/users/{id}`.
            What it has before the `@` becomes an Authorization header. Error messages show the
            path, but neither that nor the query.
        method: "GET", "POST" or "PUT".
        body: "event", its line as JSON; or "none".
        headers: added to each request. Their values are in no error message.
        batch_max_events: 1 for a request an event; more for a JSON array of them (POST only). Then
            2xx says that all are delivered, unless the answer is an array, or an object with an
            array `results`, of one object an event in their order with its `status`.
        answer_fields: fields of the answer (or of the event's object in it) that enrich the event.
        timeout_ms: for a call, from when it has its connection until its answer is read.
        connections: at a time at most. A call that finds them all taken waits, and that is not
            part of its timeout.
        answer_max_bytes: a longer answer is a failure, and is not read to its end.

    Raises:
        TargetError: They cannot be used.
    """

    url: str = field(repr=False)
    method: Method = "POST"
    body: Body = "event"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    batch_max_events: int = 1
    answer_fields: tuple[str, ...] = ()
    timeout_ms: int = 10_000
    connections: int = 64
    answer_max_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        """Refuse at start what would fail for every event."""
        for fault in self._faults():
            raise TargetError(f"HTTP target: {fault}")

    def _faults(self) -> Iterator[str]:
        template = _Template.parsed(self.url)
        if self.method not in get_args(Method):
            yield f"method {self.method!r}: use GET, POST or PUT"
        if self.body not in get_args(Body):
            yield f'body {self.body!r}: use "event" or "none"'
        if self.method == "GET" and self.body == "event":
            yield 'a GET has no body: set body = "none", or method = "POST"'
        for name in ("batch_max_events", "timeout_ms", "connections", "answer_max_bytes"):
            if getattr(self, name) < 1:
                yield f"{name} must be 1 or more"
        if self.batch_max_events > 1:
            if (self.method, self.body) != ("POST", "event"):
                yield 'batch_max_events above 1 needs method = "POST" and body = "event"'
            if template.fields:
                yield f"a batch has one address: take {{{template.fields[0]}}} out of url"
        yield from self._header_faults(template)

    def _header_faults(self, template: _Template) -> Iterator[str]:
        names = [name.lower() for name in self.headers]
        for name, value in self.headers.items():
            if not _NAME.fullmatch(name):
                yield f"header {name!r} is not a name"
            elif not _VALUE.fullmatch(value):
                yield f"header {name}: its value is empty or has characters that no header can have"
            elif name.lower() in _OURS:
                yield f"header {name} is set for each request: take it out of headers"
            elif names.count(name.lower()) > 1:
                yield f"header {name} is there twice"
        if template.userinfo and "authorization" in names:
            yield "url has a user, and headers have Authorization: only one of them can be sent"


class _Template(NamedTuple):
    """An address with the event's fields in it.

    Attributes:
        userinfo: what stands before the @, as it stands there.
        texts: what is before, between and after the fields; the first begins the address.
        fields: the fields.
        path_fields: so many of them, the first ones, are in the path, and the others in the query.
    """

    userinfo: str
    texts: tuple[str, ...]
    fields: tuple[str, ...]
    path_fields: int

    @classmethod
    def parsed(cls, url: str) -> _Template:
        """Take an address apart.

        Raises:
            TargetError: It cannot be used. The message does not show it: it may have a password.
        """
        scheme, _, rest = url.partition("://")
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        userinfo, _, host = authority.rpartition("@")
        if scheme.lower() not in ("http", "https") or not host or "#" in rest:
            raise TargetError("HTTP target: url must be like http://host:port/path/{field}?{field}")
        if "{" in authority or "}" in authority:
            raise TargetError("HTTP target: url can have fields in its path and query only")
        template = f"{scheme}://{host}{rest[len(authority) :]}"
        texts, fields = _split(template)
        in_path = _split(template.partition("?")[0])[1]
        parsed = cls(userinfo, texts, fields, len(in_path))
        try:
            parsed.filled(["x"] * len(fields))
        except (httpx.InvalidURL, HttpEventError):
            message = "HTTP target: url is not an address: look at its host, port and dots"
            raise TargetError(message) from None
        return parsed

    def filled(self, values: Sequence[str]) -> httpx.URL:
        """The address with these values.

        Raises:
            HttpEventError: With them it would be another address: there is no way to write a
                segment of the path that is empty or one or two dots.
        """
        for name, value in zip(self.fields[: self.path_fields], values, strict=False):
            if not value:
                raise HttpEventError(f"{name} is empty, and cannot stand in the path")
        parts = [quote(value, safe="") for value in values]
        url = "".join(part for pair in zip(self.texts, [*parts, ""], strict=True) for part in pair)
        path = url.partition("?")[0].split("/")
        if "." in path or ".." in path:
            raise HttpEventError(
                f"{', '.join(self.fields[: self.path_fields])}: . and .. cannot stand in the path"
            )
        return httpx.URL(url)


def _split(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts between the fields, one more than there are fields, and the fields."""
    texts, fields = [""], []
    try:
        for text, name, form, conversion in string.Formatter().parse(template):
            texts[-1] += text
            if name is None:
                continue
            if form or conversion or not name.isidentifier():
                raise ValueError
            fields.append(name)
            texts.append("")
    except ValueError:
        message = "HTTP target: url: write a field as {name}, and a brace as {{ or }}"
        raise TargetError(message) from None
    return tuple(texts), tuple(fields)


class _Answer(NamedTuple):
    """The answer to a request. Of a body that is not `whole` this is the beginning."""

    request: httpx.Request
    response: httpx.Response
    body: bytes
    whole: bool


class HttpTarget(Target):
    """Hands events to an HTTP service.

    What becomes of an event: delivered on 2xx; `httpx.HTTPStatusError` on any other status (a
    redirect is not followed); `httpx.TransportError` if there was no answer, `TimeoutError` if it
    was not in time; `HttpAnswerError` and `HttpEventError` for what no second attempt will mend.

    httpx's client is left out: it would write each address into the log, keep cookies, and look
    for a connection among all of them twice a call. A transport of one connection each is what it
    is made of.

    Guarantee: an event is delivered at least once; it may have been delivered when a failure is
    reported.
    """

    def __init__(self, settings: HttpSettings, event_fields: Mapping[str, str]) -> None:
        """Look at the settings; nothing is opened yet.

        Args:
            settings: what to go by.
            event_fields: the fields that `url` may name, and the attribute of the event of each.

        Raises:
            TargetError: `url` names a field that is not there.
        """
        self.max_batch = settings.batch_max_events
        self._settings = settings
        self._template = _Template.parsed(settings.url)
        for name in self._template.fields:
            if name not in event_fields:
                known = ", ".join(sorted(event_fields)) or "none"
                raise TargetError(f"HTTP target: url: no field {name!r} in the contract: {known}")
        self._attributes = [event_fields[name] for name in self._template.fields]
        self._url = None if self._attributes else self._template.filled([])
        self._is_https = self._template.texts[0].lower().startswith("https:")
        connect_s = _CONNECT_SHARE * settings.timeout_ms / 1000
        self._extensions = {"timeout": {"connect": connect_s}}
        self._headers = _headers(settings, self._template)
        self._secrets = _secrets(settings, self._template)
        self._connections: list[httpx.AsyncHTTPTransport] = []

    async def open(self) -> None:
        """Get ready. Nothing is connected yet: a service that is down is for the breaker."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._is_https:
            tls = httpx.create_ssl_context(trust_env=False)  # reads all certificates: slow
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        self._connections = [
            httpx.AsyncHTTPTransport(verify=tls, limits=one, trust_env=False)
            for _ in range(self._settings.connections)
        ]
        # The last one used first: it is the least likely to have been closed at the other end.
        self._free: asyncio.LifoQueue[httpx.AsyncHTTPTransport] = asyncio.LifoQueue()
        for connection in self._connections:
            self._free.put_nowait(connection)

    async def close(self) -> None:
        """Close all connections."""
        connections, self._connections = self._connections, []
        for connection in connections:
            await connection.aclose()

    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Send the events: each in a request of its own, or all in one."""
        if not self._connections:
            raise RuntimeError("the HTTP target is not open")
        if self.max_batch == 1:
            return [await self._deliver(event) for event in events]
        return await self._deliver_batch(events)

    async def _deliver(self, event: Event) -> Outcome:
        try:
            body = event.line if self._settings.body == "event" else b""
            request = self._request(self._url_of(event), event.idempotency_key, body)
            answer = await self._call(request)
            if not self._settings.answer_fields:
                return None
            return self._enrichment(request, self._json(answer))
        except Exception as error:
            return error

    async def _deliver_batch(self, events: Sequence[Event]) -> Sequence[Outcome]:
        keys = "\n".join(event.idempotency_key for event in events)
        body = b"[%b]" % b",".join(event.line for event in events)
        try:
            key = hashlib.sha256(keys.encode()).hexdigest()
            answer = await self._call(self._request(self._url_of(events[0]), key, body))
            results = self._results(answer, len(events))
        except Exception as error:
            return [error] * len(events)
        if results is None:
            return [None] * len(events)
        return [self._outcome(answer, result) for result in results]

    # --- the request

    def _url_of(self, event: Event) -> httpx.URL:
        if self._url:
            return self._url
        template, values = self._template, []
        try:
            for name, attribute in zip(template.fields, self._attributes, strict=True):
                value = getattr(event.value, attribute)
                if value is None:
                    raise HttpEventError(f"{name} is null, and the address needs it")
                values.append(_as_text(value))
            return template.filled(values)
        except HttpEventError:
            raise
        except (httpx.InvalidURL, ValueError) as error:
            message = f"no address can be made of {', '.join(template.fields)}: {error}"
            raise HttpEventError(message[:_SHOWN]) from None

    def _request(self, url: httpx.URL, key: str, body: bytes) -> httpx.Request:
        if not (key.isascii() and key.isprintable() and key):
            raise HttpEventError(f"idempotency key {key[:_SHOWN]!r} cannot stand in a header")
        headers = [*self._headers, (b"Idempotency-Key", key.encode())]
        if body or self._settings.method != "GET":
            headers.append((b"Content-Length", b"%d" % len(body)))
        # With a stream, and not content, httpx adds no headers of its own.
        stream = httpx.ByteStream(body)
        return httpx.Request(
            self._settings.method, url, headers=headers, stream=stream, extensions=self._extensions
        )

    # --- the call

    async def _call(self, request: httpx.Request) -> _Answer:
        """The answer, if it is 2xx and all there."""
        connection = await self._free.get()
        try:
            with anyio.fail_after(self._settings.timeout_ms / 1000):
                answer = await self._exchange(connection, request)
        except TimeoutError:
            message = f"no answer within {self._settings.timeout_ms} ms: {self._shown(request)}"
            raise TimeoutError(message) from None
        except httpx.TransportError as error:
            # Without its causes: they may quote headers, ours among them.
            said = self._clean(str(error))[:_SHOWN] or type(error).__name__
            raise type(error)(f"{said}: {self._shown(request)}", request=request) from None
        finally:
            self._free.put_nowait(connection)
        if not 200 <= answer.response.status_code < 300:
            text = self._clean_body(answer.body, answer.whole)
            raise self._status_error(request, answer.response, text)
        if not answer.whole:
            most = self._settings.answer_max_bytes
            raise HttpAnswerError(f"more than {most} bytes of answer: {self._shown(request)}")
        return answer

    async def _exchange(
        self, connection: httpx.AsyncHTTPTransport, request: httpx.Request
    ) -> _Answer:
        most = self._settings.answer_max_bytes
        response = await connection.handle_async_request(request)
        response.request = request
        body = b""
        try:
            # Raw: whoever answers compressed, unasked, does not make us unpack it.
            raw = cast(AsyncGenerator[bytes, None], response.aiter_raw())
            async with aclosing(raw) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > most:
                        return _Answer(request, response, body[:most], whole=False)
        finally:
            await response.aclose()  # with what has not been read the connection is closed too
        return _Answer(request, response, body, whole=True)

    # --- the answer

    def _json(self, answer: _Answer) -> Any:
        try:
            return msgspec.json.decode(answer.body)
        except (ValueError, RecursionError):
            text = self._clean_body(answer.body, whole=True)
            message = f"the answer is not JSON: {self._shown(answer.request)}: {text}"
            raise HttpAnswerError(message) from None

    def _enrichment(self, request: httpx.Request, content: Any) -> Mapping[str, Any]:
        if not isinstance(content, dict):
            raise HttpAnswerError(f"the answer is not a JSON object: {self._shown(request)}")
        wanted = self._settings.answer_fields
        if missing := [name for name in wanted if name not in content]:
            raise HttpAnswerError(f"no {', '.join(missing)} in the answer: {self._shown(request)}")
        return {name: content[name] for name in wanted}

    def _results(self, answer: _Answer, count: int) -> list[Any] | None:
        """What the answer says of each event; None if it says nothing of them."""
        wanted = self._settings.answer_fields
        try:
            results = self._json(answer)
        except HttpAnswerError:
            if wanted:
                raise
            return None
        if isinstance(results, dict) and "results" in results:
            results = results["results"]
        elif not wanted and not _are_results(results):
            return None
        if not isinstance(results, list) or len(results) != count:
            found = f"{len(results)} results" if isinstance(results, list) else "no results"
            where = self._shown(answer.request)
            raise HttpAnswerError(f"{found} in the answer for {count} events: {where}")
        return results

    def _outcome(self, answer: _Answer, result: Any) -> Outcome:
        """What becomes of one event of a batch."""
        request = answer.request
        status = result.get("status") if isinstance(result, dict) else None
        if not isinstance(status, int) or not 100 <= status <= 599:
            where = self._shown(request)
            return HttpAnswerError(f"a result without a status in the answer: {where}")
        if not 200 <= status < 300:
            after = answer.response.headers.get("retry-after")
            headers = {"Retry-After": after} if after else {}
            response = httpx.Response(status, headers=headers, request=request)
            text = self._clean_body(msgspec.json.encode(result), whole=True)
            return self._status_error(request, response, text)
        if not self._settings.answer_fields:
            return None
        try:
            return self._enrichment(request, result)
        except HttpAnswerError as error:
            return error

    # --- what is shown of it

    def _status_error(
        self, request: httpx.Request, response: httpx.Response, text: str
    ) -> httpx.HTTPStatusError:
        message = f"HTTP {response.status_code}: {self._shown(request)}"
        message += f": {text}" if text else ""
        return httpx.HTTPStatusError(message, request=request, response=response)

    def _shown(self, request: httpx.Request) -> str:
        """Method and address, without the query."""
        path = request.url.raw_path.partition(b"?")[0].decode("ascii")
        address = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}{path}"
        return f"{request.method} {address}"[:_SHOWN]

    def _clean_body(self, body: bytes, whole: bool) -> str:
        looked_at = self._clean(body[:_LOOKED_AT].decode("utf-8", "replace"))
        if self._secrets and not (whole and len(body) <= _LOOKED_AT):
            # A secret may have been cut in two at the end, and so not have been found.
            looked_at = looked_at[: -len(self._secrets[0])]
        return looked_at[:_SHOWN]

    def _clean(self, text: str) -> str:
        """A line without our secrets: a service may quote what it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _are_results(content: Any) -> bool:
    """One is enough: it would be bad to take the others for delivered without a word."""
    return isinstance(content, list) and any(
        isinstance(each, dict) and "status" in each for each in content
    )


def _as_text(value: Any) -> str:
    """A field of an event, as its line has it but for the quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return iso_utc_ms(epoch_ms(value))
    return str(value)


def _credentials(template: _Template) -> bytes:
    """What stands before the @, as Basic authentication has it."""
    user, _, password = template.userinfo.partition(":")
    return b64encode(f"{unquote(user)}:{unquote(password)}".encode())


def _headers(settings: HttpSettings, template: _Template) -> list[tuple[bytes, bytes]]:
    """What every request has."""
    url = template.filled(["x"] * len(template.fields))
    headers = {"host": url.netloc.decode("ascii"), "accept": "*/*", "user-agent": "breakwater"}
    if settings.body == "event":
        headers["content-type"] = "application/json"
    if template.userinfo:
        headers["authorization"] = f"Basic {_credentials(template).decode()}"
    headers |= {name.lower(): value for name, value in settings.headers.items()}
    # Not compressed: an answer's bytes are counted as they are read.
    headers["accept-encoding"] = "identity"
    return [(name.title().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _secrets(settings: HttpSettings, template: _Template) -> list[str]:
    """What must not be shown, the longest first."""
    values: set[str] = set()
    for name, value in settings.headers.items():
        if name.lower() not in _NO_SECRETS:
            values |= {value, *value.split()}
    query = urlsplit("".join(template.texts)).query
    values |= {value for _, value in parse_qsl(query)}
    if template.userinfo:
        _, _, password = template.userinfo.partition(":")
        values |= {template.userinfo, password, unquote(password), _credentials(template).decode()}
    return _long_enough(values)


def _long_enough(values: Collection[str]) -> list[str]:
    """Also as they stand in JSON and in addresses."""
    kept = {value for value in values if len(value) >= _SHORTEST_SECRET}
    written = {json.dumps(value)[1:-1] for value in kept} | {quote(value) for value in kept}
    return sorted(kept | written, key=len, reverse=True)
