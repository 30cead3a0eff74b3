"""The main job on a real cluster, submitted as a user does, against the recount."""

from __future__ import annotations

import pytest

from tests.cluster.deploy import Deployment
from tests.kafka.recount import assert_topics_are_right, expect
from tests.kafka.test_kafka_job import BEYOND_THE_DELAY_S, lines, skewed

pytestmark = [pytest.mark.kafka, pytest.mark.cluster, pytest.mark.timeout(900)]


def test_a_bounded_run_on_the_cluster_is_right(deployment: Deployment) -> None:
    deployment.send(
        deployment.create("in"), skewed(lines(deployment.folder, 20_000, BEYOND_THE_DELAY_S))
    )
    job = deployment.submit("--config", deployment.settings())
    deployment.wait_for_end(job)
    assert assert_topics_are_right(deployment, expect(deployment.sent)) > 0
