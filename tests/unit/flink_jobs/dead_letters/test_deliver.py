"""Sending a fallback folder, to functions and to a real HTTP server."""

from __future__ import annotations

import errno
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.dead_letters.deliver import Sent, deliver_folder
from flink_jobs.dead_letters.fallback_folder import FallbackFolder, Part
from flink_jobs.errors import UserError
from operators.delivery.delivery_rules import DeliveryRules
from operators.rules.delivery.pace import Pace
from tests.http_server import HttpServer, Rule
from tests.unit.flink_jobs.dead_letters.stored import (
    SERVICE,
    Service,
    line,
    once_each,
    reasons,
    rules,
    write_part,
)

HERE = "tests.unit.flink_jobs.dead_letters.stored"
A, B = "part-aa-0.jsonl", "part-aa-1.jsonl"


@pytest.fixture
def service() -> Service:
    SERVICE.reset()
    return SERVICE


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as started:
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "fallback"


def send(
    root: Path,
    to: DeliveryRules,
    per_second: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    **how: Any,
) -> Sent:
    folder = FallbackFolder(root)
    with folder.claim():
        return deliver_folder(folder, to, pace=Pace(per_second), stop=stop, **how)


def keys(server: HttpServer) -> list[str]:
    return [request.key for request in server.requests()]


def test_each_event_is_sent_as_the_job_would_have_sent_it(root: Path, service: Service) -> None:
    write_part(root, A, [line("p0"), line("p1", source_offset=18)])
    sent = send(root, rules(f"{HERE}:take"))
    assert (sent.events, sent.delivered, sent.left, sent.is_done) == (2, 2, 0, True)
    event, other = service.events
    assert event.line == line("p0", breakwater_key=None).encode()
    assert (event.key, event.idempotency_key, event.attempt) == ("u", "key-p0", 1)
    assert (event.source_topic, event.source_partition, event.source_offset) == ("t", 3, 17)
    assert event.time_ms == 1_767_265_200_000
    assert (event.value.price, other.source_offset) == (1.5, 18)


def test_over_http_it_has_the_same_key_and_body(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line("p0")])
    assert send(root, rules("http", **{"http.url": f"{server.url}/e"})).is_done
    (request,) = server.requests()
    assert (request.key, request.body) == ("key-p0", line("p0", breakwater_key=None))


def test_parts_that_a_consumer_wrote_are_sent_and_an_empty_one_is_none(
    root: Path, service: Service
) -> None:
    """As the README has it for a topic: what is still being written has another name."""
    write_part(root, "part-1764187000.jsonl", [line("p0"), line("p1")])
    write_part(root, "part-1764187600.jsonl", [])
    write_part(root, ".next", [line("later")])
    assert send(root, rules(f"{HERE}:take")).is_done
    assert service.products == ["p0", "p1"]
    (root / ".next").rename(root / "part-1764188200.jsonl")
    assert send(root, rules(f"{HERE}:take")).delivered == 1
    assert service.products == ["p0", "p1", "later"]


def test_what_has_been_sent_is_not_sent_again(root: Path, service: Service) -> None:
    write_part(root, A, [line(f"p{i}") for i in range(3)])
    send(root, rules(f"{HERE}:take"))
    again = send(root, rules(f"{HERE}:take"))
    assert (again.before, again.delivered, again.is_done) == (3, 0, True)
    assert len(service.events) == 3
    write_part(root, B, [line("q")])
    more = send(root, rules(f"{HERE}:take"))
    assert (more.events, more.before, more.delivered) == (4, 3, 1)
    assert service.products == ["p0", "p1", "p2", "q"]


def test_events_of_a_key_are_sent_in_their_order_also_when_some_fail(
    root: Path, service: Service
) -> None:
    lines = [line(f"{user}{i}", user) for i in range(30) for user in "abc"]
    write_part(root, A, lines[:50])
    write_part(root, B, lines[50:])
    for product in ("a3", "b17", "c29"):
        service.answers[product] = [ConnectionError("gone")] * 2
    assert send(root, rules(f"{HERE}:take")).is_done
    for user in "abc":
        taken = [product for product in service.products if product[0] == user]
        assert [*dict.fromkeys(taken)] == [f"{user}{i}" for i in range(30)]
        assert taken == sorted(taken, key=lambda product: int(product[1:]))


def test_a_call_that_fails_is_made_again_by_the_rules_of_the_job(
    root: Path, service: Service
) -> None:
    write_part(root, A, [line("p"), line("q", "b")])
    service.answers = {"p": [ConnectionError("gone")] * 2, "q": [ConnectionError("gone")] * 3}
    sent = send(root, rules(f"{HERE}:take"))
    assert (sent.delivered, sent.undelivered, sent.left) == (1, {"connection_error": 1}, 0)
    assert not sent.is_done
    assert Counter(service.products) == {"p": 3, "q": 3}
    (why,) = reasons(root)
    assert (why["part"], why["line"], why["disposition"]) == (A, 2, "exhausted")
    assert (why["error_message"], why["processing_attempts"]) == ("gone", 3)
    assert [each["error_type"] for each in why["attempts"]] == ["connection_error"] * 3
    assert why["event"] == json.loads(line("q", "b"))


def test_what_the_target_refuses_costs_only_itself(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line(f"p{i}") for i in range(5)])
    server.behave(Rule(key="key-p2", status=422))
    sent = send(root, rules("http", **{"http.url": server.url}))
    assert (sent.delivered, sent.undelivered) == (4, {"http_422": 1})
    assert once_each(keys(server))
    assert [each["line"] for each in reasons(root)] == [3]


def test_followers_of_what_is_given_up_follow_it_where_the_settings_say_so(
    root: Path, service: Service
) -> None:
    write_part(root, A, [line("p"), line("p2"), line("q", "b")])
    service.answers["p"] = [ValueError("no")]
    sent = send(root, rules(f"{HERE}:take", **{"delivery.after_dead_letter": "follow"}))
    assert sent.undelivered == {"value_error": 1, "delivery_followed": 1}
    assert service.products.count("p2") == 0
    assert [each["disposition"] for each in reasons(root)] == ["refused", "followed"]


def test_a_line_that_is_none_costs_only_itself(root: Path, service: Service) -> None:
    write_part(root, A, [line("p"), "not a line \x01", line("q", breakwater_key=None), line("r")])
    sent = send(root, rules(f"{HERE}:take"))
    assert (sent.delivered, sent.undelivered) == (2, {"not_a_fallback_line": 2})
    assert service.products == ["p", "r"]
    first, second = reasons(root)
    assert first["error_message"].startswith(f"line 2 of {A} is no line of a fallback store: ")
    assert (first["event"], second["line"]) == ("not a line \x01", 3)
    again = send(root, rules(f"{HERE}:take"))
    assert (again.delivered, again.undelivered) == (0, {"not_a_fallback_line": 2})


def test_an_event_that_a_new_contract_refuses_costs_only_itself(
    root: Path, service: Service
) -> None:
    write_part(root, A, [line("p", action="purchase"), line("q")])
    narrower = {"contract.type": "tests.unit.operators.contracts:OnlyViews"}
    sent = send(root, rules(f"{HERE}:take", **narrower))
    assert (sent.delivered, sent.undelivered) == (1, {"schema_error": 1})
    assert service.products == ["q"]


def test_what_was_given_up_is_sent_once_more_when_it_is_asked_for(
    root: Path, service: Service
) -> None:
    write_part(root, A, [line("p"), line("q")])
    service.answers["p"] = [ValueError("no")]
    assert send(root, rules(f"{HERE}:take")).undelivered == {"value_error": 1}
    assert send(root, rules(f"{HERE}:take")).undelivered == {"value_error": 1}
    folder = FallbackFolder(root)
    with folder.claim():
        folder.send_again()
    sent = send(root, rules(f"{HERE}:take"))
    assert (sent.before, sent.delivered, sent.is_done) == (1, 1, True)
    assert Counter(service.products) == {"p": 2, "q": 1}
    assert reasons(root) == []


# --- batches and bounds


@pytest.mark.parametrize("size", [20, 150])
def test_batches_are_as_large_as_the_target_takes_them(
    root: Path, service: Service, size: int
) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(300)])
    sent = send(root, rules(f"{HERE}:take_many", **{"delivery.batch_max_events": size}))
    assert sent.is_done
    assert service.calls == [size] * (300 // size)


@pytest.mark.parametrize("function", ["take_many", "take_in_order"])
def test_what_fails_of_a_batch_costs_only_itself(
    root: Path, service: Service, function: str
) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i % 40}") for i in range(100)])
    service.answers["p7"] = [ConnectionError("gone")]
    service.answers["p30"] = [ValueError("no")]
    sent = send(root, rules(f"{HERE}:{function}", **{"delivery.batch_max_events": 20}))
    assert (sent.delivered, sent.undelivered) == (99, {"value_error": 1})
    counts = Counter(service.products)
    assert (counts["p7"], counts["p30"], counts.total()) == (2, 1, 101)
    assert max(service.calls) == 20


@pytest.mark.parametrize(
    "bounds",
    [
        {"delivery.max_records": 1},
        {"delivery.max_bytes": 1000},
        {"delivery.max_records": 3, "delivery.batch_max_events": 2},
        {"delivery.calls_per_worker": 1, "delivery.calls_per_lane": 1},
        {"delivery.max_age_ms": 1},
        {"delivery.ordering": "none"},
    ],
    ids=str,
)
def test_within_any_bounds_all_is_sent_once(
    root: Path, service: Service, bounds: dict[str, Any]
) -> None:
    """The bug it catches: what does not fit into the lane is waited for, for ever."""
    long = {"product_id": "x" * 3_000} if "delivery.max_bytes" in bounds else {}
    lines = [line(f"p{i}", f"u{i % 5}", source_offset=i, **long) for i in range(60)]
    write_part(root, A, lines)
    function = "take_many" if "delivery.batch_max_events" in bounds else "take"
    sent = send(root, rules(f"{HERE}:{function}", **bounds))
    assert (sent.delivered, sent.is_done) == (60, True)
    assert sorted(event.source_offset for event in service.events) == [*range(60)]


@pytest.mark.parametrize(("calls", "least"), [(5, 5), (40, 17)])
def test_calls_are_bounded(root: Path, server: HttpServer, calls: int, least: int) -> None:
    """By what a worker may make, and not by what a lane of the job may: here is only one."""
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(100)])
    server.behave(Rule(delay_ms=50))
    bounds = {"delivery.calls_per_worker": calls, "delivery.calls_per_lane": 16}
    assert send(root, rules("http", **{"http.url": server.url}, **bounds)).is_done
    assert least <= server.counts()["most_in_flight"] <= calls


def test_retries_are_made_when_they_are_due(root: Path, service: Service) -> None:
    """However long the job would let an event wait: the age must not stand in for what is due."""
    write_part(root, A, [line(f"p{i}") for i in range(20)])
    service.answers = {f"p{i}": [ConnectionError("gone")] for i in range(20)}
    sent = send(root, rules(f"{HERE}:take", **{"delivery.max_age_ms": 1}))
    assert sent.is_done
    assert sent.wall_s < 2


def test_the_rate_is_kept_to_repeated_calls_included(root: Path, service: Service) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(300)])
    service.answers = {f"p{i}": [ConnectionError("gone")] for i in range(300)}
    assert send(root, rules(f"{HERE}:take"), per_second=400).is_done
    at = service.at_s
    assert len(at) == 600
    for first, last in zip(at, at[160:], strict=False):
        # 160 more take 0.4 s, less the 0.1 s that may be made up for, and some for the loop.
        assert last - first > 0.25
    assert at[-1] - at[0] < 2.5, "it waits for longer than it has to"


# --- Retry-After


def in_seconds() -> str:
    return "2"


def as_date() -> str:
    """Whole seconds: the one that begins 2 to 3 seconds from now."""
    return formatdate(math.ceil(time.time()) + 2, usegmt=True)


@pytest.mark.parametrize("after", [in_seconds, as_date])
def test_what_the_service_asks_for_is_waited_for(
    root: Path, server: HttpServer, after: Callable[[], str]
) -> None:
    """By itself it would be asked again within 5 ms."""
    write_part(root, A, [line("p")])
    asked = after()
    server.behave(Rule(status=429, retry_after=asked, first=1))
    assert send(root, rules("http", **{"http.url": server.url})).is_done
    first, second = server.requests()
    date_s = parsedate_to_datetime(asked).timestamp() if "GMT" in asked else first.at_s + 2
    assert date_s - 0.05 <= second.at_s < date_s + 10


@pytest.mark.parametrize("after", ["3", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_what_asks_for_more_than_the_budget_is_given_up_at_once(
    root: Path, server: HttpServer, after: str
) -> None:
    write_part(root, A, [line("p")])
    server.behave(Rule(status=503, retry_after=after))
    sent = send(root, rules("http", **{"http.url": server.url, "retry.budget_ms": 2_000}))
    assert sent.undelivered == {"http_503": 1}
    assert (len(server.requests()), sent.left) == (1, 0)
    assert reasons(root)[0]["disposition"] == "exhausted"


def test_no_call_is_made_behind_the_end_of_the_budget(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line("p")])
    server.behave(Rule(status=503))
    patient = {"retry.max_attempts": 1000, "retry.base_ms": 50, "retry.cap_ms": 50}
    to = rules("http", **{"http.url": server.url, **patient, "retry.budget_ms": 1_000})
    assert send(root, to).undelivered == {"http_503": 1}
    first, *_, last = server.requests()
    assert last.at_s - first.at_s < 1.5
    assert len(server.requests()) > 5


# --- a target that is down


def test_while_the_target_is_down_nothing_is_given_up(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(40)])
    server.behave(Rule(status=503, first=60))
    breaker = {"breaker.consecutive": 3, "breaker.open_ms": 20, "breaker.open_cap_ms": 20}
    states: set[str] = set()
    sent = send(
        root,
        rules("http", **{"http.url": server.url, **breaker, "delivery.calls_per_worker": 2}),
        show=lambda sent: states.add(sent.state),
    )
    assert (sent.delivered, sent.is_done) == (40, True)
    assert len(server.requests()) == 100


def test_a_target_that_takes_nothing_for_too_long_is_left(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(40)])
    server.behave(Rule(status=503))
    breaker = {"breaker.consecutive": 3, "breaker.open_ms": 20, "breaker.open_cap_ms": 20}
    sent = send(root, rules("http", **{"http.url": server.url, **breaker}), give_up_after_ms=500)
    assert (sent.delivered, sent.gave_up, sent.is_done) == (0, True, False)
    assert 0.5 <= sent.wall_s < 20
    assert len(server.requests()) > 40, "no probe was made"


def test_a_breaker_that_is_held_open_does_not_keep_it_for_ever(
    root: Path, service: Service
) -> None:
    write_part(root, A, [line("p")])
    sent = send(root, rules(f"{HERE}:take", **{"breaker.forced": "open"}), give_up_after_ms=300)
    assert (sent.left, sent.gave_up, service.events) == (1, True, [])


def test_a_target_that_takes_some_now_and_then_is_not_left(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line(f"p{i}") for i in range(6)])
    server.behave(Rule(delay_ms=250))
    to = rules("http", **{"http.url": server.url})
    assert send(root, to, give_up_after_ms=600).is_done


def test_to_wait_for_the_rate_is_no_reason_to_give_up(root: Path, service: Service) -> None:
    write_part(root, A, [line(f"p{i}") for i in range(4)])
    sent = send(root, rules(f"{HERE}:take"), per_second=2, give_up_after_ms=250)
    assert (sent.is_done, sent.gave_up) == (True, False)


def test_what_is_out_when_it_is_given_up_is_waited_for(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line("p"), line("q", "b")])
    server.behave(Rule(delay_ms=600))
    to = rules("http", **{"http.url": server.url})
    sent = send(root, to, give_up_after_ms=200)
    assert (sent.delivered, sent.gave_up, sent.is_done) == (2, False, True)


def test_a_target_that_cannot_be_opened_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(root, A, [line("p")])
    to = rules(f"{HERE}:take")

    async def fail(self: Any) -> None:
        raise RuntimeError("no\nservice")

    monkeypatch.setattr("operators.targets.function.FunctionTarget.open", fail)
    with pytest.raises(UserError, match=r"^the target cannot be used: no service$"):
        send(root, to)


# --- an end in between


def test_a_stop_waits_for_the_calls_that_are_out_and_begins_none(
    root: Path, server: HttpServer
) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(200)])
    server.behave(Rule(delay_ms=30))
    to = rules("http", **{"http.url": server.url, "delivery.calls_per_worker": 4})
    sent = send(root, to, stop=lambda: len(server.requests()) >= 50)
    asked = len(server.requests())
    assert sent.delivered == asked < 200
    assert (sent.left, sent.is_done) == (200 - asked, False)
    time.sleep(0.1)
    assert len(server.requests()) == asked, "a call was begun after the end"
    assert send(root, to).is_done
    assert once_each(keys(server))
    assert len(keys(server)) == 200


def test_a_stop_does_not_wait_for_a_call_that_hangs_longer_than_a_call_may_take(
    root: Path, server: HttpServer
) -> None:
    write_part(root, A, [line("p")])
    server.behave(Rule(hang=True))
    to = rules("http", **{"http.url": server.url, "delivery.timeout_ms": 300})
    begun = time.monotonic()
    sent = send(root, to, stop=lambda: bool(server.requests()))
    assert time.monotonic() - begun < 10
    assert (sent.delivered, sent.left) == (0, 1)


def test_a_folder_that_cannot_be_written_any_more_is_one_line(
    root: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug it catches: what fails beside the thread that waits is waited for, for ever."""
    write_part(root, A, [line("p"), line("q")])

    def full(self: Part, numbers: Any, mark: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Part, "mark", full)
    with pytest.raises(UserError, match="cannot be read and written: No space left on device"):
        send(root, rules(f"{HERE}:take"))


def test_how_far_it_is_is_told(root: Path, server: HttpServer) -> None:
    write_part(root, A, [line(f"p{i}", f"u{i}") for i in range(40)])
    server.behave(Rule(delay_ms=50))
    shown: list[Sent] = []
    to = rules("http", **{"http.url": server.url, "delivery.calls_per_worker": 2})
    send(root, to, show=shown.append)
    assert len(shown) > 2
    assert [sent.left for sent in shown] == sorted((sent.left for sent in shown), reverse=True)
    assert all(sent.delivered + sent.left == 40 for sent in shown)
