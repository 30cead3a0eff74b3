"""A real Kafka broker of one node, on this machine only: for the tests and `make kafka-demo`.

It is no broker to keep data in: one replica, a small heap, no authentication, and loopback only.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from flink_jobs.errors import UserError
from flink_jobs.kafka.jars import broker_class_path
from flink_jobs.machine.java import find_java
from flink_jobs.machine.tied import tied
from flink_jobs.machine.waiting import wait_a_moment

HOST: Final = "127.0.0.1"
#: A machine that is busy with tests takes its time.
ANSWERS_WITHIN_S: Final = 180.0
STOPS_WITHIN_S: Final = 30.0
FORMATS_WITHIN_S: Final = 180.0
_OLDEST_JAVA: Final = 17
_JVM_ARGS: Final = ("-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOG_TAIL_CHARS: Final = 300

#: One replica of everything, and few partitions of what the broker keeps for itself: its defaults
#: are made for a cluster, and cost seconds and hundreds of megabytes here.
_OPTIONS: Final = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A killed broker may come back when its former self is thought dead, after 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.dedupe.buffer.size": "4194304",
}


class BrokerError(UserError):
    """The broker did not do what it should: one line with what its log says."""


class Broker:
    """A broker process and its log folder. It may be stopped, killed and started again.

    It ends with the process that started it, however that one ends. Its ports stay the same, so
    that clients find it again after a restart on the same log.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, str] | None = None,
        jvm_args: tuple[str, ...] = _JVM_ARGS,
    ) -> None:
        """Choose free ports and format the log folder.

        Args:
            folder: for all that it writes; made if it is not there.
            options: broker options besides, or instead of, those that are set here.
            jvm_args: heap and the like.

        Raises:
            UserError: no jars, no Java of version 17 or later, or the folder is in use.
        """
        java = find_java(os.environ)
        if java.version < _OLDEST_JAVA:
            raise BrokerError(
                f"Kafka needs Java {_OLDEST_JAVA} or later, {java.home} is Java {java.version}: "
                "set JAVA_HOME to a later one"
            )
        self.port, self._controller_port = _free_ports(2)
        self._java = [str(java.home / "bin" / "java"), *jvm_args, "-cp", broker_class_path()]
        self._properties = folder / "server.properties"
        self._log = folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._write_properties(folder / "data", options or {})
        self._format()

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The id of its process.

        Raises:
            BrokerError: it is not running.
        """
        if self._process is None:
            raise BrokerError("the broker is not running: start it first")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            BrokerError: it ended, or gave no answer within the limit.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603, our own Java and class path
                tied([*self._java, "kafka.Kafka", str(self._properties)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us: the broker ends when we end it.
                start_new_session=True,
            )
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while not _answers(self.port):
            code = self._process.poll()
            if code is not None:
                self._process = None
                raise BrokerError(f"the broker ended with code {code}: {self._log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerError(
                    f"the broker gave no answer within {ANSWERS_WITHIN_S:g} s: {self._log_tail()}"
                )
            wait_a_moment()

    def stop(self) -> None:
        """End it in order; kill it when that takes too long. Nothing happens when it is not up."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOPS_WITHIN_S)
        self.kill()

    def kill(self) -> None:
        """End it as a crash does (SIGKILL); its log stays as it is."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOPS_WITHIN_S)
        self._process = None

    def __enter__(self) -> Broker:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def _write_properties(self, data: Path, options: Mapping[str, str]) -> None:
        client, controller = f"{HOST}:{self.port}", f"{HOST}:{self._controller_port}"
        places = {
            "log.dirs": str(data),
            "listeners": f"PLAINTEXT://{client},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{client}",
            "controller.quorum.voters": f"1@{controller}",
        }
        lines = [f"{k}={v}" for k, v in {**_OPTIONS, **places, **options}.items()]
        self._properties.write_text("\n".join(lines) + "\n")

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With "=": an id may begin with a dash.
        options = [f"--cluster-id={cluster}", f"--config={self._properties}"]
        done = subprocess.run(  # noqa: S603, our own Java and class path
            [*self._java, "kafka.tools.StorageTool", "format", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FORMATS_WITHIN_S,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace")[-_LOG_TAIL_CHARS:]
            raise BrokerError(f"the broker's log folder cannot be made: {said}")

    def _log_tail(self) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return text[-_LOG_TAIL_CHARS:] or f"its log {self._log} is empty"


def _free_ports(n: int) -> list[int]:
    """Ports that nobody has now; held until all are found, so that they differ."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _answers(port: int) -> bool:
    """Whether it talks Kafka: an ApiVersions request, which every broker answers before any other.

    A port that is open is not enough: it opens long before the broker takes requests.
    """
    client = b"breakwater"
    request = struct.pack(">hhih", 18, 0, 1, len(client)) + client
    try:
        with socket.create_connection((HOST, port), 1) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(10)
    except OSError:
        return False
    return len(answer) == 10 and struct.unpack(">ih", answer[4:]) == (1, 0)
