"""Real signals to this process, as Ctrl-C sends them."""

from __future__ import annotations

import os
import signal

import pytest

from flink_jobs import interrupt
from flink_jobs.interrupt import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_leaves_word(number):
    with interruptible() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested


def signalled(*numbers: signal.Signals, then_wait_s: float = 0) -> None:
    with interruptible():
        for number in numbers:
            os.kill(os.getpid(), number)
        signal.sigtimedwait([], then_wait_s)  # a call that knows nothing of it


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, signal.SIGTERM)


def test_a_run_that_does_not_stop_in_time_is_stopped(monkeypatch):
    """A call to Java may never come back: the wait for it has an end."""
    monkeypatch.setattr(interrupt, "STOPS_WITHIN_S", 0.05)
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, then_wait_s=5)


def test_afterwards_signals_are_as_they_were(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(interrupt, "STOPS_WITHIN_S", 60)
    with interruptible():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
