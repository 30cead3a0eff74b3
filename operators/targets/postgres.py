"""A target that is a table in Postgres: many rows in a statement, and a bad row alone fails.

A call writes all of its events in one transaction. Where the database refuses that for the data,
the two halves are tried each in a transaction of its own, and so on down to the rows that are
really refused: one bad row among 500 takes some 20 transactions.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Composed, Identifier
from psycopg.types.json import Json
from psycopg_pool import AsyncConnectionPool

from operators.rules.contract import Column, Contract
from operators.rules.delivery.failure import FailureTable
from operators.rules.times import epoch_ms, iso_utc_ms
from udfs.targets import Event, NotTried, Outcome, Target, TargetError

if TYPE_CHECKING:
    from typing_extensions import Self

OnConflict = Literal["update", "nothing"]
_Row = dict[str, Any]
#: When the attempt to connect began, and why it failed.
_Refusal = tuple[float, Exception]

#: What a column may hold beside the contract's fields.
SOURCES: Final = ("idempotency_key", "source_topic", "source_partition", "source_offset", "time")
EVENT_ID: Final = "event_id"

#: The server gives up first: then it says so, and the connection can be used again.
_SERVER_GIVES_UP_AT: Final = 0.9
#: Later than this in a call no further part of a refused batch is begun.
_LAST_PART_BEGINS_AT: Final = 0.5
#: Of the transaction, not of the session: a pooler between us and the server may mix sessions up.
_LIMITS: Final = (
    "SELECT set_config('statement_timeout', %s, true),"
    " set_config('idle_in_transaction_session_timeout', %s, true)"
)
#: Of the row, whatever the user's table says of a retry: a value, a constraint.
_OF_A_ROW: Final = ("22", "23")
#: libpq keeps the SQLSTATE of a refused login for itself, and leaves us the text. A server that
#: speaks another language is taken for one that is not there: retried, as long as it takes.
_LOGINS: Final = (
    ("28P01", "password authentication failed|no password supplied"),
    ("28000", "authentication failed for user|pg_hba.conf|role .* (does not exist|not permitted)"),
    ("3D000", "database .* does not exist"),
    ("42501", "permission denied for database"),
)


@dataclass(frozen=True)
class PostgresSettings:
    """What a `PostgresTarget` goes by.

    Attributes:
        table: `table` or `schema.table`.
        dsn_env: the environment variable with the connection string. The string itself, and the
            password in it, is in no setting, no log and no error message.
        columns: a column of the table, and what it holds: a field of the contract, or
            "idempotency_key", "source_topic", "source_partition", "source_offset" or "time" (of the
            event). A field that has such a name itself comes first. None: a column for each field,
            and `event_id` for the idempotency key.
        identity: the columns that tell events apart; the table needs a unique index on just these.
        on_conflict: "update" overwrites the row that is there, "nothing" leaves it.
        batch_max_events: events in a call at most.
        connections: at a time at most.
        timeout_ms: for a call, the wait for a connection included.

    Raises:
        TargetError: They cannot be used.
    """

    table: str
    dsn_env: str = "POSTGRES_DSN"
    columns: Mapping[str, str] | None = None
    identity: tuple[str, ...] = (EVENT_ID,)
    on_conflict: OnConflict = "update"
    batch_max_events: int = 500
    connections: int = 4
    timeout_ms: int = 10_000

    def __post_init__(self) -> None:
        """Refuse at start what would fail for every event."""
        for fault in self._faults():
            raise TargetError(f"Postgres target: {fault}")

    def _faults(self) -> Iterator[str]:
        parts = self.table.split(".")
        if not all(parts) or len(parts) > 2:
            yield f"table {self.table!r}: write it as table or schema.table"
        if not self.dsn_env:
            yield "dsn_env is empty: name the environment variable with the connection string"
        if self.on_conflict not in get_args(OnConflict):
            yield f'on_conflict {self.on_conflict!r}: use "update" or "nothing"'
        for name in ("batch_max_events", "connections", "timeout_ms"):
            if getattr(self, name) < 1:
                yield f"{name} must be 1 or more"
        if not self.identity:
            yield "identity is empty: name the columns of a unique index"
        if self.columns is not None:
            for name in self.identity:
                if name not in self.columns:
                    yield f"identity names {name!r}, which is not in columns"


class PostgresTarget(Target):
    """Writes events to a table.

    What becomes of an event: written; or the database's own error, with its SQLSTATE; or
    `NotTried` behind such a one of the same key. What is about the server and not about a row
    (no connection, no login, no table, no time) is raised, and none of the call's events counts as
    written, although some may be.

    Guarantee: an event is written at least once, and a second time changes nothing. Of events with
    one identity the one that was called with last is in the table, which need not be the latest.
    """

    keeps_order: bool = True

    def __init__(
        self,
        settings: PostgresSettings,
        contract: Contract,
        failures: FailureTable | None = None,
    ) -> None:
        """Look at the settings; nothing is opened yet.

        Args:
            settings: what to go by.
            contract: what the events are.
            failures: says of an error whether it is about the data. None: the table without
                entries of the user's.

        Raises:
            TargetError: a column is to hold what no event has, or the identity may be null.
        """
        self.max_batch = settings.batch_max_events
        self._settings = settings
        self._failures = failures or FailureTable()
        columns = _columns(settings, contract)
        self._cells = [(name, _reader(source, contract)) for name, source in columns.items()]
        self._statement = _statement(settings, list(columns))
        self._pool: AsyncConnectionPool[_Connection] | None = None

    async def open(self) -> None:
        """Get ready. Nothing is connected yet: a server that is down is for the breaker."""
        dsn = _dsn(self._settings.dsn_env)
        self._refused: asyncio.Future[_Refusal] = asyncio.get_running_loop().create_future()
        self._pool = AsyncConnectionPool(
            dsn,
            connection_class=_Connection,
            kwargs={
                "timeout_s": self._settings.timeout_ms / 1000,
                "refused": self._tell,
                "client_encoding": "utf8",
                # A transaction that psycopg begins by itself takes a round trip more.
                "autocommit": True,
                "fallback_application_name": "breakwater",
                # A plan that is kept fails when the table is changed, or behind some poolers.
                "prepare_threshold": None,
            },
            min_size=0,
            max_size=self._settings.connections,
            check=self._check,
            # The breaker and the retries say when to try again. Left to itself the pool would wait
            # for minutes, after a long outage, although the server is back.
            reconnect_timeout=0,
            open=False,
        )
        await self._pool.open()

    async def close(self) -> None:
        """Close all connections."""
        if self._pool:
            await self._pool.close()

    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Write the events."""
        call = _Call(self._settings.timeout_ms)
        batch = [(event.key, {name: read(event) for name, read in self._cells}) for event in events]
        connection = await self._borrow(call)
        try:
            return await self._outcomes(call, connection, batch)
        finally:
            # A connection that is not given back is lost, so a cancellation does not get there.
            await asyncio.shield(self._opened().putconn(connection))

    # --- the rows

    async def _outcomes(
        self, call: _Call, connection: _Connection, batch: Sequence[tuple[str, _Row]]
    ) -> list[Outcome]:
        """Write a batch, and where the data is refused its halves, first things first."""
        outcomes: list[Outcome] = [NotTried()] * len(batch)
        failed: set[str] = set()
        parts: list[Sequence[int]] = [range(len(batch))]
        known = False
        while parts and (not known or call.spent() < _LAST_PART_BEGINS_AT):
            part = [i for i in parts.pop() if batch[i][0] not in failed]
            if not part:
                continue
            try:
                await self._in_time(
                    call, connection, self._write(connection, [batch[i][1] for i in part])
                )
            except psycopg.Error as error:
                if not self._of_the_data(error):
                    raise
                if len(part) == 1:
                    outcomes[part[0]] = error
                    failed.add(batch[part[0]][0])
                    known = True
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                for i in part:
                    outcomes[i] = None
                known = True
        return outcomes

    async def _write(self, connection: _Connection, rows: Sequence[_Row]) -> None:
        """Write rows in a transaction of their own.

        The commit is sent when all else has been answered: a call that was given up is then either
        rolled back, or holds its rows until it is done. It cannot come after the one that is made
        instead of it.
        """
        limit_ms = str(max(1, int(self._settings.timeout_ms * _SERVER_GIVES_UP_AT)))
        try:
            async with connection.pipeline():
                await connection.execute("BEGIN")
                await connection.execute(_LIMITS, [limit_ms, limit_ms])
                for distinct in self._rounds(rows):
                    await connection.execute(
                        self._statement, [Json(distinct, dumps=msgspec.json.encode)]
                    )
        except psycopg.Error:
            if not connection.closed:
                await connection.rollback()
            raise
        await connection.commit()

    def _rounds(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """The rows for each statement: it refuses to change a row twice."""
        rounds: list[list[_Row]] = []
        times: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            identity = tuple(row[name] for name in self._settings.identity)
            if times[identity] == len(rounds):
                rounds.append([])
            rounds[times[identity]].append(row)
            times[identity] += 1
        return rounds

    def _of_the_data(self, error: psycopg.Error) -> bool:
        """Whether other rows may be written although these were refused."""
        if not error.sqlstate:
            return False
        if error.sqlstate[:2] in _OF_A_ROW:
            return True
        _, handling = self._failures.of_exception(error)
        return not (handling.retryable or handling.systemic)

    # --- the connections

    def _opened(self) -> AsyncConnectionPool[_Connection]:
        if self._pool is None:
            raise RuntimeError("the Postgres target is not open")
        return self._pool

    async def _borrow(self, call: _Call) -> _Connection:
        """A connection; or the reason why there is none, as soon as it is known.

        By itself the pool would try again until the time is over, and then say only that.
        """
        while True:
            refused = self._refused
            wanted = asyncio.ensure_future(self._opened().getconn(call.left_s()))
            either: set[asyncio.Future[Any]] = {wanted, refused}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                if late := await _cancelled(wanted):
                    await self._opened().putconn(late)
                raise
            if wanted.done():
                return wanted.result()
            if late := await _cancelled(wanted):
                return late
            began_s, error = refused.result()
            # An attempt from before the call says nothing of now.
            if began_s >= call.began_s:
                # Several may raise it: each without what the others have gone through.
                raise error.with_traceback(None)

    def _tell(self, began_s: float, error: Exception) -> None:
        """Tell those who wait for a connection that an attempt to get one has failed."""
        refused, self._refused = self._refused, asyncio.get_running_loop().create_future()
        refused.set_result((began_s, error))

    async def _check(self, connection: _Connection) -> None:
        """Refuse a connection that the server has left; the server is not asked.

        Nobody has written to it and nothing was asked, so whatever there is to read is its end.
        """
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if poll.poll(0):
            await connection.close()
            # The others were left at the same time.
            await self._opened().drain()
            raise psycopg.OperationalError("the server has closed the connection")

    async def _in_time(
        self, call: _Call, connection: _Connection, work: Coroutine[Any, Any, None]
    ) -> None:
        """Wait for what is done on a connection, but no longer than the call may take."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=call.left_s())
        except asyncio.CancelledError:
            await self._hang_up(connection, task)
            raise
        if not task.done():
            await self._hang_up(connection, task)
            raise TimeoutError(f"no answer from Postgres within {self._settings.timeout_ms} ms")
        task.result()

    async def _hang_up(self, connection: _Connection, task: asyncio.Future[None]) -> None:
        """End a connection under the one that waits for it.

        Were it cancelled instead, psycopg would ask the server to end the statement, and wait ten
        seconds more for one that does not answer.
        """
        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(connection.fileno())) as its_socket,
        ):
            its_socket.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # looked at, and so not complained about
        await connection.close()
        # The others lead to the same server.
        await self._opened().drain()


class _Call:
    """The time that a call may take."""

    def __init__(self, timeout_ms: int) -> None:
        self._now_s = asyncio.get_running_loop().time
        self._timeout_s = timeout_ms / 1000
        self.began_s = self._now_s()

    def left_s(self) -> float:
        """What is left of it."""
        return max(0.0, self.began_s + self._timeout_s - self._now_s())

    def spent(self) -> float:
        """The share that has gone."""
        return 1 - self.left_s() / self._timeout_s


class _Connection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that says why there is none."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect within `timeout_s`; else raise why not, and tell `refused` so.

        psycopg's own limit is at least two seconds for each address.
        """
        timeout_s: float = kwargs.pop("timeout_s")
        refused: Callable[[float, Exception], None] = kwargs.pop("refused")
        began_s = asyncio.get_running_loop().time()
        error: Exception
        try:
            return await asyncio.wait_for(super().connect(conninfo, **kwargs), timeout_s)
        except asyncio.TimeoutError:
            error = TimeoutError(f"no connection to Postgres within {timeout_s * 1000:.0f} ms")
        except psycopg.Error as found:
            error = _with_sqlstate(found)
        refused(began_s, error)
        raise error


async def _cancelled(wanted: asyncio.Future[_Connection]) -> _Connection | None:
    """Cancel the wait for a connection; it may have come to one all the same."""
    wanted.cancel()
    await asyncio.wait({wanted})
    return None if wanted.cancelled() or wanted.exception() else wanted.result()


def _with_sqlstate(error: psycopg.Error) -> psycopg.Error:
    """Why a login was refused, as the failure table knows it."""
    text = str(error)
    for state, pattern in _LOGINS:
        if not error.sqlstate and re.search(pattern, text):
            return psycopg.errors.lookup(state)(text)
    return error


# --- the settings


def _dsn(variable: str) -> str:
    """The connection string. Nothing of it is in an error message: it may hold a password."""
    dsn = os.environ.get(variable, "").strip()
    how = f'set {variable}="postgresql://user:password@host:5432/database" where workers run'
    if not dsn:
        raise TargetError(f"Postgres target: no environment variable {variable}: {how}")
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise TargetError(f"Postgres target: {variable} is no connection string: {how}") from None
    # A password with an @ or a / in it is taken for a part of the address, and then shown as such.
    ports = str(parts.get("port", "")).split(",")
    if "@" in str(parts.get("host", "")) or not all(port.isdigit() or not port for port in ports):
        raise TargetError(
            f"Postgres target: host or port in {variable} cannot be right: in user and password "
            "write @ as %40, / as %2F and : as %3A"
        )
    return dsn


def _columns(settings: PostgresSettings, contract: Contract) -> Mapping[str, str]:
    """What each column holds."""
    names = [column.name for column in contract.columns]
    columns = settings.columns
    if columns is None:
        if taken := {EVENT_ID, SOURCES[0]}.intersection(names):
            raise TargetError(
                f"Postgres target: the contract has a field {min(taken)!r} of its own: say in "
                "columns what each column holds"
            )
        columns = {**{name: name for name in names}, EVENT_ID: SOURCES[0]}
    for column, source in columns.items():
        if source not in names and source not in SOURCES:
            known = ", ".join([*names, *SOURCES])
            raise TargetError(f"Postgres target: column {column!r}: no {source!r}: use {known}")
    for name in settings.identity:
        if name not in columns:
            raise TargetError(f"Postgres target: identity names {name!r}, which is no column")
        if (field := _field(columns[name], contract)) and field.optional:
            raise TargetError(
                f"Postgres target: identity names {name!r}, which may be null: null equals nothing"
            )
    return columns


def _field(source: str, contract: Contract) -> Column | None:
    return next((column for column in contract.columns if column.name == source), None)


def _reader(source: str, contract: Contract) -> Callable[[Event], Any]:
    """What reads a cell off an event, as JSON has it."""
    field = _field(source, contract)
    if field is None:
        return _time if source == "time" else attrgetter(source)
    read = attrgetter(f"value.{field.attribute}")
    if field.kind != "datetime":
        return read

    def instant(event: Event) -> str | None:
        value = read(event)
        return None if value is None else iso_utc_ms(epoch_ms(value))

    return instant


def _time(event: Event) -> str:
    return iso_utc_ms(event.time_ms)


def _statement(settings: PostgresSettings, columns: Sequence[str]) -> Composed:
    """One for any number of rows: they come as JSON, and the table's own types read it."""
    others = [name for name in columns if name not in settings.identity]
    update = SQL(", ").join(SQL("{0} = EXCLUDED.{0}").format(Identifier(name)) for name in others)
    updating = settings.on_conflict == "update" and others
    return SQL(
        "INSERT INTO {table} ({columns}) SELECT {columns} "
        "FROM json_populate_recordset(NULL::{table}, %s) ON CONFLICT ({identity}) DO {action}"
    ).format(
        table=Identifier(*settings.table.split(".")),
        columns=SQL(", ").join(map(Identifier, columns)),
        identity=SQL(", ").join(map(Identifier, settings.identity)),
        action=SQL("UPDATE SET {}").format(update) if updating else SQL("NOTHING"),
    )
