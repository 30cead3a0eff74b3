"""Processes that end with the one that started them, also when that one is killed.

What a killed test run has left, a broker or a cluster, would hold its ports and memory for good.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

#: prctl(2): the signal that the kernel sends when the parent dies; it outlives an exec.
_PR_SET_PDEATHSIG: Final = 1
_LINUX: Final = sys.platform == "linux"
#: The parent may have died before the call, then nothing would be sent any more.
_EXEC: Final = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(sys.argv[2]))
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[3], sys.argv[3:])
"""


def tied(command: Sequence[str], by: signal.Signals = signal.SIGKILL) -> list[str]:
    """A command whose process gets a signal as soon as this one is gone.

    It has the same process id as the command alone would have. It is the thread that starts it
    whose end counts, so start it in one that stays. Only Linux knows such a signal: elsewhere the
    command comes back as it is.

    Args:
        command: what to run, with its arguments.
        by: the signal.
    """
    if not _LINUX:
        return list(command)
    # Not preexec_fn: Python code between fork and exec may hang in a process with threads.
    return [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), str(int(by)), *command]
