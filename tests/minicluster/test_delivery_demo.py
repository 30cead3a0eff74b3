"""`make delivery-demo`: the service is not well, and the books balance all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.minicluster


def test_the_demo_ends_balanced() -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "flink_jobs.demo.delivery_demo", "--events", "1500"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "balanced: every record is in exactly one place" in demo.stdout
    assert "http_404" in demo.stdout
