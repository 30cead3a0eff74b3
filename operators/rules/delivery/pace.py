"""How fast calls may follow each other."""

from __future__ import annotations

import math
from typing import Final

#: A call that begins late is made up for, but no more than so much of it: a pause of minutes must
#: not end in a flood.
_MADE_UP_MS: Final = 100


class Pace:
    """So many events a second at most, evenly: never more, in any time, than in it and 100 ms more.

    A call takes as much of the time as it has events, and the next one waits for that; so one that
    is larger than a second's share is made all the same.
    """

    def __init__(self, per_second: float = math.inf) -> None:
        """Take how many; by default there is no limit."""
        self._each_ms = 1000 / per_second
        #: The next call may begin then, ms since 1970; at once if that is over.
        self.free_ms = 0.0

    def take(self, events: int, now_ms: int) -> None:
        """A call with so many events begins now."""
        if self._each_ms:  # else nothing is ever waited for, whatever a clock does
            self.free_ms = max(self.free_ms, now_ms - _MADE_UP_MS) + events * self._each_ms
