"""Ctrl-C and SIGTERM: a run stops in order, within a bounded time."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOPS_WITHIN_S: Final = 90


class Interrupt:
    """Whether the run is to stop; looked at wherever that is safe.

    An exception at any moment would cut a call to Java in two, so the first signal only leaves
    word. A second one does raise, and so does the end of the time for stopping. That happens once:
    clearing up after it is short, and not to be interrupted by an impatient hand.
    """

    def __init__(self) -> None:
        """No signal has come."""
        self.requested = False
        self.forced = False

    def request(self, *_: object) -> None:
        """Take a signal.

        Raises:
            KeyboardInterrupt: it is the second.
        """
        if self.requested:
            self.give_up()
            return
        self.requested = True
        signal.setitimer(signal.ITIMER_REAL, STOPS_WITHIN_S)

    def give_up(self, *_: object) -> None:
        """Stop at once.

        Raises:
            KeyboardInterrupt: unless it has been raised before.
        """
        if not self.forced:
            self.forced = True
            # What was cut off would say so at length, and all that is the wish of who stops it.
            logging.disable()
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Take the signals over for a while. After a stop at once they stay ignored: it is the end."""
    interrupt = Interrupt()
    handlers = {
        signal.SIGINT: interrupt.request,
        signal.SIGTERM: interrupt.request,
        signal.SIGALRM: interrupt.give_up,
    }
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield interrupt
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, signal.SIG_IGN if interrupt.forced else handler)
