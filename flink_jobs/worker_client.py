"""What Flink starts as a Python worker: has `worker_server` fork one, and waits for it.

It is run by its path, without site-packages, so that it is there in a few milliseconds. Where the
server does not answer, or cannot serve this call, it becomes an ordinary worker itself.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
from pathlib import Path
from typing import Final

LENGTH: Final = struct.Struct("!I")
RESULT: Final = struct.Struct("!i")
#: The answer to a call that the server cannot serve.
REFUSED: Final = -1
_LOOK_EVERY_S: Final = 1.0


def main(address: str, python: str, arguments: list[str]) -> int:
    """Run a worker to its end.

    Args:
        address: where the server listens.
        python: the program that is the worker where there is no server.
        arguments: the worker's call, as Python gets it: -m, the module, and what follows.

    Returns:
        The worker's exit code.
    """
    try:
        code = _served(address, arguments[2:])
    except OSError:
        code = REFUSED
    if code == REFUSED:
        os.execv(python, [python, *arguments])  # noqa: S606
    return code


def _served(address: str, arguments: list[str]) -> int:
    call = {"arguments": arguments, "environ": dict(os.environ), "folder": str(Path.cwd())}
    text = json.dumps(call).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [LENGTH.pack(len(text))], [1, 2])
        server.sendall(text)
        return _wait(server)


def _wait(server: socket.socket) -> int:
    """Wait for the worker's end; ends with the TaskManager that has started this process."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from operators.orphan import Lineage  # noqa: PLC0415

    lineage = Lineage()
    while not select.select([server], [], [], _LOOK_EVERY_S)[0]:
        if lineage.has_changed():
            return 1
    answer = server.recv(RESULT.size)
    return RESULT.unpack(answer)[0] if answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
