"""A flow as Flink gets it: its steps, their uids and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flink_jobs.run_folder.plan import line_limits
from flink_jobs.settings import Settings, load_settings
from flink_jobs.wiring.environment import flink_options
from flink_jobs.wiring.rules import delivery_rules, intake_rules
from flink_jobs.workflow import define_workflow
from operators.rules.splits import InputFile, ReadPlan
from operators.sinks.files import FileSinks
from operators.sources.files import FileSource


def environment(flink: Callable[..., Any], settings: Settings) -> Any:
    """One with the options of a real run."""
    options = flink_options(settings).items()
    return flink(**{name.replace("-", "___").replace(".", "_"): value for name, value in options})


def main_job(flink: Callable[..., Any], folder: Path, call: dict[str, object]) -> list[Any]:
    """Every step of the main job on a file, as these settings have it; sources first."""
    settings = load_settings(None, {"parallelism": 3, **call}, {})
    env = environment(flink, settings)
    plan = ReadPlan((InputFile("/data/events.jsonl", 10_000_000, False, 0),), 1_000_000, 2)
    sinks = FileSinks(folder, 10**8, 60_000, 2048, 10**6, 200)
    define_workflow(
        env,
        FileSource(plan, line_limits(settings)),
        sinks,
        sinks,
        rules=intake_rules(settings),
        windows=settings.windows,
        delivery=delivery_rules(settings),
    )
    return steps_of(env)


def steps_of(env: Any) -> list[Any]:
    """Every step that has been defined, sources first."""
    found: dict[int, Any] = {}
    for step in env._j_stream_execution_environment.getTransformations():
        for each in _walk(step):
            found[each.getId()] = each
    # Flink refuses steps without a uid here, with pipeline.auto-generate-uids=false.
    env._j_stream_execution_environment.getStreamGraph(False)
    return [found[i] for i in sorted(found)]


def _walk(step: Any) -> Iterator[Any]:
    for above in step.getInputs():
        yield from _walk(above)
    yield step


def uids(steps: list[Any]) -> str:
    """As the golden lists have them."""
    lines = [
        # Flink numbers the SQL steps by order of translation; their uids do without.
        f"{step.getUid()} | {re.sub(r'[[][0-9]+[]]', '', step.getName())}"
        for step in steps
        if step.getUid() is not None
    ]
    return "\n".join(sorted(lines)) + "\n"


def pickled(steps: list[Any]) -> dict[str, str]:
    """The steps whose output has no type that Flink knows."""
    types = {step.getName(): str(step.getOutputType()) for step in steps}
    return {name: t for name, t in types.items() if "Pickled" in t or "GenericType" in t}


def parallelism(steps: list[Any]) -> dict[str, int]:
    """By uid."""
    return {step.getUid(): step.getParallelism() for step in steps}
