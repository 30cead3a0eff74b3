"""What is wrong at the start is one line that names the setting, within 30 s."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.broker import HOST, Broker, _free_ports
from tests.kafka.jobs import Kafka

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
        ({"source": {"kind": "files"}}, "source.kind and sink.kind"),
    ],
)
def test_settings_that_do_not_fit_together(
    kafka: Kafka, tables: dict[str, Any], wanted: str
) -> None:
    assert wanted in refused(kafka, kafka.settings(**tables))


SASL = {
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT",
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


def test_a_refused_login(jars: None, tmp_path: Path) -> None:
    with Broker(tmp_path / "broker", SASL) as broker:
        kafka = Kafka(broker, "t", tmp_path)
        config = kafka.settings(kafka={"properties": login("wrong")})
        line = refused(kafka, config)
        assert "refused the login" in line
        assert "kafka.properties" in line
        assert "wrong" not in line.replace("wrong jar", ""), "a password is shown"
        # The control: with the right password the topic is what is missing.
        config = kafka.settings(kafka={"properties": login("right")})
        assert "there is no topic t-in" in refused(kafka, config)
