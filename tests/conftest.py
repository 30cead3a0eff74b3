"""For all tests: with BREAKWATER_REQUIRE=all a skipped test is a failed one."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """Turn a skip into a failure where every real part has to be there."""
    report = yield
    if report.skipped and os.environ.get("BREAKWATER_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped, but BREAKWATER_REQUIRE=all: {report.longrepr}"
        )
    return report
