"""Faults that a person can act on: one line, no stack trace, and an exit code."""

from __future__ import annotations

FAILED = 1
WRONG_CALL = 2


class UserError(Exception):
    """A foreseeable fault: the command prints the message as one line and leaves with the code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        """Keep the message on one line, whatever was put into it.

        Args:
            message: What is wrong and what to do.
            exit_code: 1 for a run that failed, 2 for a wrong call or setting.
        """
        self.message = " ".join(message.split())
        self.exit_code = exit_code
        super().__init__(self.message, exit_code)

    def __str__(self) -> str:
        """The line to print."""
        return self.message
