"""Launch and Job: one call of an op, and the work of one of its lanes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, final

from afnio.errors import BatchError, ForkedError, LaunchCancelledError, RuntimeClosedError
from afnio.runtime.fold import fold
from afnio.runtime.line import Line, caller_line
from afnio.runtime.loop import Task, adopted
from afnio.runtime.scope import Scope, current_scope
from afnio.runtime.slot import NO_FEEDBACK, PENDING, Failure, Slot

if TYPE_CHECKING:
    from afnio.runtime.runtime import Runtime

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
