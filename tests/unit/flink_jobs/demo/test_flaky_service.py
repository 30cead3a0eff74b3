"""The demo's service: it does what the demo says of it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.client import HTTPConnection

from flink_jobs.demo.flaky_service import Service


def answers(service: Service, users: list[str]) -> list[tuple[int, str | None]]:
    serving = threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    connection = HTTPConnection("127.0.0.1", service.server_port, timeout=10)
    found = []
    for user in users:
        connection.request("POST", "/events", json.dumps({"user_id": user}))
        response = connection.getresponse()
        response.read()
        found.append((response.status, response.headers["Retry-After"]))
    connection.close()
    service.shutdown()
    serving.join(10)
    service.server_close()
    return found


def test_some_calls_are_busy_and_some_users_unknown_always() -> None:
    users = [f"u{i % 500}" for i in range(2_000)]
    found = answers(Service(10**9, 0), users)
    counts = Counter(status for status, _ in found)
    assert 50 < counts[503] + counts[429] < 150
    assert {after for status, after in found if status == 429} == {"1"}
    unknown = {user for user, (status, _) in zip(users, found, strict=True) if status == 404}
    assert 0 < len(unknown) < 15
    for user, (status, _) in zip(users, found, strict=True):
        assert (status == 404) == (user in unknown)


def test_it_is_down_for_a_while_and_then_it_is_not() -> None:
    users = [f"u{i}" for i in range(1, 40)]
    down = [status for status, _ in answers(Service(10, 3600), users)]
    assert 200 in down[:3]
    assert set(down[3:]) == {503}
    up = [status for status, _ in answers(Service(10, 0), users)]
    assert up[5:].count(503) < 5
