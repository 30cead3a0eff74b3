"""What waits for a target that is down is on disk, with RocksDB: memory does not grow with it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.http_server import Rule, ServerProcess
from tests.runs import events, python_workers, settings_file, started, wait_until

pytestmark = pytest.mark.minicluster

FEW, MANY = 100_000, 400_000
NOTE_BYTES = 500
BACKEND = "rocksdb"
#: All memory together may grow by no more than this share of what has come in.
AT_MOST = 0.25
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: A heap that Java has all of from the start: what its process grows by is beside the heap.
HEAP = "-Xms700m -Xmx700m -XX:+AlwaysPreTouch"
#: What the command counts is written down, and what its Java holds.
TELL = """
import json, os
from pathlib import Path
import flink_jobs.local.job as local
count = local._counters
def told(job):
    from pyflink.java_gateway import get_gateway
    counters, jvm = count(job), get_gateway().jvm
    jvm.System.gc()
    runtime = jvm.Runtime.getRuntime()
    heap = runtime.totalMemory() - runtime.freeMemory()
    java = int(jvm.ProcessHandle.current().pid())
    file = Path(os.environ["TOLD"])
    file.with_suffix(".new").write_text(json.dumps({**counters, "heap": heap, "java": java}))
    file.with_suffix(".new").rename(file)
    return counters
local._counters = told
"""


class Look(NamedTuple):
    """How many events wait, and memory in MB then: Java's heap, Java's process, the workers."""

    waiting: int
    mb: tuple[float, float, float]


def look_when(waiting: int, told: Path, driver: int) -> Look:
    """Memory once so many events wait."""
    found: dict[str, int] = {}

    def so_many_wait() -> bool:
        if told.exists():
            found.update(json.loads(told.read_text()))
        return found.get("delivery.waiting", 0) >= waiting

    wait_until(f"{waiting:,} events wait", so_many_wait)
    workers = sum(map(resident_mb, python_workers(driver)))
    mb = (found["heap"] / 1e6, resident_mb(found["java"]), workers)
    return Look(found["delivery.waiting"], mb)


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


def large_events(path: Path) -> Path:
    """Events that no compression makes smaller."""
    draw = random.Random(1)  # noqa: S311
    with events(path.with_suffix(".small"), MANY, bad_rate=0).open() as lines, path.open("w") as to:
        for line in lines:
            note = draw.randbytes(NOTE_BYTES // 2).hex()
            to.write(f'{line.rstrip()[:-1]},"note":"{note}"}}\n')
    return path


def test_memory_does_not_grow_with_what_waits_behind_a_target_that_is_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, told = large_events(tmp_path / "events.jsonl"), tmp_path / "told.json"
    with ServerProcess() as server:
        server.behave(Rule(status=503))
        config = settings_file(
            tmp_path / "s.toml",
            delivery={
                "target": "http",
                "lanes": 4,
                "max_records": 10_000_000,
                "max_bytes": 10_000_000_000,
                # The input ends; what waits goes on waiting.
                "drain_timeout_ms": 86_400_000,
            },
            http={"url": f"{server.url}/events"},
            breaker={"open_ms": 600_000, "open_cap_ms": 600_000},
            flink={
                "state.backend.type": BACKEND,
                "execution.checkpointing.incremental": True,
                "taskmanager.memory.managed.size": "32m",
            },
        )
        call = ["run", "--input", source, "--output", tmp_path / "out", "--config", config]
        env = {"TOLD": str(told), "JVM_ARGS": HEAP}
        with started(*call, "--parallelism", 1, change=TELL, env=env) as job:
            few = look_when(FEW, told, job.pid)
            many = look_when(MANY, told, job.pid)
    came_mb = source.stat().st_size / 1e6 * (many.waiting - few.waiting) / MANY
    grown_mb = sum(max(0, now - then) for now, then in zip(many.mb, few.mb, strict=True))
    with capsys.disabled():
        print(f"\n{came_mb:.0f} MB have come in, memory has grown by {grown_mb:.0f}: {few} {many}")
    assert many.waiting == MANY
    assert came_mb > 100
    assert grown_mb <= AT_MOST * came_mb
