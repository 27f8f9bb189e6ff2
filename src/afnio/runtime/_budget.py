"""Budgets: the most that the calls of a block may spend, in attempts, tokens, dollars and seconds.

Checking a limit after each reply is too late: a thousand calls may be on the wire by then. So a budget works like a
bank account with holds. Before an attempt is sent, the most that it may use up is *reserved* in every budget around
it. When it ends, the reservation turns into what it really used (`Charge`), and the rest is free again.

An attempt that doesn't fit now, but may fit when others end, waits in the line of the budget that lacks something. The
lines are ordered by ticket, and a waiting call holds nothing, so calls of nested budgets can't deadlock. One that can
never fit raises `BudgetExceeded` with the figures.

Everything below `Budget` runs on the runtime's loop. Only the blocks and the ledger are used from other threads.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum, auto
from typing import Any, Final, Self, final

import anyio

from afnio.errors import BudgetExceeded, UnknownPriceError
from afnio.runtime._control import RunGate, Sent, run_gate
from afnio.runtime._kernel import Runtime
from afnio.runtime._limits import OutputEstimate
from afnio.runtime._loop import loop_time
from afnio.runtime._settings import OpenBlock, Setting
from afnio.runtime._spending import RESERVE_SHARE, Amount, AttemptEstimate, Caps, Item, Ledger, Spent, dollars
from afnio.runtime.events import Usage

_NO_LEDGER: Final = Ledger()
_NO_SPENT: Final = Spent()


@final
class Budget(AbstractContextManager["Budget"], AbstractAsyncContextManager["Budget"]):
    """Limit what is launched in the block, over all clients, as `with` or `async with`.

    An attempt is sent only if the most that it may use up still fits. One that doesn't fit waits for the attempts in
    flight, and raises `BudgetExceeded` if they can't free enough. Retries count as attempts; replies from a journal
    are free. The limit is never exceeded if each request has a maximum of output tokens. Without one it may be
    exceeded by what was in flight. Blocks nest, and all of them must agree. A call belongs to the block that it was
    launched in, even if it runs later. Leaving the block waits for nothing.

    Args:
        max_calls: attempts on the wire.
        max_tokens: input and output together. An attempt whose tokens are unknown counts at its reserve.
        max_cost: dollars. A model without a price is refused, not counted as free.
        max_seconds: from the first entry into a block. Then calls in flight are cut off (they count at their
            reserve), and nothing more is sent. While the run is paused, the time stands still.
        spent_before: counts as spent from the start, for example what the continued run has spent.
        process_wide: limit every call of the process that begins while the block is open. A server needs it,
            because its requests don't run in the block of its lifespan. Other budgets count as nested in it.

    Raises:
        ValueError: if a limit isn't a number of 0 or more.

    >>> with Budget(max_calls=100, max_cost=0.50) as spending:
    ...     pass
    >>> print(spending.ledger)
    0 calls, 0 attempts (0 unknown), 0 tokens in (0 cached), 0 tokens out, $0.00
    """

    def __init__(
        self,
        *,
        max_calls: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | Decimal | None = None,
        max_seconds: float | None = None,
        spent_before: Ledger = _NO_LEDGER,
        process_wide: bool = False,
    ) -> None:
        self.caps = Caps(
            _whole("max_calls", max_calls), _whole("max_tokens", max_tokens), _number("max_cost", max_cost)
        )
        seconds = _number("max_seconds", max_seconds)
        self.max_seconds = None if seconds is None else float(seconds)
        self.process_wide = process_wide
        self.balance = Balance(self.caps)
        self._items: dict[Item, Spent] = {}
        self._before = _NO_LEDGER
        self._sources: list[object] = []
        self._entered: float | None = None
        self._deadline: float | None = None
        self._pid = os.getpid()
        self.charge(spent_before)

    @property
    def ledger(self) -> Ledger:
        """Everything spent so far, including what was charged. Can be read from any thread."""
        return self._before + Ledger(self._items.copy())  # copy: the loop's thread adds to it

    def charge(self, ledger: Ledger, source: object = None) -> None:
        """Count `ledger` as spent; from one thread at a time.

        Args:
            source: where it comes from, such as a journal; `has_charged` looks for it.

        Raises:
            UnknownPriceError: if dollars are limited and part of `ledger` has no price.
        """
        if self.caps.cost is not None:
            for item, spent in ledger.items.items():
                if spent.cost is None:
                    raise self._unpriced(item.model, item.client)
        self._before = self._before + ledger
        self.balance.before = self._before.total.amount
        if source is not None:
            self._sources.append(source)

    def has_charged(self, source: object) -> bool:
        """Return True if `source` was charged already."""
        return any(charged is source for charged in self._sources)

    # On the runtime's loop

    @property
    def deadline(self) -> float:
        """The loop's time at which its calls must end; infinite without `max_seconds`."""
        return self.ends(run_gate.get())

    def ends(self, gate: RunGate | None) -> float:
        """Return the deadline of calls that pass `gate`."""
        if self.max_seconds is None or self._entered is None or (gate is not None and gate.paused):
            return math.inf
        if self._deadline is None:
            # The block may have been entered on a thread without a loop, so its entry was timed by another clock.
            gone = time.monotonic() - self._entered
            self._deadline = loop_time() + self.max_seconds - gone
        if gate is None:
            return self._deadline
        return self._deadline + gate.lost(self._deadline - self.max_seconds, loop_time())

    def check(self, estimate: AttemptEstimate, need: Amount, least: Amount) -> None:
        """Raise if `need` will never fit, even if the attempts in flight give everything back.

        Raises:
            BudgetExceeded: if the time is over or a limit is too low.
            UnknownPriceError: if dollars are limited and the model has no price.
        """
        if self._pid != os.getpid():
            self._renew()
        self.check_time()
        if self.caps.cost is not None and estimate.price is None:
            raise self._unpriced(estimate.model, estimate.client)
        lacking = self.balance.never(need, least)
        if lacking is not None:
            raise out_of_room(self.balance, self.ledger, lacking, estimate, need)

    def check_time(self) -> None:
        if self.max_seconds is not None and loop_time() >= self.deadline:
            raise self.time_over()

    def time_over(self) -> BudgetExceeded:
        assert self.max_seconds is not None
        passed = loop_time() - self.deadline + self.max_seconds
        return out_of_time(self.max_seconds, passed, self.ledger)

    def record(self, item: Item, spent: Spent) -> None:
        self._items[item] = self._items.get(item, _NO_SPENT) + spent

    def move_attempt(self, item: Item, to: Item) -> None:
        """Count an attempt under another item, so that it is listed with its reply."""
        left = self._items[item] + Spent(attempts=-1)
        self.record(to, Spent(attempts=1))
        if left == _NO_SPENT:
            del self._items[item]
        else:
            self._items[item] = left

    def _renew(self) -> None:
        """Start again after a fork: what was in flight is the parent's, what was spent counts for both."""
        spent, before = self.balance.spent, self.balance.before
        self.balance = Balance(self.caps)
        self.balance.spent, self.balance.before = spent, before
        self._pid = os.getpid()

    def _unpriced(self, model: str, client: str) -> UnknownPriceError:
        return UnknownPriceError(
            f"max_cost={self.caps.cost} needs the price of {model!r} at {client}, which is unknown; write it "
            "into ~/.config/afnio/prices.toml or the file that AFNIO_PRICES names ([[price]] with model, "
            "input and output in dollars per million tokens), or install afnio[prices]"
        )

    # Blocks

    def __enter__(self) -> Self:
        if self._entered is None:
            self._entered = time.monotonic()
        if self.process_wide:
            _process_wide.append(self)
            return self
        outer = _block.get()
        budgets = () if outer is None else outer.budgets
        block = _Block(budgets if self in budgets else (*budgets, self), outer)
        _block.set(block)
        block.opened = OpenBlock()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process_wide:
            _process_wide.remove(self)
            return
        # Not by a context variable's token: several tasks may be in the block, and each would need its own.
        block = _block.get()
        assert block is not None, "a budget's block is left in the context that it was entered in"
        _block.set(block.outer)
        if block.opened is not None:
            block.opened.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()

    def __repr__(self) -> str:
        limits = {**self.caps._asdict(), "seconds": self.max_seconds}
        limited = ", ".join(f"max_{name}={value}" for name, value in limits.items() if value is not None)
        return f"budget({limited})"


budget = Budget
"""The name under which programs know it: `afnio.budget(max_calls=100)`."""


def current_budgets() -> tuple[Budget, ...]:
    """Return the budgets that govern what is launched here, outermost first."""
    block = _block.get()
    budgets = () if block is None else block.budgets
    return (*dict.fromkeys(_process_wide), *budgets) if _process_wide else budgets


@final
@dataclass(slots=True, eq=False)
class _Block:
    """The budgets that govern a block, outermost first, and the block around it."""

    budgets: tuple[Budget, ...]
    outer: _Block | None
    opened: OpenBlock | None = None


_block: ContextVar[_Block | None] = ContextVar("afnio_budgets", default=None)


# Needs no lock: append and remove are atomic, and nothing else changes it.
_process_wide: list[Budget] = []


def _number(name: str, value: Any) -> Decimal | None:
    if value is None:
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number < 0:
        raise ValueError(f"{name} must be a number of 0 or more (got {value!r}); omit it for no limit")
    return number


def _whole(name: str, value: Any) -> int | None:
    number = _number(name, value)
    if number is not None and number != int(number):
        raise ValueError(f"{name} must be a whole number (got {value!r})")
    return None if number is None else int(number)


# Reservations: the share of its budgets that one call holds, attempt by attempt.


class Charge(Enum):
    """How much of its reserve an attempt costs once it has ended. `AttemptOutcome` in `_call.py` decides."""

    # The tokens that its reply counted, or the reserve if it counted none.
    USED = auto()
    # All that was reserved, because it may have been billed.
    RESERVE = auto()
    # It certainly wasn't billed. That it was made still counts.
    NOTHING = auto()


_NO_USAGE: Final = Usage()
_NOTHING: Final = Amount()
_tickets = itertools.count()


@final
class Reservation(AbstractContextManager["Reservation"]):
    """The part of the budgets around it that one call holds.

    For each attempt: `hold` before admission, `attempt` when it goes on the wire, then `settle`. A call that
    waits for its next attempt holds nothing, so calls can't wait for one another in a circle. It keeps its
    ticket, so it goes before later ones. Leaving the block gives back what was never sent, and charges what
    was cut off at its reserve.
    """

    __slots__ = ("_estimate", "_gate", "_item", "_lengths", "_need", "_state", "_usage", "budgets", "ticket")

    def __init__(
        self, estimate: AttemptEstimate, lengths: OutputEstimate, budgets: tuple[Budget, ...]
    ) -> None:
        self.budgets = budgets
        self.ticket = next(_tickets)
        self._gate = run_gate.get()
        self._estimate = estimate
        self._lengths = lengths
        self._item = Item(estimate.purpose, estimate.client, estimate.model)
        self._state = _State.IDLE
        self._usage = _NO_USAGE
        self._need = _NOTHING

    @property
    def deadline(self) -> float:
        """The loop's time at which the call must end; infinite without `max_seconds`."""
        return min((budget.ends(self._gate) for budget in self.budgets), default=math.inf)

    @property
    def is_sent(self) -> bool:
        """True while an attempt is on the wire."""
        return self._state is _State.SENT

    def join(self, budget: Budget) -> None:
        """Count what it holds now, and its later attempts, in one more budget."""
        if budget in self.budgets or (budget.caps.cost is not None and self._estimate.price is None):
            return
        if self._state is not _State.IDLE:
            if not self.budgets:
                self._usage = self._estimate.usage(self._lengths)
                self._need = self._estimate.amount(self._usage)
            budget.balance.promise(self._need)
        if self._state is _State.SENT:
            budget.balance.send()
            budget.record(self._item, Spent(attempts=1))
        self.budgets = (budget, *self.budgets)

    def price_as(self, estimate: AttemptEstimate) -> None:
        """Reserve the next attempt at another price. What is held is given back first."""
        if self._state is _State.HELD:
            self.release()
        self._estimate = estimate
        self._item = Item(estimate.purpose, estimate.client, estimate.model)

    @property
    def held(self) -> bool:
        """True if an attempt is reserved and not yet sent."""
        return self._state is _State.HELD

    async def hold(self) -> None:
        """Reserve the next attempt in every budget, or wait until it fits. Do nothing if it is held already.

        Raises:
            BudgetExceeded: if it will never fit, or the time is over.
            UnknownPriceError: if dollars are limited and the model has no price.
        """
        refusing = None if self._state is _State.HELD else self.take()
        if refusing is None:
            return
        waiter = BudgetWaiter(self)
        refusing.queue(waiter)
        try:
            # A run's calls have a deadline that a pause moves, in `_call.py`.
            with anyio.CancelScope(deadline=self.deadline if self._gate is None else math.inf):
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
        """Reserve in every budget, or in none, and return the first one that it doesn't fit now."""
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
        """Count the attempt, because it is sent now.

        Raises:
            BudgetExceeded: if the time ran out since it was held.
        """
        for budget in self.budgets:
            budget.check_time()
        assert self._state is _State.HELD, "an attempt is held before it is sent"
        self._state = _State.SENT
        for budget in self.budgets:
            budget.balance.send()
            budget.record(self._item, Spent(attempts=1))
        self._admit()  # others may have waited for this call to be given back; now they know that it won't be

    def learn(self, usage: Usage) -> None:
        """Note how long a reply was, for the estimates of later ones."""
        if usage.total_tokens:
            self._lengths.observe(self._item.purpose, self._item.model, usage.completion_tokens)

    def settle(
        self, charge: Charge, usage: Usage | None = None, *, actual: AttemptEstimate | None = None
    ) -> None:
        """End an attempt that was sent.

        Args:
            usage: the tokens that its reply counted, or None without a reply.
            actual: what the reply is charged as, if its service tier has another price than was reserved.
        """
        charged = self._estimate if actual is None else actual
        if charge is Charge.NOTHING:
            self._end(_NO_USAGE, Spent(), charged)
            return
        price, calls = charged.price, int(charge is Charge.USED)
        if calls and usage is not None and usage.total_tokens:
            self._end(usage, Spent.of(price, usage, calls=1), charged)
        else:
            self._end(self._usage, Spent.of(price, unknown=1, reserved=self._usage) + Spent(calls), charged)

    def release(self) -> None:
        """Give back what was held for an attempt that wasn't sent."""
        assert self._state is _State.HELD, "only what is held is released"
        self._state = _State.IDLE
        for budget in self.budgets:
            budget.balance.give_back(self._need, _NOTHING)
        self._admit()

    def _end(self, usage: Usage, record: Spent, charged: AttemptEstimate) -> None:
        assert self._state is _State.SENT, "only an attempt that was sent ends"
        self._state = _State.IDLE
        if not self.budgets:
            return
        promised = self._need._replace(calls=0)
        spent = charged.amount(usage)._replace(calls=0)
        item = self._item._replace(client=charged.client)
        for budget in self.budgets:
            budget.balance.give_back(promised, spent)
            if item != self._item:
                budget.move_attempt(self._item, item)
            budget.record(item, record)
        self._admit()

    def _admit(self) -> None:
        for budget in self.budgets:
            budget.balance.admit()

    def __exit__(self, *exc: object) -> None:
        if self._state is _State.HELD:
            self.release()
        elif self._state is _State.SENT:
            self.settle(Charge.RESERVE)


class _State(Enum):
    # Holds nothing: not yet, between two attempts, or at the end.
    IDLE = auto()
    HELD = auto()
    SENT = auto()


async def reserve(runtime: Runtime, estimate: AttemptEstimate) -> Reservation:
    """Reserve one attempt in the budgets of this context, or wait until it fits.

    Raises:
        BudgetExceeded: if it will never fit, or the time is over.
        UnknownPriceError: if dollars are limited and the model has no price.
    """
    reservation = reservation_of(runtime, estimate)
    await reservation.hold()
    return reservation


def reservation_of(runtime: Runtime, estimate: AttemptEstimate) -> Reservation:
    """Return a reservation that holds nothing yet."""
    ceiling = run_ceiling.get()
    budgets = (
        current_budgets()
        if ceiling is None or ceiling.budget is None
        else (ceiling.budget, *current_budgets())
    )
    return Reservation(
        estimate, runtime.resource(OutputEstimate, lambda: OutputEstimate(RESERVE_SHARE)), budgets
    )


@final
class Ceiling:
    """The most that a run may spend, which can be changed while it runs.

    It comes on top of the budgets of the program. These alone decide how large the program makes its steps, so a
    ceiling changes no address and no request.

    Attributes:
        budget: None until there is a limit.
    """

    def __init__(self) -> None:
        self.budget: Budget | None = None
        self._kept = Amount()

    def limit(self, caps: Caps, spent: Ledger, calls: Iterable[Sent]) -> None:
        """Replace the limits; on the runtime's loop.

        Args:
            spent: by the run so far, without `calls`.
            calls: those under way.
        """
        if self.budget is None:
            self.budget = Budget(spent_before=spent)
            self.budget.balance.kept = self._kept
        self.budget.caps = self.budget.balance.caps = caps
        for call in calls:
            call.join(self.budget)
        self.budget.balance.admit()

    @contextmanager
    def keeping(self, amount: Amount) -> Iterator[None]:
        """Keep `amount` of what the ceiling leaves for what comes after the block."""
        self._keep(amount)
        try:
            yield
        finally:
            self._keep(Amount())

    def _keep(self, amount: Amount) -> None:
        self._kept = amount
        if self.budget is not None:
            self.budget.balance.kept = amount


# The ceiling of the run whose calls are launched in this context, or None.
run_ceiling: Final[Setting[Ceiling | None]] = Setting("ceiling", None)


# The sums of one budget, and the calls that wait for it.


@final
class Balance:
    """One budget's limits, spending and promises, and the line of attempts that wait for it.

    A later attempt doesn't overtake one that waits in this line, so small requests don't starve a large one. It may
    overtake one that waits in the line of a nested budget.
    """

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.before = Amount()
        self.spent = Amount()
        self.promised = Amount()
        self.kept = Amount()
        self.open = 0
        """Reservations that hold something. The amounts that they give back may let others in."""
        self._line: list[BudgetWaiter] = []

    def lacks(self, need: Amount) -> str | None:
        """Return the field that `need` would exceed now, or None."""
        return next(self.caps.exceeded(self.before + self.spent + self.promised + self.kept + need), None)

    def never(self, need: Amount, least: Amount) -> str | None:
        """Return the field that `need` would exceed even if every reservation was given back, or None.

        Args:
            least: the part of `need` that isn't a guess.
        """
        lacking = next(self.caps.exceeded(self.before + self.spent + self.kept + least), None)
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
        """Close one reservation: `spent` of it is gone, the rest is free again."""
        self.open -= 1
        self.promised -= promised
        self.spent += spent

    def earlier(self, ticket: int) -> bool:
        """Return True if an attempt with an earlier ticket waits here."""
        return bool(self._line) and self._line[0].reservation.ticket < ticket

    def queue(self, waiter: BudgetWaiter) -> None:
        waiter.balance = self
        heapq.heappush(self._line, waiter)

    def admit(self) -> None:
        """Answer the attempts at the head of the line that fit now, or never will."""
        while self._line:
            waiter = self._line[0]
            if waiter.balance is self and not waiter.leaves():
                return
            heapq.heappop(self._line)


@final
class BudgetWaiter:
    """An attempt that waits in the line of one of its budgets.

    Attributes:
        balance: the budget it waits for; None after it was answered or has left.
        error: why it will never fit, or None.
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
        """Try again. Return True if it leaves this line: it was answered, or waits for another budget now."""
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
        """Leave the line. The ones behind may fit where this one did not."""
        balance, self.balance = self.balance, None
        if balance is not None:
            balance.admit()

    def __lt__(self, other: BudgetWaiter) -> bool:
        return self.reservation.ticket < other.reservation.ticket


# Errors.


_AGAIN: Final = "and run again: a journal replays what was paid for"


def out_of_room(
    balance: Balance, ledger: Ledger, field: str, estimate: AttemptEstimate, need: Amount
) -> BudgetExceeded:
    """Return the error of a budget whose `field` would be exceeded by `need`."""
    value, needed = getattr(balance.caps, field), getattr(need, field)
    spent = getattr(balance.before + balance.spent, field)
    reserved = getattr(balance.promised, field)
    fix = f"raise max_{field}"
    if field != "calls":
        fix += " or give the request a smaller max_completion_tokens"
    return BudgetExceeded(
        f"max_{field}={value} leaves no room for a call of {estimate.model} ({estimate.purpose}), which may "
        f"need {_shown(field, needed)}: {_shown(field, spent)} spent, {_shown(field, reserved)} reserved by "
        f"attempts under way; {fix} {_AGAIN}",
        limit=f"max_{field}",
        value=value,
        spent=spent,
        reserved=reserved,
        ledger=ledger,
    )


def out_of_time(seconds: float, passed: float, ledger: Ledger) -> BudgetExceeded:
    """Return the error of a budget whose time is over."""
    return BudgetExceeded(
        f"max_seconds={seconds:g} are over ({passed:.1f} s since the block was entered; {ledger}); nothing more "
        "is sent, and what was on the wire is cut off and counts as unknown, at its reserve; raise max_seconds "
        f"{_AGAIN}",
        limit="max_seconds",
        value=seconds,
        spent=passed,
        reserved=0.0,
        ledger=ledger,
    )


def time_over(budgets: tuple[Budget, ...]) -> BudgetExceeded:
    """Return the error of the budget whose time ends first."""
    return min(budgets, key=lambda budget: budget.deadline).time_over()


def _shown(field: str, number: Any) -> str:
    return dollars(number) if field == "cost" else f"{number:,} {field}"
