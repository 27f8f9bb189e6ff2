"""Runtime: one per process; one daemon thread with one event loop, started by the first launch.

Everything that changes state runs on that thread, one callback at a time: starting launches, filling
slots, telling waiters, cancelling. Other threads post to its inbox.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, final

from afnio.errors import LaunchCancelledError, RuntimeClosedError
from afnio.runtime.events import emit
from afnio.runtime.loop import Cancelled, LoopThread, Task, current_task
from afnio.runtime.scope import Scope
from afnio.runtime.slot import PENDING, Failure

if TYPE_CHECKING:
    from afnio.runtime.launch import Job, Launch, Outcomes
    from afnio.runtime.waiting import Watcher


class Resource(Protocol):
    """Something that lives on the runtime's loop and is closed with it."""

    async def aclose(self) -> None: ...


R = TypeVar("R", bound=Resource)

CLOSE_TIMEOUT = 5.0
"""Seconds that closing gives to cancelled work and to resources."""


@final
class Runtime:
    """The process's engine: owns the launches, runs their jobs, fills their slots."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.closed = False
        self.root = Scope("", runtime=self, is_root=True)
        self.launches: dict[Launch, None] = {}
        self.calls_open = 0
        self._resources: dict[Any, Resource] = {}
        self._ready: deque[Job] = deque()
        self._pumping = False
        self._closing: Task | None = None
        self._loop = LoopThread("afnio-runtime", self._bury_all)

    # From any thread

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called on the runtime's thread; never blocks."""
        self._loop.post(function, *args)

    @property
    def current(self) -> bool:
        """Whether the caller is on the runtime's thread."""
        return self._loop.current

    # On the runtime's thread

    def start(self, launch: Launch) -> None:
        if launch.left == 0:
            return  # its scope was cancelled while its start was on the way
        self.launches[launch] = None
        if launch.event is not None:
            launch.context.run(emit, launch.event)
            launch.event = None
        self._ready.extend([job for job in launch.jobs if job.arm()])
        # A scope that was left since the launch found room in it has not cancelled this one with the others.
        if self.closed or launch.scope.owner.abandoned:
            self.cancel(launch)
        self._pump()

    def ready(self, job: Job) -> None:
        """Queue a job whose inputs are done; a queue, as a chain of a thousand ops must not recurse."""
        self._ready.append(job)
        self._pump()

    def forget(self, watcher: Watcher) -> None:
        """End a wait that was cancelled, and cancel what only it had wanted."""
        scope = cast("Scope", watcher.scope)
        for slot in watcher.slots:
            launch = slot.launch
            if slot.outcome is not PENDING or launch is None:
                continue
            slot.discard(watcher)
            owner = launch.scope.owner
            if (owner.is_root or owner is scope.owner) and not launch.wanted():
                self.cancel(launch)
        self._pump()

    def cancel(self, launch: Launch) -> None:
        """Cancel the jobs of `launch` that have not ended, and what was launched for them alone."""
        pumping, self._pumping = self._pumping, True  # nothing runs until all that is cancelled is marked
        stack = [launch]
        while stack:
            current = stack.pop()
            if current.cancelled:
                continue
            current.cancelled = True
            for job in current.jobs:
                orphans = [] if job.done else self._cancel_job(job)
                stack += [
                    orphan
                    for orphan in orphans
                    if orphan.scope.owner is current.scope.owner and not orphan.wanted() and not orphan.held()
                ]
        self._pumping = pumping
        self._pump()

    def cancel_scope(self, scope: Scope) -> None:
        for launch in list(scope.pending):
            self.cancel(launch)

    def resource(self, key: Any, make: Callable[[], R]) -> R:
        """Return the resource for `key`, made at its first use and closed with the runtime."""
        found = self._resources.get(key)
        if found is None:
            # In an empty context: a resource outlives the launch that needed it first.
            found = self._resources[key] = Context().run(make)
        return cast("R", found)

    def resources(self) -> list[Any]:
        """Return what `resource` has made, for those who only look; from any thread."""
        return list(self._resources.values())

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context) -> Task:
        """Run `coroutine` as a task; the resource that asks for it owns it, and cancels it when it closes."""
        return self._loop.spawn(coroutine, context)

    def bury(self, launch: Launch, error: BaseException) -> None:
        """End the jobs of a launch that nobody will run any more, once the thread has ended."""
        for job in launch.jobs:
            if not job.done:
                self._end(job, partial(job.fail, error))

    def _cancel_job(self, job: Job) -> list[Launch]:
        """Cancel one job; return the launches that it was waiting for."""
        if job.task is not None:
            job.task.cancel()
            return []
        job.abandoned = _cancellation(job.launch)
        if job.recover is not None:
            return []  # it recovers from its inputs, so it waits for them
        waited = job.disarm()
        self._end(job, partial(job.fail, job.abandoned))
        return waited

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._ready:
                job = self._ready.popleft()
                if not job.done:
                    self._run(job)
        finally:
            self._pumping = False

    def _run(self, job: Job) -> None:
        try:
            # In the launcher's context: a body looks up its grad mode, its backward model, its bindings.
            result = job.launch.context.run(job.run)
        except BaseException as error:
            self._end(job, partial(job.fail, error))
            return
        if isinstance(result, CoroutineType):
            # A context of its own for each lane: what a body sets, other lanes must not see.
            self._loop.spawn(self._drive(job, result), job.launch.context.copy())
        else:
            self._end(job, lambda: cast("Outcomes", result))

    async def _drive(self, job: Job, coroutine: Coroutine[Any, Any, Outcomes]) -> None:
        # A task that is cancelled before its first step never enters its body, so the job shows its task
        # only from here on; one that was cancelled before shows it now.
        if job.done or job.abandoned is not None:
            coroutine.close()
            if job.abandoned is not None and not job.done:
                self._end(job, partial(job.fail, job.abandoned))
            self._pump()
            return
        job.task = current_task()
        try:
            outcomes = await coroutine
        except Cancelled as error:
            cancelled = job.launch.cancelled
            self._end(job, partial(job.fail, _cancellation(job.launch) if cancelled else error))
        except BaseException as error:  # a user's callable may raise SystemExit; it must not end the loop
            self._end(job, partial(job.fail, error))
        else:
            self._end(job, lambda: outcomes)
        self._pump()

    def _end(self, job: Job, outcomes: Callable[[], Outcomes]) -> None:
        """Fill a job's outputs, whatever happens: the one place where a job ends."""
        try:
            job.fill(outcomes())
        except Exception as error:
            if not job.done:
                job.fill([Failure(error)] * len(job.outputs))
        launch = job.launch
        launch.left -= 1
        if launch.left == 0:
            launch.jobs = []
            self.launches.pop(launch, None)
            launch.scope.owner.release(launch)

    # Closing

    def close(self) -> None:
        """Cancel what is pending, close the resources, end the thread; from any other thread."""
        if self.closed or self.pid != os.getpid():
            return
        self.closed = True
        ended = threading.Event()
        try:
            self.post(self._begin_close, ended.set)
        except RuntimeClosedError:
            return
        ended.wait(CLOSE_TIMEOUT)
        self._loop.stop(CLOSE_TIMEOUT)

    def _bury_all(self) -> None:
        """Fail what has outlived its cancellation, so that no reader waits for ever; as the thread ends."""
        error = RuntimeClosedError("the runtime was closed before this value was there; launch it again")
        for launch in list(self.launches):
            self.bury(launch, error)

    def _begin_close(self, then: Callable[[], None]) -> None:
        # Counted here: a launch wakes its readers, who may close the runtime, just before it is let go.
        if self.launches:
            logging.getLogger("afnio").warning(
                "the runtime was closed with %d launches pending and %d calls under way; they have been "
                "cancelled",
                len(self.launches),
                self.calls_open,
            )
        for launch in list(self.launches):
            self.cancel(launch)
        self._pump()
        self._closing = self._loop.spawn(self._close_resources(then), Context())

    async def _close_resources(self, then: Callable[[], None]) -> None:
        import anyio

        try:
            with anyio.move_on_after(CLOSE_TIMEOUT / 2):
                while self.launches:
                    await anyio.lowlevel.checkpoint()
                async with anyio.create_task_group() as closers:
                    for resource in self._resources.values():
                        closers.start_soon(resource.aclose)
        finally:
            self._resources.clear()
            then()


def _cancellation(launch: Launch) -> LaunchCancelledError:
    return LaunchCancelledError(f"{launch.name} (launched at {launch.line}) was cancelled")


_default: Runtime | None = None
_exiting = False
_guard = threading.Lock()


def current_runtime() -> Runtime:
    """Return this process's runtime; the first call starts it, and a fork's child gets one of its own."""
    global _default
    runtime = _default
    if runtime is not None and not runtime.closed and runtime.pid == os.getpid():
        return runtime
    with _guard:
        runtime = _default
        if runtime is None or runtime.closed or runtime.pid != os.getpid():
            if _exiting:
                raise RuntimeClosedError("the interpreter is exiting; launch from code that runs earlier")
            if runtime is None:
                atexit.register(_close_at_exit)
                os.register_at_fork(after_in_child=_renew_guard)
            runtime = _default = Runtime()
    return runtime


def existing_runtime() -> Runtime | None:
    """Return this process's runtime, None if none has been started."""
    runtime = _default
    return runtime if runtime is not None and runtime.pid == os.getpid() else None


def calls_under_way() -> int:
    """Return how many calls this process has queued or on the wire."""
    runtime = existing_runtime()
    return 0 if runtime is None else runtime.calls_open


def on_runtime_thread() -> bool:
    """Whether the caller is on the thread of this process's runtime."""
    runtime = _default
    return runtime is not None and runtime.pid == os.getpid() and runtime.current


def close() -> None:
    """Close this process's runtime: cancel what is pending and end its thread; a later launch starts a new one."""
    if _default is not None:
        _default.close()


def _close_at_exit() -> None:
    global _exiting
    _exiting = True
    close()


def _renew_guard() -> None:
    """After a fork the lock may be held by a thread that is not in the child."""
    global _guard
    _guard = threading.Lock()
