"""The user's own function as a target: ``async def`` or plain ``def``, named in the settings."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
        self._threads = None if _is_async(function) else ThreadPoolExecutor(threads, "target")

    async def deliver(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Call the function."""
        if self.max_batch == 1:
            return [await self._call(events[0])]
        outcomes = await self._call(events)
        return [None] * len(events) if outcomes is None else outcomes

    async def close(self) -> None:
        """Let go of the threads, whether they have come back or not."""
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, argument: Any) -> Any:
        if self._threads is None:
            return await self._function(argument)
        work = functools.partial(self._function, argument)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


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
