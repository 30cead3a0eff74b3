"""An outage of real minutes: the broker goes away under load, with every client's own waits."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import msgspec

from bench.kafka_load import Load, go_on, running, state_folder, wait_for
from bench.kafka_setup import PARTITIONS, Place
from bench.kafka_soak import newest_checkpoint

STARTS_WITHIN_S, COMES_BACK_WITHIN_S = 120, 300
BEFORE_S, AFTER_S = 20, 20

Places = list[tuple[int, int]]


def outage(here: Place, rate: int, minutes: float) -> None:
    topic, prefix = "outage", "outage-out"
    here.topics.create(topic, PARTITIONS)
    load = Load(here.broker.bootstrap_servers, topic, rate)
    with running(here, topic, prefix) as job:
        load.start()
        wait_for_checkpoints(here, job, 1, STARTS_WITHIN_S)
        go_on(job, BEFORE_S)
        here.broker.kill()
        go_on(job, minutes * 60)
        here.broker.start()
        back = time.monotonic()
        # The first one may be of before; with the second, output is committed.
        wait_for_checkpoints(here, job, 2, COMES_BACK_WITHIN_S)
        took_s = time.monotonic() - back
        go_on(job, AFTER_S)
        load.stop()
        sent, found = read_all(here, job, topic, f"{prefix}-processed-events")
    if len(sent) != load.sent or sorted(found) != sorted(sent):
        raise SystemExit(
            f"{load.sent:,} events sent, {len(sent):,} in the topic, {len(found):,} in the output"
        )
    print(
        f"\nOutage: the broker killed for {minutes:g} minutes, {rate:,} events/s all the time. "
        f"The second checkpoint was complete {took_s:.0f} s after the broker was back. Of "
        f"{len(sent):,} events each is in the committed output once.",
        flush=True,
    )
    here.remove(prefix)


def wait_for_checkpoints(here: Place, job: subprocess.Popen[Any], n: int, within_s: float) -> None:
    """Wait until so many have been completed from now on."""
    state = state_folder(here)
    for _ in range(n):
        last = newest_checkpoint(state)
        wait_for("a checkpoint", lambda last=last: newest_checkpoint(state) != last, job, within_s)


def read_all(
    here: Place, job: subprocess.Popen[Any], topic: str, output: str
) -> tuple[Places, Places]:
    """What a topic has, and what the job has made of all of it, its last transaction included."""
    decode = msgspec.json.decode
    sent = [(m.partition(), m.offset()) for m in here.topics.read([topic])]

    def events() -> Places:
        lines = [decode(m.value()) for m in here.topics.read([output])]
        return [(line["source_partition"], line["source_offset"]) for line in lines]

    wait_for("all events", lambda: len(events()) >= len(sent), job, COMES_BACK_WITHIN_S)
    # One that is there twice may come with a later transaction.
    wait_for_checkpoints(here, job, 2, COMES_BACK_WITHIN_S)
    return sent, events()
