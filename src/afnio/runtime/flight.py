"""Flight: one call on its way that several callers wait for (single-flight)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextvars import copy_context
from typing import Any, TypeVar, final

import anyio

from afnio.runtime.loop import Task
from afnio.runtime.priority import Urgency
from afnio.runtime.runtime import Runtime

T = TypeVar("T")


@final
class _Flight:
    """One piece of work in a task of its own, so that whoever asked first may leave first."""

    def __init__(self, urgency: Urgency) -> None:
        self.urgency = urgency
        self.waiting = 0
        self.landed = anyio.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self.task: Task | None = None

    async def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.result = await work()
        except BaseException as error:
            self.error = error
        finally:
            self.landed.set()


@final
class _Flights:
    """The flights of one runtime by key; it owns their tasks."""

    def __init__(self) -> None:
        self.by_key: dict[Hashable, _Flight] = {}

    async def aclose(self) -> None:
        for flight in self.by_key.values():
            if flight.task is not None:
                flight.task.cancel()


async def share(
    runtime: Runtime, key: Hashable, urgency: Urgency, work: Callable[[], Awaitable[T]]
) -> tuple[T, bool]:
    """Return what `work` gives, and whether this caller started it; equal keys at the same time work once.

    A more urgent caller that joins makes the work under way as urgent as it is itself. A caller that is
    cancelled leaves the others their result; the last one to leave cancels the work.
    """
    flights = runtime.resource(_Flights, _Flights).by_key
    flight = flights.get(key)
    first = flight is None
    if flight is None:
        flight = flights[key] = _Flight(urgency)
        flight.task = runtime.spawn(flight.run(work), copy_context())
    else:
        flight.urgency.raise_to(urgency.rank)
    flight.waiting += 1
    try:
        await flight.landed.wait()
    finally:
        flight.waiting -= 1
        if flight.landed.is_set() or flight.waiting == 0:
            if flights.get(key) is flight:
                del flights[key]
            if not flight.landed.is_set() and flight.task is not None:
                flight.task.cancel()
    if flight.error is not None:
        raise flight.error
    return flight.result, first
