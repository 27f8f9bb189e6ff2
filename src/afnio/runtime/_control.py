"""Control: how a run is paused, slowed down and stopped while it runs.

Every call of a run passes the run's `RunGate`. It is the run's own: calls of other runs, and those that are served
outside of it, don't notice. What it does to a call depends on where the call is:

* **on the wire**: it ends normally, unless the run is stopped at once. Then it is cut off.
* **in its account's queue**: it stays there, and others go ahead of it (`wait`, which admission asks).
* **before that**: it waits in `pass_through`, and holds no money of a budget.

The time for which a run is paused isn't counted by budgets, so a pause lets no `max_seconds` run out (`lost`).

The methods of a gate run on the runtime's thread, except where noted. It is no part of what makes two calls the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Protocol, final

import anyio

from afnio.errors import RunStoppedError
from afnio.runtime._limits import Allowance, Grant, Limits
from afnio.runtime._loop import call_later, loop_time
from afnio.runtime._settings import Setting


class Queue(Protocol):
    """A queue in which calls of a run wait."""

    def admit(self) -> None: ...


class Sent(Protocol):
    """The part of a call that a gate needs to know."""

    @property
    def is_sent(self) -> bool: ...
    @property
    def deadline(self) -> float: ...
    def join(self, budget: Any) -> None: ...


@final
class RunGate:
    """What all calls of a run pass.

    Attributes:
        paused: True if nothing more is sent.
        stopped: why nothing will be sent any more, or None.
        cut: True if it was stopped at once.
        stop_after_step: why the run stops when its step ends, or None.
        limits: those of all its calls together, on top of those of their accounts; or None.
        in_flight: its requests on the wire.
    """

    def __init__(self) -> None:
        self.paused = False
        self.stopped: str | None = None
        self.cut = False
        self.stop_after_step: str | None = None
        self.limits: Limits | None = None
        self.in_flight = 0
        self.steps = False
        self._allowance = Allowance()
        self._opened: anyio.Event | None = None
        self._since = 0.0
        self._pauses: list[tuple[float, float]] = []
        self._calls: dict[anyio.CancelScope, Sent] = {}
        self._queues: dict[Queue, None] = {}
        self._gently: list[Callable[[str], object]] = []
        self._at_once: list[Callable[[], object]] = []

    # Orders

    def pause(self) -> None:
        """Send nothing more until `resume`."""
        if not self.paused:
            self.paused, self._opened, self._since = True, anyio.Event(), loop_time()
            _paused[self] = None
            for scope in self._calls:
                scope.deadline = math.inf

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            _paused.pop(self, None)
            self._pauses.append((self._since, loop_time()))
            if self._opened is not None:
                self._opened.set()
            for scope, call in self._calls.items():
                scope.deadline = call.deadline
            self._admit()

    def limit(self, limits: Limits) -> None:
        """Replace the limits of all its calls together."""
        self.limits, self._allowance = limits, Allowance.given(limits, loop_time())
        self._admit()

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Send nothing any more. The calls on the wire end, or are cut off."""
        self.stopped, self.cut = self.stopped or reason, self.cut or at_once
        if at_once:
            for cancel in list(self._at_once):
                cancel()
        for scope, call in self._calls.items():
            if at_once or not call.is_sent:
                scope.cancel()

    def stop_gently(self, reason: str) -> None:
        """Stop after the current step: as what runs wants it, or before the next call after the step."""
        if self._gently:
            for ask in list(self._gently):
                ask(reason)
            self.resume()  # the step can't end otherwise
        elif self.steps:
            self.stop_after_step = self.stop_after_step or reason
            self.resume()
        else:
            self.stop(reason)

    def step_ended(self) -> None:
        if self.stop_after_step is not None:
            self.stop(self.stop_after_step)

    # Calls

    @property
    def calls(self) -> list[Sent]:
        """Those under way, in the order in which they began."""
        return list(self._calls.values())

    @contextmanager
    def call(self, scope: anyio.CancelScope, call: Sent) -> Iterator[None]:
        """Let orders reach a call, which runs in `scope`."""
        self._calls[scope] = call
        try:
            yield
        finally:
            del self._calls[scope]

    async def pass_through(self) -> None:
        """Wait while the run is paused.

        Raises:
            RunStoppedError: if it was stopped.
        """
        while self.paused and self.stopped is None and self._opened is not None:
            await self._opened.wait()
        self.check()

    def check(self) -> None:
        if self.stopped is not None:
            raise RunStoppedError(self.stopped)

    def waits_in(self, queue: Queue) -> None:
        self._queues[queue] = None

    def wait(self, cost: int, now: float) -> float:
        """Return the seconds until a call may go; infinite if only an order or the end of another call can tell."""
        most = None if self.limits is None else self.limits.max_in_flight
        if self.paused or (most is not None and self.in_flight >= most):
            return math.inf
        return self._allowance.wait(cost, now)

    def take(self, cost: int, now: float) -> list[Grant]:
        self.in_flight += 1
        return [self._allowance.take(cost, now)] if self._allowance.paced else []

    def left(self) -> None:
        self.in_flight -= 1
        if self.limits is not None and self.limits.max_in_flight is not None:
            call_later(0, self._admit)  # its account first learns from how the call ended

    def _admit(self) -> None:
        for queue in list(self._queues):
            queue.admit()

    # From any thread

    def lost(self, since: float, now: float) -> float:
        """Return the seconds between two times of the runtime's loop in which the run was paused."""
        pauses = [*self._pauses, *([(self._since, now)] if self.paused else [])]
        return sum(max(0.0, min(end, now) - max(start, since)) for start, end in pauses)

    @contextmanager
    def gently(self, ask: Callable[[str], object]) -> Iterator[None]:
        """Let a gentle stop call `ask` with its reason while the block runs, instead of refusing calls."""
        self._gently.append(ask)
        try:
            yield
        finally:
            self._gently.remove(ask)

    @property
    def has_job(self) -> bool:
        return bool(self._at_once)

    @contextmanager
    def at_once(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Let a stop at once call `cancel`, on the runtime's thread, while the block runs."""
        self._at_once.append(cancel)
        try:
            yield
        finally:
            self._at_once.remove(cancel)


_paused: Final[dict[RunGate, None]] = {}


def is_job_paused() -> bool:
    """Return True if a job of this process, such as a training, is paused; from any thread."""
    return any(gate.has_job for gate in list(_paused))


# The gate of the run whose calls are launched in this context, or None.
run_gate: Final[Setting[RunGate | None]] = Setting("gate", None)


@contextmanager
def gently(ask: Callable[[str], object]) -> Iterator[None]:
    """Let a gentle stop of the run of this context call `ask` with its reason, instead of refusing calls."""
    gate = run_gate.get()
    with nullcontext() if gate is None else gate.gently(ask):
        yield


def seconds_paused(elapsed: float) -> float:
    """Return how many of the last `elapsed` seconds the run of this context was paused; on any thread or loop."""
    gate, now = run_gate.get(), time.monotonic()
    return 0.0 if gate is None else gate.lost(now - elapsed, now)
