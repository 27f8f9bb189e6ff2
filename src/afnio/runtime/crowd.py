"""Crowd: whether the calls of a context find room at once; who speculates may then leave it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, final

CROWDED: Final = 0.25
"""Fraction of the calls that waited or were replayed from which on there is a crowd."""


@final
class Crowd:
    """Counts the calls that are launched in a context, and those of them that had to wait for room.

    Replayed calls count as waiting: they cost no time, so nothing is won by making others ahead of need, which the
    journal may not have.

    >>> crowd = Crowd()
    >>> crowd.calls, crowd.waited = 10, 5
    >>> crowd.dense
    True
    """

    __slots__ = ("calls", "waited")

    def __init__(self) -> None:
        self.calls = 0
        self.waited = 0

    def count(self, *, waits: bool) -> None:
        self.calls += 1
        self.waited += waits

    @property
    def dense(self) -> bool:
        return self.calls > 0 and self.waited >= CROWDED * self.calls


crowd: Final[ContextVar[Crowd | None]] = ContextVar("afnio_crowd", default=None)
"""Who counts the calls of this context."""


def count_call(*, waits: bool) -> None:
    """Count a call of the context; on the runtime's thread."""
    counting = crowd.get()
    if counting is not None:
        counting.count(waits=waits)
