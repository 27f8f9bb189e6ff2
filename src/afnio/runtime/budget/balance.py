"""Balance: what one budget allows, has spent and has promised, and who waits for it."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, final

import anyio

from afnio.runtime.budget.amount import Amount, Caps

if TYPE_CHECKING:
    from afnio.runtime.budget.reservation import Reservation


@final
class Waiter:
    """An attempt that waits for room, in the line of one of its budgets.

    Attributes:
        balance: whose line it stands in; None once it has been answered or has gone.
        error: why it will never have room, or None.
    """

    __slots__ = ("balance", "error", "event", "reservation")

    def __init__(self, reservation: Reservation) -> None:
        self.reservation = reservation
        self.event = anyio.Event()
        self.balance: Balance | None = None
        self.error: Exception | None = None

    def answer(self, error: Exception | None) -> None:
        self.balance = None
        self.error = error
        self.event.set()

    def leaves(self) -> bool:
        """Try again; return whether it leaves its line, answered or for that of another budget."""
        try:
            refusing = self.reservation.take()
        except Exception as error:
            self.answer(error)
            return True
        if refusing is self.balance:
            return False
        if refusing is None:
            self.answer(None)
        else:
            refusing.queue(self)
        return True

    def go(self) -> None:
        """Leave the line; those behind may fit where this one did not."""
        balance, self.balance = self.balance, None
        if balance is not None:
            balance.admit()

    def __lt__(self, other: Waiter) -> bool:
        return self.reservation.ticket < other.reservation.ticket


@final
class Balance:
    """The sums of one budget and the line before it; on the runtime's loop.

    Attempts of other budgets nested in this one pass by a waiter that waits elsewhere; who waits here is
    passed by nobody that came later, so a large request is not starved by small ones.
    """

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.before = Amount()
        self.spent = Amount()
        self.promised = Amount()
        self.open = 0
        """Reservations that hold something: what they give back may be room for others."""
        self._line: list[Waiter] = []

    def lacks(self, need: Amount) -> str | None:
        """Return the field that has no room for `need` now, or None."""
        return next(self.caps.exceeded(self.before + self.spent + self.promised + need), None)

    def never(self, need: Amount, least: Amount) -> str | None:
        """Return the field that will have no room, whatever is given back, or None.

        Args:
            least: what is needed for certain, where `need` contains a guess.
        """
        lacking = next(self.caps.exceeded(self.before + self.spent + least), None)
        if lacking is None and not self.open:
            return self.lacks(need)
        return lacking

    def promise(self, need: Amount) -> None:
        self.open += 1
        self.promised += need

    def send(self) -> None:
        """Turn one promised call into a spent one."""
        self.promised -= Amount(calls=1)
        self.spent += Amount(calls=1)

    def give_back(self, promised: Amount, spent: Amount) -> None:
        """Close one reservation: `spent` of it is gone, the rest is room again."""
        self.open -= 1
        self.promised -= promised
        self.spent += spent

    def earlier(self, ticket: int) -> bool:
        """Whether somebody with an earlier ticket waits here."""
        return bool(self._line) and self._line[0].reservation.ticket < ticket

    def queue(self, waiter: Waiter) -> None:
        waiter.balance = self
        heapq.heappush(self._line, waiter)

    def admit(self) -> None:
        """Answer those at the head of the line for whom there is room, or never will be."""
        while self._line:
            waiter = self._line[0]
            if waiter.balance is self and not waiter.leaves():
                return
            heapq.heappop(self._line)
