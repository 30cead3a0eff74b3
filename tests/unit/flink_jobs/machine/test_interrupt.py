"""Real signals to this process, as Ctrl-C sends them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from flink_jobs.machine import interrupt
from flink_jobs.machine.interrupt import interruptible

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A run that is stopped at once keeps the signals and silences the log: it is the end of it."""
    former = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    logging.disable(logging.NOTSET)
    for number, handler in former.items():
        signal.signal(number, handler)


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


def test_an_impatient_hand_does_not_interrupt_what_comes_after():
    """The second signal has stopped it: a third must not cut its clearing up."""
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, signal.SIGINT)
    assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_IGN}


def test_a_run_that_does_not_stop_in_time_is_stopped(monkeypatch):
    """A call to Java may never come back: the wait for it has an end."""
    monkeypatch.setattr(interrupt, "STOPS_WITHIN_S", 0.05)
    with pytest.raises(KeyboardInterrupt):
        signalled(signal.SIGINT, then_wait_s=5)


def test_afterwards_signals_are_as_they_were(monkeypatch):
    before = [signal.getsignal(number) for number in NUMBERS]
    monkeypatch.setattr(interrupt, "STOPS_WITHIN_S", 60)
    with interruptible():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
