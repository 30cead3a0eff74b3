"""Fingerprints: which failures are the same fault.

A thousand dead letters of one fault differ in their values. The fingerprint is a hash of the error
with its values taken out, so that they count as one fault, a thousand times.
"""

from __future__ import annotations

import functools
import hashlib
import re

MAX_MESSAGE_CHARS = 2000
"""Only so much of the message counts."""

# In this order: a quoted text may hold anything, a uuid holds numbers. All ids are called numbers,
# since any of them may by chance have no letter. Names in backticks stay: msgspec quotes types so,
# and another type is another fault.
_VALUES = (
    (re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\""), "<text>"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<number>"),
    (
        re.compile(r"\b0[xX][0-9a-fA-F]+\b|\b(?=\d*[a-fA-F])[0-9a-fA-F]{8,}\b"),
        "<number>",
    ),
    (re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"), "<number>"),
    (re.compile(r"\s+"), " "),
)


# A fault comes in thousands, and its messages are mostly the same word for word.
@functools.lru_cache(maxsize=1024)
def fingerprint(stage: str, error_type: str, message: str) -> str:
    """Hash a failure without its values.

    Args:
        stage: Step of the stream that failed, e.g. `intake`.
        error_type: Its error type, taken as it is.
        message: Its message. Numbers, offsets, quoted texts, uuids and hexadecimal ids in it do not
            count, nor does white space.

    Returns:
        16 hexadecimal digits, the same on every machine and Python version.
    """
    text = "\x1f".join((stage, error_type, normalised(message)))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def normalised(message: str) -> str:
    """The message with each value replaced by the name of its kind."""
    text = message[:MAX_MESSAGE_CHARS]
    for pattern, name in _VALUES:
        text = pattern.sub(name, text)
    return text.strip()
