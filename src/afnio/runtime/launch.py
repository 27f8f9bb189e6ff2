"""Launch and Job: one call of an op, and the work of one of its lanes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from typing import Any, final

from afnio.errors import RuntimeClosedError
from afnio.runtime.line import Line, caller_line
from afnio.runtime.loop import Task, adopted
from afnio.runtime.scope import Scope, current_scope
from afnio.runtime.slot import NO_FEEDBACK, PENDING, Failure, Slot

Outcomes = Sequence[Any]
Body = Callable[["Job", list[Any]], Outcomes | Coroutine[Any, Any, Outcomes]]
Recover = Callable[["Job", BaseException], Outcomes]


@final
class Launch:
    """One call of an op: its lanes' jobs, its place in the user's code, its owner.

    Make it, make its output slots with it, `add` its jobs, `start` it.
    """

    __slots__ = (
        "__weakref__", "address", "cancelled", "context", "demand", "faces", "jobs", "left", "line",
        "name", "runtime", "scope",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope: Scope = current_scope()
        self.runtime = self.scope.runtime
        if self.runtime.closed:
            raise RuntimeClosedError(
                f"{name} was launched after the Afnio runtime had been closed; launch it earlier"
            )
        self.line: Line = caller_line()
        self.context: Context = adopted(copy_context())
        self.address = self.scope.next_address()
        self.jobs: list[Job] = []
        self.left = 0
        # How many waiters and jobs wait for its slots. What was wanted and is wanted no more is cancelled.
        self.demand = 0
        self.faces: list[weakref.ref[Any]] = []
        self.cancelled = False

    def add(
        self,
        body: Body,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        *,
        lane: int | None = None,
        gather: bool = False,
        recover: Recover | None = None,
    ) -> None:
        """Add a job: when `inputs` are done, `body` runs once and its outcomes fill `outputs`.

        Args:
            body: called with the job and the inputs' values; it returns one outcome for each output, or
                a coroutine that does, which then runs as a task.
            lane: index of the sample, None where there is one value only.
            gather: hand `body` the raw outcomes. Otherwise it runs only if all are values: a failed
                input's failure, else a missing one's None, becomes the outcome of every output.
            recover: gives the outcomes when the body raises or is cancelled; by default they fail. It may
                rely on the inputs: a cancelled job that has it still waits for them, then recovers.
        """
        self.jobs.append(Job(self, body, inputs, outputs, lane, gather, recover))

    def start(self) -> None:
        """Hand the jobs to the runtime; returns at once."""
        self.left = len(self.jobs)
        if self.left == 0:
            return
        self.scope.home.admit(self)
        self.runtime.post(self.runtime.start, self)

    def place(self, lane: int | None) -> str:
        sample = "" if lane is None else f", sample {lane}"
        return f"{self.name}{sample}, launched at {self.line}"


@final
class Job:
    """The work of one lane: waits for its inputs, runs once, fills its outputs."""

    __slots__ = (
        "_waiting", "abandoned", "body", "gather", "inputs", "lane", "launch", "outputs", "recover", "task",
    )  # fmt: skip

    def __init__(
        self,
        launch: Launch,
        body: Body,
        inputs: Sequence[Slot],
        outputs: Sequence[Slot],
        lane: int | None,
        gather: bool,
        recover: Recover | None,
    ) -> None:
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
        launch = self.launch
        return launch.address if self.lane is None else f"{launch.address}/{self.lane}"

    @property
    def done(self) -> bool:
        return self.outputs[0].outcome is not PENDING

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
        place = self.launch.place(self.lane)
        if place not in getattr(error, "__notes__", ()):
            error.add_note(place)
        if self.recover is not None:
            return self.recover(self, error)
        failure = Failure(error, read=read)
        if not read and not self.launch.scope.home.is_root:
            self.launch.scope.home.failures.append(failure)
        return [failure] * len(self.outputs)

    def fill(self, outcomes: Outcomes) -> None:
        assert len(outcomes) == len(self.outputs), "one outcome for each output"
        self.inputs = ()
        self.task = None
        for slot, outcome in zip(self.outputs, outcomes, strict=True):
            slot.fill(outcome)


def inherited(outcomes: Sequence[Any]) -> Any:
    """Return what keeps a lane from running: the first failure, else None or no feedback; PENDING if nothing."""
    stopped: Any = PENDING
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return outcome
        if (outcome is None or outcome is NO_FEEDBACK) and stopped is PENDING:
            stopped = outcome
    return stopped
