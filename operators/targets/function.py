"""The user's own function as a target: ``async def`` or plain ``def``, named in the settings."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import Any

from udfs.targets import Event, Outcome, Target, TargetError


class FunctionTarget(Target):
    """Calls a function with an event, or with a list of them.

    With an event it returns None, or a mapping that adds fields to the event; what it raises is the
    event's failure. With a list it returns a list of outcomes, or None if all are delivered; what
    it raises is the failure of all of them.

    A plain ``def`` runs in a thread. One that does not come back in time counts as failed, but its
    thread cannot be ended: when all threads hang, no call is made any more. Let it have a timeout
    of its own.
    """

    def __init__(self, function: Callable[..., Any], max_batch: int = 1, threads: int = 64) -> None:
        """Take the function.

        Args:
            function: see above.
            max_batch: 1 calls with an event, more with a list of so many at most.
            threads: for a plain ``def``, at most.
        """
        self._function = function
        self.max_batch = max_batch
        self.keeps_order = bool(getattr(function, "keeps_order", False))
        self._threads = None if _is_async(function) else _Threads(threads)

    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Call the function."""
        if self.max_batch == 1:
            return [await self._call(events[0])]
        outcomes = await self._call(events)
        return [None] * len(events) if outcomes is None else outcomes

    async def close(self) -> None:
        """Let go of the threads, whether they have come back or not."""
        if self._threads:
            self._threads.close()

    async def _call(self, argument: Any) -> Any:
        if self._threads is None:
            return await self._function(argument)
        result = await self._threads.run(functools.partial(self._function, argument))
        # A `def` around an `async def`, as a decorator may be.
        return await result if inspect.isawaitable(result) else result


class _Threads:
    """So many threads at most, begun when they are needed, for calls from one loop.

    Python does not end before those of its own executor have come back, and one that hangs never
    does: a command that has given up the call would not end either. So these are daemons.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[Thread] = []
        self._idle = Semaphore(0)
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()

    async def run(self, work: Callable[[], Any]) -> Any:
        """What it returns or raises. One that is cancelled before its turn is not begun."""
        future: Future[Any] = Future()
        self._work.put((work, future))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._most:
            thread = Thread(target=self._run, name=f"target-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let each end with the call that it is in; what waits for its turn is left."""
        with suppress(Empty):
            while True:
                self._work.get_nowait()
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        while (found := self._work.get()) is not None:
            work, future = found
            if future.set_running_or_notify_cancel():
                _settle(future, work)
            self._idle.release()


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except StopIteration as error:  # a future of asyncio takes none, and would never be done
        stopped = RuntimeError("the function has raised StopIteration")
        stopped.__cause__ = error
        future.set_exception(stopped)
    except BaseException as error:  # of any kind: it is for the one who waits
        future.set_exception(error)


def load_function(path: str) -> Callable[..., Any]:
    """Find a function by its path.

    Args:
        path: ``package.module:function``.

    Raises:
        TargetError: There is none, or it cannot be called with one argument.
    """
    module_name, _, name = path.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise TargetError(
            f'target {path!r} cannot be loaded ({error}): use "package.module:function", and run '
            "where the package can be imported"
        ) from None
    if not callable(found):
        raise TargetError(f"target {path!r} is no function")
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise TargetError(
            f"target {path!r} must take one argument: the event, or a list of events"
        ) from None
    return found


def _is_async(function: Callable[..., Any]) -> bool:
    inner = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 # not whether it can be called: how
    )
