"""What tells events apart: the contract's identity, or the checksum of the payload.

An event that comes a second time has the same identity. Targets get it as their idempotency key;
deduplication looks for it, by a digest of fixed length.
"""

from __future__ import annotations

import hashlib
from typing import Final

DIGEST_BYTES: Final = 16


def digest_of(payload: bytes, value: str | int | None, key: str) -> bytes:
    """The same for the same event, through retries, restarts and redrives; `DIGEST_BYTES` long.

    Events of different keys are never the same event, whatever their field says: they are in
    different lanes, or by chance in one, and that must not decide. A payload holds its key.

    Args:
        payload: the record as it came.
        value: of the field that the contract names as the identity; None if it names none.
        key: the event's key.
    """
    if value is None:
        return _md5(payload)
    text = f"{len(key)}:{key}{value}"
    return _md5(text.encode("utf-8", "surrogatepass"))


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
