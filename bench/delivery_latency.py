"""What a key whose calls always fail costs the others: from append to the target, in one run.

The main job reads from Kafka, and delivers to an HTTP server. By turns all calls are well, and
those of one key fail; how long the events of the other keys took is compared turn by turn.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from bench.kafka_load import Load, go_on, running, wait_for
from bench.kafka_setup import PARTITIONS, Place
from tests.http_server import Request, Rule, ServerProcess

STARTS_WITHIN_S, ARRIVES_WITHIN_S = 120, 60
#: Java compiles; and what has failed is tried again 8 s later, which is not to be the next turn's.
WARM_UP_S, SETTLE_S = 30, 10
USERS, BAD_USER = 100, "user_00000"
BAD = Rule(body_has=f'"user_id":"{BAD_USER}"', status=503)
CLEAN, FAILING = "all are well", "one key fails"
MOST_REQUESTS = 1_000_000
SETTINGS = """
[delivery]
target = "http"
[http]
url = "{url}/events"
"""
Coordinates = tuple[int, int]


@dataclass
class Turn:
    """A time in which the target did the same. Its instants are ms since 1970."""

    kind: str
    began_ms: float
    ended_ms: float = 0.0
    failed: int = 0
    took_ms: list[float] = field(default_factory=list)

    def p(self, percent: float) -> float:
        return float(np.percentile(self.took_ms, percent))


def latency(here: Place, rate: int, seconds: int, repeat: int) -> None:
    topic, prefix = "delivery-latency", "delivery-latency-out"
    here.topics.create(topic, PARTITIONS, message_timestamp_type="LogAppendTime")
    load = Load(here.broker.bootstrap_servers, topic, rate, users=USERS)
    with ServerProcess(most_requests=MOST_REQUESTS) as server:
        settings = SETTINGS.format(url=server.url)
        with running(here, topic, prefix, settings) as job:
            load.start()
            wait_for("a first call", lambda: server.counts()["requests"], job, STARTS_WITHIN_S)
            go_on(job, WARM_UP_S)
            load.remember()
            turns = [
                taken_turn(kind, server, job, seconds)
                for _ in range(repeat)
                for kind in (CLEAN, FAILING)
            ]
            server.behave()
            load.stop()
            arrived: dict[Coordinates, Request] = {}

            def all_are_there() -> bool:
                arrived.update(arrivals(server.requests(), turns))
                return load.appended.keys() <= arrived.keys()

            wait_for("the last event's call", all_are_there, job, ARRIVES_WITHIN_S)
    for place, appended_ms in load.appended.items():
        turn = next((t for t in turns if t.began_ms <= appended_ms < t.ended_ms), None)
        request = arrived[place]
        if turn and BAD_USER not in request.body:
            turn.took_ms.append(request.at_s * 1000 - appended_ms)
    print_turns(turns, rate, seconds)
    here.remove(prefix)


def taken_turn(kind: str, server: ServerProcess, job: subprocess.Popen[Any], seconds: int) -> Turn:
    server.behave(*[BAD] if kind == FAILING else [])
    go_on(job, SETTLE_S)
    turn = Turn(kind, time.time() * 1000)
    go_on(job, seconds)
    turn.ended_ms = time.time() * 1000
    return turn


def arrivals(requests: list[Request], turns: list[Turn]) -> dict[Coordinates, Request]:
    """When each event was called with first; and how many calls have failed in each turn."""
    found: dict[Coordinates, Request] = {}
    for turn in turns:
        within = [r for r in requests if turn.began_ms <= r.at_s * 1000 < turn.ended_ms]
        turn.failed = sum(request.status != 200 for request in within)
    for request in requests:
        event = msgspec.json.decode(request.body)
        found.setdefault((event["source_partition"], event["source_offset"]), request)
    return found


def print_turns(turns: list[Turn], rate: int, seconds: int) -> None:
    print(
        f"\nFrom append to the HTTP server, {rate:,} events/s of {USERS} keys, {seconds} s a turn, "
        f"{len(turns) // 2} of each kind in turn; the events of the other keys:\n"
    )
    print("| turn | events | p50 ms | p99 ms | max ms | calls that failed |")
    print("|---|---|---|---|---|---|")
    for kind in (CLEAN, FAILING):
        of_kind = [turn for turn in turns if turn.kind == kind]
        p50, p99, most = (
            statistics.median(turn.p(percent) for turn in of_kind) for percent in (50, 99, 100)
        )
        events = sum(len(turn.took_ms) for turn in of_kind)
        failed = sum(turn.failed for turn in of_kind)
        print(f"| {kind} | {events:,} | {p50:,.0f} | {p99:,.0f} | {most:,.0f} | {failed:,} |")
    found = [bad.p(99) / good.p(99) for good, bad in zip(turns[::2], turns[1::2], strict=True)]
    told = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
    print(f"\nThe others' p99 while one key fails, to a clean turn's: {told} (goal: at most 1.1).")
