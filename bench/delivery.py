"""What delivery costs, in one run: `make bench-delivery`.

Prints four tables, ready for bench/README.md:

1. the main job on files with a no-op async target, beside the same without delivery;
2. a no-op async target beside the same by PyFlink's AsyncDataStream, and by keyed state per record
   (bench/delivery_yardstick.py), which both do nothing else;
3. calls to a real HTTP server on loopback, beside a bare httpx loop on the same one;
4. what one key that always fails costs the others (bench/delivery_latency.py, from Kafka).

What is compared is the slope between a short and a long run, so start-up drops out; both ends of a
run wait for a checkpoint, which makes single seconds say little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import httpx

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from bench.delivery_latency import latency
from bench.events import DATA, events_file
from bench.kafka_setup import place
from bench.measure import Cost, cost_of, machine, spread
from tests.http_server import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("cost", "http", "latency")
WITHOUT, BATCH, EACH, DEDUPLICATED = (
    "without delivery",
    "a batch a call",
    "an event a call",
    "and deduplicated",
)
ASYNC, STATE = "AsyncDataStream", "keyed state per record"
TARGET = "BREAKWATER_DELIVERY__TARGET"
BATCH_OF = {TARGET: "bench.delivery_targets:batch", "BREAKWATER_DELIVERY__BATCH_MAX_EVENTS": "5000"}
ENVIRONS: dict[str, dict[str, str]] = {
    WITHOUT: {},
    BATCH: BATCH_OF,
    EACH: {TARGET: "bench.delivery_targets:each"},
    DEDUPLICATED: {**BATCH_OF, "BREAKWATER_DEDUPLICATE__ENABLED": "true"},
}
CALLS_AT_A_TIME = 20
HTTP_EVENTS, BARE_EVENTS = 40_000, 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each program, in turn")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--latency-rate", type=int, default=300, help="events a second")
    parser.add_argument("--latency-seconds", type=int, default=20, help="of each turn")
    call = parser.parse_args()
    print(machine(), flush=True)
    if "cost" in call.parts:
        compare(call.events, call.repeat)
    if "http" in call.parts:
        http(call.repeat)
    if "latency" in call.parts:
        with place(DATA / "delivery", parallelism=2, checkpoint_interval_ms=2000) as here:
            latency(here, call.latency_rate, call.latency_seconds, call.repeat)
    return 0


def compare(events: int, repeat: int) -> None:
    """Tables 1 and 2."""
    runs: dict[str, list[Cost]] = {name: [] for name in (*ENVIRONS, ASYNC, STATE)}
    for _ in range(repeat):
        for name, environ in ENVIRONS.items():
            # These take so much longer that fewer tell as much.
            count = events // 4 if name == EACH else events
            runs[name].append(slope(breakwater, count, environ))
        runs[ASYNC].append(slope([*yardstick, "--way", "async"], events // 20, {}))
        runs[STATE].append(slope([*yardstick, "--way", "state"], events // 10, {}))
    print(f"\nFiles of up to {events:,} events, no-op async target, {repeat} in turn:\n")
    print("| program | records/s | wall us a record | CPU us a record |")
    print("|---|---|---|---|")
    for name, costs in runs.items():
        wall_us = statistics.median(cost.wall_s for cost in costs)
        cpu_us = statistics.median(cost.cpu_s for cost in costs)
        print(f"| {name} | {1e6 / wall_us:,.0f} | {wall_us:.1f} | {cpu_us:.1f} |")
    print(f"\nThroughput of a batch a call to none: {ratios(runs[WITHOUT], runs[BATCH])}")
    for name in (ASYNC, STATE):
        print(f"A batch a call to {name}: {ratios(runs[name], runs[BATCH])}")
        print(f"An event a call to {name}: {ratios(runs[name], runs[EACH])}")


def ratios(theirs: list[Cost], ours: list[Cost]) -> str:
    """How many times as fast ours is."""
    return spread([t.wall_s / o.wall_s for t, o in zip(theirs, ours, strict=True)])


def http(repeat: int) -> None:
    """Table 3."""
    source = events_file(BARE_EVENTS)
    found, rates = [], []
    for _ in range(repeat):
        with ServerProcess(most_requests=1000) as server:
            bare = asyncio.run(bare_loop(f"{server.url}/events", source))
            server.reset()
            environ = {
                TARGET: "http",
                "BREAKWATER_HTTP__URL": f"{server.url}/events",
                "BREAKWATER_DELIVERY__CALLS_PER_WORKER": str(CALLS_AT_A_TIME // 2),
            }
            ours = 1e6 / slope(breakwater, HTTP_EVENTS, environ).wall_s
        found.append(ours / bare)
        rates.append((ours, bare))
    ours, bare = (statistics.median(each) for each in zip(*rates, strict=True))
    told = f"{ours:,.0f} calls/s; a bare httpx loop {bare:,.0f}"
    print(f"\nHTTP, {CALLS_AT_A_TIME} calls at a time: {told}")
    print(f"Breakwater to the bare loop: {spread(found)}")


async def bare_loop(url: str, source: Path) -> float:
    """Calls a second of as many coroutines that do nothing but post."""
    lines = iter(source.read_bytes().splitlines())
    count = 0

    async def post(client: httpx.AsyncClient) -> None:
        nonlocal count
        for line in lines:
            response = await client.post(url, content=line)
            response.raise_for_status()
            count += 1

    limits = httpx.Limits(max_connections=CALLS_AT_A_TIME)
    began = time.monotonic()
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
        await asyncio.gather(*(post(client) for _ in range(CALLS_AT_A_TIME)))
    return count / (time.monotonic() - began)


def slope(program: list[str], events: int, environ: dict[str, str]) -> Cost:
    """What a million records cost more, in a long run than in a short one: without its start-up."""
    short, long = events // 5, events
    one = measured(program, events_file(short), environ)
    return (measured(program, events_file(long), environ) - one) / ((long - short) / 1e6)


breakwater = [str(Path(sys.executable).with_name("breakwater")), "run", "--json"]
yardstick = [sys.executable, "-W", "ignore", str(ROOT / "bench" / "delivery_yardstick.py")]


def measured(program: list[str], source: Path, environ: dict[str, str]) -> Cost:
    output = DATA / "out"
    shutil.rmtree(output, ignore_errors=True)
    call = ["--input", str(source), "--output", str(output)]
    cost = cost_of([*program, *call], {**os.environ, "PYTHONPATH": str(ROOT), **environ})
    shutil.rmtree(output, ignore_errors=True)
    return cost


if __name__ == "__main__":
    sys.exit(main())
