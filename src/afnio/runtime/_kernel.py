"""Slot: a write-once cell, and the outcomes that it can hold.

Only the runtime's thread fills a pending slot or touches its waiters; every other thread talks to it
through the inbox. That one rule is why a slot needs no lock, costs little, and survives a fork.
"""

from __future__ import annotations

import atexit
import enum
import itertools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from types import CoroutineType, TracebackType
from typing import Any, Final, Protocol, TypeVar, cast, final

import anyio
import anyio.lowlevel

from afnio.errors import (
    BatchError,
    ForkedError,
    LaunchCancelledError,
    RuntimeClosedError,
    TooManyPendingError,
)
from afnio.runtime._loop import Cancelled, LoopThread, Task, adopted, current_task
from afnio.runtime._tracebacks import Line, caller_line, fold
from afnio.runtime.events import emit


@final
class _Mark(enum.Enum):
    PENDING = "pending"
    NO_FEEDBACK = "no feedback"

    def __repr__(self) -> str:
        return f"<{self.value}>"


PENDING: Final = _Mark.PENDING
NO_FEEDBACK: Final = _Mark.NO_FEEDBACK
"""Outcome of a backward lane that has nothing to say; upstream of it nothing is called."""


@final
class Failure:
    """Outcome of a lane that failed: its error, kept so that it can be raised more than once.

    A failure that nobody reads is logged when the last slot that holds it is collected.
    """

    __slots__ = ("__weakref__", "_causes", "_read", "_traceback", "error", "place")

    def __init__(self, error: BaseException, *, read: bool = False, place: str | None = None) -> None:
        self.error = error
        # The op that failed and where it was launched; whoever reads may be many ops further on.
        self.place = place
        self._read = read
        self._traceback: TracebackType | None = error.__traceback__
        # A batch's failure stands for those of its samples: who read the one has read the others.
        self._causes: tuple[Failure, ...] = getattr(error, "failures", ())

    @property
    def read(self) -> bool:
        return self._read or (bool(self._causes) and all(cause.read for cause in self._causes))

    @property
    def causes(self) -> tuple[Failure, ...]:
        """The samples' failures that this one sums up."""
        return self._causes

    def mark_read(self) -> None:
        """Note that somebody has been told."""
        self._read = True
        for cause in self._causes:
            cause.mark_read()

    def raised(self) -> BaseException:
        """Return the error to raise, with the traceback of where it happened, however often it was raised before."""
        self.mark_read()
        return self.error.with_traceback(self._traceback)

    def __repr__(self) -> str:
        return f"<failure: {self.error!r}>"

    def __del__(self) -> None:
        if not self.read:
            notes = "; ".join(getattr(self.error, "__notes__", ()))
            logging.getLogger("afnio").error(
                "a failure was never read: %s: %s (%s)",
                type(self.error).__name__,
                self.error,
                notes,
            )


class Waiter(Protocol):
    """What a pending slot tells that it has been filled; called on the runtime's thread."""

    def notify(self) -> None: ...


@final
class Slot:
    """A write-once cell: pending, then a value, None (missing), `NO_FEEDBACK` or a `Failure`.

    >>> Slot.filled("hello").outcome
    'hello'
    """

    __slots__ = ("__weakref__", "launch", "outcome", "waiters")

    def __init__(self, launch: Launch | None = None) -> None:
        self.outcome: Any = PENDING
        self.launch = launch
        self.waiters: list[Waiter] | None = None

    @classmethod
    def filled(cls, outcome: Any) -> Slot:
        """Return a slot that is done from the start; any thread may make one."""
        slot = cls()
        slot.outcome = outcome
        return slot

    @property
    def done(self) -> bool:
        return self.outcome is not PENDING

    def set(self, outcome: Any) -> list[Waiter]:
        """Set the outcome, once, and return who waits for it; on the runtime's thread.

        Whoever fills several slots sets them all before it notifies anybody: a waiter that is woken may
        look at the others at once.
        """
        assert self.outcome is PENDING, "a slot is written once"
        self.outcome = outcome
        self.launch = None
        waiters, self.waiters = self.waiters, None
        return waiters or []

    def fill(self, outcome: Any) -> None:
        """Set the outcome and notify the waiters; on the runtime's thread, once."""
        for waiter in self.set(outcome):
            waiter.notify()

    def add(self, waiter: Waiter) -> None:
        """Have `waiter` notified when this pending slot is filled; on the runtime's thread."""
        if self.waiters is None:
            self.waiters = [waiter]
        else:
            self.waiters.append(waiter)

    def discard(self, waiter: Waiter) -> None:
        """Take back one `add`; on the runtime's thread."""
        if self.waiters is not None and waiter in self.waiters:
            self.waiters.remove(waiter)

    def __repr__(self) -> str:
        return f"Slot({self.outcome!r})"


@final
class Watcher:
    """Waits for several slots on behalf of one caller; lives on the runtime's thread."""

    __slots__ = ("_left", "_wake", "scope", "slots")

    def __init__(self, slots: Sequence[Slot], wake: Callable[[], object], scope: object) -> None:
        self.slots = slots
        self.scope = scope
        self._left = 0
        self._wake = wake

    def start(self) -> None:
        pending = [slot for slot in self.slots if slot.outcome is PENDING]
        self._left = len(pending)
        for slot in pending:
            slot.add(self)
        if not pending:
            self._wake()

    def notify(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._wake()


@final
class Scope:
    """The owner of launches; a node of the tree whose root lives as long as the runtime."""

    def __init__(
        self,
        path: str,
        *,
        runtime: Runtime,
        is_root: bool = False,
        owner: Scope | None = None,
        max_pending: int | None = None,
    ) -> None:
        self.path = path
        self.runtime = runtime
        # The scope that owns what is launched here: itself, unless this one only lends an address.
        self.owner = self if owner is None else owner
        self.max_pending = max_pending
        self.pending: dict[Launch, None] = {}
        self.failures: list[Failure] = []
        self.drained: Slot | None = None
        self.abandoned = False
        self.is_root = is_root
        self._numbers = itertools.count(1)
        self._names: dict[str, int] = {}

    def next_address(self) -> str:
        return f"{self.path}/{next(self._numbers)}"

    def child_path(self, name: str | None) -> str:
        """Return the path of a new child: with its `name`, numbered from its second use on."""
        if name is None:
            name = f"scope {next(self._numbers)}"
        else:
            uses = self._names[name] = self._names.get(name, 0) + 1
            name = name if uses == 1 else f"{name}#{uses}"
        return f"{self.path}/{name}" if self.path else name

    def check_room(self) -> None:
        """Raise, at the line that would launch, when `max_pending` launches are under way, or after `abandon`.

        A worker thread outlives its cancellation: without this it could launch for a block that was left.
        """
        if self.abandoned:
            raise LaunchCancelledError(f"scope {self.path!r} was cancelled; nothing more is launched in it")
        if self.max_pending is not None and len(self.pending) >= self.max_pending:
            raise TooManyPendingError(
                f"this scope already has max_pending={self.max_pending} launches under way; "
                "await some of them before you launch more"
            )

    def note(self, failure: Failure) -> None:
        """Keep a failure of a launch, until somebody reads it; the root only has them logged."""
        if failure.read or self.is_root:
            return
        self.failures = [kept for kept in self.failures if not kept.read]
        self.failures.append(failure)

    def release(self, launch: Launch) -> None:
        """Let a finished launch go; on the runtime's thread."""
        self.pending.pop(launch, None)
        if not self.pending and self.drained is not None:
            drained, self.drained = self.drained, None
            drained.fill(True)

    def watch(self, drained: Slot) -> None:
        """Fill `drained` once nothing is pending; on the runtime's thread."""
        if self.pending:
            self.drained = drained
        else:
            drained.fill(True)

    def cancel(self) -> None:
        """Cancel the scope's pending launches; their values raise `LaunchCancelledError`."""
        if self.pending:
            self.runtime.post(self.runtime.cancel_scope, self)

    def abandon(self) -> None:
        """Cancel what is pending and launch nothing more: nobody will wait for it."""
        self.abandoned = True
        self.cancel()

    def unread(self) -> list[BaseException]:
        """Return the errors that nobody read, marking them read."""
        unread = [failure for failure in self.failures if not failure.read]
        summed_up = {id(cause) for failure in unread for cause in failure.causes}
        for failure in unread:
            failure.mark_read()
        self.failures.clear()
        return [failure.raised() for failure in unread if id(failure) not in summed_up]


_current: ContextVar[Scope | None] = ContextVar("afnio_scope", default=None)


def current_scope() -> Scope:
    """Return the scope that a launch here would belong to."""

    scope = _current.get()
    runtime = current_runtime()
    # A scope of the parent process means nothing after a fork: its runtime's thread is not here.
    if scope is None or scope.runtime.pid != runtime.pid:
        return runtime.root
    return scope


@contextmanager
def within(inner: Scope) -> Iterator[None]:
    """Have what is launched in the block belong to `inner`."""
    token = _current.set(inner)
    try:
        yield
    finally:
        _current.reset(token)


_job: ContextVar[Job | None] = ContextVar("afnio_job", default=None)


def current_job() -> Job:
    """Return the job that the calls made here belong to.

    Raises:
        RuntimeError: outside `working`.
    """
    job = _job.get()
    if job is None:
        raise RuntimeError(
            "a model call must be made inside a job, such as an optimizer's propose() or reduce() (got none); "
            "elsewhere use client.chat or client.achat"
        )
    return job


@contextmanager
def working(job: Job) -> Iterator[None]:
    """Make `job` the owner of calls and launches in the block, so users' code needn't pass it along."""
    token = _job.set(job)
    try:
        with within(job.scope):
            yield
    finally:
        _job.reset(token)


# Launch and Job: one call of an op, and the work of one of its lanes.


Outcomes = Sequence[Any]
Body = Callable[["Job", list[Any]], Outcomes | Coroutine[Any, Any, Outcomes]]
Recover = Callable[["Job", BaseException], Outcomes]


@final
class Launch:
    """One call of an op: its lanes' jobs, its place in the user's code, its owner.

    Make it, make its output slots with it, `add` its jobs, `start` it.
    """

    __slots__ = (
        "__weakref__", "address", "cancelled", "context", "depth", "event", "holders", "jobs", "left", "line", "name",
        "runtime", "scope",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope: Scope = current_scope()
        self.runtime = self.scope.runtime
        if self.runtime.closed:
            raise RuntimeClosedError(
                f"{name} was launched after the Afnio runtime had been closed; launch it earlier"
            )
        self.scope.owner.check_room()
        self.line: Line = caller_line()
        self.context: Context = adopted(copy_context())
        self.address = self.scope.next_address()
        self.jobs: list[Job] = []
        self.left = 0
        # How many launches, one waiting for the other, were pending before it: the calls of the deepest go
        # first, so that samples which are begun are finished.
        self.depth = 0
        # What the program can still reach its results by; weakly, or they could never become unreachable.
        self.holders: list[weakref.ref[Any]] = []
        self.cancelled = False
        # What its start tells whoever listens.
        self.event: Any = None

    def add(
        self,
        body: Body,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        *,
        lane: int | None = None,
        part: str = "",
        gather: bool = False,
        recover: Recover | None = None,
    ) -> None:
        """Add a job: when `inputs` are done, `body` runs once and its outcomes fill `outputs`.

        Args:
            body: called with the job and the inputs' values; it returns one outcome for each output, or
                a coroutine that does, which then runs as a task.
            lane: index of the sample, None where there is one value only.
            part: which part of the launch it belongs to, where it has several; an element of its address.
            gather: hand `body` the raw outcomes. Otherwise it runs only if all are values: a failed
                input's failure, else a missing one's None, becomes the outcome of every output.
            recover: gives the outcomes when the body raises or is cancelled; by default they fail. It may
                rely on the inputs: a cancelled job that has it still waits for them, then recovers.

        Raises:
            ForkedError: if an input was pending when this process was forked off.
        """
        for slot in inputs:
            check_owner(slot, self.runtime)
            behind = slot.launch
            if slot.outcome is PENDING and behind is not None and behind.depth >= self.depth:
                self.depth = behind.depth + 1
        self.jobs.append(Job(self, body, inputs, outputs, lane, part, gather, recover))

    def start(self) -> None:
        """Hand the jobs to the runtime; returns at once, and doesn't raise: what precedes it may rely on that."""
        self.left = len(self.jobs)
        if self.left == 0:
            return
        self.scope.owner.pending[self] = None
        try:
            self.runtime.post(self.runtime.start, self)
        except RuntimeClosedError as error:
            self.runtime.bury(self, error)

    def wanted(self) -> bool:
        """Whether anything but its own jobs waits for its slots; on the runtime's thread."""
        return any(
            not isinstance(waiter, Job) or waiter.launch is not self
            for job in self.jobs
            if not job.done
            for slot in job.outputs
            for waiter in slot.waiters or ()
        )

    def held(self) -> bool:
        """Whether the program can still reach one of its results."""
        return any(holder() is not None for holder in self.holders)

    @property
    def title(self) -> str:
        """What to call it in an error."""
        return f"{self.name} launched at {self.line}"

    def place(self, lane: int | None) -> str:
        sample = "" if lane is None else f", sample {lane}"
        return f"{self.name}{sample}, launched at {self.line}"


@final
class Job:
    """The work of one lane: waits for its inputs, runs once, fills its outputs."""

    __slots__ = (
        "_numbers", "_scope", "_waiting", "abandoned", "body", "done", "gather", "inputs", "lane", "launch",
        "outputs", "part", "recover", "task",
    )  # fmt: skip

    def __init__(
        self,
        launch: Launch,
        body: Body,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        lane: int | None,
        part: str,
        gather: bool,
        recover: Recover | None,
    ) -> None:
        self.done = False
        self.part = part
        self._scope: Scope | None = None
        self._numbers: dict[str, int] | None = None
        self.launch = launch
        self.body = body
        self.inputs = inputs
        self.outputs = outputs
        self.lane = lane
        self.gather = gather
        self.recover = recover
        self.task: Task | None = None
        self.abandoned: BaseException | None = None
        self._waiting = 0

    @property
    def address(self) -> str:
        """Scope path, launch number, part and lane: no other job has it, and it is the same in the next run."""
        part = f"/{self.part}" if self.part else ""
        lane = "" if self.lane is None else f"/{self.lane}"
        return f"{self.launch.address}{part}{lane}"

    def call_address(self, purpose: str) -> str:
        """Return the address of the job's next call for `purpose`."""
        if self._numbers is None:
            self._numbers = {}
        number = self._numbers[purpose] = self._numbers.get(purpose, 0) + 1
        return f"{self.address}/{purpose}" if number == 1 else f"{self.address}/{purpose}#{number}"

    @property
    def scope(self) -> Scope:
        """The scope of what its body launches: an address below its own, with the launch's owner."""
        if self._scope is None:
            owner = self.launch.scope
            self._scope = Scope(self.address, runtime=owner.runtime, owner=owner.owner)
        return self._scope

    def arm(self) -> bool:
        """Wait for the pending inputs; return whether there are none."""
        for slot in self.inputs:
            if slot.outcome is PENDING:
                slot.add(self)
                self._waiting += 1
        return self._waiting == 0

    def disarm(self) -> list[Launch]:
        """Stop waiting; return the launches that were waited for."""
        waited = [slot for slot in self.inputs if slot.outcome is PENDING]
        owners = [slot.launch for slot in waited if slot.launch is not None]
        for slot in waited:
            slot.discard(self)
        self._waiting = 0
        return owners

    def notify(self) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            self.launch.runtime.ready(self)

    def run(self) -> Outcomes | Coroutine[Any, Any, Outcomes]:
        outcomes = [slot.outcome for slot in self.inputs]
        if self.abandoned is not None:
            return self.fail(self.abandoned, read=True)
        if not self.gather:
            stopped = inherited(outcomes)
            if stopped is not PENDING:
                return [stopped] * len(self.outputs)
        return self.body(self, outcomes)

    def fail(self, error: BaseException, *, read: bool = False) -> Outcomes:
        """Return the outcomes of a body that raised: a failure that knows where it was launched."""
        fold(error)
        note_place(error, self.launch, self.lane)
        if self.recover is not None:
            return self.recover(self, error)
        # A cancellation is no news to whoever owns the launch.
        failure = Failure(
            error,
            read=read or isinstance(error, LaunchCancelledError),
            place=None if self.part else self.launch.title,
        )
        self.launch.scope.owner.note(failure)
        return [failure] * len(self.outputs)

    def fill(self, outcomes: Outcomes) -> None:
        """End the job: set all of its outputs, then notify who waits for them."""
        assert len(outcomes) == len(self.outputs), "one outcome for each output"
        self.done = True
        self.inputs = ()
        self.task = None
        waiters = [
            waiter
            for slot, outcome in zip(self.outputs, outcomes, strict=True)
            for waiter in slot.set(outcome)
        ]
        for waiter in waiters:
            waiter.notify()


def check_owner(slot: Slot, runtime: Runtime) -> None:
    """Raise for a slot that nobody will fill in this process."""
    launch = slot.launch
    if slot.outcome is PENDING and launch is not None and launch.runtime is not runtime:
        raise ForkedError(
            f"the value of {launch.name} (launched at {launch.line}) was pending when this process "
            f"was forked from {launch.runtime.pid}; read it before the fork or launch it again here"
        )


def note_place(error: BaseException, launch: Launch, lane: int | None) -> None:
    """Note on `error` where it was launched; once, as lanes may share an exception. A `BatchError` says so itself."""
    if isinstance(error, BatchError):
        return
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list | None) and not any(
        ", launched at " in str(note) for note in (notes or ())[-1:]
    ):
        error.add_note(launch.place(lane))


def inherited(outcomes: Sequence[Any]) -> Any:
    """Return what keeps a lane from running: the first failure, else None or no feedback; PENDING if nothing."""
    stopped: Any = PENDING
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return outcome
        if (outcome is None or outcome is NO_FEEDBACK) and stopped is PENDING:
            stopped = outcome
    return stopped


# Runtime: one per process; one daemon thread with one event loop, started by the first launch.
#
# Everything that changes state runs on that thread, one callback at a time: starting launches, filling
# slots, telling waiters, cancelling. Other threads post to its inbox.


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
