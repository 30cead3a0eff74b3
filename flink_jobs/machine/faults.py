"""What Flink and Java say when something goes wrong, as one line that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from py4j.protocol import Py4JNetworkError

from flink_jobs.errors import UserError

_PYTHON_FAULT: Final = re.compile(
    r"^(?:\w+\.)*(?:SourceFileError|BridgeError): (.*)$", re.MULTILINE
)
_CAUSE: Final = re.compile(r"^Caused by: (?:[\w$]+\.)*([\w$]+(?:: .*)?)$", re.MULTILINE)
#: PyFlink's words for a Java that ended at once; what Java said follows.
_JAVA_SAID: Final = re.compile(r"^Stderr:\n(.+)$", re.MULTILINE)


@contextmanager
def one_line(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever goes wrong into one line.

    Args:
        what: what went wrong, the reason follows.
        advice: what to do, comes last.

    Raises:
        UserError: instead of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Py4JNetworkError as error:
        raise UserError(f"{what}: the Java process has died{advice}") from error
    except Exception as error:
        raise UserError(f"{what}: {reason(error)}{advice}") from error


def reason(error: Exception) -> str:
    """The one line of a Java and Python stack trace that tells what happened."""
    text = str(error)
    for pattern in (_PYTHON_FAULT, _CAUSE, _JAVA_SAID):
        found = pattern.findall(text)
        if found:
            return str(found[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
