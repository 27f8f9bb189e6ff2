"""The event loops: the runtime's own, and those of its callers.

The runtime's loop is asyncio in a daemon thread. Other threads reach it through an inbox: a deque, and one
`call_soon_threadsafe` for each burst. (anyio's blocking portal costs 125 to 260 µs a call, and blocks the caller while
the loop is busy.) In the other direction the runtime wakes a waiting caller through the thread-safe call of the
caller's own loop, asyncio's or trio's; see `parking`.

This is the only module of the engine that imports asyncio or trio. Everything above it uses anyio, or the functions
here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Final, final

from afnio.errors import RuntimeClosedError

Task = asyncio.Task[Any]
Cancelled = asyncio.CancelledError
# A block that raises TimeoutError at its time. It costs half of anyio's scope, and is moved by `reschedule`.
deadline_at = asyncio.timeout_at


class LoopThread:
    """One daemon thread with one event loop, and the inbox that feeds it.

    Args:
        name: the thread's name.
        at_end: called on the thread when the loop stops.
    """

    def __init__(self, name: str, at_end: Callable[[], None]) -> None:
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._closed = False
        self._at_end = at_end
        # Callbacks would otherwise run in the context of the first thread that posted.
        self._context = Context()
        self._loop = asyncio.new_event_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def current(self) -> bool:
        """True on this thread."""
        return threading.get_ident() == self._thread.ident

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function(*args)` on the thread, soon and in order. Never blocks.

        Raises:
            RuntimeClosedError: if the thread has ended.
        """
        self._inbox.append((function, args))
        # No wake-up is lost: `_drain` lowers the flag before it empties the inbox, so a drain that is still to come
        # sees everything that was appended while the flag was up.
        if not self._scheduled and not self._closed:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._drain, context=self._context)
            except RuntimeError:
                self._closed = True
            except BaseException:  # Ctrl-C: with the flag left up, no later post would wake the loop
                self._scheduled = False
                raise
        # The thread sets `_closed` before its last drain. A post that this drain missed must raise.
        if self._closed:
            raise RuntimeClosedError(
                "the Afnio runtime has been closed; launch from code that runs before it closes"
            )

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context) -> Task:
        """Run `coroutine` as a task, from a callback on the thread. The caller must keep the task, and cancel it."""
        return self._loop.create_task(coroutine, context=context)

    def stop(self, timeout: float) -> bool:
        """Stop the loop and join the thread. Returns False if it is still alive after `timeout` seconds."""
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
            except Exception:  # still run the callbacks that were posted after it
                logging.getLogger("afnio").exception("a callback of the runtime failed")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            # Not run_forever: anyio ties its worker threads to the root task. Without one it would start and stop a
            # thread for nearly every lane.
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


async def _cancel_tasks() -> None:
    """Cancel all remaining tasks. One that ignores its cancellation is abandoned after a second."""
    remaining = asyncio.all_tasks() - {asyncio.current_task()}
    for task in remaining:
        task.cancel()
    if remaining:
        await asyncio.wait(remaining, timeout=1.0)


def call_later(seconds: float, function: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
    """Call `function` on the running loop in `seconds`, unless the timer is cancelled."""
    return asyncio.get_running_loop().call_later(seconds, function, *args)


def loop_time() -> float:
    """Return the running loop's time in seconds. Unlike anyio's clock, it also works in callbacks."""
    return asyncio.get_running_loop().time()


class Signal:
    """An event for one waiter, on the running loop. It costs a tenth of anyio's, and a call may need two."""

    __slots__ = ("_error", "_future")

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: BaseException | None = None

    def set(self, error: BaseException | None = None) -> None:
        """Wake the waiter, which raises `error` if there is one. Later calls change nothing."""
        if not self._future.done():  # it is done, too, if the waiter was cancelled
            self._error = error
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future
        if self._error is not None:
            raise self._error


def current_task(loop: Any = None) -> Task | None:
    """Return the asyncio task that runs on this thread, or on another thread's loop."""
    return asyncio.current_task(loop)


def adopted(context: Context) -> Context:
    """Make a copy of a caller's context fit for the runtime's loop, and return it.

    `anyio.run` stores the name of the caller's loop in the context. Under trio, every anyio call on the runtime's
    loop would then act as if it ran on trio.
    """
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


def running_library() -> str | None:
    """Return "asyncio" or "trio" if the calling thread runs such a loop, else None."""
    if asyncio._get_running_loop() is not None:
        return "asyncio"
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    return None


def running_loop() -> object:
    """Return an object that lives as long as the running loop: the loop itself, or trio's root task."""
    if asyncio._get_running_loop() is not None:
        return asyncio.get_running_loop()
    import trio

    return trio.lowlevel.current_root_task()


def parking() -> tuple[Callable[[], None], Callable[[], Awaitable[object]]]:
    """Return `(wake, park)` for the running loop: `await park()` lasts until some thread calls `wake()`."""
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
        except RuntimeError:  # the loop has been closed, and the waiter with it
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
        except trio.RunFinishedError:  # the waiter ended with the run
            return

    return wake, event.wait


# Coroutines on a caller's loop


# Seconds between looks at whether a caller's loop is still there. One that was closed in the meantime calls
# nothing back.
_LOOK: Final = 1.0
# Seconds that a cancelled coroutine has for its end on a caller's loop, which may be busy.
_PATIENCE: Final = 5.0


class CallerLoop(ABC):
    """A caller's running loop, on which the runtime's thread runs coroutines of the user's.

    An app's client often belongs to the loop that it was first used on. On any other one it raises "is bound to a
    different event loop", and may break on its own loop as well.
    """

    def __init__(self) -> None:
        self.awaited: weakref.WeakSet[Any] = weakref.WeakSet()
        """The launches that run callables here. A read that blocks this loop would wait for itself."""

    async def run(self, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of the coroutine that `start` makes; on the runtime's thread.

        Raises:
            RuntimeError: if the loop has ended.
        """
        home = asyncio.get_running_loop()
        ended: asyncio.Future[None] = home.create_future()

        def wake() -> None:
            with suppress(RuntimeError):  # the runtime has ended
                home.call_soon_threadsafe(ended.cancel)

        errand = Errand(start, wake)
        self._call(self._begin, errand, copy_context())
        try:
            while not errand.done:
                await asyncio.wait([ended], timeout=_LOOK)
                if not errand.done and self._ended():
                    raise RuntimeError(_GONE)
        except Cancelled:
            with suppress(RuntimeError):  # that loop has ended, and the coroutine with it
                self._call(errand.stop)
                # It ends before its lane does, unless its loop is busy for long.
                await asyncio.wait([ended], timeout=_PATIENCE)
            raise
        return errand.result()

    @abstractmethod
    def _call(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function` on the loop, soon; RuntimeError if it has ended."""

    @abstractmethod
    def _begin(self, errand: Errand, context: Context) -> None:
        """Start the errand, on the loop."""

    @abstractmethod
    def _ended(self) -> bool: ...


_GONE: Final = (
    "the loop that launched this callable has ended before it (loop='caller'); await what you launch before the loop "
    "ends, or leave loop out"
)


@final
class Errand:
    """A coroutine on another loop.

    Attributes:
        start: makes it.
        cancel: cancels it, once it runs.
        done, stopped: whether it has ended, and whether it should.
    """

    def __init__(self, start: Callable[[], Coroutine[Any, Any, Any]], wake: Callable[[], None]) -> None:
        self.start = start
        self.cancel: Callable[[], object] | None = None
        self.done = False
        self.stopped = False
        self._wake = wake
        self._value: Any = None
        self._error: BaseException | None = None

    def stop(self) -> None:
        """End it, on its loop, even if it has not begun."""
        self.stopped = True
        if self.cancel is not None:
            self.cancel()
        else:
            self.end(error=Cancelled())

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """Keep its result, and wake who waits for it. Only the first end counts."""
        if not self.done:
            self._value, self._error, self.done = value, error, True
            self._wake()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


@final
class _AsyncioCaller(CallerLoop):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = weakref.ref(loop)
        self._tasks: set[Task] = set()  # the loop itself holds its tasks weakly

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        loop = self._loop()
        try:
            if loop is None:
                raise RuntimeError
            loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            raise RuntimeError(_GONE) from None

    def _begin(self, errand: Errand, context: Context) -> None:
        if errand.stopped:
            return

        async def body() -> None:
            # A SystemExit that leaves a task ends the loop.
            try:
                errand.end(await errand.start())
            except Cancelled:
                errand.end(error=RuntimeError(_GONE))
                raise
            except BaseException as error:
                errand.end(error=error)

        task = asyncio.get_running_loop().create_task(body(), context=context)
        errand.cancel = task.cancel
        # A task that is cancelled before its first step never enters `body`.
        task.add_done_callback(lambda task: errand.end(error=RuntimeError(_GONE)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ended(self) -> bool:
        loop = self._loop()
        return loop is None or loop.is_closed()


@final
class _TrioCaller(CallerLoop):
    def __init__(self, token: Any) -> None:
        super().__init__()
        self._token = weakref.ref(token)

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        import trio

        token = self._token()
        try:
            if token is None:
                raise trio.RunFinishedError
            token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise RuntimeError(_GONE) from None

    def _begin(self, errand: Errand, context: Context) -> None:
        import trio

        if errand.stopped:
            return
        scope = trio.CancelScope()
        errand.cancel = scope.cancel

        async def body() -> None:
            # A system task's error would end trio's run.
            try:
                with scope:
                    errand.end(await errand.start())
                if scope.cancelled_caught:
                    errand.end(error=RuntimeError(_GONE))
            except trio.Cancelled:  # the run ends
                errand.end(error=RuntimeError(_GONE))
                raise
            except BaseException as error:
                errand.end(error=error)

        sniffio = sys.modules.get("sniffio")
        if sniffio is not None:
            context.run(sniffio.current_async_library_cvar.set, "trio")
        try:
            trio.lowlevel.spawn_system_task(body, context=context)
        except RuntimeError:
            # The run is ending: trio still calls what is queued but takes no new task, and an error here would end it.
            errand.end(error=RuntimeError(_GONE))

    def _ended(self) -> bool:
        try:
            self._call(int)
        except RuntimeError:
            return True
        return False


_asyncio_callers: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CallerLoop]] = (
    weakref.WeakKeyDictionary()
)
_trio_callers: Final[weakref.WeakKeyDictionary[Any, CallerLoop]] = weakref.WeakKeyDictionary()


def running_caller(*, make: bool) -> CallerLoop | None:
    """Return the loop that runs on this thread, as a caller's.

    Args:
        make: make it if it isn't known; otherwise None is returned for one that no launch has named.
    """
    library = running_library()
    if library is None:
        return None
    if library == "asyncio":
        loop = asyncio.get_running_loop()
        caller = _asyncio_callers.get(loop)
        if caller is None and make:
            caller = _asyncio_callers[loop] = _AsyncioCaller(loop)
        return caller
    import trio

    token = trio.lowlevel.current_trio_token()
    caller = _trio_callers.get(token)
    if caller is None and make:
        caller = _trio_callers[token] = _TrioCaller(token)
    return caller


# The garbage collector
#
# CPython starts a collection after a number of allocations, less the objects freed meanwhile: 700 to 2,000. A call in
# flight keeps some 250 containers alive, so a burst of calls would cause hundreds of collections that find nothing.
# Full ones took a third of the CPU time at 1,000 calls in flight. The engine itself leaves no cycles behind; tests
# check that.
#
# The thresholds belong to the whole process, so three rules hold:
#
# * Thresholds that the program has set are left alone. Whether it has is decided anew at each change, because a library
#   may set its own for a while.
# * They are restored when the last runtime ends, and in a forked child.
# * Garbage of the program can't pile up: the first threshold grows with the open calls, up to `MOST` times, and the
#   older generations are collected as often as without calls.


Thresholds = tuple[int, int, int]

# CPython's own, from 3.11 to 3.14.
_PYTHONS_OWN: Final = ((700, 10, 10), (2000, 10, 0), (2000, 10, 10))
# The thresholds while there is a runtime.
RARE: Final = (50_000, 20, 100)
# Open calls for which `RARE` is enough.
CALLS: Final = 200
# The most by which the first threshold grows: 400,000 objects, which one collection visits in about 40 ms.
MOST: Final = 8


@final
class Collector:
    """The share of one runtime in the process's thresholds.

    Attributes:
        low, high: the numbers of open calls between which nothing changes.
    """

    def __init__(self) -> None:
        self._set(1)

    def follow(self, calls: int) -> None:
        """Fit the thresholds to the number of open calls. Call it when that number leaves `low` to `high`."""
        factor = 1
        while factor < MOST and calls > factor * CALLS:
            factor *= 2
        self._set(factor)

    def close(self) -> None:
        """Restore the thresholds, unless there is another runtime."""
        with _guard:
            _factors.pop(self, None)
            _apply()

    def _set(self, factor: int) -> None:
        self.high = factor * CALLS if factor < MOST else 1 << 62
        # Half of the next lower step, so that calls that come and go around a step don't change anything.
        self.low = factor * CALLS // 4 if factor > 1 else -1
        with _guard:
            _factors[self] = factor
            _apply()


_guard = threading.Lock()
_factors: Final[dict[Collector, int]] = {}
# The thresholds that Python had before ours, or None while ours don't hold.
_found: Thresholds | None = None
_ours: Thresholds | None = None


def _apply() -> None:
    """Set the thresholds for the busiest runtime, or those that were found if there is none."""
    global _found, _ours
    current = gc.get_threshold()
    if _found is None and current in _PYTHONS_OWN and _factors:
        _found = _ours = current
    if current != _ours or _found is None:
        return  # the program has set its own
    factor = max(_factors.values(), default=0)
    wanted = (RARE[0] * factor, RARE[1] // factor, RARE[2]) if factor else _found
    if wanted != current:
        gc.set_threshold(*wanted)
        _ours = wanted
    if not factor:
        _found = _ours = None


def _begin_child() -> None:
    """Restore the thresholds in a forked child, which has none of its parent's runtimes."""
    global _guard
    _guard = threading.Lock()  # a thread of the parent may have held it during the fork
    _factors.clear()
    _apply()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
