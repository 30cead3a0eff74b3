"""An outage of real minutes: the broker goes away under load, with every client's own waits."""

from __future__ import annotations

import time

import msgspec

from bench.kafka_load import Load, go_on, running, state_folder, wait_for
from bench.kafka_setup import PARTITIONS, Place
from bench.kafka_soak import newest_checkpoint

STARTS_WITHIN_S, COMES_BACK_WITHIN_S = 120, 300
BEFORE_S, AFTER_S = 20, 20


def outage(here: Place, rate: int, minutes: float) -> None:
    servers, topic, prefix = here.broker.bootstrap_servers, "outage", "outage-out"
    here.topics.create(topic, PARTITIONS)
    load = Load(servers, topic, rate)
    with running(here, topic, prefix) as job:
        load.start()
        state = state_folder(here)
        wait_for("a checkpoint", lambda: newest_checkpoint(state), job, STARTS_WITHIN_S)
        go_on(job, BEFORE_S)
        here.broker.kill()
        go_on(job, minutes * 60)
        last = newest_checkpoint(state)
        here.broker.start()
        back = time.monotonic()
        wait_for("a checkpoint", lambda: newest_checkpoint(state) != last, job, COMES_BACK_WITHIN_S)
        took_s = time.monotonic() - back
        go_on(job, AFTER_S)
        load.stop()
        sent = places_in(here, topic)
        output = f"{prefix}-processed-events"
        wait_for(
            "all events, committed",
            lambda: len(events_in(here, output)) >= len(sent),
            job,
            COMES_BACK_WITHIN_S,
        )
        found = events_in(here, output)
    if sorted(found) != sorted(sent):
        raise SystemExit(f"{len(found):,} events are in the output, {len(sent):,} were sent")
    print(
        f"\nOutage: the broker killed for {minutes:g} minutes, {rate:,} events/s all the time. "
        f"Output was committed again {took_s:.0f} s after the broker was back. Of {len(sent):,} "
        f"events each is in the committed output once.",
        flush=True,
    )
    here.remove(prefix)


def places_in(here: Place, topic: str) -> list[tuple[int, int]]:
    """Partition and offset of each record of a topic."""
    return [(m.partition(), m.offset()) for m in here.topics.read([topic])]


def events_in(here: Place, topic: str) -> list[tuple[int, int]]:
    """Where the committed events of an output came from."""
    decode = msgspec.json.decode
    events = [decode(message.value()) for message in here.topics.read([topic])]
    return [(event["source_partition"], event["source_offset"]) for event in events]
