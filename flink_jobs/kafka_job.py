"""The job on Kafka: topics in, exactly-once topics out."""

from __future__ import annotations

from dataclasses import dataclass

from pyflink.datastream import StreamExecutionEnvironment

from flink_jobs.errors import UserError
from flink_jobs.job import Parts
from flink_jobs.kafka.admin import KafkaAdmin
from flink_jobs.kafka.jars import Jar
from flink_jobs.kafka.parts import client_properties, kafka_sinks, kafka_source
from flink_jobs.kafka.preflight import check_outputs, check_settings, plan_partitions
from flink_jobs.settings import Settings
from flink_jobs.wiring.environment import goes_on
from flink_jobs.wiring.rules import delivery_rules, intake_rules


@dataclass(frozen=True)
class KafkaJob:
    """The job on Kafka.

    Attributes:
        settings: all of them.
        jar: the Kafka connector.
    """

    settings: Settings
    jar: Jar

    def build(self, env: StreamExecutionEnvironment) -> Parts:
        """Look at Kafka, and make the parts.

        Raises:
            UserError: Kafka is not as the settings say.
        """
        settings = self.settings
        check_settings(settings)
        self._refuse_end_after_checkpoint(env)
        if not self.jar.in_flink:
            # Not pipeline.jars: that would replace the jar that `flink run` adds (trap T50).
            env.add_jars(self.jar.url)
        sinks = kafka_sinks(settings)
        with KafkaAdmin(client_properties(settings)) as admin:
            planned = plan_partitions(admin, settings)
            rules = check_outputs(
                admin, settings, intake_rules(settings), sinks.max_request_bytes()
            )
        return Parts(
            source=kafka_source(settings, planned, rules),
            sinks=sinks,
            rules=rules,
            delivery=delivery_rules(settings, rules.max_envelope_bytes),
        )

    def _refuse_end_after_checkpoint(self, env: StreamExecutionEnvironment) -> None:
        if self.settings.kafka.end == "latest" and goes_on(env):
            # FLINK-31006: the restored enumerator finds nothing new, and never says that it is the
            # end.
            raise UserError(
                'kafka.end = "latest": such a run cannot go on from a checkpoint, Flink\'s Kafka '
                "source would never end (FLINK-31006); begin anew with an empty state folder and "
                "new outputs"
            )
