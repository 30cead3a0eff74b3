"""The main job on Kafka: topics in, exactly-once topics out.

    python -m flink_jobs.kafka_job --config breakwater.toml                  # as Flink runs it
    python -m flink_jobs.kafka_job --config breakwater.toml --local STATE    # all on this machine

With `--local` the job runs in this process's own mini-cluster, keeps checkpoints and logs in the
folder STATE, and goes on from the newest checkpoint there, until Ctrl-C or the end of a bounded
run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pyflink.common import Configuration, JobClient
from pyflink.datastream import StreamExecutionEnvironment

from flink_jobs.deliveries import delivery_rules
from flink_jobs.early_cluster import early_cluster
from flink_jobs.errors import WRONG_CALL, UserError
from flink_jobs.here import run_here
from flink_jobs.jars import KAFKA, Jar, find_jar
from flink_jobs.kafka_admin import SHADED, KafkaAdmin, KafkaError
from flink_jobs.leave import leave
from flink_jobs.main import Prepare, by_itself, define_workflow, flink_options, intake_rules
from flink_jobs.reserved import refuse_promised
from flink_jobs.settings import Settings, load_settings
from operators.intake import UNREADABLE, IntakeRules
from operators.kafka_sinks import KafkaSinks
from operators.kafka_source import KafkaBatches, KafkaSource, empty_partition, open_partition
from operators.rules.failure import CATEGORIES, queue_of
from operators.rules.splits import FileProgress
from operators.rules.verdict import EMPTY_MESSAGE, INVALID_JSON, NULL_BYTES, OVERSIZED

#: A job that died takes a checkpoint's time to notice, and some to come back.
_LEAST_CHECKPOINTS: Final = 3
#: What a record has beside its line, headers above all; and what an event's line has more than its
#: payload: coordinates, and times and numbers written anew.
_LINE_EXTRA_BYTES: Final = 65_536
_LEAST_MESSAGE_BYTES: Final = 262_144
#: In one partition the rows of a checkpoint appear at once, and are deleted from the oldest on. And
#: there the events of a key stay behind each other: they have no key in the store's topic.
_PARTITIONS: Final = {"ledger": 1, "fallback": 1}
_RECOVERY: Final = "execution.state-recovery.path"
_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def main(arguments: list[str] | None = None) -> None:
    """Submit the job as Flink runs it, or run it on this machine."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument(
        "--local", type=Path, metavar="STATE", help="run here; folder for checkpoints and logs"
    )
    call = parser.parse_args(arguments)
    try:
        settings = load_settings(call.config)
        check_settings(settings)
        jar = find_jar(KAFKA, settings.jars, os.environ)
        if call.local:
            # On the class path of a Java that is ours, where Flink need not copy it to its tasks.
            here = replace(jar, in_flink=True)

            start = partial(run, settings, here, prepare=early_cluster)
            leave(run_here(call.local, start, jars=[] if jar.in_flink else [jar.path]))
        run(settings, jar, {}).get_job_execution_result().result()
    except UserError as error:
        print(f"breakwater: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(
    settings: Settings,
    jar: Jar,
    options: Mapping[str, str],
    before_start: Callable[[StreamExecutionEnvironment], None] = lambda _: None,
    prepare: Prepare = by_itself,
) -> JobClient:
    """Start the job and return without waiting for it.

    Args:
        settings: all of them.
        jar: the Kafka connector.
        options: Flink options of this place; those of the settings win.
        before_start: looks at the job that has been built, and may refuse to start it.
        prepare: gets what runs the job, before it is built.

    Raises:
        UserError: Kafka is not as the settings say.
    """
    if settings.kafka.end == "latest" and _RECOVERY in {**options, **settings.flink}:
        # FLINK-31006: the restored enumerator finds nothing new, and never says that it is the end.
        raise UserError(
            'kafka.end = "latest": such a run cannot go on from a checkpoint, Flink\'s Kafka '
            "source would never end (FLINK-31006); begin anew with an empty state folder and new "
            "outputs"
        )
    configuration = Configuration()
    for name, value in {**flink_options(settings), **options, **settings.flink}.items():
        configuration.set_string(name, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    if not jar.in_flink:
        # Not pipeline.jars: that would replace the jar that `flink run` adds (trap T50).
        env.add_jars(jar.url)
    execute = prepare(env, settings.parallelism)
    rules = intake_rules(settings)
    with KafkaAdmin(client_properties(settings)) as admin:
        planned = plan_partitions(admin, settings)
        sinks = kafka_sinks(settings)
        rules = check_outputs(admin, settings, rules, sinks.max_request_bytes())
    source = kafka_source(settings, planned, rules)
    delivery = delivery_rules(settings, rules.max_envelope_bytes)
    define_workflow(
        env, source, sinks, sinks, rules=rules, windows=settings.windows, delivery=delivery
    )
    before_start(env)
    return execute("breakwater")


def check_settings(settings: Settings) -> None:
    """See what needs no broker.

    Raises:
        UserError: names the setting.
    """
    kafka = settings.kafka
    wrong = ""
    if settings.source.kind != "kafka" or settings.sink.kind != "kafka":
        wrong = 'source.kind and sink.kind: both must be "kafka" for this job; set both'
    elif not kafka.bootstrap_servers:
        wrong = 'kafka.bootstrap_servers: is missing; set it to "host:port"'
    elif bool(kafka.topics) == bool(kafka.topic_pattern):
        wrong = "kafka.topics or kafka.topic_pattern: set one of them, and not both"
    elif (
        settings.sink.transaction_timeout_ms < _LEAST_CHECKPOINTS * settings.checkpoint.interval_ms
    ):
        wrong = (
            f"sink.transaction_timeout_ms = {settings.sink.transaction_timeout_ms}: is less than "
            f"{_LEAST_CHECKPOINTS} checkpoints (checkpoint.interval_ms = "
            f"{settings.checkpoint.interval_ms}), a restart would lose data; raise it"
        )
    if wrong:
        raise UserError(wrong, WRONG_CALL)
    refuse_promised(settings)
    try:
        kafka_sinks(settings).max_request_bytes()
    except ValueError as error:
        raise UserError(
            f"sink.properties: max.request.size and buffer.memory are whole numbers ({error}); "
            "correct them",
            WRONG_CALL,
        ) from error


def refuse_own_output(settings: Settings, topics: Iterable[str]) -> None:
    """Refuse to read what the job writes: it would go round for ever.

    Raises:
        KafkaError: names the topic and its settings.
    """
    source = "kafka.topics" if settings.kafka.topics else "kafka.topic_pattern"
    for output, names in output_topics(settings).items():
        for name in sorted({*topics} & {*names}):
            raise KafkaError(
                f"{source} and sink.{output}_topic: {name} would be read and written; "
                "change one of them",
                WRONG_CALL,
            )


def client_properties(settings: Settings) -> dict[str, str]:
    """What every client of the job has."""
    given = {name: shaded(value) for name, value in settings.kafka.properties.items()}
    return {**given, "bootstrap.servers": settings.kafka.bootstrap_servers}


def shaded(value: str) -> str:
    """Kafka's own classes have other names in the connector's jar: login modules, for instance."""
    return re.sub(r"(?<![\w.])org\.apache\.kafka\.", f"{SHADED}.", value)


def plan_partitions(admin: KafkaAdmin, settings: Settings) -> tuple[FileProgress, ...]:
    """Every partition that will be read, and whether it has something to read first.

    Raises:
        KafkaError: a topic is missing, or the pattern matches none, or the job writes to one.
    """
    topics: list[str] = list(settings.kafka.topics)
    if settings.kafka.topic_pattern:
        topics = admin.matching(settings.kafka.topic_pattern)
        if not topics:
            raise KafkaError(
                f"kafka.topic_pattern = {settings.kafka.topic_pattern}: matches no topic on "
                f"{settings.kafka.bootstrap_servers}; create one, or correct the pattern"
            )
    admin.require(topics, "kafka.topics")
    refuse_own_output(settings, topics)
    group = admin.group_offsets(settings.kafka.group) if settings.kafka.start == "committed" else {}
    return tuple(
        progress for topic in topics for progress in _plan_topic(admin, settings, topic, group)
    )


def _plan_topic(
    admin: KafkaAdmin, settings: Settings, topic: str, group: Mapping[tuple[str, int], int]
) -> list[FileProgress]:
    numbers = admin.partitions(topic)
    begin = admin.offsets(topic, numbers, "earliest")
    end = admin.offsets(topic, numbers, "latest")
    if settings.kafka.start == "timestamp":
        later = admin.offsets(topic, numbers, settings.kafka.start_timestamp_ms)
        begin = {number: end[number] if later[number] < 0 else later[number] for number in numbers}
    if settings.kafka.start == "committed":
        begin = {number: group.get((topic, number), begin[number]) for number in numbers}
    # From the latest: a partition that has had records is waited for, it may well have more.
    return [
        (open_partition if begin[number] < end[number] else empty_partition)(topic, number)
        for number in numbers
    ]


def output_topics(settings: Settings) -> dict[str, list[str]]:
    """Every topic that the job may write to, by output."""
    contract = settings.contract.load()
    poison = settings.poison.rules()
    reasons = {EMPTY_MESSAGE, OVERSIZED, NULL_BYTES, INVALID_JSON, UNREADABLE}
    reasons |= {pattern.reason for pattern in poison.patterns} | poison.violations
    templates = settings.sink.topics()
    if not settings.delivery.has_fallback:
        del templates["fallback"]
    return {
        **{output: [template] for output, template in templates.items()},
        "dead_letters": sorted(
            {
                _filled(templates["dead_letters"], queue=queue_of(category), error_type=error_type)
                for category in CATEGORIES
                for error_type in contract.error_types
            }
        ),
        "quarantine": sorted(_filled(templates["quarantine"], reason=each) for each in reasons),
    }


def _filled(template: str, **values: str) -> str:
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def check_outputs(
    admin: KafkaAdmin, settings: Settings, rules: IntakeRules, max_request_bytes: int
) -> IntakeRules:
    """See that what the job will write can be written.

    Returns:
        The rules, with records bounded to what fits into the topics.

    Raises:
        KafkaError: a topic's name cannot be one, or it is missing; the transactions are refused.
    """
    topics = output_topics(settings)
    for output, names in topics.items():
        setting = f"sink.{output}_topic"
        for name in names:
            if not _TOPIC.fullmatch(name):
                raise KafkaError(
                    f"{setting}: {name} cannot be the name of a topic; use a-z, A-Z, 0-9, . _ -",
                    WRONG_CALL,
                )
        if settings.sink.create_topics:
            admin.create(names, setting, _PARTITIONS.get(output, 0))
        else:
            admin.require(names, f"{setting} (and sink.create_topics is false)")
    most = admin.max_transaction_timeout_ms()
    if most is not None and settings.sink.transaction_timeout_ms > most:
        raise KafkaError(
            f"sink.transaction_timeout_ms = {settings.sink.transaction_timeout_ms}: the broker "
            f"allows at most {most}; lower it, or raise the broker's transaction.max.timeout.ms",
            WRONG_CALL,
        )
    topics_take = admin.max_message_bytes(name for names in topics.values() for name in names)
    return _bounded(rules, topics_take, max_request_bytes)


def _bounded(rules: IntakeRules, topics_take: int, producers_take: int) -> IntakeRules:
    """Records and envelopes bounded to what can be written: a longer one would stop the job."""
    for what, taken in (
        ("an output topic has max.message.bytes", topics_take),
        ("sink.properties: the lesser of max.request.size and buffer.memory", producers_take),
    ):
        if taken < _LEAST_MESSAGE_BYTES:
            raise KafkaError(
                f"{what} = {taken}: dead letters with all their reasons may not fit; "
                f"raise it to at least {_LEAST_MESSAGE_BYTES}"
            )
    most = min(topics_take, producers_take) - _LINE_EXTRA_BYTES
    return replace(
        rules,
        max_record_bytes=min(rules.max_record_bytes, most),
        payload_limit_bytes=min(rules.payload_limit_bytes, most),
        max_envelope_bytes=most,
    )


def kafka_source(
    settings: Settings, planned: tuple[FileProgress, ...], rules: IntakeRules
) -> KafkaSource:
    """The source that the settings name."""
    kafka = settings.kafka
    return KafkaSource(
        properties=client_properties(settings),
        topics=kafka.topics,
        topic_pattern=kafka.topic_pattern,
        group=kafka.group,
        start=kafka.start,
        start_timestamp_ms=kafka.start_timestamp_ms,
        end=kafka.end,
        limits=KafkaBatches(
            max_records=settings.batch.max_records,
            max_bytes=settings.batch.max_bytes,
            max_age_ms=settings.batch.max_age_ms,
            max_record_bytes=rules.max_record_bytes,
            payload_limit_bytes=rules.payload_limit_bytes,
        ),
        readers=settings.parallelism,
        planned=planned,
    )


def kafka_sinks(settings: Settings) -> KafkaSinks:
    """The sinks that the settings name."""
    return KafkaSinks(
        properties={
            **client_properties(settings),
            **{name: shaded(value) for name, value in settings.sink.properties.items()},
        },
        topics=settings.sink.topics(),
        transactional_id_prefix=settings.sink.transactional_id_prefix,
        transaction_timeout_ms=settings.sink.transaction_timeout_ms,
    )


if __name__ == "__main__":
    main()
