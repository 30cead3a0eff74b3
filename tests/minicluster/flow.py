"""A flow as Flink gets it: its steps, their uids and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from flink_jobs.main import flink_options
from flink_jobs.settings import Settings


def environment(flink: Callable[..., Any], settings: Settings) -> Any:
    """One with the options of a real run."""
    options = flink_options(settings).items()
    return flink(**{name.replace("-", "___").replace(".", "_"): value for name, value in options})


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
