"""Entrance: how synchronous code runs the Trainer's coroutines to their end, wherever it stands."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Generic, TypeVar

import anyio

from afnio.errors import BlockingReadError
from afnio.runtime._loop import parking, running_library
from afnio.runtime._waiting import may_block
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
    if not may_block():
        where = "inside a node, which could deadlock" if library is None else f"the running {library} loop"
        raise BlockingReadError(
            f"trainer.{name}(...) would block {where}; write `await trainer.a{name}(...)`"
        )
    if library is not None:
        return _in_thread(main)
    at_terminal = threading.current_thread() is threading.main_thread()
    if at_terminal and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return _interruptible(main)
    return anyio.run(main)


def _interruptible(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main()` so that the first Ctrl-C has it stop and record, and a second one ends the process."""
    body = _Stoppable(main)
    pressed: list[int] = []

    def on_interrupt(number: int, frame: object) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            # What was acknowledged is on disk, and no file is ever half written. A display may have hidden
            # the cursor.
            with suppress(OSError):
                os.write(2, b"\x1b[?25h\nafnio: left at once\n" if os.isatty(2) else b"afnio: left at once\n")
            os._exit(130)
        # From a thread, as the loop may be asleep and wakes only for others.
        threading.Thread(target=body.stop, daemon=True).start()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        anyio.run(body.run)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not body.results:
        raise KeyboardInterrupt
    return body.results[0]


class _Stoppable(Generic[T]):
    """A coroutine that other threads can cancel.

    Attributes:
        results: what it returned, empty if it was cancelled.
    """

    def __init__(self, main: Callable[[], Awaitable[T]]) -> None:
        self._main = main
        self._wake: Callable[[], None] | None = None
        self._stopped = False
        self.results: list[T] = []

    def stop(self) -> None:
        self._stopped = True  # for `run`, where it has not begun
        if self._wake is not None:
            self._wake()

    async def run(self) -> None:
        wake, park = parking()
        self._wake = wake

        async def watch() -> None:
            await park()
            tasks.cancel_scope.cancel()

        async with task_group() as tasks:
            tasks.start_soon(watch)
            if self._stopped:
                tasks.cancel_scope.cancel()
            self.results.append(await self._main())
            tasks.cancel_scope.cancel()


def _in_thread(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main()` in a thread, as the loop of this one is busy with the cell that called."""
    body = _Stoppable(main)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(body.run)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="afnio-trainer", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # the kernel was interrupted: what is under way is recorded before it goes on
        body.stop()
        thread.join()
        raise
    if errors:
        raise alone(errors[0])
    return body.results[0]
