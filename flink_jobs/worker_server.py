"""Starts Python workers by forking a process that has imported all they need.

A worker of Flink's imports for more than a second, most of it Apache Beam, and a job has one for
each of its slots. So this process, which the run starts in good time, imports once, and each worker
is a fork of it: it is there at once, again after a crash, and shares its memory with the others.

Flink starts a worker as ever, but what it starts is `worker_client`, which hands over its call and
waits. A worker ends with its client: Flink and its shell see the process that they have started.
Only on Linux, where a process can be waited for among other things (pidfd).
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from flink_jobs.worker_client import LENGTH, REFUSED, RESULT

#: The worker's program, which is run as ``python -m`` runs it.
WORKER: Final = "pyflink.fn_execution.beam.beam_boot"
_IMPORTED: Final = (
    "pyflink.fn_execution.beam.beam_sdk_worker_main",
    "operators.delivery",
    "operators.intake",
    "operators.file_source",
    "operators.kafka_source",
)
_BACKLOG: Final = 128
_CALL_WITHIN_S: Final = 10.0


@dataclass(frozen=True)
class _Call:
    """What a client hands over: how its worker is to run."""

    arguments: list[str]
    environ: dict[str, str]
    folder: str
    files: list[int]


@dataclass(frozen=True)
class _Worker:
    """A worker that runs, and the client that waits for it."""

    pid: int
    ended: int
    client: socket.socket


class _Server:
    """Forks workers, until the process that has started it is gone and they are, too."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Worker] = {}

    def serve(self) -> None:
        """Take calls; ends with the standard input, which the run holds open."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        starts = True
        while starts or self._workers:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Worker):
                    self._look(key.data, ended=key.fd == key.data.ended)
                else:
                    # The run is over, or was killed: its workers end with its Java process.
                    starts = False
                    self._selector.unregister(self._listener)
                    self._selector.unregister(sys.stdin.fileno())
                    self._listener.close()

    def end(self) -> NoReturn:
        """End at once, and every worker that still runs."""
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        os._exit(0)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            client.settimeout(_CALL_WITHIN_S)
            call = _receive(client)
            client.settimeout(None)
        except (OSError, ValueError, EOFError):
            client.close()
            return
        if call.environ.get("PYTHONPATH") != os.environ.get("PYTHONPATH"):
            # Other modules than those that are here would be wanted.
            _answer(client, REFUSED)
        else:
            self._start(call, client)
        for file in call.files:
            os.close(file)

    def _start(self, call: _Call, client: socket.socket) -> None:
        pid = os.fork()
        if pid == 0:
            self._let_go(client)
            _work(call)
        worker = _Worker(pid, os.pidfd_open(pid), client)
        self._workers[pid] = worker
        self._selector.register(worker.ended, selectors.EVENT_READ, worker)
        self._selector.register(client, selectors.EVENT_READ, worker)

    def _let_go(self, client: socket.socket) -> None:
        """In a new worker: a client must see it when this server is gone."""
        self._selector.close()
        for each in (self._listener, client, *(w.client for w in self._workers.values())):
            each.close()
        for worker in self._workers.values():
            os.close(worker.ended)

    def _look(self, worker: _Worker, *, ended: bool) -> None:
        """A worker has ended, or its client has: then the worker ends as well."""
        if worker.pid not in self._workers:
            return
        if not ended:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        del self._workers[worker.pid]
        self._selector.unregister(worker.ended)
        self._selector.unregister(worker.client)
        os.close(worker.ended)
        _answer(worker.client, code if code >= 0 else 128 - code)


def main(address: str) -> None:
    """Serve at an address until the standard input ends."""
    # A client that comes too early waits until all is imported.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(_BACKLOG)
        for module in _IMPORTED:
            import_module(module)
        gc.freeze()  # a collection in a worker is not to copy what it shares with the others
        server = _Server(listener)
        signal.signal(signal.SIGTERM, lambda *_: server.end())
        server.serve()
        os._exit(0)  # without freeing all that was imported


def _receive(client: socket.socket) -> _Call:
    head, files, _, _ = socket.recv_fds(client, LENGTH.size, 2)
    (length,) = LENGTH.unpack(head)
    said: Any = json.loads(_read(client, length))
    return _Call(said["arguments"], said["environ"], said["folder"], files)


def _read(client: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        if not (more := client.recv(length - len(received))):
            raise EOFError
        received += more
    return bytes(received)


def _answer(client: socket.socket, code: int) -> None:
    with suppress(OSError), client:
        client.sendall(RESULT.pack(code))


def _work(call: _Call) -> NoReturn:
    """Be a worker: the process that Flink wanted."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _take_place(call)
        runpy.run_module(WORKER, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _take_place(call: _Call) -> None:
    """Have the files, the folder, the environment and the arguments of the client."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, *call.files)):
        os.dup2(file, number)
        os.close(file)
    os.chdir(call.folder)
    os.environ.clear()
    os.environ.update(call.environ)
    sys.argv = [WORKER, *call.arguments]


if __name__ == "__main__":
    main(str(Path(sys.argv[1])))
