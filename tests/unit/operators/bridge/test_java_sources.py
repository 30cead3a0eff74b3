"""The Java sources name nothing of Flink's insides that is not looked for at start."""

from __future__ import annotations

import re
from importlib.resources import files

from operators.bridge.steps import _INTERNALS

#: A class of a library that Flink carries along; its own move more rarely.
CARRIED = re.compile(r"\b(?:org\.apache\.flink\.shaded|net\.jpountz)(?:\.\w+)*?\.[A-Z]\w*")


def test_every_class_that_flink_carries_along_is_looked_for_at_start() -> None:
    sources = [
        f for f in files("operators.bridge").joinpath("jvm").iterdir() if f.name.endswith(".java")
    ]
    found = {name for source in sources for name in CARRIED.findall(source.read_text())}
    assert found
    assert found <= set(_INTERNALS)
