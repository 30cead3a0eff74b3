"""The Postgres target against a real server, which is stopped, killed, paused and started."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest

from operators.rules.contract import Contract, load_contract
from operators.rules.delivery.failure import FailureTable, Handling
from operators.rules.times import epoch_ms
from operators.targets.postgres import PostgresSettings, PostgresTarget
from tests.postgres.readings import Reading
from tests.postgres_server import HOST, PostgresServer
from tests.runs import wait_until
from udfs.ecommerce import EcommerceEvent
from udfs.targets import Event, NotTried, Outcome, TargetError

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(60)]

DSN = "TEST_DSN"
TIMEOUT_MS = 2000
#: What a failed call may take besides: the loop, and a busy machine.
GRACE_S = 1.5
TIME = "2026-01-01T00:00:00.123Z"
CONTRACT = load_contract("udfs.ecommerce:EcommerceEvent", "user_id", "timestamp", "price")
COLUMNS = """
    event_id text PRIMARY KEY, user_id varchar(20), product_id text, action text NOT NULL,
    price numeric CONSTRAINT affordable CHECK (price < 1000), "timestamp" timestamptz
"""
BAD_PRICE = 5000.0
T = TypeVar("T")


def utc(text: str) -> datetime:
    """As it is written: RFC 3339 with a Z, which Python 3.10 does not read."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def event(offset: int, user: str = "", **changes: Any) -> Event:
    fields = {
        "user_id": user or f"u{offset}",
        "product_id": "p1",
        "action": "view",
        "price": 1.5,
        "timestamp": TIME,
        **changes,
    }
    value = msgspec.convert(fields, EcommerceEvent)
    return event_of(value, offset, value.user_id, epoch_ms(value.timestamp))


def event_of(value: Any, offset: int, key: str, time_ms: int) -> Event:
    line = msgspec.json.encode(value)
    return Event(key, value, line, line, time_ms, f"events-3-{offset}", "events", 3, offset, 1)


def settings(name: str, **more: Any) -> PostgresSettings:
    return PostgresSettings(
        **{"table": f"public.{name}", "dsn_env": DSN, "timeout_ms": TIMEOUT_MS, **more}
    )


@asynccontextmanager
async def opened(target: PostgresTarget) -> AsyncIterator[PostgresTarget]:
    await target.open()
    try:
        yield target
    finally:
        await target.close()


def deliver(
    name: str,
    *calls: list[Event],
    contract: Contract = CONTRACT,
    failures: FailureTable | None = None,
    **more: Any,
) -> list[Outcome]:
    """Make the calls, one behind the other; what came of the last one."""

    async def run() -> list[Outcome]:
        async with opened(PostgresTarget(settings(name, **more), contract, failures)) as target:
            for call in calls:
                outcomes = await target.deliver(call)
            return list(outcomes)

    return asyncio.run(run())


async def failure_of(call: Awaitable[Any]) -> BaseException:
    try:
        outcome = await call
    except Exception as error:
        return error
    raise AssertionError(f"no failure but {outcome}")


def handling_of(error: BaseException) -> tuple[str, Handling]:
    return FailureTable().of_exception(error)


def is_transient(error: BaseException) -> bool:
    _, handling = handling_of(error)
    return handling == Handling("transient", retryable=True)


async def timed(call: Awaitable[T]) -> tuple[T, float]:
    began = time.monotonic()
    return await call, time.monotonic() - began


class Table:
    """A table on a server."""

    def __init__(self, server: PostgresServer, name: str, columns: str = COLUMNS) -> None:
        self.server = server
        self.name = name
        server.query(f'CREATE TABLE "{name}" ({columns})')

    def ids(self) -> set[str]:
        return {row[0] for row in self.server.query(f'SELECT event_id FROM "{self.name}"')}

    def rows(self, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        return self.server.query(f'SELECT {columns} FROM "{self.name}" WHERE {where} ORDER BY 1')

    def count_statements(self, sleep_s: float = 0) -> None:
        """Count them, also those that are rolled back: a sequence is not."""
        self.server.query(
            f'CREATE SEQUENCE "{self.name}_n"; '
            f'CREATE FUNCTION "{self.name}_f"() RETURNS trigger LANGUAGE plpgsql AS '
            f"$$ BEGIN PERFORM nextval('\"{self.name}_n\"'), pg_sleep({sleep_s}); "
            "RETURN NULL; END $$; "
            f'CREATE TRIGGER n BEFORE INSERT ON "{self.name}" '
            f'FOR EACH STATEMENT EXECUTE FUNCTION "{self.name}_f"()'
        )

    def statements(self) -> int:
        ((last, called),) = self.server.query(f'SELECT last_value, is_called FROM "{self.name}_n"')
        return int(last) if called else 0


@pytest.fixture
def server(shared_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    monkeypatch.setenv(DSN, shared_server.dsn)
    return shared_server


@pytest.fixture
def table(server: PostgresServer, name: str) -> Table:
    return Table(server, name)


@pytest.fixture
def own_table(
    own_server: PostgresServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Table]:
    monkeypatch.setenv(DSN, own_server.dsn)
    yield Table(own_server, name)
    own_server.restart()


# --- rows


def test_events_become_rows(table: Table) -> None:
    assert deliver(table.name, [event(1), event(2, price=0.1)]) == [None, None]
    assert table.rows('event_id, user_id, product_id, action, price::text, "timestamp"::text') == [
        ("events-3-1", "u1", "p1", "view", "1.5", "2026-01-01 00:00:00.123+00"),
        ("events-3-2", "u2", "p1", "view", "0.1", "2026-01-01 00:00:00.123+00"),
    ]


def test_columns_hold_what_the_settings_say(server: PostgresServer, name: str) -> None:
    columns = (
        'id text UNIQUE, "A b" bigint, c bool, d float4, e date, f int, g text, h text, i text'
    )
    table = Table(server, name, columns)
    contract = load_contract("tests.postgres.readings:Reading", "device", "at")
    value = Reading("d1", at=utc(TIME), time="noon", count=2**62, ok=True, note='ä"\\\n🌊')
    holds = {
        **{"id": "idempotency_key", "A b": "count", "c": "ok", "d": "degrees", "e": "at"},
        **{"f": "source_partition", "g": "the note", "h": "time", "i": "seen"},
    }
    events = [event_of(value, 1, "d1", 0)]
    assert deliver(name, events, contract=contract, columns=holds, identity=("id",)) == [None]
    assert table.rows("*") == [
        ("events-3-1", 2**62, True, None, utc(TIME).date(), 3, 'ä"\\\n🌊', "noon", None)
    ]


def test_the_time_and_the_place_of_an_event_can_be_kept(server: PostgresServer, name: str) -> None:
    table = Table(
        server, name, "topic text, part int, at bigint, t timestamptz, UNIQUE (topic, at)"
    )
    holds = {
        **{"topic": "source_topic", "part": "source_partition", "at": "source_offset", "t": "time"}
    }
    assert deliver(name, [event(7)], columns=holds, identity=("topic", "at")) == [None]
    assert table.rows("topic, part, at, t") == [("events", 3, 7, utc(TIME))]


def test_a_time_without_an_offset_is_utc_and_cut_to_milliseconds(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in every other output, whatever the server takes for its own zone."""
    monkeypatch.setenv("PGTZ", "America/New_York")
    assert deliver(table.name, [event(1, timestamp="2026-01-01T00:00:00.123999")]) == [None]
    assert table.rows("\"timestamp\" AT TIME ZONE 'UTC'") == [(utc(TIME).replace(tzinfo=None),)]


@pytest.mark.parametrize("on_conflict", ["update", "nothing"])
def test_a_second_time_changes_nothing(table: Table, on_conflict: str) -> None:
    events = [event(n) for n in range(20)]
    once = deliver(table.name, events, on_conflict=on_conflict)
    rows = table.rows("*")
    assert deliver(table.name, events, events[:3], on_conflict=on_conflict) == [None] * 3
    assert once == [None] * 20
    assert table.rows("*") == rows


@pytest.mark.parametrize(("on_conflict", "price"), [("update", 2.0), ("nothing", 1.0)])
def test_a_row_that_is_there_is_overwritten_or_left(
    table: Table, on_conflict: str, price: float
) -> None:
    calls = [[event(1, price=1.0)], [event(1, price=2.0)]]
    assert deliver(table.name, *calls, on_conflict=on_conflict) == [None]
    assert table.rows("price::float") == [(price,)]


@pytest.mark.parametrize(("on_conflict", "price"), [("update", 9.0), ("nothing", 0.0)])
def test_events_with_one_identity_are_written_in_their_order(
    server: PostgresServer, name: str, on_conflict: str, price: float
) -> None:
    """A statement refuses to update a row twice (21000), so each needs one of its own."""
    table = Table(server, name, "user_id text PRIMARY KEY, price numeric")
    table.count_statements()
    events = [event(n, f"u{n % 3}", price=float(n // 3)) for n in range(30)]
    holds = {"user_id": "user_id", "price": "price"}
    outcomes = deliver(name, events, columns=holds, identity=("user_id",), on_conflict=on_conflict)
    assert outcomes == [None] * 30
    assert table.rows("user_id, price::float") == [(f"u{n}", price) for n in range(3)]
    assert table.statements() == 10


# --- refused rows


def test_one_bad_row_among_500_fails_alone(table: Table) -> None:
    table.count_statements()
    events = [event(n, price=BAD_PRICE if n == 321 else 1.0) for n in range(500)]
    outcomes = deliver(table.name, events)
    (bad,) = [n for n, outcome in enumerate(outcomes) if outcome is not None]
    error = outcomes[321]
    assert bad == 321
    assert isinstance(error, psycopg.errors.CheckViolation)
    assert 'violates check constraint "affordable"' in str(error)
    assert handling_of(error) == ("sqlstate_23514", Handling("data_quality"))
    assert table.ids() == {e.idempotency_key for n, e in enumerate(events) if n != 321}
    assert table.statements() <= 1 + 2 * math.ceil(math.log2(500))


@pytest.mark.parametrize("bad", [{0}, {99}, {0, 1, 2}, {10, 50, 51, 98}, set(range(100))])
def test_each_bad_row_fails_and_no_other(table: Table, bad: set[int]) -> None:
    events = [event(n, price=BAD_PRICE if n in bad else 1.0) for n in range(100)]
    outcomes = deliver(table.name, events)
    assert {n for n, outcome in enumerate(outcomes) if outcome is not None} == bad
    assert all(isinstance(outcomes[n], psycopg.errors.CheckViolation) for n in bad)
    assert table.ids() == {f"events-3-{n}" for n in range(100) if n not in bad}


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({"user_id": "u" * 21}, "22001", "value too long for type character varying(20)"),
        ({"product_id": "p\0"}, "22P05", "\\u0000 cannot be converted to text"),
        ({"price": 1e200}, "23514", "affordable"),
    ],
)
def test_a_bad_value_is_told_in_the_database_s_words(
    table: Table, changes: dict[str, Any], state: str, says: str
) -> None:
    good, bad, other = deliver(table.name, [event(1), event(2, **changes), event(3)])
    assert (good, other) == (None, None)
    assert isinstance(bad, psycopg.Error)
    assert bad.sqlstate == state
    assert says in str(bad)
    assert table.ids() == {"events-3-1", "events-3-3"}


def test_what_is_behind_a_bad_row_of_its_key_is_not_tried(table: Table) -> None:
    events = [
        event(1, "a"),
        event(2, "a", price=BAD_PRICE),
        event(3, "b"),
        event(4, "a"),
        event(5, "a", price=BAD_PRICE),
        event(6, "b"),
    ]
    outcomes = deliver(table.name, events)
    kinds = [type(outcome) for outcome in outcomes]
    none = type(None)
    assert kinds == [none, psycopg.errors.CheckViolation, none, NotTried, NotTried, none]
    assert table.ids() == {"events-3-1", "events-3-3", "events-3-6"}


def test_a_bad_row_is_refused_although_the_next_would_overwrite_it(
    server: PostgresServer, name: str
) -> None:
    table = Table(server, name, "user_id text PRIMARY KEY, price numeric CHECK (price < 1000)")
    holds = {"user_id": "user_id", "price": "price"}
    events = [event(1, "a", price=BAD_PRICE), event(2, "a")]
    outcomes = deliver(name, events, columns=holds, identity=("user_id",))
    assert [type(outcome) for outcome in outcomes] == [psycopg.errors.CheckViolation, NotTried]
    assert table.rows("*") == []


def test_a_row_may_be_refused_at_the_commit(table: Table, server: PostgresServer) -> None:
    server.query(
        f'ALTER TABLE "{table.name}" ADD UNIQUE (product_id) DEFERRABLE INITIALLY DEFERRED'
    )
    outcomes = deliver(table.name, [event(n, product_id=f"p{n % 7}") for n in range(8)])
    assert outcomes[:7] == [None] * 7
    assert isinstance(outcomes[7], psycopg.errors.UniqueViolation)
    assert len(table.ids()) == 7


def test_a_trigger_s_own_refusal_is_about_the_row(table: Table, server: PostgresServer) -> None:
    server.query(
        f'CREATE FUNCTION "{table.name}_g"() RETURNS trigger LANGUAGE plpgsql AS '
        "$$ BEGIN IF NEW.user_id = 'u5' THEN RAISE 'no, not %', NEW.user_id; END IF; RETURN NEW; "
        "END $$; "
        f'CREATE TRIGGER g BEFORE INSERT ON "{table.name}" '
        f'FOR EACH ROW EXECUTE FUNCTION "{table.name}_g"()'
    )
    outcomes = deliver(table.name, [event(n) for n in range(10)])
    assert str(outcomes[5]).startswith("no, not u5")
    assert len(table.ids()) == 9


def test_the_user_s_entry_makes_a_bad_row_retryable_and_no_other(table: Table) -> None:
    failures = FailureTable({"sqlstate_23": Handling("transient", retryable=True)})
    outcomes = deliver(
        table.name,
        [event(n, price=BAD_PRICE if n == 3 else 1.0) for n in range(8)],
        failures=failures,
    )
    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [3]


def test_a_slow_server_with_many_bad_rows_is_left_in_time(table: Table) -> None:
    """Some is known after each call, so that the next one has less to do."""
    table.count_statements(sleep_s=0.15)
    events = [event(n, price=BAD_PRICE) for n in range(64)]
    outcomes = deliver(table.name, events)
    told = [type(outcome) for outcome in outcomes]
    known = told.count(psycopg.errors.CheckViolation)
    assert known > 0
    assert told == [psycopg.errors.CheckViolation] * known + [NotTried] * (64 - known)


def test_a_call_that_finds_nothing_out_in_time_has_failed(table: Table) -> None:
    """Were all of its events not tried, it would be made for ever."""
    table.count_statements(sleep_s=0.6)
    with pytest.raises((TimeoutError, psycopg.errors.QueryCanceled)):
        deliver(table.name, [event(n, price=BAD_PRICE) for n in range(64)])


# --- what is not about rows


@pytest.mark.parametrize(
    ("more", "error_type"),
    [
        ({"table": "public.nowhere"}, "sqlstate_42P01"),
        ({"identity": ("user_id",)}, "sqlstate_42P10"),
        ({"columns": {"event_id": "idempotency_key", "nothing": "user_id"}}, "sqlstate_42703"),
    ],
)
def test_a_table_that_does_not_fit_is_the_target_s_fault(
    table: Table, more: dict[str, Any], error_type: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        deliver(table.name, [event(1), event(2)], **more)
    found, handling = handling_of(caught.value)
    assert (found, handling.systemic, handling.retryable) == (error_type, True, True)


def test_what_may_not_be_written_is_the_target_s_fault(
    table: Table, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.query(f"CREATE ROLE \"{table.name}\" LOGIN PASSWORD 'x'")
    monkeypatch.setenv(DSN, server.dsn_with(table.name, "x"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        deliver(table.name, [event(1), event(2)])


@pytest.mark.parametrize(
    ("changes", "error_type"),
    [
        ({"password": "wrong"}, "sqlstate_28P01"),
        ({"password": ""}, "sqlstate_28P01"),
        ({"user": "nobody"}, "sqlstate_28P01"),
        ({"database": "nowhere"}, "sqlstate_3D000"),
    ],
)
def test_a_refused_login_is_the_target_s_fault_and_told_at_once(
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    error_type: str,
) -> None:
    monkeypatch.setenv(DSN, table.server.dsn_with(**changes))
    began = time.monotonic()
    with pytest.raises(psycopg.Error) as caught:
        deliver(table.name, [event(1)])
    found, handling = handling_of(caught.value)
    assert (found, handling.systemic, handling.retryable) == (error_type, True, True)
    assert time.monotonic() - began < TIMEOUT_MS / 2000


def test_a_statement_that_waits_too_long_is_ended_and_leaves_no_trace(table: Table) -> None:
    """Nothing of a call that was given up may come after the one that is made instead."""
    table.server.query(f"INSERT INTO \"{table.name}\" VALUES ('events-3-1', 'first', '', '')")

    async def run() -> BaseException:
        lock = await psycopg.AsyncConnection.connect(table.server.dsn)
        async with lock, opened(PostgresTarget(settings(table.name), CONTRACT)) as target:
            await lock.execute(f'SELECT * FROM "{table.name}" FOR UPDATE')
            error, took_s = await timed(failure_of(target.deliver([event(1, "second")])))
            assert took_s < TIMEOUT_MS / 1000 + GRACE_S
            await lock.rollback()
            await asyncio.sleep(0.2)
            assert table.rows("user_id") == [("first",)]
            assert await target.deliver([event(1, "third")]) == [None]
            return error

    error = asyncio.run(run())
    assert handling_of(error)[0] == "sqlstate_57014"
    assert is_transient(error)
    assert table.rows("user_id") == [("third",)]


def test_a_connection_that_is_cut_fails_its_call_only(table: Table) -> None:
    table.count_statements(sleep_s=0.5)

    async def run() -> BaseException:
        async with opened(PostgresTarget(settings(table.name), CONTRACT)) as target:
            cut = asyncio.ensure_future(failure_of(target.deliver([event(1)])))
            await asyncio.sleep(0.25)
            table.server.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'breakwater'"
            )
            error = await cut
            assert await target.deliver([event(2)]) == [None]
            return error

    assert is_transient(asyncio.run(run()))
    assert table.ids() == {"events-3-2"}


def test_calls_share_the_connections(table: Table) -> None:
    table.count_statements(sleep_s=0.1)

    async def run() -> list[Any]:
        target = PostgresTarget(settings(table.name, connections=2), CONTRACT)
        async with opened(target):
            calls = [target.deliver([event(10 * c + n) for n in range(10)]) for c in range(8)]
            done = await asyncio.gather(*calls)
            return [list(outcomes) for outcomes in done] + connections(table.server)

    *done, most = asyncio.run(run())
    assert done == [[None] * 10] * 8
    assert most == (2,)
    assert len(table.ids()) == 80
    wait_until("no connection is left", lambda: connections(table.server) == [(0,)])


def connections(server: PostgresServer) -> list[tuple[Any, ...]]:
    return server.query(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'breakwater'"
    )


def test_a_call_that_finds_no_connection_free_gives_up_in_time(table: Table) -> None:
    table.count_statements(sleep_s=1.5)

    async def run() -> tuple[BaseException, float]:
        target = PostgresTarget(settings(table.name, connections=1), CONTRACT)
        async with opened(target):
            busy = [asyncio.ensure_future(target.deliver([event(n)])) for n in range(2)]
            await asyncio.sleep(0)
            waiting = await timed(failure_of(target.deliver([event(2)])))
            for call in busy:
                with suppress(Exception):
                    await call
            return waiting

    error, took_s = asyncio.run(run())
    assert is_transient(error)
    assert took_s < TIMEOUT_MS / 1000 + GRACE_S


# --- a server that comes and goes


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_calls_fail_at_once_while_the_server_is_down_and_go_on_when_it_is_up(
    own_table: Table, how: str
) -> None:
    server = own_table.server

    async def run() -> None:
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            calls = [target.deliver([event(n)]) for n in range(4)]
            assert await asyncio.gather(*calls) == [[None]] * 4
            getattr(server, how)()
            for n in range(10, 20):
                error, took_s = await timed(failure_of(target.deliver([event(n)])))
                assert is_transient(error)
                assert isinstance(error, psycopg.OperationalError)
                assert took_s < TIMEOUT_MS / 2000
                await asyncio.sleep(0.3)
            server.start()
            # At once, on all connections: no wait that has grown while it was down.
            calls = [target.deliver([event(20 + n)]) for n in range(4)]
            outcomes, took_s = await timed(asyncio.gather(*calls))
            assert outcomes == [[None]] * 4
            assert took_s < TIMEOUT_MS / 2000

    asyncio.run(run())
    assert own_table.ids() == {f"events-3-{n}" for n in (*range(4), *range(20, 24))}


@pytest.mark.parametrize("calls", [1, 4])
def test_a_restart_between_two_calls_fails_none(own_table: Table, calls: int) -> None:
    """All four connections are dead then; a call for each of them would be lost."""

    async def run() -> None:
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            first = [target.deliver([event(n)]) for n in range(4)]
            assert await asyncio.gather(*first) == [[None]] * 4
            # What the pool still has under way is another matter.
            await asyncio.sleep(0.2)
            own_table.server.restart()
            then = [target.deliver([event(10 + n)]) for n in range(calls)]
            outcomes, took_s = await timed(asyncio.gather(*then))
            assert outcomes == [[None]] * calls
            assert took_s < TIMEOUT_MS / 4000

    asyncio.run(run())


def test_a_server_that_is_down_at_the_start_is_not_the_job_s_end(own_table: Table) -> None:
    async def run() -> None:
        own_table.server.stop()
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            assert is_transient(await failure_of(target.deliver([event(1)])))
            own_table.server.start()
            assert await target.deliver([event(1)]) == [None]

    asyncio.run(run())


@pytest.mark.parametrize("known", [True, False], ids=["in a statement", "while connecting"])
def test_a_server_that_does_not_answer_is_given_up_in_time(own_table: Table, known: bool) -> None:
    async def run() -> None:
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            if known:
                assert await target.deliver([event(1)]) == [None]
            with own_table.server.paused():
                for n in range(2):
                    error, took_s = await timed(failure_of(target.deliver([event(10 + n)])))
                    assert is_transient(error)
                    assert TIMEOUT_MS / 1000 - 0.1 < took_s < TIMEOUT_MS / 1000 + GRACE_S
            outcomes, took_s = await timed(target.deliver([event(20)]))
            assert outcomes == [None]
            assert took_s < TIMEOUT_MS / 2000

    asyncio.run(run())


def test_a_call_that_is_cancelled_ends_at_once(own_table: Table) -> None:
    """psycopg would ask the server to end the statement, for 10 s."""

    async def run() -> None:
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            assert await target.deliver([event(1)]) == [None]
            with own_table.server.paused():
                call = asyncio.ensure_future(target.deliver([event(2)]))
                await asyncio.sleep(0.3)
                call.cancel()
                _, took_s = await timed(asyncio.wait({call}))
                assert call.cancelled()
                assert took_s < GRACE_S
            outcomes, took_s = await timed(target.deliver([event(3)]))
            assert outcomes == [None]
            assert took_s < TIMEOUT_MS / 2000

    asyncio.run(run())
    assert own_table.ids() == {"events-3-1", "events-3-3"}


def test_connections_that_went_dead_without_a_word_cost_one_call(own_table: Table) -> None:
    """As behind a firewall that forgets them, or when the server's address moves elsewhere."""
    server = own_table.server

    async def run() -> None:
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            calls = [target.deliver([event(n)]) for n in range(4)]
            assert await asyncio.gather(*calls) == [[None]] * 4
            await asyncio.sleep(0.2)
            with standing_still(server):
                assert isinstance(await failure_of(target.deliver([event(10)])), TimeoutError)
                outcomes, took_s = await timed(target.deliver([event(11)]))
                assert outcomes == [None]
                assert took_s < TIMEOUT_MS / 2000

    asyncio.run(run())


@contextmanager
def standing_still(server: PostgresServer) -> Iterator[None]:
    """The connections that there are; the server takes new ones."""
    pids = server.query("SELECT pid FROM pg_stat_activity WHERE application_name = 'breakwater'")
    assert pids
    try:
        for (pid,) in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for (pid,) in pids:
            os.kill(pid, signal.SIGCONT)


def test_an_attempt_to_connect_from_before_a_call_says_nothing_of_it(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool still waits for an answer that will not come, when the server is back."""

    async def run() -> None:
        async with door(table.server) as (port, is_open):
            monkeypatch.setenv(DSN, table.server.dsn_with(port=port))
            async with opened(PostgresTarget(settings(table.name), CONTRACT)) as target:
                assert is_transient(await failure_of(target.deliver([event(1)])))
                await asyncio.sleep(TIMEOUT_MS / 2000)
                is_open.set()
                assert await target.deliver([event(2)]) == [None]

    asyncio.run(run())


@asynccontextmanager
async def door(server: PostgresServer) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A port before the server's: who comes while it is closed is let in, and left there."""
    is_open = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if is_open.is_set():
            from_server, to_server = await asyncio.open_connection(HOST, server.port)
            writers.append(to_server)
            tasks.add(asyncio.ensure_future(copy(reader, to_server)))
            tasks.add(asyncio.ensure_future(copy(from_server, writer)))

    listening = await asyncio.start_server(come, HOST, 0)
    try:
        yield listening.sockets[0].getsockname()[1], is_open
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.close()


def test_calls_that_are_cancelled_keep_no_connection(table: Table) -> None:
    async def run() -> None:
        target = PostgresTarget(settings(table.name, connections=1), CONTRACT)
        async with opened(target):
            for delay_ms in [n / 10 for n in range(150)]:
                calls = [asyncio.ensure_future(target.deliver([event(n)])) for n in range(3)]
                await asyncio.sleep(delay_ms / 1000)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
            assert await target.deliver([event(10)]) == [None]

    asyncio.run(run())
    wait_until("no connection is left", lambda: connections(table.server) == [(0,)])


def test_the_password_is_in_no_error_and_no_log(
    own_table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = own_table.server

    async def run() -> list[BaseException]:
        errors = []
        async with opened(PostgresTarget(settings(own_table.name), CONTRACT)) as target:
            outcomes = await target.deliver([event(1, price=BAD_PRICE)])
            errors += [each for each in outcomes if isinstance(each, BaseException)]
            server.stop()
            errors.append(await failure_of(target.deliver([event(1)])))
        return errors

    errors = asyncio.run(run())
    shown = [*map(str, errors), *map(repr, errors), caplog.text]
    shown += ["".join(traceback.format_exception(error)) for error in errors]
    assert "psycopg.pool" in caplog.text
    assert not [text for text in shown if server.password in text]


# --- settings


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"table": ""}, "table ''"),
        ({"table": "a.b.c"}, "schema.table"),
        ({"dsn_env": ""}, "dsn_env is empty"),
        ({"on_conflict": "replace"}, 'use "update" or "nothing"'),
        ({"batch_max_events": 0}, "batch_max_events must be 1 or more"),
        ({"connections": 0}, "connections must be 1 or more"),
        ({"timeout_ms": 0}, "timeout_ms must be 1 or more"),
        ({"identity": ()}, "identity is empty"),
        ({"columns": {"a": "user_id"}}, "identity names 'event_id'"),
        ({"columns": {"event_id": "id"}}, "no 'id'"),
        ({"identity": ("id",)}, "identity names 'id'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_a_line(
    more: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(TargetError, match=says) as caught:
        PostgresTarget(settings("t", **more), CONTRACT)
    assert "\n" not in str(caught.value)


def test_an_identity_that_may_be_null_is_refused() -> None:
    contract = load_contract("tests.postgres.readings:Reading", "device", "at")
    with pytest.raises(TargetError, match="may be null"):
        PostgresTarget(settings("t", columns={"n": "the note"}, identity=("n",)), contract)


def test_an_event_id_of_the_contract_s_own_needs_columns() -> None:
    contract = load_contract("tests.postgres.readings:Numbered", "event_id", "at")
    with pytest.raises(TargetError, match="field 'event_id' of its own"):
        PostgresTarget(settings("t"), contract)
    PostgresTarget(settings("t", columns={"event_id": "event_id"}), contract)


UNSHOWN = "s3cr3t"


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (None, f"no environment variable {DSN}"),
        (" ", f"no environment variable {DSN}"),
        (UNSHOWN, "no connection string"),
        (f"host=h {UNSHOWN}", "no connection string"),
        (f"postgresql://u:x@{UNSHOWN}@h/d", "write @ as %40"),
        (f"postgresql://u:{UNSHOWN}/x@h/d", "write @ as %40"),
    ],
)
def test_a_connection_string_that_cannot_be_used_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, dsn: str | None, says: str
) -> None:
    if dsn is None:
        monkeypatch.delenv(DSN, raising=False)
    else:
        monkeypatch.setenv(DSN, dsn)
    with pytest.raises(TargetError, match=says) as caught:
        asyncio.run(PostgresTarget(settings("t"), CONTRACT).open())
    assert "\n" not in str(caught.value)
    assert UNSHOWN not in "".join(traceback.format_exception(caught.value))
