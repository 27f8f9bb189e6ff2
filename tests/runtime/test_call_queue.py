"""CallQueue: urgency, depth, ageing, lines of models."""

from __future__ import annotations

from runtime.demand import Demand

from afnio.runtime._call_queue import PATIENCE, CallQueue, Permit, QueueEntry
from afnio.runtime._settings import Priority


def entry(demand: Demand, *, first: bool = True) -> QueueEntry:
    return QueueEntry(Permit(demand, first=first))


def drained(queue: CallQueue) -> list[QueueEntry]:
    """Admit head after head, and return them in that order."""
    found = []
    while queue:
        head = queue.heads()[0]
        queue.admit(head)
        found.append(head)
    return found


async def test_order() -> None:
    """The class, then retries, then depth, then who came first."""
    queue = CallQueue()
    expected = [
        entry(Demand(Priority.SERVING)),
        entry(Demand(Priority.VALIDATION)),
        entry(Demand(), first=False),
        entry(Demand(depth=2)),
        entry(Demand(depth=1)),
        entry(Demand()),
        entry(Demand()),
    ]
    for waiting in [expected[n] for n in (5, 2, 6, 4, 0, 3, 1)]:
        queue.push(waiting)
    assert drained(queue) == expected


async def test_nobody_starves() -> None:
    """Under an endless stream of urgent calls each other one is overtaken a bounded number of times."""
    queue = CallQueue()
    patient = [entry(Demand(Priority.TRAINING)) for _ in range(3)]
    for waiting in patient:
        queue.push(waiting)
    turns = []
    for turn in range(4 * PATIENCE):
        queue.push(entry(Demand(Priority.SERVING)))
        head = queue.heads()[0]
        queue.admit(head)
        if head in patient:
            turns.append(turn)
    assert turns == [PATIENCE, 2 * PATIENCE + 1, 3 * PATIENCE + 2]


async def test_first_come_needs_no_ageing() -> None:
    """Behind a queue that nobody overtakes an urgent call waits for no turn of somebody else."""
    queue = CallQueue()
    for _ in range(100):
        queue.push(entry(Demand()))
    for _ in range(50):
        queue.admit(queue.heads()[0])
    urgent = entry(Demand(Priority.SERVING))
    queue.push(urgent)
    assert urgent is queue.heads()[0]


async def test_lines() -> None:
    """Each model has its head, the most urgent first; who left is in none."""
    queue = CallQueue()
    a, b, c = entry(Demand(model="a")), entry(Demand(Priority.SERVING, model="b")), entry(Demand(model="a"))
    for waiting in (a, b, c):
        queue.push(waiting)
    assert queue.heads() == [b, a]
    queue.remove(a)
    assert queue.heads() == [b, c]
    assert sorted(queue.drain()) == [b, c]
    assert len(queue) == 0
