"""The end of a command that had a Java process."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process, at once if PyFlink was in use.

    PyFlink's thousands of objects would be freed one by one, and each tell a Java process that has
    gone: 0.4 s for nothing. What was to be put in order has been, before this is called.

    Args:
        code: the exit code.
    """
    java_gateway = sys.modules.get("pyflink.java_gateway")
    if getattr(java_gateway, "_gateway", None) is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
