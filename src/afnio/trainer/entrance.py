"""Entrance: how synchronous code runs the Trainer's coroutines to their end, wherever it stands."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TypeVar

import anyio

from afnio.errors import BlockingReadError
from afnio.runtime.loop import parking, running_library
from afnio.runtime.waiting import may_block
from afnio.trainer.tasks import alone, task_group

T = TypeVar("T")


def run_blocking(main: Callable[[], Awaitable[T]], name: str) -> T:
    """Run `main()` to its end and return its result: on a loop of its own, in a notebook in a thread.

    Args:
        name: of the method, for the error; its twin has an "a" before it.

    Raises:
        BlockingReadError: where it would block an event loop.
    """
    library = running_library()
    if library is None and may_block():
        return anyio.run(main)
    if not may_block():
        where = "inside a node, which could deadlock" if library is None else f"the running {library} loop"
        raise BlockingReadError(
            f"trainer.{name}(...) would block {where}; write `await trainer.a{name}(...)`"
        )
    return _in_thread(main)


def _in_thread(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main()` in a thread, as the loop of this one is busy with the cell that called."""
    results: list[T] = []
    errors: list[BaseException] = []
    stop: list[Callable[[], None]] = []

    async def stoppable() -> None:
        wake, park = parking()
        stop.append(wake)

        async def watch(scope: anyio.CancelScope) -> None:
            await park()
            scope.cancel()

        with anyio.CancelScope() as scope:
            async with task_group() as tasks:
                tasks.start_soon(watch, scope)
                results.append(await main())
                tasks.cancel_scope.cancel()

    def run() -> None:
        try:
            anyio.run(stoppable)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="afnio-trainer", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # the kernel was interrupted: what is recorded is recorded before it goes on
        for wake in stop:
            wake()
        thread.join()
        raise
    if errors:
        raise alone(errors[0])
    return results[0]
