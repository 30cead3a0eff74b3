"""Topics as a user's own program sees them: made, written to, and read as what is committed.

For the demo and the measurements. It is confluent-kafka, which shares no code with Flink's
connector: what it reads is what users read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final

from flink_jobs.errors import UserError
from flink_jobs.machine.waiting import wait_a_moment

if TYPE_CHECKING:
    from confluent_kafka import Message, TopicPartition

#: A record above what Breakwater takes must be able to come in: it is quarantined as oversized.
LARGEST_RECORD_BYTES: Final = 8_000_000
_ANSWERS_WITHIN_S: Final = 30
_SETTLES_WITHIN_S: Final = 60
_READ_AT_ONCE: Final = 5_000
_WAITS_S: Final = 0.1
_POLL_EVERY: Final = 1_000
#: As a record's time: the client's clock when it takes the record.
_NOW: Final = 0


class TopicError(UserError):
    """The broker or its client did not do what it should: one line."""


class Topics:
    """The topics of a broker on this machine."""

    def __init__(self, bootstrap_servers: str) -> None:
        """Nothing is asked before it is needed.

        Raises:
            TopicError: the client's package is missing.
        """
        try:
            import confluent_kafka.admin  # noqa: PLC0415 - a package of the developers
        except ImportError:
            raise TopicError("the package confluent-kafka is missing: run `make venv`") from None
        self._client = confluent_kafka
        # The log level spares the terminal the broker's comings and goings.
        self._options = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        self._admin = confluent_kafka.admin.AdminClient(self._options)

    def create(self, name: str, partitions: int, **config: str) -> None:
        """Make a topic that takes large records; options with `_` for each dot."""
        options = {name.replace("_", "."): value for name, value in config.items()}
        topic = self._client.admin.NewTopic(
            name,
            partitions,
            1,
            config={"max.message.bytes": str(LARGEST_RECORD_BYTES), **options},
        )
        (made,) = self._admin.create_topics([topic]).values()
        made.result(_ANSWERS_WITHIN_S)

    def load(
        self,
        topic: str,
        records: Iterable[tuple[int, bytes | None]],
        stop: Callable[[], bool] = lambda: False,
        times_ms: Iterable[int] = (),
    ) -> int:
        """Write (partition, value) records, and wait until the broker has them.

        Args:
            topic: its name.
            records: partition and value; None is a tombstone.
            stop: asked now and then whether to leave off.
            times_ms: a time for each record, ms since 1970; now where there is none.

        Returns:
            How many were written.

        Raises:
            TopicError: the broker did not take them all in time.
        """
        producer = self._client.Producer(
            {**self._options, "message.max.bytes": LARGEST_RECORD_BYTES, "linger.ms": 20}
        )
        written = 0
        timed = zip(records, chain(times_ms, repeat(_NOW)), strict=False)
        for written, ((partition, value), time_ms) in enumerate(timed, 1):
            self._produce(producer, topic, partition, value, time_ms)
            if written % _POLL_EVERY == 0:
                producer.poll(0)
                if stop():
                    break
        left = producer.flush(_ANSWERS_WITHIN_S)
        if left:
            raise TopicError(f"the broker did not take {left} of {written} records for {topic}")
        return written

    def _produce(
        self, producer: object, topic: str, partition: int, value: bytes | None, time_ms: int
    ) -> None:
        deadline = time.monotonic() + _ANSWERS_WITHIN_S
        while True:
            try:
                producer.produce(  # type: ignore[attr-defined]
                    topic, value, partition=partition, timestamp=time_ms
                )
            except BufferError:  # what waits to be sent fills the producer's memory
                if time.monotonic() > deadline:
                    raise TopicError(f"the broker takes no more records for {topic}") from None
                producer.poll(0.1)  # type: ignore[attr-defined]
            else:
                return

    def read(self, topics: Iterable[str]) -> Iterator[Message]:
        """All that is committed up to now, topic by topic; one that is not there has nothing.

        Raises:
            TopicError: the broker does not hand it out in time.
        """
        ends = self._ends(topics, committed=True)
        consumer = self._client.Consumer(
            {
                **self._options,
                "group.id": "unused",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
            }
        )
        open_places = {(place.topic, place.partition) for place, end in ends.items() if end > 0}
        consumer.assign(
            [
                self._client.TopicPartition(topic, number, self._client.OFFSET_BEGINNING)
                for topic, number in sorted(open_places)
            ]
        )
        try:
            heard = time.monotonic()
            while open_places:
                # It waits for so many, or for so long; the end of a partition is a message, too.
                messages = consumer.consume(_READ_AT_ONCE, _WAITS_S)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _ANSWERS_WITHIN_S:
                    names = ", ".join(sorted({topic for topic, _ in open_places}))
                    raise TopicError(f"no end of {names} within {_ANSWERS_WITHIN_S} s")
                for message in messages:
                    error = message.error()
                    if error is None:
                        yield message
                    elif error.code() == self._client.KafkaError._PARTITION_EOF:
                        open_places.discard((message.topic(), message.partition()))
                    else:
                        raise TopicError(f"{message.topic()} cannot be read: {error.str()}")
        finally:
            consumer.close()

    def settle(self, topics: Iterable[str]) -> None:
        """Wait until every transaction in the topics has ended.

        A commit is done for the one who commits when the coordinator has written it down; the
        markers that make the records visible follow a moment later.

        Raises:
            TopicError: one is still open after a minute.
        """
        names = list(topics)
        deadline = time.monotonic() + _SETTLES_WITHIN_S
        while self._ends(names, committed=True) != self._ends(names, committed=False):
            if time.monotonic() > deadline:
                raise TopicError(f"a transaction is still open after {_SETTLES_WITHIN_S} s")
            wait_a_moment()

    def _ends(self, topics: Iterable[str], *, committed: bool) -> Mapping[TopicPartition, int]:
        """Where the topics' partitions end."""
        admin = self._client.admin
        known = self._admin.list_topics(timeout=_ANSWERS_WITHIN_S).topics
        asked = {
            self._client.TopicPartition(topic, number): admin.OffsetSpec.latest()
            for topic in topics
            if topic in known
            for number in known[topic].partitions
        }
        level = self._client.IsolationLevel
        isolation = level.READ_COMMITTED if committed else level.READ_UNCOMMITTED
        if not asked:
            return {}
        answers = self._admin.list_offsets(asked, isolation_level=isolation)
        return {place: answers[place].result(_ANSWERS_WITHIN_S).offset for place in asked}
