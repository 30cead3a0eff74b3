"""Starting the one Java process that PyFlink talks to.

PyFlink would start it itself, when it is first asked for. This starts it sooner, so that Python
imports in the meantime what it needs, and with a class path that is always the same.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from py4j.java_gateway import JavaGateway

from flink_jobs.class_archive import ClassArchive
from flink_jobs.java import Java

_MAIN: Final = "org.apache.flink.client.python.PythonGatewayServer"
#: As PyFlink has them.
_ALWAYS: Final = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    "--add-opens=jdk.proxy2/jdk.proxy2=ALL-UNNAMED",
)
#: What a job is built with takes as long to import as Java takes to start.
_WANTED_SOON: Final = ("pyflink.datastream", "pyflink.table")
_LOOK_EVERY_S: Final = 0.01
_PORT_VARIABLE: Final = "PYFLINK_GATEWAY_PORT"
_PORT: Final = struct.Struct("!I")
_TOLD_BYTES: Final = 2000


class JavaStartError(RuntimeError):
    """Java ended before PyFlink could talk to it."""


@dataclass(frozen=True)
class JavaProcess:
    """The Java process, which may not be ready yet.

    Attributes:
        process: it ends when its standard input is closed, and so with this process.
        word: the file in which it says where it listens.
        errors: its standard error.
    """

    process: subprocess.Popen[bytes]
    word: Path
    errors: Path

    def gateway(self) -> JavaGateway:
        """PyFlink's connection to it; waits until it is ready.

        Raises:
            JavaStartError: it has ended.
        """
        from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - while Java starts

        for name in _WANTED_SOON:
            import_module(name)
        while len(port := self._said()) < _PORT.size:
            if self.process.poll() is not None:
                told = self.errors.read_bytes()[-_TOLD_BYTES:].decode(errors="replace").strip()
                raise JavaStartError(told or f"exit code {self.process.returncode}")
            time.sleep(_LOOK_EVERY_S)
        with _variable(_PORT_VARIABLE, str(*_PORT.unpack_from(port))):
            return get_gateway()

    def _said(self) -> bytes:
        try:
            return self.word.read_bytes()
        except FileNotFoundError:
            return b""


def flink_jars() -> tuple[Path, ...]:
    """The jars of the Flink that PyFlink brings, in an order that is always the same."""
    home = _flink_home()
    jars = [*sorted((home / "lib").glob("*.jar")), *(home / "opt").glob("flink-python*.jar")]
    return tuple(jars)


def start_java(
    java: Java, archive: ClassArchive, tmp: Path, environ: Mapping[str, str]
) -> JavaProcess:
    """Start it, and do not wait until it is ready.

    Args:
        java: which one.
        archive: its class path, and the archive of its classes.
        tmp: folder for temporary files.
        environ: its environment; the options in JVM_ARGS win over those of the archive.
    """
    word, errors = tmp / "java.port", tmp / "java.err"
    env = {**environ, "_PYFLINK_CONN_INFO_PATH": str(word)}
    command = [
        str(java.home / "bin" / "java"),
        *archive.options,
        *env.get("JVM_ARGS", "").split(),
        *_ALWAYS,
        *_pyflink_options(env),
        "-cp",
        os.pathsep.join([*map(str, archive.class_path), *_hadoop(env)]),
        _MAIN,
        "local",
    ]
    with errors.open("wb") as told:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stderr=told,
            env=env,
            # Ctrl-C goes to all that the terminal knows of; Java ends when this process says so.
            preexec_fn=ignore_interrupt,  # noqa: PLW1509 - nothing but a call to the system
        )
    return JavaProcess(process, word, errors)


def ignore_interrupt() -> None:
    """Ignore Ctrl-C, and so do the processes that this one will start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _flink_home() -> Path:
    from pyflink.find_flink_home import _find_flink_home  # noqa: PLC0415 - not to be loaded early

    return Path(_find_flink_home())


def _pyflink_options(env: dict[str, str]) -> list[str]:
    """What Flink's configuration has for Java, and the settings of its log."""
    from pyflink import pyflink_gateway_server as server  # noqa: PLC0415

    server.prepare_environment_variables(env)
    return [*filter(None, server.get_jvm_opts(env)), *server.construct_log_settings(env)]


def _hadoop(env: Mapping[str, str]) -> list[str]:
    names = ("HADOOP_CLASSPATH", "YARN_CONF_DIR", "HADOOP_CONF_DIR", "HBASE_CONF_DIR")
    return [env[name] for name in names if env.get(name)]


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Have a variable in the environment for a moment: processes that are started have it not."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
