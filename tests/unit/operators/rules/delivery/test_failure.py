"""The failure table: every error has a category, every category a queue."""

from __future__ import annotations

from typing import get_args

import pytest

from operators.rules import verdict
from operators.rules.contract import load_contract
from operators.rules.delivery.failure import FailureCategory, category_of, queue_of
from tests.unit.operators.rules.contracts import ECOMMERCE, READING


@pytest.mark.parametrize("arguments", [ECOMMERCE, READING])
def test_whatever_intake_rejects_is_a_fault_of_the_data(arguments: tuple[str, ...]) -> None:
    reasons = (verdict.EMPTY_MESSAGE, verdict.OVERSIZED, verdict.NULL_BYTES, verdict.INVALID_JSON)
    names = (*load_contract(*arguments).error_types, *reasons, "a_reason_of_the_user")
    assert {category_of(name) for name in names} == {"data_quality"}


@pytest.mark.parametrize("category", get_args(FailureCategory))
def test_a_queue_is_named_as_its_category(category: FailureCategory) -> None:
    assert queue_of(category) == category
