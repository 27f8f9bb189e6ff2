"""The kernel: how a launch lives, from the line that calls an op to the value that is read.

An op returns immediately, and its values arrive later. This file has the objects in between:

    Slot, Failure      a write-once cell for a value, and the outcome of a lane that failed
    Watcher, Scope     who waits for slots, and who owns launches
    Launch, Job        one call of an op, and the work of one of its lanes (a sample of a batch)
    Runtime            the thread that starts, runs, cancels and ends jobs

The life of a launch:

1. *Launched*, on the caller's thread. `Launch(name)` records the user's line, copies the context, and takes the next
   address in the current scope. The op makes its output slots, adds one job for each lane, and calls `start`, which
   posts the launch to the runtime's inbox and returns. That costs about 20 µs.
2. *Armed*, on the runtime's thread from here on. Each job counts down its pending inputs. A waiting job is an object
   in the slots' waiter lists and not a task, so ten thousand waiting lanes are cheap.
3. *Ready*. A job whose last input arrived joins the ready queue. It is a queue, because a chain of a thousand ops
   would otherwise recurse a thousand levels deep.
4. *Run*, in the launcher's context. If an input failed or is missing, the job doesn't run: its outputs inherit the
   failure, or None. Otherwise its body returns the outcomes, or a coroutine, which becomes a task with its own copy
   of the context. `no_grad`, bindings and the backward model are therefore those of the launching line, and what one
   lane sets is invisible to the others.
5. *Ended*, in one place: `Runtime._end`. The job sets all of its outputs and only then notifies the waiters, because
   the first one that wakes may look at the other outputs. The launch's scope lets go of it after its last job.

Reading waits, and there are two ways to do it (`_waiting.py`). Both post a `Watcher`, which wakes the reader when the
last of its slots is filled.

One rule replaces all locks: **only the runtime's thread fills a pending slot or touches its waiters.** Other threads
read `outcome`, a single attribute, or post to the inbox. A lock in each slot would cost memory, and one that is held
at a fork would stay locked in the child. Futures belong to one event loop, or block.

Cancelling follows the waiters. When a reader is cancelled, its launch is cancelled if nothing else waits for it, and
then everything that was launched only for that one. Exempt are launches whose results the program can still reach
(`held`): the user may read them later. A cancelled task may never enter its body, so a job shows its task only from
the first step on; see `Runtime._drive`.

A failure keeps the traceback of the place where it happened. If no one reads it, its scope raises it, or it is logged
when it is garbage-collected: an error never disappears silently.
"""

from __future__ import annotations

import atexit
import enum
import itertools
import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from types import CoroutineType
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast, final

import anyio
import anyio.lowlevel

from afnio.errors import (
    BatchError,
    ForkedError,
    LaunchCancelledError,
    RuntimeClosedError,
    TooManyPendingError,
    hint,
)
from afnio.runtime._loop import CallerLoop, Cancelled, Collector, LoopThread, Task, adopted, current_task
from afnio.runtime._tracebacks import Failure, Line, caller_line, fold, unread
from afnio.runtime.events import emit


@final
class _Mark(enum.Enum):
    PENDING = "pending"
    NO_FEEDBACK = "no feedback"

    def __repr__(self) -> str:
        return f"<{self.value}>"


PENDING: Final = _Mark.PENDING
# Outcome of a backward lane without feedback. No model is called for the nodes upstream of it.
NO_FEEDBACK: Final = _Mark.NO_FEEDBACK


class Waiter(Protocol):
    """Anything that a slot notifies when it is filled, on the runtime's thread."""

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
        """Return a slot that is already done. Safe on any thread."""
        slot = cls()
        slot.outcome = outcome
        return slot

    @property
    def done(self) -> bool:
        return self.outcome is not PENDING

    def set(self, outcome: Any) -> list[Waiter]:
        """Set the outcome and return the waiters, for the caller to notify. Runtime's thread only.

        To fill several slots, set them all before notifying any waiter: it may look at the other slots.
        """
        assert self.outcome is PENDING, "a slot is written once"
        self.outcome = outcome
        self.launch = None
        waiters, self.waiters = self.waiters, None
        return waiters or []

    def fill(self, outcome: Any) -> None:
        """Set the outcome and notify the waiters. Runtime's thread only."""
        for waiter in self.set(outcome):
            waiter.notify()

    def add(self, waiter: Waiter) -> None:
        """Notify `waiter` when this pending slot is filled. Runtime's thread only."""
        if self.waiters is None:
            self.waiters = [waiter]
        else:
            self.waiters.append(waiter)

    def discard(self, waiter: Waiter) -> None:
        """Undo one `add`. Runtime's thread only."""
        if self.waiters is not None and waiter in self.waiters:
            self.waiters.remove(waiter)

    def __repr__(self) -> str:
        return f"Slot({self.outcome!r})"


@final
class Watcher:
    """Wakes one caller when the last of several slots is filled. Lives on the runtime's thread."""

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
    """The owner of launches: it gives them addresses, waits for them and raises their unread failures.

    Scopes form a tree. Its root belongs to the runtime and lives as long. A job's scope only lends an address to
    nested launches: `owner` is then the scope that the job's launch belongs to.
    """

    def __init__(
        self,
        path: str,
        *,
        runtime: Runtime,
        is_root: bool = False,
        owner: Scope | None = None,
        max_pending: int | None = None,
        matched_in: str | None = None,
    ) -> None:
        self.path = path
        self.runtime = runtime
        self._matched_in = matched_in
        # Not `self`: the scope of each row of a stream would be a circle, which only the collector ends.
        self._owner = owner
        self.max_pending = max_pending
        self.pending: dict[Launch, None] = {}
        self.failures: list[Failure] = []
        self.drained: Slot | None = None
        self.abandoned = False
        self.is_root = is_root
        # The lane whose body launches in this scope, or in a scope inside it, and its calls that a worker thread may
        # wait for. A cancelled thread runs on, so those are cancelled with the lane.
        self.job: Job | None = None
        self.guests: dict[Launch, None] = {}
        self._numbers = itertools.count(1)
        self._names: dict[str, int] = {}
        self._equal: dict[str, itertools.count[int]] = {}

    @property
    def owner(self) -> Scope:
        return self._owner or self

    @property
    def matched_in(self) -> str:
        """The path within which the journal matches calls of a changed program. The rows of a stream share one."""
        return self._matched_in or self.path

    def count_equal(self, name: str) -> int:
        """Return how often `name` was counted in this scope, this time included.

        Calls that race each other get addresses by what they ask. Numbers would depend on which one is first.
        """
        # Threads may race each other here. Both steps are atomic.
        return next(self._equal.setdefault(name, itertools.count(1)))

    def next_address(self) -> str:
        return f"{self.path}/{next(self._numbers)}"

    def child_path(self, name: str | None) -> str:
        """Return the path of a new child scope. A second use of a name gets the suffix #2, and so on."""
        if name is None:
            name = f"scope {next(self._numbers)}"
        else:
            uses = self._names[name] = self._names.get(name, 0) + 1
            name = name if uses == 1 else f"{name}#{uses}"
        return f"{self.path}/{name}" if self.path else name

    def check_can_launch(self) -> None:
        """Raise if `max_pending` launches are pending, or after `abandon`.

        A cancelled worker thread keeps running. Without this check it could launch in a block that has ended.
        """
        if self.abandoned:
            raise LaunchCancelledError(f"scope {self.path!r} was cancelled; nothing more is launched in it")
        if self.max_pending is not None and len(self.pending) >= self.max_pending:
            raise TooManyPendingError(
                f"this scope already has max_pending={self.max_pending} launches pending; "
                "await some of them before you launch more"
            )

    def note(self, failure: Failure) -> None:
        """Keep a launch's failure until it is read. The root keeps none: they are logged when collected."""
        if failure.read or self.is_root:
            return
        self.failures = [kept for kept in self.failures if not kept.read]
        self.failures.append(failure)

    def release(self, launch: Launch) -> None:
        """Let go of a launch that has ended. Runtime's thread only."""
        self.pending.pop(launch, None)
        if not self.pending and self.drained is not None:
            drained, self.drained = self.drained, None
            drained.fill(True)

    def watch(self, drained: Slot) -> None:
        """Fill `drained` as soon as no launch is pending. Runtime's thread only."""
        if self.pending:
            self.drained = drained
        else:
            drained.fill(True)

    def cancel(self) -> None:
        """Cancel the scope's pending launches; their values raise `LaunchCancelledError`."""
        if self.pending:
            self.runtime.post(self.runtime.cancel_scope, self)

    def abandon(self) -> None:
        """Cancel the pending launches and refuse new ones. Called when a block is left without waiting."""
        self.abandoned = True
        self.cancel()

    def unread(self) -> list[BaseException]:
        """Return the unread errors and mark them read."""
        unread = [failure for failure in self.failures if not failure.read]
        summed_up = {id(cause) for failure in unread for cause in failure.causes}
        for failure in unread:
            failure.mark_read()
        self.failures.clear()
        return [failure.raised() for failure in unread if id(failure) not in summed_up]


active_scope: ContextVar[Scope | None] = ContextVar("afnio_scope", default=None)


def current_scope() -> Scope:
    """Return the scope that a launch here would belong to."""
    scope = active_scope.get()
    runtime = current_runtime()
    # After a fork, the parent's scope is useless: the child doesn't have its runtime's thread.
    if scope is None or scope.runtime.pid != runtime.pid:
        return runtime.root
    return scope


@contextmanager
def within(inner: Scope) -> Iterator[None]:
    """Launch what the block launches in `inner`."""
    token = active_scope.set(inner)
    try:
        yield
    finally:
        active_scope.reset(token)


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


# Launch and Job


Outcomes = Sequence[Any]
Body = Callable[["Job", list[Any]], Outcomes | Coroutine[Any, Any, Outcomes]]
Recover = Callable[["Job", BaseException], Outcomes]


@final
class Launch:
    """One call of an op: the jobs of its lanes, its line in the user's code, its owner.

    Make it, make output slots that name it, `add` the jobs, `start` it.

    Args:
        name: the op's name, for errors and events.
        address: instead of the next one in the current scope.
        line: instead of the innermost line outside of Afnio.

    Raises:
        RuntimeClosedError: if the runtime has been closed.
        LaunchCancelledError: if the current scope was cancelled.
        TooManyPendingError: if the current scope has `max_pending` launches pending.
    """

    __slots__ = (
        "__weakref__", "address", "cancelled", "context", "depth", "event", "holders", "home", "jobs", "left", "line",
        "name", "runtime", "scope", "shared",
    )  # fmt: skip

    def __init__(self, name: str, *, address: str | None = None, line: Line | None = None) -> None:
        self.name = name
        self.scope: Scope = current_scope()
        self.runtime = self.scope.runtime
        if self.runtime.closed:
            raise RuntimeClosedError(
                f"{name} was launched after the Afnio runtime had been closed; launch it earlier"
            )
        self.scope.owner.check_can_launch()
        self.line: Line = caller_line() if line is None else line
        self.context: Context = adopted(copy_context())
        self.address = self.scope.next_address() if address is None else address
        self.jobs: list[Job] = []
        self.left = 0
        # The length of the chain of pending launches before this one. The calls of the deepest launch go first, so
        # that the engine finishes samples before it begins new ones.
        self.depth = 0
        # The user's objects that lead to its results. Strong references would keep all of them reachable.
        self.holders: list[weakref.ref[Any]] = []
        self.cancelled = False
        # The event to emit at its start.
        self.event: Any = None
        # The loop that its `async def` callables run on; None is the runtime's.
        self.home: CallerLoop | None = None
        # Calls at temperature 0 by account and key, until it ends: its lanes share equal ones.
        self.shared: dict[Hashable, Any] = {}

    def add(
        self,
        body: Body,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        *,
        lane: int | None = None,
        part: str = "",
        path: str | None = None,
        gather: bool = False,
        recover: Recover | None = None,
    ) -> None:
        """Add a job: when `inputs` are done, `body` runs once and its outcomes fill `outputs`.

        Args:
            body: called with the job and the inputs' values. It returns one outcome for each output, or a
                coroutine that does, which then runs as a task.
            lane: index of the sample, or None if there is only one value.
            part: an element of the job's address, for launches with several kinds of jobs.
            path: the job's whole address, if it is of its content. The journal matches its calls within it.
            gather: pass `body` the raw outcomes, failures included. Otherwise it runs only if all inputs are
                values; if not, every output gets the first input's failure, or None for a missing input.
            recover: returns the outcomes if the body raises or is cancelled. The default makes the outputs fail.
                A cancelled job with `recover` still waits for its inputs, so `recover` may use them.

        Raises:
            ForkedError: if an input was pending when this process was forked.
        """
        for slot in inputs:
            check_owner(slot, self.runtime)
            behind = slot.launch
            if slot.outcome is PENDING and behind is not None and behind.depth >= self.depth:
                self.depth = behind.depth + 1
        self.jobs.append(Job(self, body, inputs, outputs, lane, part, path, gather, recover))

    def start(self) -> None:
        """Post the jobs to the runtime. It neither blocks nor raises, so callers needn't undo what they did before."""
        self.left = len(self.jobs)
        if self.left == 0:
            return
        self.scope.owner.pending[self] = None
        try:
            self.runtime.post(self.runtime.start, self)
        except RuntimeClosedError as error:
            self.runtime.bury(self, error)

    def wanted(self) -> bool:
        """Return True if anything other than its own jobs waits for its slots. Runtime's thread only."""
        return any(
            not isinstance(waiter, Job) or waiter.launch is not self
            for job in self.jobs
            if not job.done
            for slot in job.outputs
            for waiter in slot.waiters or ()
        )

    def held(self) -> bool:
        """Return True if the program can still reach one of its results."""
        return any(holder() is not None for holder in self.holders)

    @property
    def title(self) -> str:
        """Its name in error messages."""
        return f"{self.name} launched at {self.line}"

    def place(self, lane: int | None) -> str:
        sample = "" if lane is None else f", sample {lane}"
        return f"{self.name}{sample}, launched at {self.line}"


@final
class Job:
    """The work of one lane: it waits for its inputs, runs once, and fills its outputs."""

    __slots__ = (
        "_numbers", "_path", "_scope", "_waiting", "abandoned", "body", "done", "gather", "inputs", "lane", "launch",
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
        path: str | None,
        gather: bool,
        recover: Recover | None,
    ) -> None:
        self.done = False
        self.part = part
        self._path = path
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
        """Scope path, launch number, part and lane. Unique in the run, and the same in the next run."""
        if self._path is not None:
            return self._path
        part = f"/{self.part}" if self.part else ""
        lane = "" if self.lane is None else f"/{self.lane}"
        return f"{self.launch.address}{part}{lane}"

    @property
    def sample(self) -> tuple[str, int | None]:
        """The node's address and the lane that what the body calls is made for."""
        return self._path or self.launch.address, self.lane

    def call_address(self, purpose: str) -> str:
        """Return the address of the job's next model call for `purpose`."""
        if self._numbers is None:
            self._numbers = {}
        number = self._numbers[purpose] = self._numbers.get(purpose, 0) + 1
        return f"{self.address}/{purpose}" if number == 1 else f"{self.address}/{purpose}#{number}"

    @property
    def scope(self) -> Scope:
        """The scope for what the body launches: addresses below the job's own, owned by the launch's owner."""
        if self._scope is None:
            owner = self.launch.scope
            shared = self._path or owner._matched_in
            self._scope = Scope(self.address, runtime=owner.runtime, owner=owner.owner, matched_in=shared)
            self._scope.job = self
        return self._scope

    def arm(self) -> bool:
        """Start waiting for the pending inputs. Returns True if there are none."""
        for slot in self.inputs:
            if slot.outcome is PENDING:
                slot.add(self)
                self._waiting += 1
        return self._waiting == 0

    def disarm(self) -> list[Launch]:
        """Stop waiting. Returns the launches that it waited for."""
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
        """Return the outcomes for a body that raised: those of `recover`, or one failure for all outputs."""
        fold(error)
        note_place(error, self.launch, self.lane)
        if self.recover is not None:
            return self.recover(self, error)
        # No one will read it if the launch's owner was abandoned or the runtime closed, and that isn't a mistake.
        owner, left = self.launch.scope.owner, isinstance(error, LaunchCancelledError)
        left = left or owner.abandoned or self.launch.runtime.closed
        failure = Failure(error, read=read or left, place=None if self.part else self.launch.title)
        owner.note(failure)
        return [failure] * len(self.outputs)

    def fill(self, outcomes: Outcomes) -> None:
        """End the job: set all of its outputs, then notify the waiters."""
        assert len(outcomes) == len(self.outputs), "one outcome for each output"
        self.done = True
        self.inputs = ()
        self.task = None
        if self._scope is not None:
            self._scope.job = None  # breaks a cycle
        waiters = [
            waiter
            for slot, outcome in zip(self.outputs, outcomes, strict=True)
            for waiter in slot.set(outcome)
        ]
        for waiter in waiters:
            waiter.notify()


def check_owner(slot: Slot, runtime: Runtime) -> None:
    """Raise `ForkedError` for a slot that only the parent process will fill."""
    launch = slot.launch
    if slot.outcome is PENDING and launch is not None and launch.runtime is not runtime:
        raise ForkedError(
            f"the value of {launch.name} (launched at {launch.line}) was pending when this process "
            f"was forked from {launch.runtime.pid}; read it before the fork or launch it again here"
        )


def note_place(error: BaseException, launch: Launch, lane: int | None) -> None:
    """Add a note to `error` that names the op and the line that launched it.

    Only the first one, because lanes may share an exception. The message of a `BatchError` has it already.
    """
    if isinstance(error, BatchError):
        return
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list | None) and not any(
        ", launched at " in str(note) for note in (notes or ())[-1:]
    ):
        if advice := hint(error):
            error.add_note(advice)
        error.add_note(launch.place(lane))


def inherited(outcomes: Sequence[Any]) -> Any:
    """Return the outcome that a lane inherits instead of running, or PENDING if it can run.

    That is the first failure among `outcomes`, else the first None or `NO_FEEDBACK`.
    """
    stopped: Any = PENDING
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return outcome
        if (outcome is None or outcome is NO_FEEDBACK) and stopped is PENDING:
            stopped = outcome
    return stopped


# Runtime


class Resource(Protocol):
    """An object that lives on the runtime's loop and is closed with it, such as an HTTP session."""

    async def aclose(self) -> None: ...


R = TypeVar("R", bound=Resource)

# Seconds that `close` waits for cancelled jobs and for resources.
CLOSE_TIMEOUT = 5.0


@final
class Runtime:
    """The engine of this process: one daemon thread with one event loop, started by the first launch.

    Everything that changes state runs on that thread, one callback at a time, so none of it needs a lock.
    """

    # Returns the class of the `LaneCalls` of lanes in worker processes; assigned by `afnio.models`.
    lane_calls: ClassVar[Callable[[], Any]]

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
        self._collector = Collector()
        self._loop = LoopThread("afnio-runtime", self._at_end)

    # From any thread

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function(*args)` on the runtime's thread, soon. Never blocks."""
        self._loop.post(function, *args)

    @property
    def current(self) -> bool:
        """True on the runtime's thread."""
        return self._loop.current

    # On the runtime's thread

    def start(self, launch: Launch) -> None:
        if launch.left == 0:
            return  # its scope was cancelled before the start got here
        self.launches[launch] = None
        if launch.event is not None:
            launch.context.run(emit, launch.event)
            launch.event = None
        self._ready.extend([job for job in launch.jobs if job.arm()])
        # The scope may have been abandoned after the launch was made and before it was among its pending ones.
        if self.closed or launch.scope.owner.abandoned:
            self.cancel(launch)
        self._pump()

    def ready(self, job: Job) -> None:
        """Queue a job whose inputs are done."""
        self._ready.append(job)
        self._pump()

    def forget(self, watcher: Watcher) -> None:
        """End a cancelled wait. Cancel the launches that nothing else waits for."""
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
        """Cancel the unfinished jobs of `launch`, and the launches that only they waited for."""
        pumping, self._pumping = self._pumping, True  # run nothing that is still to be marked as cancelled
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
        """Return the resource for `key`. It is made at the first use and closed with the runtime."""
        kept = self._resources.get(key)
        if kept is None:
            # In an empty context, because a resource outlives the launch that first needed it.
            kept = self._resources[key] = Context().run(make)
        return cast("R", kept)

    def drop_resources(self, part: Any) -> None:
        """Drop the resources whose keys contain `part`, unclosed: its owner has no use of them any more."""
        for key in [key for key in self._resources if isinstance(key, tuple) and part in key]:
            del self._resources[key]

    def resources(self) -> list[Any]:
        """Return the resources made so far. Safe on any thread."""
        return list(self._resources.values())

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: Context) -> Task:
        """Run `coroutine` as a task. The calling resource owns it and must cancel it in its `aclose`."""
        return self._loop.spawn(coroutine, context)

    def count_open(self, change: int) -> None:
        """Count a call that begins (1) or ends (-1)."""
        self.calls_open += change
        if not self._collector.low <= self.calls_open <= self._collector.high:
            self._collector.follow(self.calls_open)

    def bury(self, launch: Launch, error: BaseException) -> None:
        """Fail the unfinished jobs of a launch, because the thread that would run them has ended."""
        for job in launch.jobs:
            if not job.done:
                self._end(job, partial(job.fail, error))

    def _cancel_job(self, job: Job) -> list[Launch]:
        """Cancel one job. Returns the launches that it waited for."""
        if job._scope is not None:
            job._scope.abandoned = True
            for guest in job._scope.guests:
                self.post(self.cancel, guest)
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
            result = job.launch.context.run(job.run)
        except BaseException as error:
            self._end(job, partial(job.fail, error))
            return
        if isinstance(result, CoroutineType):
            self._loop.spawn(self._drive(job, result), job.launch.context.copy())
        else:
            self._end(job, lambda: cast("Outcomes", result))

    async def _drive(self, job: Job, coroutine: Coroutine[Any, Any, Outcomes]) -> None:
        # A task that is cancelled before its first step never enters its coroutine, and its job would never end. So
        # `job.task` is set here, and a job that was cancelled earlier ends here.
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
        except BaseException as error:  # a SystemExit from a user's callable must not end the loop
            self._end(job, partial(job.fail, error))
        else:
            self._end(job, lambda: outcomes)
        self._pump()

    def _end(self, job: Job, outcomes: Callable[[], Outcomes]) -> None:
        """End a job: fill its outputs, with failures if `outcomes` raises. No other place ends jobs."""
        try:
            job.fill(outcomes())
        except Exception as error:
            if not job.done:
                job.fill([Failure(error)] * len(job.outputs))
        launch = job.launch
        launch.left -= 1
        if launch.left == 0:
            launch.jobs = []
            launch.shared = {}
            self.launches.pop(launch, None)
            launch.scope.owner.release(launch)

    # Closing

    def close(self) -> None:
        """Cancel pending launches, close the resources, end the thread. Call it from another thread."""
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

    def _at_end(self) -> None:
        """Fail what is still pending when the thread ends. Its readers would otherwise wait forever."""
        self._collector.close()
        error = RuntimeClosedError("the runtime was closed before this value was there; launch it again")
        for launch in list(self.launches):
            self.bury(launch, error)

    def _begin_close(self, then: Callable[[], None]) -> None:
        # Count on this thread: a launch wakes its readers, who may call `close`, just before its scope lets go of it.
        if self.launches:
            logging.getLogger("afnio").warning(
                "the runtime was closed with %d launches pending and %d calls in flight; they have been "
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
    """Return this process's runtime. The first call starts it; a forked child gets a new one."""
    global _default
    runtime = _default
    if runtime is not None and not runtime.closed and runtime.pid == os.getpid():
        return runtime
    with _guard:
        runtime = _default
        if runtime is None or runtime.closed or runtime.pid != os.getpid():
            if _exiting:
                raise RuntimeClosedError("the interpreter is exiting; launch from code that runs earlier")
            if "multiprocessing" in sys.modules:  # otherwise this is no pool's worker
                from afnio.runtime._worker import check_importing

                check_importing()
            if runtime is None:
                atexit.register(_close_at_exit)
                os.register_at_fork(after_in_child=_renew_guard)
            runtime = _default = Runtime()
    return runtime


def existing_runtime() -> Runtime | None:
    """Return this process's runtime, or None if it hasn't been started."""
    runtime = _default
    return runtime if runtime is not None and runtime.pid == os.getpid() else None


def calls_under_way() -> int:
    """Return the number of model calls of this process that are queued or on the wire."""
    runtime = existing_runtime()
    return 0 if runtime is None else runtime.calls_open


def on_runtime_thread() -> bool:
    """Return True on the thread of this process's runtime."""
    runtime = _default
    return runtime is not None and runtime.pid == os.getpid() and runtime.current


def close() -> None:
    """Close this process's runtime: cancel pending launches and end its thread. A later launch starts a new one."""
    if _default is not None:
        _default.close()


def _close_at_exit() -> None:
    global _exiting
    _exiting = True
    close()
    unread.end()


def _renew_guard() -> None:
    """Replace the lock in a forked child: a thread of the parent may have held it during the fork."""
    global _guard
    _guard = threading.Lock()
