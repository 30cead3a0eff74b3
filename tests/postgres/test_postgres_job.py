"""The real job with the real database behind it, which is stopped and started while it runs."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.books import all_is_booked, books_so_far
from tests.oracle import expect
from tests.postgres_server import PostgresServer
from tests.runs import events, settings_file, started, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.minicluster]

EVENTS = 8_000
#: A call goes on for so long: input is still read when the database stops.
CALL_S = 0.01
#: All attempts of an event are made in less than half of that.
OUTAGE_S = 2
COLUMNS = ["event_id", "source_offset", "user_id", "product_id", "price"]


def test_a_database_that_is_away_for_a_while_costs_no_event_and_has_each_once(
    tmp_path: Path, own_server: PostgresServer, name: str
) -> None:
    own_server.query(
        f'CREATE TABLE "{name}" (event_id text PRIMARY KEY, source_offset bigint, user_id text, '
        f'product_id text, price float8); CREATE FUNCTION "{name}_f"() RETURNS trigger '
        f"LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({CALL_S}); RETURN NULL; END $$; "
        f'CREATE TRIGGER slow BEFORE INSERT ON "{name}" '
        f'FOR EACH STATEMENT EXECUTE FUNCTION "{name}_f"()'
    )

    def rows() -> list[tuple[object, ...]]:
        return own_server.query(f'SELECT {", ".join(COLUMNS[1:])} FROM "{name}"')

    source = events(tmp_path / "events.jsonl", EVENTS, disorder_s=19)
    expected = expect([source])
    output = tmp_path / "out"
    config = settings_file(
        tmp_path / "postgres.toml",
        source={"split_bytes": 5_000},
        checkpoint={"interval_ms": 300},
        delivery={
            "target": "postgres",
            "batch_max_events": 20,
            "lanes": 1,
            "max_records": 5_000,
            "slow_input_ms": 200,
            "timeout_ms": 5_000,
        },
        postgres={
            "table": f"public.{name}",
            "columns": {column: column for column in COLUMNS} | {"event_id": "idempotency_key"},
        },
        retry={"base_ms": 50},
        breaker={"open_ms": 300, "open_cap_ms": 300},
        sink={"rollover_interval_ms": 100},
        flink={"taskmanager.memory.segment-size": "4kb"},  # not all of the input lies in between
    )
    call = ["run", "--input", source, "--output", output, "--config", config, "--json"]
    with started(*call, env={"POSTGRES_DSN": own_server.dsn}) as job:
        wait_until("it is in the middle", lambda: books_so_far(output).processed > EVENTS / 20)
        own_server.stop()
        time.sleep(OUTAGE_S)
        booked = books_so_far(output)
        own_server.start()
        said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert booked.pending > 0
    assert booked.received < EVENTS, "it was stopped too late: all had been read"
    counts = all_is_booked(output, expected)
    assert counts.dead_lettered == Counter(expected.dead.values())
    assert counts.processed == len(expected.processed)
    in_table = Counter(rows())
    assert in_table == Counter(
        (offset, event["user_id"], event["product_id"], event["price"])
        for (_, offset), event in expected.processed.items()
    )
