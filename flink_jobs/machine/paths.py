"""Paths that PyFlink cannot use."""

from __future__ import annotations

import re
import sys
import tempfile
from typing import Final

from flink_jobs.errors import WRONG_CALL, UserError

_CUT_BY_A_SHELL: Final = re.compile(r"[\s*?[]")


def refuse_odd_paths() -> None:
    """Refuse what PyFlink's start script would cut: it names Python and a log without quotes.

    With a space in the temporary folder's path it would write to files of other names, wherever the
    command was called.

    Raises:
        UserError: says which path and what to do.
    """
    for path, what, advice in (
        (tempfile.gettempdir(), "temporary folder", "set TMPDIR to another"),
        (sys.executable, "Python", "make the environment in another folder"),
    ):
        if _CUT_BY_A_SHELL.search(path):
            raise UserError(
                f"{what} {path}: PyFlink cannot use a path with a space, *, ? or [; {advice}",
                WRONG_CALL,
            )
