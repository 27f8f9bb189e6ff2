"""Slot: a write-once cell, and the outcomes that it can hold.

Only the runtime's thread fills a pending slot or touches its waiters; every other thread talks to it
through the inbox. That one rule is why a slot needs no lock, costs little, and survives a fork.
"""

from __future__ import annotations

import enum
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, final

if TYPE_CHECKING:
    from afnio.runtime.launch import Launch


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
