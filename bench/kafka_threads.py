"""Where a job's CPU time goes, by kind of thread, once it runs at its pace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.kafka_load import go_on, started
from bench.kafka_setup import Place
from bench.measure import TICKS_A_SECOND, cpu_of_tree

#: Java has compiled what it will by then, and most of a long topic is left.
BEGINS_AFTER_S, LASTS_S = 25.0, 15.0
#: By the name of a thread, of which Linux keeps 15 characters.
KINDS = {
    "Source: kafka-s": "reading, the border to Python, and writing what comes back",
    "WindowAggregate": "windows",
    "AsyncOperations": "writing state into checkpoints",
    "VM Thread": "garbage collector",
    "C1 CompilerThre": "compiling",
    "C2 CompilerThre": "compiling",
    "Source Data Fet": "Kafka's consumers",
    "kafka-producer-": "Kafka's producers",
    "grpc-default-wo": "gRPC",
    "marks -> gate -": "marks and gate",
    "processed_event": "events to records of Kafka",
}


def threads(here: Place, events: int, users: int) -> None:
    topic, prefix = here.load(events, users), "threads-out"
    with started(here, here.settings(prefix, topic)) as job:
        go_on(job, BEGINS_AFTER_S)
        before = cpu_by_thread(job.pid)
        go_on(job, LASTS_S)
        after = cpu_by_thread(job.pid)
    spent: Counter[str] = Counter()
    for thread, (kind, seconds) in after.items():
        spent[kind] += seconds - before.get(thread, (kind, 0.0))[1]
    print(
        f"\nOf {LASTS_S:g} s, from second {BEGINS_AFTER_S:g} on, in cores (there are two, and the "
        f"broker is on them too):\n\n| kind of thread | cores |\n|---|---|"
    )
    for kind, seconds in spent.most_common():
        if seconds / LASTS_S >= 0.01:
            print(f"| {kind} | {seconds / LASTS_S:.2f} |")
    print(f"| all of them | {spent.total() / LASTS_S:.2f} |", flush=True)
    here.remove(prefix)


def cpu_by_thread(root: int) -> dict[str, tuple[str, float]]:
    """Kind and CPU seconds of each thread of Java, and of each other process, below one."""
    found: dict[str, tuple[str, float]] = {}
    for pid, cpu_s in cpu_of_tree([str(root)]).items():
        folder = Path("/proc") / pid
        try:
            if (folder / "comm").read_text().strip() == "java":
                found.update(_threads_of(folder))
            else:
                found[pid] = "Python workers", cpu_s
        except OSError:
            continue  # it has just ended
    return found


def _threads_of(folder: Path) -> dict[str, tuple[str, float]]:
    found = {}
    for stat in folder.glob("task/*/stat"):
        begin, _, numbers = stat.read_text().rpartition(")")
        name, fields = begin.partition("(")[2], numbers.split()
        cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND
        found[stat.parent.name] = KINDS.get(name, "other threads of Java"), cpu_s
    return found
