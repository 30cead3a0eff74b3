"""What a job asks the Kafka cluster before it starts, so that a fault is one line and not a loop.

It asks with the admin client inside the connector's jar: the same client, the same properties and
the same login as the job's, and no other library.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyflink.java_gateway import get_gateway

from flink_jobs.errors import UserError
from flink_jobs.machine.waiting import wait_a_moment

#: All questions together must have their answer, or their fault, within 30 s.
ANSWERS_WITHIN_S: Final = 12
SHADED: Final = "org.apache.flink.kafka.shaded.org.apache.kafka"
#: Kafka's own default of `max.message.bytes`.
DEFAULT_MAX_MESSAGE_BYTES: Final = 1_048_588
_LIMITS: Final = {"request.timeout.ms": "5000", "default.api.timeout.ms": "10000"}


class KafkaError(UserError):
    """Kafka cannot be used like this: one line that names the setting to change."""


class KafkaAdmin:
    """A connection to the cluster, for a few questions."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        """Connect.

        Args:
            properties: client properties, with `bootstrap.servers`.

        Raises:
            KafkaError: no broker answers, or the login is refused.
        """
        self._servers = properties["bootstrap.servers"]
        self._jvm = get_gateway().jvm
        self._timeout = self._jvm.java.util.concurrent.TimeUnit.SECONDS
        java_properties = self._jvm.java.util.Properties()
        for name, value in {**properties, **_LIMITS}.items():
            java_properties.setProperty(name, value)
        with self._explained():
            self._admin = self._class("clients.admin.AdminClient").create(java_properties)
        try:
            nodes = self._get(self._admin.describeCluster().nodes())
            # A collection that is neither a list nor a set cannot be walked through from here.
            self._brokers = [node.idString() for node in self._jvm.java.util.ArrayList(nodes)]
        except KafkaError:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect; without waiting, there is nothing under way."""
        self._admin.close(self._jvm.java.time.Duration.ofMillis(0))

    def __enter__(self) -> KafkaAdmin:
        """It is connected already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.close()

    def topics(self) -> list[str]:
        """The names of all topics that this login may see."""
        return sorted(self._get(self._admin.listTopics().names()))

    def matching(self, pattern: str) -> list[str]:
        """The topics whose whole names match a regular expression (as Java reads it)."""
        compiled = self._jvm.java.util.regex.Pattern.compile(pattern)
        return [name for name in self.topics() if compiled.matcher(name).matches()]

    def require(self, names: Iterable[str], setting: str) -> None:
        """See that topics are there.

        Raises:
            KafkaError: names the first that is not, and the nearest one that is.
        """
        known = self.topics()
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else "create it, or correct the setting"
                raise KafkaError(f"{setting}: there is no topic {name} on {self._servers}; {hint}")

    def create(self, names: Iterable[str], setting: str, partitions: int = 0) -> list[str]:
        """Make the topics that are missing, with the broker's own defaults; say which.

        Args:
            names: the topics.
            setting: what names them.
            partitions: how many they get; the broker's default if 0.
        """
        missing = sorted(set(names) - set(self.topics()))
        optional = self._jvm.java.util.Optional
        for name in missing:
            topic = self._class("clients.admin.NewTopic")(
                name, optional.of(partitions) if partitions else optional.empty(), optional.empty()
            )
            try:
                self._get(self._admin.createTopics(self._list([topic])).all())
            except KafkaError as error:
                # Someone else may have made it in the meantime.
                if name not in self.topics():
                    raise KafkaError(f"{setting}: topic {name} cannot be made: {error}") from error
        return missing

    def partitions(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions."""
        described = self._get(self._admin.describeTopics(self._list([topic])).allTopicNames())
        return [partition.partition() for partition in described[topic].partitions()]

    def offsets(self, topic: str, partitions: list[int], at: str | int) -> dict[int, int]:
        """Offsets by partition.

        Args:
            topic: the topic.
            partitions: its partitions.
            at: "earliest", "latest" (behind what is committed), or a time in ms; -1 stands for
                partitions that have nothing at or after it.
        """
        specs = self._class("clients.admin.OffsetSpec")
        spec = specs.forTimestamp(at) if isinstance(at, int) else getattr(specs, at)()
        wanted = self._jvm.java.util.HashMap()
        keys = {
            number: self._class("common.TopicPartition")(topic, number) for number in partitions
        }
        for key in keys.values():
            wanted.put(key, spec)
        committed = self._class("common.IsolationLevel").READ_COMMITTED
        options = self._class("clients.admin.ListOffsetsOptions")(committed)
        found = self._get(self._admin.listOffsets(wanted, options).all())
        return {number: found[key].offset() for number, key in keys.items()}

    def group_offsets(self, group: str) -> dict[tuple[str, int], int]:
        """The offsets that a group has committed."""
        found = self._get(
            self._admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata()
        )
        return {
            (entry.getKey().topic(), entry.getKey().partition()): entry.getValue().offset()
            for entry in found.entrySet()
            if entry.getValue() is not None
        }

    def max_message_bytes(self, topics: Iterable[str]) -> int:
        """The least `max.message.bytes` of some topics; Kafka's default where it may not be asked.

        To ask is a right of its own (DescribeConfigs) that one who writes need not have.
        """
        values = [self._config("TOPIC", topic, "max.message.bytes") for topic in topics]
        return min(DEFAULT_MAX_MESSAGE_BYTES if value is None else value for value in values)

    def max_transaction_timeout_ms(self) -> int | None:
        """The brokers' `transaction.max.timeout.ms`; None where it may not be asked."""
        return self._config("BROKER", self._brokers[0], "transaction.max.timeout.ms")

    def _config(self, kind: str, name: str, option: str) -> int | None:
        types = self._class("common.config.ConfigResource$Type")
        resource = self._class("common.config.ConfigResource")(types.valueOf(kind), name)
        deadline = time.monotonic() + ANSWERS_WITHIN_S
        while True:
            try:
                found = self._get(self._admin.describeConfigs(self._list([resource])).all())
                return int(found[resource].get(option).value())
            except KafkaRefusedError:
                return None
            except UnknownTopicError:
                # Made a moment ago: the brokers learn of a topic after the one who made it.
                if time.monotonic() > deadline:
                    raise
            wait_a_moment()

    def _get(self, future: Any) -> Any:
        with self._explained():
            return future.get(ANSWERS_WITHIN_S, self._timeout)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Py4JJavaError as error:
            raise _explain(error.java_exception, self._servers) from error

    def _class(self, name: str) -> Any:
        # Walked to by name: the classes are in a class loader that was added to the gateway.
        found = self._jvm
        for part in f"{SHADED}.{name}".split("."):
            found = getattr(found, part)
        return found

    def _list(self, values: list[Any]) -> Any:
        made = self._jvm.java.util.ArrayList()
        for value in values:
            made.add(value)
        return made


class KafkaRefusedError(KafkaError):
    """The login is good, but it may not do this."""


class UnknownTopicError(KafkaError):
    """A topic is not there, or the broker does not know of it yet."""


def _explain(fault: Any, servers: str) -> KafkaError:
    """One line from a Java exception and its causes."""
    chain = []
    while fault is not None:
        chain.append((fault.getClass().getSimpleName(), str(fault.getMessage() or "")))
        fault = fault.getCause()
    kinds = {kind for kind, _ in chain}
    kind, message = chain[-1]
    message = re.sub(r"\s+", " ", message)
    login = _login_fault(kinds, message, servers)
    if login:
        return KafkaError(login)
    if any(each.endswith("AuthorizationException") for each in kinds):
        return KafkaRefusedError(
            f"kafka.properties: the login may not do that on {servers} ({message}); "
            "give it the right, or use another login"
        )
    if "ConfigException" in kinds:
        return KafkaError(
            f"kafka.bootstrap_servers or kafka.properties: {message}; correct the setting"
        )
    if "TimeoutException" in kinds:
        return KafkaError(
            f"kafka.bootstrap_servers = {servers}: no broker answers there; start it or correct "
            "the address, and if it wants TLS or SASL set that in kafka.properties"
        )
    if "UnknownTopicOrPartitionException" in kinds:
        return UnknownTopicError(f"Kafka at {servers}: there is no such topic {message}".rstrip())
    return KafkaError(f"Kafka at {servers}: {kind}: {message}")


def _login_fault(kinds: set[str], message: str, servers: str) -> str:
    """What is wrong with the login or with TLS; "" when it is something else."""
    if "SaslAuthenticationException" in kinds:
        return (
            f"kafka.properties: the broker at {servers} refused the login ({message}); "
            "correct sasl.jaas.config and sasl.mechanism"
        )
    if kinds & {"SslAuthenticationException", "SSLHandshakeException"}:
        return (
            f"kafka.properties: TLS with the broker at {servers} failed ({message}); "
            "correct the ssl.* properties"
        )
    return ""
