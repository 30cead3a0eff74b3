"""What is wrong at the start is one line that names the setting, within 30 s."""

from __future__ import annotations

import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.demo.broker import HOST, Broker, _free_ports
from tests.kafka.jobs import Kafka
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import WITHIN_THE_DELAY_S, lines, skewed

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(600)]

WITHIN_S = 30


def refused(kafka: Kafka, config: Path, **environ: str) -> str:
    """Run the job, which must refuse in one line in time; returns the line."""
    began = time.monotonic()
    ended = kafka.run(config, **environ)
    took = time.monotonic() - began
    assert ended.returncode in (1, 2), ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("breakwater: ")
    assert took < WITHIN_S, f"{took:.0f} s: {line}"
    return line


def test_a_run_that_is_right_is_not_refused(kafka: Kafka) -> None:
    """The positive control of all the others: the same settings, without the fault."""
    kafka.create("in")
    ended = kafka.run(kafka.settings())
    assert ended.returncode == 0, ended.stderr


def test_an_unreachable_broker(kafka: Kafka) -> None:
    (port,) = _free_ports(1)
    line = refused(kafka, kafka.settings(kafka={"bootstrap_servers": f"{HOST}:{port}"}))
    assert f"kafka.bootstrap_servers = {HOST}:{port}: no broker answers there" in line


def test_a_name_that_is_no_host(kafka: Kafka) -> None:
    line = refused(kafka, kafka.settings(kafka={"bootstrap_servers": "no.such.host.invalid:1"}))
    assert "kafka.bootstrap_servers" in line


def test_a_missing_topic_and_the_nearest_one(kafka: Kafka) -> None:
    kafka.create("in")
    line = refused(kafka, kafka.settings(kafka={"topics": [kafka.topic("im")]}))
    assert f"kafka.topics: there is no topic {kafka.topic('im')}" in line
    assert f"did you mean {kafka.topic('in')}?" in line


def test_a_pattern_that_matches_nothing(kafka: Kafka) -> None:
    config = kafka.settings(kafka={"topics": [], "topic_pattern": f"{kafka.name}-nothing-.*"})
    assert "kafka.topic_pattern" in refused(kafka, config)


def test_a_missing_output_topic_where_none_may_be_made(kafka: Kafka) -> None:
    kafka.create("in")
    line = refused(kafka, kafka.settings(sink={"create_topics": False}))
    assert "sink.processed_events_topic" in line
    assert "create it" in line or "did you mean" in line


def test_a_transaction_timeout_above_the_brokers(kafka: Kafka) -> None:
    kafka.create("in")
    line = refused(kafka, kafka.settings(sink={"transaction_timeout_ms": 3_600_000}))
    assert "sink.transaction_timeout_ms = 3600000: the broker allows at most 900000" in line


def test_a_transaction_timeout_below_the_checkpoints(kafka: Kafka) -> None:
    config = kafka.settings(
        sink={"transaction_timeout_ms": 10_000}, checkpoint={"interval_ms": 5_000}
    )
    line = refused(kafka, config)
    assert "sink.transaction_timeout_ms = 10000" in line
    assert "checkpoint.interval_ms = 5000" in line


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "is missing in"),
        ("text", "cannot be read as a jar"),
        ("zip", "lacks KafkaDynamicSource"),
    ],
)
def test_a_wrong_jar(kafka: Kafka, tmp_path: Path, content: str, wanted: str) -> None:
    jar = tmp_path / "jars" / "flink-sql-connector-kafka-1.0.jar"
    jar.parent.mkdir()
    if content == "text":
        jar.write_text(content)
    if content == "zip":
        with zipfile.ZipFile(jar, "w") as written:
            written.writestr("a.class", "")
    line = refused(kafka, kafka.settings(), BREAKWATER_JARS=str(jar.parent))
    assert wanted in line
    assert "make jars" in line


@pytest.mark.parametrize(
    ("tables", "wanted"),
    [
        ({"kafka": {"bootstrap_servers": ""}}, "kafka.bootstrap_servers: is missing"),
        ({"kafka": {"topic_pattern": "a.*"}}, "kafka.topics or kafka.topic_pattern"),
    ],
)
def test_settings_that_do_not_fit_together(
    kafka: Kafka, tables: dict[str, Any], wanted: str
) -> None:
    assert wanted in refused(kafka, kafka.settings(**tables))


SASL = {
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT",
    # With it the broker's own login: it writes the ends of transactions as a client of itself.
    "inter.broker.listener.name": "PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        'username="broker" password="of-the-broker" '
        'user_broker="of-the-broker" user_job="right";'
    ),
}


def login(password: str) -> dict[str, object]:
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.jaas.config": f'{module} required username="job" password="{password}";',
    }


@pytest.fixture(scope="module")
def guarded(jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that wants a login, and the tests' own clients have the right one."""
    folder = tmp_path_factory.mktemp("guarded")
    right = {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
        "sasl.username": "job", "sasl.password": "right",
    }  # fmt: skip
    with Broker(folder / "broker", SASL) as broker:
        yield Kafka(broker, "t", folder, right)


def test_a_refused_login(guarded: Kafka) -> None:
    line = refused(guarded, guarded.settings(kafka={"properties": login("wrong")}))
    assert "refused the login" in line
    assert "kafka.properties" in line
    assert "wrong" not in line.replace("wrong jar", ""), "a password is shown"


GZIP = 1


def codecs(data: Path, topic: str) -> set[int]:
    """How the batches of a topic's records are compressed, as the broker has them on its disk."""
    found = set()
    for log in data.glob(f"{topic}-[0-9]*/*.log"):
        left = log.read_bytes()
        while left:
            # Base offset, length of what follows it, leader epoch, magic, checksum, attributes.
            _, length, _, _, _, attributes = struct.unpack_from(">qiibIh", left)
            if not attributes & 32:  # the end of a transaction, which the broker writes
                found.add(attributes & 7)
            left = left[12 + length :]
    return found


def test_with_the_right_login_the_data_flow_and_the_sinks_have_properties_of_their_own(
    guarded: Kafka,
) -> None:
    """The control of the refused login. That it starts is not enough: what asks before the start,
    the source and the sinks are clients of their own, and each has to get the properties.
    """
    guarded.send(guarded.create("in"), skewed(lines(guarded.folder, 400, WITHIN_THE_DELAY_S)))
    config = guarded.settings(
        kafka={"properties": login("right")}, sink={"properties": {"compression.type": "gzip"}}
    )
    ended = guarded.run(config)
    assert ended.returncode == 0, ended.stderr
    assert assert_topics_are_right(guarded, expect(guarded.sent)) == 0
    data = guarded.folder / "broker" / "data"
    assert codecs(data, guarded.topic("processed-events")) == {GZIP}
