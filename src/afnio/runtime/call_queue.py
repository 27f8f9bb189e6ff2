"""CallQueue: who waits for admission, and who is next."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import Final, final

import anyio

from afnio.runtime.permit import Permit

PATIENCE: Final = 16
"""Calls that may overtake the one that has waited longest; the next admission is its own."""


@final
class Entry:
    """One call in the queue; one that is cancelled stays until its turn, as taking it out costs a search."""

    __slots__ = ("_key", "admitted", "error", "order", "permit", "waiting")

    def __init__(self, permit: Permit) -> None:
        self.permit = permit
        self.order = 0
        self.waiting = True
        self.admitted = anyio.Event()
        self.error: Exception | None = None
        self.order_anew()

    def order_anew(self) -> None:
        """Take the place that the call's urgency gives it now; its line's heap has to be put in order after."""
        demand = self.permit.demand
        self._key = (demand.urgency.rank, self.permit.first, -demand.depth)

    def __lt__(self, other: Entry) -> bool:
        return (self._key, self.order) < (other._key, other.order)


@final
class CallQueue:
    """Calls by urgency, a line for each model, so that one whose window is full holds up no other.

    Urgency is the class, then retries before first attempts, then the deeper call, so that samples which
    are begun are finished before new ones are, then who came first. Ageing: after 16 calls
    have overtaken the one that has waited longest, it is next, whatever its class; so nobody starves, and
    a serving call waits for one such turn at most.
    """

    def __init__(self) -> None:
        self._lines: dict[str, tuple[list[Entry], deque[Entry]]] = {}
        self._orders = itertools.count()
        self._waiting = 0
        self._overtaken = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, entry: Entry) -> None:
        entry.order = next(self._orders)
        line = self._lines.get(entry.permit.demand.model)
        if line is None:
            line = self._lines[entry.permit.demand.model] = ([], deque())
        heapq.heappush(line[0], entry)
        line[1].append(entry)
        self._waiting += 1

    def heads(self) -> list[Entry]:
        """Return who is next in each line, the most urgent one first."""
        lines = list(self._lines.values())
        by_age = self._overtaken >= PATIENCE
        heads = [head for line in lines if (head := _oldest(line) if by_age else _foremost(line)) is not None]
        if len(heads) > 1:
            heads.sort(key=(lambda entry: entry.order) if by_age else None)
        return heads

    def admit(self, entry: Entry) -> None:
        """Take out one of the heads."""
        oldest = min(head.order for line in self._lines.values() if (head := _oldest(line)) is not None)
        overtakes = entry.order != oldest and self._overtaken < PATIENCE
        self._overtaken = self._overtaken + 1 if overtakes else 0
        self.remove(entry)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that was admitted or is cancelled."""
        if entry.waiting:
            entry.waiting = False
            self._waiting -= 1
            if not self._waiting:
                self._lines.clear()

    def reorder(self, entry: Entry) -> None:
        """Give a waiting entry whose call became more urgent its new place; rare, so a whole line is sorted."""
        entry.order_anew()
        heapq.heapify(self._lines[entry.permit.demand.model][0])

    def drain(self) -> list[Entry]:
        """Take out all, and return them."""
        entries = [entry for line in self._lines.values() for entry in line[1] if entry.waiting]
        for entry in entries:
            self.remove(entry)
        return entries


def _foremost(line: tuple[list[Entry], deque[Entry]]) -> Entry | None:
    heap = line[0]
    while heap and not heap[0].waiting:
        heapq.heappop(heap)
    return heap[0] if heap else None


def _oldest(line: tuple[list[Entry], deque[Entry]]) -> Entry | None:
    arrivals = line[1]
    while arrivals and not arrivals[0].waiting:
        arrivals.popleft()
    return arrivals[0] if arrivals else None
