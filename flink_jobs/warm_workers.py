"""The run's side of `worker_server`: starts it, and says what Flink is to start as Python."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flink_jobs import worker_client
from flink_jobs.java_start import ignore_interrupt

_LINUX: Final = sys.platform == "linux"
_ENDS_WITHIN_S: Final = 10.0
#: More does not fit into the address of a socket (unix(7)).
_LONGEST_ADDRESS: Final = 107
_WORKER: Final = "pyflink.fn_execution.beam.beam_boot"
_PROGRAM: Final = f"""#!/bin/sh
[ "$2" = {_WORKER} ] && exec {{python}} -I -S {{client}} {{address}} {{python}} "$@"
exec {{python}} "$@"
"""


class WarmWorkers:
    """The server of a run's workers, from when it is started to the end of the context."""

    def __init__(self, tmp: Path) -> None:
        """Nothing is started.

        Args:
            tmp: the run's folder for temporary files.
        """
        self._tmp = tmp
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Start the server, if there can be one here, and do not wait for it.

        Args:
            environ: the environment of the workers.

        Returns:
            Flink options: the program for workers.
        """
        address, program = self._tmp / "workers", self._tmp / "python"
        if not _LINUX or len(os.fsencode(address)) > _LONGEST_ADDRESS:
            return {}
        if not _written(program, address):
            return {}
        with (self._tmp / "workers.log").open("wb") as log:
            self._server = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "flink_jobs.worker_server", str(address)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environ,
                preexec_fn=ignore_interrupt,  # noqa: PLW1509 - nothing but a call to the system
            )
        return {"python.executable": str(program)}

    def __enter__(self) -> WarmWorkers:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, and the workers that are left."""
        if self._server is None:
            return
        self._server.terminate()
        try:
            self._server.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def _written(program: Path, address: Path) -> bool:
    """Write what Flink starts; whether it can be started (a folder may be mounted noexec)."""
    names = {"python": sys.executable, "client": worker_client.__file__, "address": str(address)}
    program.write_text(_PROGRAM.format(**{name: shlex.quote(v) for name, v in names.items()}))
    program.chmod(0o700)
    return os.access(program, os.X_OK)
