"""Waiting for something outside of this process."""

from __future__ import annotations

import time


def wait_a_moment() -> None:
    """The pause of every polling loop."""
    time.sleep(0.2)
