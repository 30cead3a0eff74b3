"""The one table that says what kind of failure an error is. Everything else asks it.

The category decides what is done about a failure: a transient one is retried, a persistent one is
not, one of data quality waits for its data to be mended, one of infrastructure stops the work until
the infrastructure is back. It also names the queue of a dead letter.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

FailureCategory = Literal["transient", "persistent", "data_quality", "infrastructure"]
CATEGORIES: Final[tuple[FailureCategory, ...]] = get_args(FailureCategory)

DATA_QUALITY: Final = "data_quality"

_CATEGORIES: dict[str, FailureCategory] = {
    "schema_error": DATA_QUALITY,
    "missing_required": DATA_QUALITY,
    "future_timestamp": DATA_QUALITY,
    "empty_message": DATA_QUALITY,
    "oversized": DATA_QUALITY,
    "null_bytes": DATA_QUALITY,
    "invalid_json": DATA_QUALITY,
}
_QUEUES: dict[FailureCategory, str] = {
    "transient": "transient",
    "persistent": "persistent",
    "data_quality": "data_quality",
    "infrastructure": "infrastructure",
}


def category_of(error_type: str) -> FailureCategory:
    """Look an error type up.

    Args:
        error_type: Any error type or quarantine reason.

    Returns:
        Its category. A name that is not in the table comes from a user's contract
        (`invalid_price`, `unknown_action`) or from a poison pattern, and so speaks of the data.
    """
    return _CATEGORIES.get(error_type, DATA_QUALITY)


def queue_of(category: FailureCategory) -> str:
    """Name the dead-letter queue of a category: the `queue=` folder of the output."""
    return _QUEUES[category]
