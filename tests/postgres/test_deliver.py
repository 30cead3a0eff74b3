"""A fallback folder that is sent to a real Postgres."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flink_jobs.dead_letters.deliver import deliver_folder
from flink_jobs.dead_letters.fallback_folder import FallbackFolder
from operators.rules.delivery.pace import Pace
from tests.postgres.test_postgres_target import DSN, Table
from tests.postgres_server import PostgresServer
from tests.unit.flink_jobs.dead_letters.stored import line, reasons, rules, write_part

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(60)]

EVENTS = 8


def test_calls_wait_for_a_connection_before_their_time_begins(
    shared_server: PostgresServer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One behind the other they take longer than a call may, and none of them fails.

    The bug it catches: all are called at once, and those that wait in the pool run out of time.
    """
    monkeypatch.setenv(DSN, shared_server.dsn)
    table = Table(shared_server, name)
    table.count_statements(sleep_s=0.3)
    write_part(tmp_path, "part-aa-0.jsonl", [line(f"p{i}", f"u{i}") for i in range(EVENTS)])
    to = rules(
        "postgres",
        **{"postgres.table": f"public.{name}", "postgres.dsn_env": DSN, "postgres.connections": 1},
        **{"delivery.batch_max_events": 1, "delivery.timeout_ms": 1000, "retry.max_attempts": 1},
    )
    folder = FallbackFolder(tmp_path)
    with folder.claim():
        sent = deliver_folder(folder, to, pace=Pace(math.inf), stop=lambda: False)
    assert (sent.delivered, reasons(tmp_path)) == (EVENTS, [])
    assert table.ids() == {f"key-p{i}" for i in range(EVENTS)}
