"""A Python worker whose TaskManager is gone ends by itself.

Mostly it notices that its connection is lost. One that does not (it was seen to hang) would keep
its memory for good, because nobody knows of it any more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

_LOOK_EVERY_S: Final = 1.0
_THREAD: Final = "breakwater-orphan"
_WORKER: Final = "pyflink.fn_execution.beam.beam_boot"


def end_when_orphaned() -> None:
    """Watch from now on, if this is a worker: PyFlink may run steps in the driver's process too."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name == _WORKER:
        watch()


def watch() -> None:
    """End this process when those above it have changed; looks in a thread of its own.

    The TaskManager starts a shell and the shell the worker, so both are looked at: the shell
    outlives the TaskManager. One that died before this was called is not missed here: then it is
    the connection that the worker cannot make.
    """
    if all(thread.name != _THREAD for thread in threading.enumerate()):
        threading.Thread(target=_watch, args=(Lineage(),), name=_THREAD, daemon=True).start()


class Lineage:
    """The process that started this one, and the one that started that."""

    def __init__(self) -> None:
        """As they are now."""
        self._parent = os.getppid()
        self._above = _parent_of(self._parent)

    def has_changed(self) -> bool:
        """Whether one of the two has gone."""
        if os.getppid() != self._parent:
            return True
        return self._above is not None and _parent_of(self._parent) not in (self._above, None)


def _watch(lineage: Lineage) -> None:
    while not lineage.has_changed():
        time.sleep(_LOOK_EVERY_S)
    # Not sys.exit: that ends a thread, and waits for those that hang.
    os._exit(1)


def _parent_of(pid: int) -> int | None:
    """A process's parent; None where the system does not tell (not Linux, no file left to open)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # pid (name) state ppid ...: the name may hold anything.
    return int(stat.rpartition(")")[2].split()[1])
