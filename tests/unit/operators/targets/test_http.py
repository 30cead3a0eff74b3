"""The HTTP target against a real server on loopback."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import json
import logging
import socket
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import unquote

import cloudpickle  # type: ignore[import-untyped] # it ships none
import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from operators.rules.delivery.failure import FailureTable, retry_after_ms
from operators.targets.http import HttpAnswerError, HttpEventError, HttpSettings, HttpTarget
from tests.http_server import HttpServer, RemoteServer, Request, Rule
from udfs.targets import Event, Outcome, TargetError

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("error")]

LIMIT_S = 30.0
FIELDS = {"user_id": "user_id", "at": "time", "is_new": "is_new", "note": "note"}
SECRET = 'pass"word-of-ours'  # noqa: S105 - only this test knows it

T = TypeVar("T")


@pytest.fixture(scope="module")
def shared() -> Iterator[HttpServer]:
    with HttpServer(body_bytes=10_000) as server:
        yield server


@pytest.fixture
def server(shared: HttpServer) -> HttpServer:
    shared.behave()
    shared.reset()
    return shared


class Value:
    """An event of some contract: FIELDS are its fields."""

    def __init__(self, user_id: Any) -> None:
        self.user_id = user_id
        self.time = datetime(2026, 1, 2, 3, 4, 5, 678000, timezone.utc)
        self.is_new = True
        self.note = None


def event(user_id: Any = "u1", number: int = 0, key: str = "") -> Event:
    line = b'{"n":%d}' % number
    return Event("u", Value(user_id), line, line, 0, key or f"key-{number}", "topic", 0, number, 1)


def opened(target: HttpTarget, use: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What is done with an open target, on a loop of its own."""

    async def used() -> T:
        await target.open()
        try:
            return await use()
        finally:
            await target.close()

    return asyncio.run(asyncio.wait_for(used(), LIMIT_S))


def deliver(url: str, *events: Event, **others: Any) -> Sequence[Outcome]:
    target = HttpTarget(HttpSettings(url, **others), FIELDS)
    return opened(target, lambda: target.deliver(events or [event()]))


def post(url: str, *events: Event, **others: Any) -> Any:
    [outcome] = deliver(url, *events, **others)
    return outcome


def get(url: str, *events: Event, **others: Any) -> Any:
    return post(url, *events, method="GET", body="none", **others)


def batch(url: str, count: int, **others: Any) -> Sequence[Outcome]:
    events = [event(number=number) for number in range(count)]
    return deliver(url, *events, batch_max_events=10, **others)


def asked(server: RemoteServer) -> Request:
    [request] = server.requests()
    return request


def failed_as(error: BaseException) -> tuple[str, str]:
    """Error type and category, by the failure table."""
    error_type, handling = FailureTable().of_exception(error)
    return error_type, handling.category


# --- one event a call -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_event_is_sent_as_its_line(server: HttpServer, method: str) -> None:
    assert post(f"{server.url}/events", method=method) is None
    request = asked(server)
    assert (request.method, request.path, request.key) == (method, "/events", "key-0")
    assert request.body.encode() == event().line
    assert request.headers["content-type"] == "application/json"


def test_an_event_may_be_sent_without_a_body(server: HttpServer) -> None:
    assert post(f"{server.url}/seen/{{user_id}}", body="none") is None
    assert (asked(server).path, asked(server).body) == ("/seen/u1", "")
    assert asked(server).headers["content-length"] == "0"


def test_headers_of_the_settings_are_sent_in_place_of_ours(server: HttpServer) -> None:
    post(f"{server.url}/", headers={"X-Tenant": "t", "accept": "text/plain", "Host": "other"})
    headers = asked(server).headers
    assert (headers["x-tenant"], headers["accept"]) == ("t", "text/plain")
    assert (headers["host"], headers["accept-encoding"]) == ("other", "identity")


def test_a_user_in_the_address_becomes_authorization(server: HttpServer) -> None:
    assert post(server.url.replace("//", "//me:p%40ss@")) is None
    expected = "Basic " + b64encode(b"me:p@ss").decode()
    assert asked(server).headers["authorization"] == expected


def test_a_repeated_call_has_the_same_idempotency_key(server: HttpServer) -> None:
    server.behave(Rule(status=503, first=2))
    target = HttpTarget(HttpSettings(server.url), FIELDS)

    async def three_times() -> list[Outcome]:
        return [(await target.deliver([event(key="the-key")]))[0] for _ in range(3)]

    first, second, third = opened(target, three_times)
    assert isinstance(first, httpx.HTTPStatusError)
    assert isinstance(second, httpx.HTTPStatusError)
    assert third is None
    assert [request.key for request in server.requests()] == ["the-key"] * 3


@pytest.mark.parametrize("key", ["a\r\nX: y", "ключ", "\x7f"])
def test_a_key_that_no_header_can_have_is_the_events_failure(server: HttpServer, key: str) -> None:
    assert isinstance(post(server.url, event(key=key)), HttpEventError)
    assert server.requests() == []


def test_connections_are_used_again_and_no_more_than_allowed(server: HttpServer) -> None:
    server.behave(Rule(delay_ms=10))
    target = HttpTarget(HttpSettings(server.url, connections=3), FIELDS)

    async def many() -> list[Sequence[Outcome]]:
        calls = [target.deliver([event(number=number)]) for number in range(30)]
        return list(await asyncio.gather(*calls))

    assert opened(target, many) == [[None]] * 30
    counts = server.counts()
    assert (counts["connections_made"], counts["most_in_flight"]) == (3, 3)


def test_the_connection_that_was_used_last_is_used_first(server: HttpServer) -> None:
    target = HttpTarget(HttpSettings(server.url, connections=3), FIELDS)

    async def one_after_the_other() -> None:
        for _ in range(5):
            assert await target.deliver([event()]) == [None]

    opened(target, one_after_the_other)
    assert server.counts()["connections_made"] == 1


def test_waiting_for_a_connection_is_no_part_of_the_timeout(server: HttpServer) -> None:
    server.behave(Rule(delay_ms=300))
    target = HttpTarget(HttpSettings(server.url, connections=1, timeout_ms=700), FIELDS)

    async def many() -> list[Sequence[Outcome]]:
        return list(await asyncio.gather(*[target.deliver([event()]) for _ in range(4)]))

    assert opened(target, many) == [[None]] * 4


def test_the_environment_names_no_proxy(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert post(server.url) is None


def test_cookies_are_not_kept(server: HttpServer) -> None:
    server.behave(Rule(headers={"Set-Cookie": "a=b"}))
    target = HttpTarget(HttpSettings(server.url), FIELDS)

    async def twice() -> None:
        await target.deliver([event()])
        await target.deliver([event()])

    opened(target, twice)
    assert [request.headers.get("cookie") for request in server.requests()] == [None, None]


def test_it_is_shipped_to_the_worker_before_it_is_opened(server: HttpServer) -> None:
    made = HttpTarget(HttpSettings(f"{server.url}/{{user_id}}"), FIELDS)
    target: HttpTarget = cloudpickle.loads(cloudpickle.dumps(made))
    assert opened(target, lambda: target.deliver([event()])) == [None]


def test_it_has_to_be_open(server: HttpServer) -> None:
    target = HttpTarget(HttpSettings(server.url), FIELDS)
    with pytest.raises(RuntimeError, match="not open"):
        asyncio.run(target.deliver([event()]))
    opened(target, lambda: target.deliver([event()]))
    with pytest.raises(RuntimeError, match="not open"):
        asyncio.run(target.deliver([event()]))
    assert opened(target, lambda: target.deliver([event()])) == [None]


# --- the address ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user_id", "path"),
    [
        ("u1", "/users/u1"),
        ("a/b", "/users/a%2Fb"),
        ("a?b=c", "/users/a%3Fb%3Dc"),
        ("a#b", "/users/a%23b"),
        ("a b+c%20", "/users/a%20b%2Bc%2520"),
        ("Жук", "/users/%D0%96%D1%83%D0%BA"),
        ("../admin", "/users/..%2Fadmin"),
        ("...", "/users/..."),
        ("a..b", "/users/a..b"),
        ("x\r\nHost: other", "/users/x%0D%0AHost%3A%20other"),
        ("@evil.example", "/users/%40evil.example"),
        ("\\", "/users/%5C"),
        (17, "/users/17"),
    ],
)
def test_a_value_is_quoted_in_the_path(server: HttpServer, user_id: Any, path: str) -> None:
    assert get(f"{server.url}/users/{{user_id}}", event(user_id)) is None
    assert asked(server).path == path


@settings(max_examples=50)
@given(st.text())
@example("%2e%2e")
@example("/..")
def test_whatever_is_sent_comes_from_that_value(shared: HttpServer, user_id: str) -> None:
    shared.reset()
    outcome = get(f"{shared.url}/users/{{user_id}}/orders", event(user_id))
    if user_id in ("", ".", ".."):
        assert isinstance(outcome, HttpEventError)
        return
    assert outcome is None
    begin, value, end = asked(shared).path[1:].split("/")
    assert (begin, unquote(value), end) == ("users", user_id, "orders")


@pytest.mark.parametrize("user_id", ["", ".", "..", None, "\ud800", "x" * 70_000])
def test_a_value_that_no_path_can_have_is_the_events_failure(
    server: HttpServer, user_id: Any
) -> None:
    error = get(f"{server.url}/users/{{user_id}}", event(user_id))
    assert isinstance(error, HttpEventError)
    assert failed_as(error) == ("http_event_error", "persistent")
    assert "user_id" in str(error)
    assert len(str(error)) < 300
    assert server.requests() == []


def test_the_fields_of_an_event_are_written_as_its_line_has_them(server: HttpServer) -> None:
    assert get(f"{server.url}/{{at}}/{{is_new}}") is None
    assert asked(server).path == "/2026-01-02T03%3A04%3A05.678Z/true"


def test_a_value_is_quoted_in_the_query_and_may_be_empty_there(server: HttpServer) -> None:
    url = f"{server.url}/x{{{{y}}}}?user={{user_id}}&a=b"
    assert get(url, event("a&b=/..")) is None
    assert get(url, event("")) is None
    first, second = [request.path for request in server.requests()]
    assert (first, second) == ("/x%7By%7D?user=a%26b%3D%2F..&a=b", "/x%7By%7D?user=&a=b")


# --- what the service says ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_success(server: HttpServer, status: int) -> None:
    server.behave(Rule(status=status))
    assert post(server.url) is None


@pytest.mark.parametrize(
    ("status", "category"),
    [
        (304, "persistent"),
        (400, "data_quality"),
        (401, "persistent"),
        (404, "data_quality"),
        (409, "persistent"),
        (429, "transient"),
        (500, "transient"),
        (503, "transient"),
        (599, "transient"),
    ],
)
def test_another_status_is_an_outcome_that_the_table_knows(
    server: HttpServer, status: int, category: str
) -> None:
    server.behave(Rule(status=status, json={"why": "because"}))
    error = post(f"{server.url}/events?a=b")
    assert isinstance(error, httpx.HTTPStatusError)
    assert failed_as(error) == (f"http_{status}", category)
    shown = "" if status == 304 else ': {"why": "because"}'
    assert str(error) == f"HTTP {status}: POST {server.url}/events{shown}"


def test_a_redirect_is_not_followed(server: HttpServer) -> None:
    server.behave(Rule(path="/a", status=307, headers={"Location": f"{server.url}/b"}))
    error = post(f"{server.url}/a")
    assert isinstance(error, httpx.HTTPStatusError)
    assert failed_as(error) == ("http_307", "persistent")
    assert asked(server).path == "/a"


@pytest.mark.parametrize(
    ("value", "wait_ms"), [("7", 7000), ("Thu, 01 Jan 1970 00:00:09 GMT", 9000)]
)
def test_retry_after_can_be_read(server: HttpServer, value: str, wait_ms: int) -> None:
    server.behave(Rule(status=429, retry_after=value))
    error = post(server.url)
    assert retry_after_ms(error.response.headers.get("retry-after"), now_ms=0) == wait_ms


def test_a_message_is_short_and_one_line(server: HttpServer) -> None:
    server.behave(Rule(status=500, text="line\nline\x00 " * 1000))
    message = str(post(f"{server.url}/{'long' * 200}"))
    assert message.count("line") > 20
    assert len(message) < 450
    assert message.isprintable()


# --- no answer ------------------------------------------------------------------------------------


def test_a_call_that_hangs_ends_with_its_timeout_and_costs_no_connection(
    server: HttpServer,
) -> None:
    """Of two connections each hangs three times: if a hung one were lost, nothing would go on."""
    server.behave(Rule(path="/u-hangs", hang=True))
    target = HttpTarget(
        HttpSettings(f"{server.url}/{{user_id}}", connections=2, timeout_ms=500), FIELDS
    )

    async def hang_and_go_on() -> list[Outcome]:
        calls = [target.deliver([event("u-hangs")]) for _ in range(6)]
        outcomes = [outcome for each in await asyncio.gather(*calls) for outcome in each]
        return [*outcomes, *(await target.deliver([event("u-goes")]))]

    began = time.monotonic()
    *hung, last = opened(target, hang_and_go_on)
    assert 1.5 <= time.monotonic() - began < 10
    assert last is None
    for error in hung:
        assert isinstance(error, TimeoutError)
        assert failed_as(error) == ("timeout_error", "transient")
        assert str(error) == f"no answer within 500 ms: POST {server.url}/u-hangs"


def test_a_dripping_answer_ends_with_the_timeout_too(server: HttpServer) -> None:
    server.behave(Rule(text="x" * 100, drip_ms=50))
    began = time.monotonic()
    assert isinstance(post(server.url, timeout_ms=300), TimeoutError)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("cut", ["before", "in_body"])
def test_a_cut_connection_is_transient_and_the_next_call_goes(server: HttpServer, cut: Any) -> None:
    server.behave(Rule(cut=cut, first=1))
    target = HttpTarget(HttpSettings(server.url, connections=1), FIELDS)

    async def twice() -> list[Outcome]:
        return [*(await target.deliver([event()])), *(await target.deliver([event()]))]

    error, then = opened(target, twice)
    assert isinstance(error, httpx.RemoteProtocolError)
    assert failed_as(error) == ("remote_protocol_error", "transient")
    assert str(error).endswith(f": POST {server.url}/")
    assert then is None


def test_nobody_there_is_transient() -> None:
    error = post(f"http://127.0.0.1:{free_port()}/")
    assert isinstance(error, httpx.ConnectError)
    assert failed_as(error) == ("connect_error", "transient")


def test_https_is_spoken_where_the_address_says_so(server: HttpServer) -> None:
    """And nothing is left behind when nobody answers: a socket would warn when it is collected."""
    url = server.url.replace("http:", "https:")
    began = time.monotonic()
    error = post(url, timeout_ms=1000)
    assert 0.3 < time.monotonic() - began < 5
    assert isinstance(error, httpx.ConnectTimeout)
    assert failed_as(error) == ("connect_timeout", "transient")
    assert str(error) == f"ConnectTimeout: POST {url}/"
    gc.collect()
    assert server.requests() == []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_service_that_comes_back_is_reached_again() -> None:
    """Its connections were closed while they were idle: that is not to be seen."""
    with HttpServer() as server:
        pass
    target = HttpTarget(HttpSettings(server.url, connections=2), FIELDS)

    async def before_and_after() -> list[Outcome]:
        outcomes: list[Outcome] = []
        for _ in range(2):
            outcomes += await target.deliver([event()])
            with HttpServer(port=server.port):
                outcomes += await target.deliver([event()])
        return outcomes

    down, up, down_again, up_again = opened(target, before_and_after)
    assert isinstance(down, httpx.ConnectError)
    assert isinstance(down_again, httpx.ConnectError)
    assert (up, up_again) == (None, None)


def test_a_call_that_is_cancelled_says_so_and_costs_no_connection(server: HttpServer) -> None:
    server.behave(Rule(hang=True, first=1))
    target = HttpTarget(HttpSettings(server.url, connections=1), FIELDS)

    async def cancel_and_go_on() -> Sequence[Outcome]:
        call = asyncio.create_task(target.deliver([event()]))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await target.deliver([event()])

    assert opened(target, cancel_and_go_on) == [None]


# --- the answer -----------------------------------------------------------------------------------


def test_an_answer_enriches_the_event(server: HttpServer) -> None:
    server.behave(json={"name": "Ada", "tier": None, "other": 1})
    url = f"{server.url}/users/{{user_id}}"
    assert get(url, answer_fields=("name", "tier")) == {"name": "Ada", "tier": None}


@pytest.mark.parametrize(
    "rule",
    [
        Rule(json={"nom": "Ada"}),
        Rule(json=["name"]),
        Rule(json="name"),
        Rule(text="name"),
        Rule(text='{"name": "Ada"'),
        Rule(text="[" * 100_000),
        Rule(text=""),
        Rule(status=204),
        Rule(text='{"name": "Ada"}', headers={"Content-Encoding": "gzip"}, echo=True),
    ],
)
def test_an_answer_without_the_field_is_persistent(server: HttpServer, rule: Rule) -> None:
    server.behave(rule)
    error = post(f"{server.url}/users/u1", answer_fields=("name",))
    assert isinstance(error, HttpAnswerError)
    assert failed_as(error) == ("http_answer_error", "persistent")
    assert f"POST {server.url}/users/u1" in str(error)
    assert len(str(error)) < 450


def test_a_compressed_answer_is_not_unpacked(server: HttpServer) -> None:
    """Whatever claims to be small must not become big here."""
    packed = gzip.compress(b'{"name": "Ada"}', mtime=0).decode("latin-1")
    assert max(packed) > "\x7f"  # so that the server sends other bytes than these: no matter
    server.behave(Rule(text=packed, headers={"Content-Encoding": "gzip"}))
    assert isinstance(post(server.url, answer_fields=("name",)), HttpAnswerError)
    assert post(server.url) is None


@pytest.mark.parametrize("length", [999, 1000, 1001, 1_000_000])
def test_an_answer_is_read_up_to_its_bound(server: HttpServer, length: int) -> None:
    server.behave(Rule(text="x" * length, first=1))
    target = HttpTarget(HttpSettings(server.url, connections=1, answer_max_bytes=1000), FIELDS)

    async def twice() -> list[Outcome]:
        return [*(await target.deliver([event()])), *(await target.deliver([event()]))]

    outcome, then = opened(target, twice)
    if length <= 1000:
        assert outcome is None
    else:
        assert isinstance(outcome, HttpAnswerError)
        assert "more than 1000 bytes" in str(outcome)
    assert then is None
    assert server.counts()["connections_made"] == (1 if length <= 1000 else 2)


def test_an_answer_without_end_is_left_at_its_bound(server: HttpServer) -> None:
    server.behave(Rule(text="x" * 1000, drip_ms=20))
    began = time.monotonic()
    assert isinstance(post(server.url, answer_max_bytes=5), HttpAnswerError)
    assert time.monotonic() - began < 5


def test_a_long_answer_of_a_failure_is_still_that_failure(server: HttpServer) -> None:
    server.behave(Rule(status=503, retry_after="3", text="x" * 1_000_000))
    error = post(server.url, answer_max_bytes=1000)
    assert failed_as(error) == ("http_503", "transient")
    assert error.response.headers["retry-after"] == "3"


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_is_one_array_with_a_key_made_of_all_keys(server: HttpServer) -> None:
    assert batch(f"{server.url}/bulk", 3) == [None] * 3
    request = asked(server)
    assert request.body == '[{"n":0},{"n":1},{"n":2}]'
    assert request.key == hashlib.sha256(b"key-0\nkey-1\nkey-2").hexdigest()


def test_a_batch_of_one_is_an_array_too(server: HttpServer) -> None:
    assert batch(server.url, 1) == [None]
    assert asked(server).body == '[{"n":0}]'


def test_so_many_events_are_taken_at_once() -> None:
    assert HttpTarget(HttpSettings("http://h/", batch_max_events=7), FIELDS).max_batch == 7
    assert HttpTarget(HttpSettings("http://h/"), FIELDS).max_batch == 1


@pytest.mark.parametrize(
    "rule",
    [
        Rule(text="thank you"),
        Rule(text=""),
        Rule(status=204),
        Rule(json={"taken": 2}),
        Rule(json=[]),
        Rule(json=["id1", "id2"]),
        Rule(json=[{"id": 1}]),
        Rule(json=7),
        Rule(text="[" * 100_000),
    ],
)
def test_a_2xx_that_says_nothing_of_the_events_delivers_them_all(
    server: HttpServer, rule: Rule
) -> None:
    server.behave(rule)
    assert batch(server.url, 2) == [None, None]


@pytest.mark.parametrize("in_object", [False, True])
def test_an_answer_may_say_what_became_of_each_event(server: HttpServer, in_object: bool) -> None:
    results = [
        {"status": 201},
        {"status": 422, "why": "no price"},
        {"status": 503},
        {"status": 200},
    ]
    answer = {"results": results} if in_object else results
    server.behave(Rule(status=207, json=answer, retry_after="4"))
    taken, refused, busy, last = batch(f"{server.url}/bulk", 4)
    assert (taken, last) == (None, None)
    assert isinstance(refused, httpx.HTTPStatusError)
    assert failed_as(refused) == ("http_422", "data_quality")
    shown = '{"status":422,"why":"no price"}'
    assert str(refused) == f"HTTP 422: POST {server.url}/bulk: {shown}"
    assert isinstance(busy, httpx.HTTPStatusError)
    assert failed_as(busy) == ("http_503", "transient")
    assert busy.response.headers["retry-after"] == "4"


def test_an_answer_may_enrich_each_event(server: HttpServer) -> None:
    results = [{"status": 200, "name": "Ada"}, {"status": 404}, {"status": 200, "nom": "Ada"}]
    server.behave(json={"results": results})
    first, second, third = batch(server.url, 3, answer_fields=("name",))
    assert first == {"name": "Ada"}
    assert isinstance(second, httpx.HTTPStatusError)
    assert isinstance(third, HttpAnswerError)


@pytest.mark.parametrize("answer", ["thank you", '{"name": "Ada"}', "[]", "[1]", "[null, null]"])
def test_without_a_result_each_no_event_can_be_enriched(server: HttpServer, answer: str) -> None:
    server.behave(Rule(text=answer))
    for outcome in batch(server.url, 2, answer_fields=("name",)):
        assert isinstance(outcome, HttpAnswerError)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [{"status": 200}],
        [{"status": 200}] * 3,
        {"1": {"status": 200}},
        "ok",
        None,
    ],
)
def test_results_that_cannot_be_told_apart_are_the_failure_of_all(
    server: HttpServer, results: Any
) -> None:
    server.behave(json={"results": results})
    for outcome in batch(server.url, 2):
        assert isinstance(outcome, HttpAnswerError)
        assert "for 2 events" in str(outcome)


@pytest.mark.parametrize(
    "bad", [None, {}, "ok", {"status": "200"}, {"status": True}, {"status": 2000}, {"status": None}]
)
@pytest.mark.parametrize("in_object", [False, True])
def test_an_event_without_a_status_of_its_own_is_not_taken_for_delivered(
    server: HttpServer, bad: Any, in_object: bool
) -> None:
    results = [{"status": 200}, bad]
    server.behave(json={"results": results} if in_object else results)
    good, outcome = batch(server.url, 2)
    assert good is None
    assert isinstance(outcome, HttpAnswerError)


def test_a_failed_batch_is_the_failure_of_all(server: HttpServer) -> None:
    server.behave(Rule(status=500, json=[{"status": 200}, {"status": 200}]))
    for outcome in batch(server.url, 2):
        assert isinstance(outcome, httpx.HTTPStatusError)
    server.behave(Rule(hang=True))
    for outcome in batch(server.url, 2, timeout_ms=100):
        assert isinstance(outcome, TimeoutError)


# --- secrets --------------------------------------------------------------------------------------


def shown_of(error: BaseException) -> str:
    stack = "".join(traceback.format_exception(error))
    return f"{error} {error!r} {stack}"


def assert_hidden(error: BaseException) -> None:
    secrets = (SECRET, json.dumps(SECRET)[1:-1], "key-in-query", "p4ss-in-url", BASIC)
    assert [secret for secret in secrets if secret in shown_of(error)] == []


BASIC = b64encode(b"me:p4ss-in-url").decode()
SECRETS: dict[str, Any] = {"headers": {"X-Token": f"Bearer {SECRET}"}}


def secret_url(server: RemoteServer, path: str = "/p") -> str:
    return server.url.replace("//", "//me:p4ss-in-url@") + f"{path}?key=key-in-query"


@pytest.mark.parametrize("status", [200, 500])
def test_secrets_that_the_service_quotes_are_not_shown(server: HttpServer, status: int) -> None:
    server.behave(Rule(echo=True, status=status))
    error = post(secret_url(server), answer_fields=("name",), **SECRETS)
    assert SECRET in asked(server).head  # they were sent
    assert BASIC in asked(server).head
    assert "***" in str(error)
    assert_hidden(error)


def test_a_secret_that_is_cut_in_two_is_not_shown(server: HttpServer) -> None:
    server.behave(Rule(status=500, text=f"x {SECRET}"))
    error = post(server.url, answer_max_bytes=12, **SECRETS)
    assert SECRET[:4] not in shown_of(error)


def test_secrets_in_a_result_are_not_shown(server: HttpServer) -> None:
    server.behave(json=[{"status": 400, "sent": f"Bearer {SECRET}"}])
    [error] = batch(secret_url(server), 1, **SECRETS)
    assert isinstance(error, httpx.HTTPStatusError)
    assert "***" in str(error)
    assert_hidden(error)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(hang=True),
        Rule(cut="before"),
        Rule(text="x" * 200_000),
        Rule(headers={f"no name {SECRET}": "p4ss-in-url"}),  # h11 quotes the line
    ],
)
def test_secrets_are_not_shown_without_an_answer(server: HttpServer, rule: Rule) -> None:
    server.behave(rule)
    error = post(secret_url(server), timeout_ms=200, answer_max_bytes=100, **SECRETS)
    assert isinstance(error, TimeoutError | httpx.RemoteProtocolError | HttpAnswerError)
    assert f"POST {server.url}/p" in str(error)
    assert_hidden(error)


def test_secrets_are_not_shown_by_the_settings() -> None:
    given = HttpSettings("http://me:p4ss-in-url@h/p?key=key-in-query", **SECRETS)
    assert_hidden(ValueError(repr(given)))
    assert "POST" in repr(given)


def test_addresses_are_not_logged(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        post(secret_url(server), **SECRETS)
    assert [each for each in caplog.records if not each.name.startswith("asyncio")] == []


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": ""}, "url must be like"),
        ({"url": "h:80/p4ss-in-url"}, "url must be like"),
        ({"url": "ftp://me:p4ss-in-url@h/"}, "url must be like"),
        ({"url": "http:///path"}, "url must be like"),
        ({"url": "http://h/#part"}, "url must be like"),
        ({"url": "http://me:p4ss-in-url@/"}, "url must be like"),
        ({"url": "http://me:p4ss-in-url@h:port/"}, "not an address"),
        ({"url": "http://me:p4ss-in-url/x@h/"}, "not an address"),
        ({"url": "http://h/a b\n"}, "not an address"),
        ({"url": "http://h/../{user_id}"}, "not an address"),
        ({"url": "http://{user_id}/"}, "path and query only"),
        ({"url": "http://{user_id}:p4ss-in-url@h/"}, "path and query only"),
        ({"url": "http://h/{user_id"}, "write a field as"),
        ({"url": "http://h/}"}, "write a field as"),
        ({"url": "http://h/{}"}, "write a field as"),
        ({"url": "http://h/{user_id.x}"}, "write a field as"),
        ({"url": "http://h/{user_id!r}"}, "write a field as"),
        ({"url": "http://h/{user_id:>9}"}, "write a field as"),
        ({"url": "http://h/{nobody}"}, "no field 'nobody' in the contract: at, is_new"),
        ({"method": "DELETE"}, "use GET, POST or PUT"),
        ({"body": "json"}, 'use "event" or "none"'),
        ({"method": "GET"}, 'set body = "none"'),
        ({"batch_max_events": 0}, "batch_max_events must be 1 or more"),
        ({"timeout_ms": 0}, "timeout_ms must be 1 or more"),
        ({"connections": 0}, "connections must be 1 or more"),
        ({"answer_max_bytes": 0}, "answer_max_bytes must be 1 or more"),
        ({"batch_max_events": 2, "method": "GET", "body": "none"}, 'needs method = "POST"'),
        ({"batch_max_events": 2, "method": "PUT"}, 'needs method = "POST"'),
        ({"batch_max_events": 2, "body": "none"}, 'and body = "event"'),
        ({"batch_max_events": 2, "url": "http://h/{user_id}"}, "take {user_id} out of url"),
        ({"headers": {"X Y": "p4ss-in-url"}}, "header 'X Y' is not a name"),
        ({"headers": {"X": "p4ss-in-url\r\nY: z"}}, "header X: its value"),
        ({"headers": {"X": "p4ss-in-url "}}, "header X: its value"),
        ({"headers": {"X": "p4ss-in-url \u20ac"}}, "header X: its value"),
        ({"headers": {"X": ""}}, "header X: its value"),
        ({"headers": {"idempotency-key": "p4ss-in-url"}}, "is set for each request"),
        ({"headers": {"X-A": "b", "x-a": "p4ss-in-url"}}, "is there twice"),
        (
            {"url": "http://me@h/", "headers": {"authorization": "p4ss-in-url"}},
            "only one of them",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changes: dict[str, Any], said: str) -> None:
    given = {"url": "http://h/", **changes}
    with pytest.raises(TargetError) as refused:
        HttpTarget(HttpSettings(**given), FIELDS)
    message = str(refused.value)
    assert message.startswith("HTTP target: ")
    assert said in message
    assert "\n" not in message
    assert_hidden(refused.value)
