"""The event loops: the runtime's own, and the ones that callers run. asyncio is named here alone.

The runtime's loop is asyncio in a daemon thread. Calls cross over through an inbox, a deque with one
`call_soon_threadsafe` per burst: a blocking portal costs 125 to 260 µs a call, and stalls the caller
for as long as the loop is busy. Callers are woken by their own loop's thread-safe call.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from afnio.errors import RuntimeClosedError

_DEFAULT_THRESHOLDS: Final = ((700, 10, 10), (2000, 10, 0), (2000, 10, 10))
"""Those of CPython 3.11 to 3.14."""
_RARE_THRESHOLDS: Final = (50_000, 20, 100)

Task = asyncio.Task[Any]
Cancelled = asyncio.CancelledError


class LoopThread:
    """One daemon thread with one event loop, fed through an inbox."""

    def __init__(self, name: str, at_end: Callable[[], None]) -> None:
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._closed = False
        self._at_end = at_end
        # Whoever posts first must not lend the loop its context.
        self._context = Context()
        self._loop = asyncio.new_event_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def current(self) -> bool:
        """Whether the caller is on this thread."""
        return threading.get_ident() == self._thread.ident

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called on the thread, soon and in order; never blocks."""
        self._inbox.append((function, args))
        # `_drain` lowers the flag before it empties the inbox: what is appended while the flag is up is
        # seen by that drain, so no wake-up is lost.
        if not self._scheduled and not self._closed:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._drain, context=self._context)
            except RuntimeError:
                self._closed = True
            except BaseException:  # Ctrl-C: a flag left up would silence every later post
                self._scheduled = False
                raise
        # The end of the thread sets `_closed` before its last drain: what that drain didn't see raises.
        if self._closed:
            raise RuntimeClosedError(
                "the Afnio runtime has been closed; launch from code that runs before it closes"
            )

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context) -> Task:
        """Run `coroutine` as a task; on the thread. The caller keeps the task and cancels it."""
        return self._loop.create_task(coroutine, context=context)

    def stop(self, timeout: float) -> bool:
        """Stop the loop and join the thread; return whether it ended within `timeout` seconds."""
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            return True
        if not self.current:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _end(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _drain(self) -> None:
        self._scheduled = False
        inbox = self._inbox
        while inbox:
            function, args = inbox.popleft()
            try:
                function(*args)
            except Exception:  # what was posted after it must not pay for it
                logging.getLogger("afnio").exception("a callback of the runtime failed")

    def _run(self) -> None:
        _collect_rarely()
        asyncio.set_event_loop(self._loop)
        try:
            # A root task, not run_forever: anyio ties its worker threads to the root task, and would else
            # start and stop a thread with nearly every lane.
            self._loop.run_until_complete(self._wait_for_end())
        finally:
            self._closed = True
            self._drain()
            self._at_end()
            try:
                self._loop.run_until_complete(_cancel_tasks())
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                self._loop.close()

    async def _wait_for_end(self) -> None:
        await self._stopped


def _collect_rarely() -> None:
    """Have the cyclic collector run rarely, unless the program has set it up itself.

    The engine leaves no cycles behind (a test holds that), and thousands of calls in flight are hundreds
    of thousands of live objects: at the interpreter's thresholds full collections of 100 ms each took a
    third of the CPU at 1,000 in flight, on the loop's thread.
    """
    if gc.get_threshold() in _DEFAULT_THRESHOLDS:
        gc.set_threshold(*_RARE_THRESHOLDS)


async def _cancel_tasks() -> None:
    """Cancel what still runs; a task that swallows its cancellation is left after a second."""
    remaining = asyncio.all_tasks() - {asyncio.current_task()}
    for task in remaining:
        task.cancel()
    if remaining:
        await asyncio.wait(remaining, timeout=1.0)


def call_later(seconds: float, function: Callable[[], object]) -> None:
    """Have `function` called on the running loop, `seconds` from now."""
    asyncio.get_running_loop().call_later(seconds, function)


def loop_time() -> float:
    """Return the running loop's time in seconds; also in its callbacks, where anyio finds no loop."""
    return asyncio.get_running_loop().time()


def current_task() -> Task | None:
    """Return the asyncio task that is running on this thread."""
    return asyncio.current_task()


def adopted(context: Context) -> Context:
    """Make a copy of a caller's context fit for this loop: anyio.run leaves the caller's loop named in it."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


def running_library() -> str | None:
    """Return "asyncio" or "trio" when the caller's thread runs that loop, else None."""
    if asyncio._get_running_loop() is not None:
        return "asyncio"
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    return None


def parking() -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
    """Return `(wake, park)` for the running loop: await `park()`; `wake()` from any thread ends it once."""
    if asyncio._get_running_loop() is not None:
        return _asyncio_parking()
    return _trio_parking()


def _asyncio_parking() -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    home = threading.get_ident()

    def finish() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        if threading.get_ident() == home:
            finish()
            return
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:  # that loop has been closed, and its waiter with it
            return

    async def park() -> None:
        await future

    return wake, park


def _trio_parking() -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
    import trio

    token = trio.lowlevel.current_trio_token()
    event = trio.Event()

    def wake() -> None:
        try:
            token.run_sync_soon(event.set)
        except trio.RunFinishedError:  # its waiter ended with the run
            return

    return wake, event.wait
