"""A real Postgres on this machine only: started, stopped, killed, paused, and started again.

It refuses to run as root: then it runs as another user, in a folder of that user's.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from flink_jobs.machine.tied import tied

HOST = "127.0.0.1"
DATABASE = "postgres"
OWNER = "breakwater"
#: Two busy cores take their time.
READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 30.0
#: In this order, where this process is root.
USERS = ("postgres", "nobody")
#: Debian keeps the server's programs off the PATH.
FOLDERS = "/usr/lib/postgresql/*/bin"
MISSING = "no Postgres server here: install it, on Debian with: apt-get install postgresql"
PORTS = range(20_000, 32_000)
#: Nobody's data: that a machine which loses its power loses some of it does not matter.
OPTIONS = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "40"}


class MissingPostgres(Exception):
    """Its programs are not on this machine. The message says what to install."""


class PostgresServer:
    """A server and its data. A context manager: whatever happens in it, the server ends.

    Its port and its data stay the same over a restart. It ends with the thread that has started it,
    so start it in one that stays.
    """

    def __init__(self, **options: str) -> None:
        """Choose a free port.

        Args:
            options: server settings besides, or instead of, those in `OPTIONS`.

        Raises:
            MissingPostgres: its programs are not found.
        """
        self._bin = _programs()
        self.password = secrets.token_hex(8)
        self.port = _free_port()
        self._options = {**OPTIONS, **options}
        self._user = _user()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def __enter__(self) -> PostgresServer:
        # A socket's path is at most 107 characters: pytest's own folders may be too deep, and
        # another user may not enter them.
        self._folder = Path(tempfile.mkdtemp(prefix="bw-pg-"))
        try:
            self._init()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.kill()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """The connection string of the owner."""
        return self.dsn_with()

    def dsn_with(
        self,
        user: str = OWNER,
        password: str | None = None,
        database: str = DATABASE,
        port: int = 0,
    ) -> str:
        """One that differs from it."""
        secret = self.password if password is None else password
        return f"postgresql://{user}:{secret}@{HOST}:{port or self.port}/{database}"

    def start(self) -> None:
        """Start it on the data it has, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._data), *self._arguments()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us: the server ends when we end it.
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            code = self._process.poll()
            assert code is None, f"Postgres ended with code {code}: {self._log_tail()}"
            assert time.monotonic() < deadline, f"no answer from Postgres: {self._log_tail()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in order, at once: open transactions are rolled back ("fast")."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it without order; it recovers at its next start ("immediate")."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop it, if it is up, and start it."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop it where it stands: its connections stay open, and it answers nothing."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def query(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, and give its rows."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    # --- parts

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _init(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self.password)
        if self._user:
            for path in (self._folder, secret):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        command = self._command(
            *["initdb", "-D", str(self._data), "--no-sync", "--encoding", "UTF8", "--locale", "C"],
            *["--username", OWNER, "--auth", "scram-sha-256", "--pwfile", str(secret)],
        )
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=READY_WITHIN_S, check=False
        )
        assert done.returncode == 0, f"initdb: {done.stderr[-500:]}"

    def _command(self, program: str, *arguments: str) -> list[str]:
        """Ends with this process, as the right user. The process is the program's own."""
        command = [str(self._bin / program), *arguments]
        if not self._user:
            return tied(command, signal.SIGQUIT)
        # The kernel forgets a signal that was asked for before the change of user.
        return [
            *["setpriv", f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"],
            *["--clear-groups", "--pdeathsig", "QUIT", *command],
        ]

    def _arguments(self) -> Iterable[str]:
        own = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
        }
        for name, value in {**self._options, **own}.items():
            yield from ("-c", f"{name}={value}")

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.dsn, connect_timeout=5).close()
            return True
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(how)
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._signal_all(signal.SIGKILL)
            self._process.wait(ENDS_WITHIN_S)
        self._process = None

    def _signal_all(self, number: signal.Signals) -> None:
        """To the server and to those that it has forked, one for each connection."""
        if self._process is None or self._process.poll() is not None:
            return
        first = self._process.pid
        # The first one first: one that stands still forks no more.
        self._process.send_signal(number)
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-500:]


def _programs() -> Path:
    """The folder with `postgres` and `initdb`: of the PATH, else the newest of Debian's."""
    on_path = [Path(found).resolve() for n in ("postgres", "initdb") if (found := shutil.which(n))]
    folders = [path.parent for path in on_path[:1] if len(on_path) == 2]
    folders += sorted(Path("/").glob(FOLDERS[1:]), key=_version, reverse=True)
    for folder in folders:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise MissingPostgres(MISSING)


def _version(folder: Path) -> float:
    found = re.search(r"/postgresql/([\d.]+)/", str(folder))
    return float(found.group(1)) if found else 0.0


def _user() -> pwd.struct_passwd | None:
    """As whom it runs; None as this process."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise MissingPostgres(f"Postgres refuses to run as root, and there is none of {USERS} here")


def _free_port() -> int:
    """One that no client is given for its own end: while the server is down that would take it."""
    for _ in range(100):
        port = random.choice(PORTS)  # noqa: S311 - any will do
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError("no free port")


if __name__ == "__main__":
    with PostgresServer() as server:
        print(server.dsn, flush=True)
        sys.stdin.read()
