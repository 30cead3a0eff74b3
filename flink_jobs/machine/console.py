"""What is written to a terminal."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str) -> None:
    """One line as it is: a path is no markup, and wrapped it cannot be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
