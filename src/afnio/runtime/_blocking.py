"""Whole jobs, such as a training, from synchronous code: a script, a thread, or a notebook's cell.

`run_blocking` runs a job's coroutine to its end. The first Ctrl-C lets the job record itself before it ends, and where
a job can end early with a result, one more comes before that. `task_group` runs tasks of a job side by side and raises
the error of one as it is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from afnio.errors import BlockingReadError
from afnio.runtime._control import is_job_paused, run_gate
from afnio.runtime._kernel import existing_runtime
from afnio.runtime._loop import parking, running_library
from afnio.runtime._parcels import Depot
from afnio.runtime._waiting import may_block

T = TypeVar("T")


def run_blocking(
    main: Callable[[], Awaitable[T]], name: str, gently: Callable[[], object] | None = None
) -> T:
    """Run `main()` to its end and return its result, on a new loop; in a notebook, on one in a thread.

    Args:
        name: of the method, for the error. Its asynchronous twin has an "a" before it.
        gently: what the first Ctrl-C calls, to let `main` end early with a result. The next one stops it.

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
        return _in_thread(main, gently)
    at_terminal = threading.current_thread() is threading.main_thread()
    if at_terminal and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return _interruptible(main, gently)
    return anyio.run(main)


def _interruptible(main: Callable[[], Awaitable[T]], gently: Callable[[], object] | None) -> T:
    """Run `main()` so that the first Ctrl-C stops and records it, and a second one ends the process.

    With `gently` it takes one more: the first only calls that. But not while calls wait for a batch API or the run is
    paused: to end gently may take hours then. A program that is started again finds its batches, and is still paused.
    """
    body = _Stoppable(main)
    answers = [*([] if gently is None else [gently]), body.stop]

    def on_interrupt(number: int, frame: object) -> None:
        if not answers:
            # Acknowledged calls are on disk, and files are replaced whole. Show the cursor: a display may hide it.
            with suppress(OSError):
                os.write(2, b"\x1b[?25h\nafnio: left at once\n" if os.isatty(2) else b"afnio: left at once\n")
            os._exit(130)
        if len(answers) > 1 and _ends_late():
            answers.pop(0)
        # From a thread: the loop may sleep, and only another thread wakes it.
        threading.Thread(target=answers.pop(0), daemon=True).start()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        anyio.run(body.run)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not body.results:
        raise KeyboardInterrupt
    return body.results[0]


def _ends_late() -> bool:
    """Return True if a gentle end may take hours."""
    runtime = existing_runtime()
    return is_job_paused() or (
        runtime is not None and any(isinstance(one, Depot) and one.waiting() for one in runtime.resources())
    )


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
        self._stopped = True  # in case `run` has not begun
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


def _in_thread(main: Callable[[], Awaitable[T]], gently: Callable[[], object] | None) -> T:
    """Run `main()` in a thread, because this thread's loop is busy with the cell that called."""
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
        try:
            thread.join()
        except KeyboardInterrupt:
            if gently is None or _ends_late():
                raise
            gently()
            thread.join()
    except BaseException:  # the kernel was interrupted: let the training record itself before the cell ends
        body.stop()
        thread.join()
        raise
    if errors:
        raise alone(errors[0])
    return body.results[0]


@asynccontextmanager
async def stoppable() -> AsyncIterator[None]:
    """Cancel the block if its run is stopped at once, on any loop.

    Raises:
        RunStoppedError: then.
    """
    gate = run_gate.get()
    if gate is None:
        yield
        return
    wake, park = parking()

    async def watch() -> None:
        await park()
        tasks.cancel_scope.cancel()

    async with task_group() as tasks:
        with gate.at_once(wake):
            tasks.start_soon(watch)
            yield
            tasks.cancel_scope.cancel()
    if gate.cut:
        gate.check()


# Task groups that raise an error itself, not a group around it


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """Run tasks like `anyio.create_task_group`. Raise the first error, without a group around it."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error = alone(group)
    else:
        return
    raise error  # outside of the except block, so that the group isn't its context


def alone(error: BaseException) -> BaseException:
    """Return the first error inside the groups that task groups made. A `BatchError` isn't such a group.

    >>> alone(ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("no")]))
    ValueError('no')
    """
    while type(error) in (BaseExceptionGroup, ExceptionGroup):
        assert isinstance(error, BaseExceptionGroup)
        cancelled = () if running_library() is None else anyio.get_cancelled_exc_class()
        errors = [each for each in error.exceptions if not isinstance(each, cancelled)]
        error = (errors or list(error.exceptions))[0]
    return error
