"""The queue of an account: the calls that wait for admission, in the order in which they go."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Hashable
from typing import Final, Protocol, final

from afnio.runtime._control import RunGate, run_gate
from afnio.runtime._limits import Account, Grant
from afnio.runtime._loop import Signal
from afnio.runtime._settings import Priority

# Calls that may overtake the one that has waited longest.
PATIENCE: Final = 16


@final
class CallQueue:
    """Waiting calls in the order of their priority, with a line for each run and model.

    A model whose window is full doesn't hold up the other models, nor does a paused run hold up others. Within a line
    the class of the priority comes first, then retries before first attempts, then deeper calls (so that samples in
    progress finish before new ones begin), then the order of arrival.

    Ageing prevents starvation. When 16 calls have overtaken the one that has waited longest, that one is next. A
    serving call waits for one such turn at most.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[str, RunGate | None], tuple[list[QueueEntry], deque[QueueEntry]]] = {}
        self._orders = itertools.count()
        self._waiting = 0
        self._overtaken = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, entry: QueueEntry) -> None:
        entry.order = next(self._orders)
        key = (entry.permit.demand.model, entry.permit.gate)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = ([], deque())
        heapq.heappush(line[0], entry)
        line[1].append(entry)
        self._waiting += 1

    def heads(self) -> list[QueueEntry]:
        """Return the next call of each line, the most urgent one first."""
        lines = list(self._lines.values())
        by_age = self._overtaken >= PATIENCE
        heads = [head for line in lines if (head := _oldest(line) if by_age else _foremost(line)) is not None]
        if len(heads) > 1:
            heads.sort(key=(lambda entry: entry.order) if by_age else None)
        return heads

    def admit(self, entry: QueueEntry) -> None:
        """Take out one of the heads."""
        oldest = min(head.order for line in self._lines.values() if (head := _oldest(line)) is not None)
        overtakes = entry.order != oldest and self._overtaken < PATIENCE
        self._overtaken = self._overtaken + 1 if overtakes else 0
        self.remove(entry)

    def remove(self, entry: QueueEntry) -> None:
        """Take out an entry that was admitted or is cancelled."""
        if entry.waiting:
            entry.waiting = False
            self._waiting -= 1
            if not self._waiting:
                self._lines.clear()

    def drain(self) -> list[QueueEntry]:
        """Take out all, and return them."""
        entries = [entry for line in self._lines.values() for entry in line[1] if entry.waiting]
        for entry in entries:
            self.remove(entry)
        return entries


def _foremost(line: tuple[list[QueueEntry], deque[QueueEntry]]) -> QueueEntry | None:
    heap = line[0]
    while heap and not heap[0].waiting:
        heapq.heappop(heap)
    return heap[0] if heap else None


def _oldest(line: tuple[list[QueueEntry], deque[QueueEntry]]) -> QueueEntry | None:
    arrivals = line[1]
    while arrivals and not arrivals[0].waiting:
        arrivals.popleft()
    return arrivals[0] if arrivals else None


@final
class QueueEntry:
    """A call in the queue. A cancelled one stays until its turn comes: searching for it would cost more."""

    __slots__ = ("_key", "_turn", "error", "order", "permit", "waiting")

    def __init__(self, permit: Permit) -> None:
        self.permit = permit
        self.order = 0
        self.waiting = True
        self.error: Exception | None = None
        self._turn: Signal | None = None
        demand = permit.demand
        self._key = (demand.priority, permit.first, -demand.depth)

    async def admission(self) -> None:
        """Wait until the entry was admitted, or failed with its `error`."""
        if self.waiting:
            self._turn = Signal()
            await self._turn.wait()

    def wake(self) -> None:
        """Let the call run: it isn't in the queue any more."""
        if self._turn is not None:
            self._turn.set()

    def __lt__(self, other: QueueEntry) -> bool:
        return (self._key, self.order) < (other._key, other.order)


@final
class Permit:
    """A place on the wire for one attempt of a call; `Admitter.enter` fills it in, `leave` takes it back.

    Attributes:
        first: True for the call's first attempt.
        number: counts the account's requests in the order of sending.
        probe: True if the attempt tries an account whose circuit is open.
        spared: True if it was a probe and failed. It doesn't use up an attempt of its call.
        grants: what it took from the model's allowance, and from the given limits.
        account: the replica that it goes to, until then that of the attempt before; None if the account is no group.
        gate: that of its run, or None.
    """

    __slots__ = ("account", "demand", "first", "gate", "grants", "number", "probe", "spared")

    def __init__(self, demand: Demand, *, first: bool) -> None:
        self.demand = demand
        self.first = first
        self.number = 0
        self.probe = self.spared = False
        self.grants: list[Grant] = []
        self.account: Account | None = None
        self.gate = run_gate.get()


class Demand(Protocol):
    """A call as admission sees it."""

    @property
    def priority(self) -> Priority: ...
    @property
    def depth(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def purpose(self) -> str: ...
    @property
    def site(self) -> Hashable: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def max_output(self) -> int | None: ...
    @property
    def prefix(self) -> int: ...
