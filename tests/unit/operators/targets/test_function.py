"""The user's own function as a target: what it may be, and what it may do."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from operators.targets.function import FunctionTarget, load_function
from udfs.targets import Event, Outcome, TargetError

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("error")]

LIMIT_S = 20.0
HERE = "tests.unit.operators.targets.test_function"


def event(number: int = 0) -> Event:
    line = b'{"n":%d}' % number
    return Event("u", number, line, line, 0, f"key-{number}", "topic", 0, number, 1)


def deliver(target: FunctionTarget, *calls: Sequence[Event]) -> list[Any]:
    """Make the calls, all at a time; what came of each, or what it raised."""

    async def made() -> list[Any]:
        await target.open()
        try:
            delivered = (target.deliver(events) for events in calls or ([event()],))
            outcomes = asyncio.gather(*delivered, return_exceptions=True)
            return list(await asyncio.wait_for(outcomes, LIMIT_S))
        finally:
            await target.close()

    return asyncio.run(made())


def plain(given: Event) -> dict[str, Any]:
    return {"thread": threading.current_thread().name, "value": given.value}


async def on_the_loop(given: Event) -> dict[str, Any]:
    return plain(given)


def wrapped(given: Event) -> Any:
    """As a decorator that knows nothing of coroutines leaves an `async def`."""
    return on_the_loop(given)


class Service:
    async def __call__(self, given: Event) -> dict[str, Any]:
        return plain(given)

    def deliver(self, given: Event) -> dict[str, Any]:
        return plain(given)


SERVICE = Service()


@pytest.mark.parametrize(
    ("function", "is_in_a_thread"),
    [
        (on_the_loop, False),
        (wrapped, False),
        (functools.partial(on_the_loop), False),
        (SERVICE, False),
        (plain, True),
        (functools.partial(plain), True),
        (SERVICE.deliver, True),
    ],
)
def test_an_async_def_runs_on_the_loop_and_a_def_in_a_thread(
    function: Callable[..., Any], is_in_a_thread: bool
) -> None:
    [[outcome]] = deliver(FunctionTarget(function))
    assert outcome["value"] == 0
    assert (outcome["thread"] != threading.main_thread().name) is is_in_a_thread


def test_a_batch_is_a_list_and_none_delivers_all_of_it() -> None:
    def take(events: Sequence[Event]) -> list[Outcome] | None:
        return None if len(events) == 2 else [each.value for each in events]

    target = FunctionTarget(take, max_batch=3)
    three = [event(1), event(2), event(3)]
    assert deliver(target, three[:2], three) == [[None, None], [1, 2, 3]]


def test_threads_are_as_many_as_allowed_and_used_again() -> None:
    names: list[str] = []
    now, most = 0, 0
    lock = threading.Lock()

    def slow(given: Event) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            names.append(threading.current_thread().name)
        time.sleep(0.02)
        with lock:
            now -= 1

    deliver(FunctionTarget(slow, threads=3), *[[event(n)] for n in range(20)])
    assert (len(names), len(set(names)), most) == (20, 3, 3)


@pytest.mark.parametrize("raised", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_function_raises_in_a_thread_is_raised_by_the_call(raised: BaseException) -> None:
    def fail(given: Event) -> None:
        raise raised

    async def call() -> BaseException:
        target = FunctionTarget(fail)
        try:
            await target.deliver([event()])
        except BaseException as error:  # of any kind: it is compared
            return error
        finally:
            await target.close()
        raise AssertionError("it has raised nothing")

    assert asyncio.run(call()) is raised


def test_a_next_that_finds_nothing_is_the_events_failure_and_no_call_that_hangs() -> None:
    """No future can hold a StopIteration: the call would hang until its time is over."""

    def fail(given: Event) -> Any:
        return next(each for each in () if each)

    [error] = deliver(FunctionTarget(fail))
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)
    assert "StopIteration" in str(error)


def test_a_call_that_is_given_up_before_its_turn_is_not_made() -> None:
    """The bug it catches: behind one that hung, all that was given up is done at once."""
    called: list[int] = []
    go_on = threading.Event()

    def slow(given: Event) -> None:
        called.append(given.value)
        assert go_on.wait(LIMIT_S)

    async def give_up() -> None:
        target = FunctionTarget(slow, threads=1)
        calls = [asyncio.ensure_future(target.deliver([event(n)])) for n in range(3)]
        await asyncio.sleep(0.05)
        calls[1].cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(asyncio.gather(calls[0], calls[2]), LIMIT_S)
        await target.close()

    asyncio.run(give_up())
    assert called == [0, 2]


HANGS = f"""
import asyncio, time
from {HERE} import event
from operators.targets.function import FunctionTarget

async def main():
    target = FunctionTarget(lambda given: time.sleep(3600), threads=1)
    calls = [asyncio.ensure_future(target.deliver([event()])) for _ in range(2)]
    await asyncio.wait(calls, timeout=0.2)
    for call in calls:
        call.cancel()
    await target.close()

asyncio.run(main())
print("ended")
"""


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending() -> None:
    """The bug it catches: breakwater deliver never ends, as Python waits for its executors."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGS],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ended.returncode, ended.stdout) == (0, "ended\n"), ended.stderr


# --- its path

NO_FUNCTION = 7


def takes_two(given: Event, other: Event) -> None: ...


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("no_such_package:f", "cannot be loaded (No module named 'no_such_package')"),
        (f"{HERE}:nobody", "cannot be loaded (module"),
        (HERE, "cannot be loaded"),
        (":f", "cannot be loaded"),
        (f"{HERE}:NO_FUNCTION", "is no function"),
        (f"{HERE}:takes_two", "must take one argument: the event, or a list of events"),
    ],
)
def test_a_path_that_leads_to_no_function_is_one_line(path: str, told: str) -> None:
    with pytest.raises(TargetError) as refused:
        load_function(path)
    message = str(refused.value)
    assert message.startswith(f"target {path!r} ")
    assert told in message
    assert "\n" not in message


def test_a_function_is_found_by_its_path() -> None:
    assert load_function(f"{HERE}:plain") is plain
    assert load_function(f"{HERE}:SERVICE.deliver") == SERVICE.deliver
