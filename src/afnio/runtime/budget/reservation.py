"""Reservation: what one call holds of its budgets, attempt by attempt."""

from __future__ import annotations

import itertools
import math
from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import Final, final

import anyio

from afnio.errors import BudgetExceeded, ModelError
from afnio.runtime.budget.amount import Amount
from afnio.runtime.budget.balance import Balance, Waiter
from afnio.runtime.budget.budget import Budget, current_budgets
from afnio.runtime.budget.estimate import SHARE, Estimate
from afnio.runtime.budget.ledger import Item, Spent
from afnio.runtime.events import Usage
from afnio.runtime.output_estimate import OutputEstimate
from afnio.runtime.runtime import Runtime

UNSURE: Final = frozenset({408, 499, 502, 504, 524})
"""Statuses behind which the model may have worked all the same, as a gateway gave up waiting for it."""

_NOTHING: Final = Amount()
_tickets = itertools.count()


class _State(Enum):
    IDLE = auto()
    """Holds nothing: not yet, between two attempts, or at the end."""
    HELD = auto()
    SENT = auto()


@final
class Reservation(AbstractContextManager["Reservation"]):
    """One call's share of the budgets of its context; on the runtime's loop.

    For each attempt: `hold` before admission, `attempt` as it goes on the wire, then one of `settle`,
    `failed`, `refund`, `unknown`. A call that waits for its next attempt holds nothing, so none can wait for
    another in a circle; it keeps its ticket, so it goes before later ones. Leaving the block gives back what
    was never sent, and counts what was cut off as unknown.
    """

    __slots__ = ("_estimate", "_item", "_lengths", "_need", "_state", "_usage", "budgets", "ticket")

    def __init__(self, estimate: Estimate, lengths: OutputEstimate, budgets: tuple[Budget, ...]) -> None:
        self.budgets = budgets
        self.ticket = next(_tickets)
        self._estimate = estimate
        self._lengths = lengths
        self._item = Item(estimate.purpose, estimate.client, estimate.model)
        self._state = _State.IDLE
        self._usage = Usage()
        self._need = _NOTHING

    @property
    def deadline(self) -> float:
        """When the call has to end, by the loop's clock; infinite without `max_seconds`."""
        return min((budget.deadline for budget in self.budgets), default=math.inf)

    @property
    def held(self) -> bool:
        """Whether an attempt is reserved and not yet sent."""
        return self._state is _State.HELD

    async def hold(self) -> None:
        """Reserve the next attempt in every budget, waiting for room; at once if it is held already.

        Raises:
            BudgetExceeded: when there will be no room, or the time is over.
            UnknownPriceError: where dollars are limited and the model has no price.
        """
        refusing = None if self._state is _State.HELD else self.take()
        if refusing is None:
            return
        waiter = Waiter(self)
        refusing.queue(waiter)
        try:
            with anyio.CancelScope(deadline=self.deadline):
                await waiter.event.wait()
        except BaseException:
            if self._state is _State.HELD:
                self.release()
            waiter.go()
            raise
        if waiter.error is not None:
            raise waiter.error
        if not waiter.event.is_set():
            waiter.go()
            raise time_over(self.budgets)

    def take(self) -> Balance | None:
        """Reserve in every budget, or in none and return the one that has no room now."""
        assert self._state is not _State.SENT, "an attempt ends before the next one is reserved"
        if self.budgets:
            usage = self._estimate.usage(self._lengths)
            need, least = self._estimate.amount(usage), self._estimate.amount(self._estimate.least)
            for budget in self.budgets:
                budget.check(self._estimate, need, least)
            for budget in self.budgets:
                if budget.balance.earlier(self.ticket) or budget.balance.lacks(need):
                    return budget.balance
            for budget in self.budgets:
                budget.balance.promise(need)
            self._usage, self._need = usage, need
        self._state = _State.HELD
        return None

    def attempt(self) -> None:
        """Count the attempt, which goes on the wire now.

        Raises:
            BudgetExceeded: when the time ran out since it was held.
        """
        for budget in self.budgets:
            budget.check_time()
        self.send()

    def send(self) -> None:
        """Count the attempt, whatever the time is."""
        assert self._state is _State.HELD, "an attempt is held before it is sent"
        self._state = _State.SENT
        for budget in self.budgets:
            budget.balance.send()
            budget.record(self._item, Spent(attempts=1))
        self._admit()  # a call that is spent for good may be what others waited for

    def split(self) -> dict[Budget, Reservation]:
        """Hand over what is held, to a reservation for each budget, so that they can end one by one."""
        assert self._state is _State.HELD, "only what is held is handed over"
        self._state = _State.IDLE
        parts = {budget: Reservation(self._estimate, self._lengths, (budget,)) for budget in self.budgets}
        for part in parts.values():
            part._state, part._usage, part._need = _State.HELD, self._usage, self._need
        return parts

    def settle(self, usage: Usage) -> None:
        """End an attempt that got a reply, and learn how long replies are."""
        self.learn(usage)
        self.charge(usage)

    def learn(self, usage: Usage) -> None:
        """Note how long a reply was, for the estimates of later ones."""
        if usage.total_tokens:
            self._lengths.observe(self._item.purpose, self._item.model, usage.completion_tokens)

    def charge(self, usage: Usage) -> None:
        """End an attempt that got a reply; one without counts is charged at its reserve."""
        if usage.total_tokens:
            self._end(usage, calls=1)
        else:
            self._end(self._usage, calls=1, unknown=1)

    def failed(self, error: BaseException) -> None:
        """End an attempt that failed: a refusal is refunded, everything else may have been billed."""
        status = error.status if isinstance(error, ModelError) else None
        if status is not None and status >= 400 and status not in UNSURE:
            self.refund()
        else:
            self.unknown()

    def refund(self) -> None:
        """End an attempt that was surely not billed; that it was made still counts."""
        self._end(Usage())

    def unknown(self) -> None:
        """End an attempt of which nobody knows whether it was billed: it is counted at its reserve."""
        self._end(self._usage, unknown=1)

    def release(self) -> None:
        """Give back what was held for an attempt that was not sent."""
        assert self._state is _State.HELD, "only what is held is released"
        self._state = _State.IDLE
        for budget in self.budgets:
            budget.balance.give_back(self._need, _NOTHING)
        self._admit()

    def _end(self, usage: Usage, *, calls: int = 0, unknown: int = 0) -> None:
        assert self._state is _State.SENT, "only an attempt that was sent ends"
        self._state = _State.IDLE
        if not self.budgets:
            return
        price = self._estimate.price
        if unknown:
            record = Spent.of(price, unknown=1, reserved=usage) + Spent(calls)
        else:
            record = Spent.of(price, usage, calls=1) if calls else Spent()
        promised = self._need._replace(calls=0)
        spent = self._estimate.amount(usage)._replace(calls=0)
        for budget in self.budgets:
            budget.balance.give_back(promised, spent)
            budget.record(self._item, record)
        self._admit()

    def _admit(self) -> None:
        for budget in self.budgets:
            budget.balance.admit()

    def __exit__(self, *exc: object) -> None:
        if self._state is _State.HELD:
            self.release()
        elif self._state is _State.SENT:
            self.unknown()


def time_over(budgets: tuple[Budget, ...]) -> BudgetExceeded:
    """Return the error of the budget whose time ends first."""
    return min(budgets, key=lambda budget: budget.deadline).time_over()


async def reserve(runtime: Runtime, estimate: Estimate) -> Reservation:
    """Reserve one attempt in the budgets of this context, waiting for room; on the runtime's loop.

    Raises:
        BudgetExceeded: when there will be no room, or the time is over.
        UnknownPriceError: where dollars are limited and the model has no price.
    """
    reservation = reservation_of(runtime, estimate)
    await reservation.hold()
    return reservation


def reservation_of(runtime: Runtime, estimate: Estimate) -> Reservation:
    """Return a reservation that holds nothing yet."""
    return Reservation(
        estimate, runtime.resource(OutputEstimate, lambda: OutputEstimate(SHARE)), current_budgets()
    )
