"""Other versions of the project and of a user's contract, as files that a package is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

from flink_jobs.cluster.package import PACKAGES
from tests.kafka.jobs import ROOT

CONTRACT = '''
"""A shop's events."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec


class Event(msgspec.Struct):
    user_id: Annotated[str, msgspec.Meta(min_length=1)]
    product_id: Annotated[str, msgspec.Meta(min_length=1)]
    action: Literal["view", "click", "purchase", "add_to_cart"]
    price: Annotated[float, msgspec.Meta(ge=0, extra={"error_type": "invalid_price"})]
    timestamp: datetime
'''
ONE_MORE_FIELD = "    channel: str | None = None\n"

WINDOWS = '    name_sql_steps(user_windows, "user-windows")\n'
ONE_MORE_STEP = """
    table_env.create_temporary_view("written", table_env.from_data_stream(user_windows))
    written = table_env.sql_query("SELECT line FROM written WHERE line <> ''")
    user_windows = rows_of(table_env, written)
    name_sql_steps(user_windows, "one-more-step")
"""

OPEN = "    def open(self, runtime_context: RuntimeContext) -> None:\n"
FAILS = '        raise RuntimeError("this version cannot run")\n'

READ = "        for records in self._reader.read(element):\n"
#: Fails at the first record after two checkpoints that are later than its own first record: one of
#: them at least has committed what it wrote.
FAILS_LATER = """
        import glob, os, time
        self._since = getattr(self, "_since", time.time())
        self._seen = getattr(self, "_seen", set())
        for place in glob.glob("{checkpoints}/*/chk-*/_metadata"):
            try:
                self._seen |= {{place}} if os.path.getmtime(place) > self._since else set()
            except FileNotFoundError:
                pass
        if len(self._seen) >= 2:
            raise RuntimeError("this version cannot run for long")
"""


def contract(folder: Path, text: str = CONTRACT) -> Path:
    """A user's folder with a module `shop`."""
    folder.mkdir()
    (folder / "shop.py").write_text(text)
    return folder


def source(folder: Path, file: str, old: str, new: str) -> Path:
    """The project's source with one change; the change must be one."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / file
    text = changed.read_text()
    assert text.count(old) == 1, f"{file} has not exactly one {old!r}: mend this test"
    changed.write_text(text.replace(old, new))
    return folder
