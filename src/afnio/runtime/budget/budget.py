"""Budget: the most that what is launched in a block may spend."""

from __future__ import annotations

import math
import os
import time
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple, Self, final

import anyio

from afnio.errors import BudgetExceeded
from afnio.runtime.budget.amount import Amount, Caps
from afnio.runtime.budget.balance import Balance
from afnio.runtime.budget.estimate import Estimate
from afnio.runtime.budget.ledger import Item, Ledger, Spent
from afnio.runtime.budget.price import UnknownPriceError
from afnio.runtime.budget.refusal import out_of_room, out_of_time

_NOTHING: Final = Ledger()
_NO_SPENT: Final = Spent()


class _Block(NamedTuple):
    """The budgets that govern a block, outermost first, and the block around it."""

    budgets: tuple[Budget, ...]
    outer: _Block | None


_block: ContextVar[_Block | None] = ContextVar("afnio_budgets", default=None)
# Changed by append and remove alone, which are atomic, so it needs no lock.
_process_wide: list[Budget] = []


@final
class Budget(AbstractContextManager["Budget"], AbstractAsyncContextManager["Budget"]):
    """Limit what is launched in the block, over all clients, as `with` or `async with`.

    An attempt is sent only if what it may use up still fits; what doesn't fit waits for attempts under way
    to settle, and raises `BudgetExceeded` once they can't free enough. Retries are attempts, replies from
    a journal are free. With a maximum of output tokens in each request the limit is never passed; without,
    by no more than what was in flight. Blocks nest, and each must agree. What was launched in the block is
    governed by it also when it runs later; leaving the block waits for nothing.

    Args:
        max_calls: attempts on the wire.
        max_tokens: input and output together; an attempt whose tokens nobody knows counts at its reserve.
        max_cost: dollars; a model without a price is refused, never counted as free.
        max_seconds: from the first entry into a block on; then calls under way are cut off, which count
            at their reserve, and no attempt is sent.
        spent_before: what counts as spent from the start, such as by the run that this one continues.
        process_wide: limit every call of the process that begins while the block is open, wherever it is
            made, such as by a server's requests, which don't run in the block of its lifespan. Other
            budgets count as nested in it.

    Raises:
        ValueError: for a limit that is no number of 0 or more.

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
        spent_before: Ledger = _NOTHING,
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
        self._before = _NOTHING
        self._sources: list[object] = []
        self._entered: float | None = None
        self._deadline: float | None = None
        self._pid = os.getpid()
        self.charge(spent_before)

    @property
    def ledger(self) -> Ledger:
        """What was spent until now, what was charged among it; from any thread, at any time."""
        return self._before + Ledger(self._items.copy())  # copied at once, as the loop's thread goes on

    def charge(self, ledger: Ledger, source: object = None) -> None:
        """Count `ledger` as spent; from one thread at a time.

        Args:
            source: where it comes from, such as a journal, so that `has_charged` can tell.

        Raises:
            UnknownPriceError: where dollars are limited and part of `ledger` has no price.
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
        """Whether what `source` says was spent is counted already."""
        return any(known is source for known in self._sources)

    # On the runtime's loop

    @property
    def deadline(self) -> float:
        """When its calls have to end, by the loop's clock; infinite without `max_seconds`."""
        if self.max_seconds is None or self._entered is None:
            return math.inf
        if self._deadline is None:
            # The block may be entered on a thread without a loop, by whose clock the rest is timed.
            gone = time.monotonic() - self._entered
            self._deadline = anyio.current_time() + self.max_seconds - gone
        return self._deadline

    def check(self, estimate: Estimate, need: Amount, least: Amount) -> None:
        """Raise if `need` will never fit, whatever the attempts under way give back.

        Raises:
            BudgetExceeded: when the time is over or a limit leaves no room.
            UnknownPriceError: where dollars are limited and the model has no price.
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
        if self.max_seconds is not None and anyio.current_time() >= self.deadline:
            raise self.time_over()

    def time_over(self) -> BudgetExceeded:
        assert self.max_seconds is not None
        passed = anyio.current_time() - self.deadline + self.max_seconds
        return out_of_time(self.max_seconds, passed, self.ledger)

    def record(self, item: Item, spent: Spent) -> None:
        self._items[item] = self._items.get(item, _NO_SPENT) + spent

    def _renew(self) -> None:
        """After a fork: what was under way is the parent's, what was spent counts for both."""
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
        _block.set(_Block(budgets if self in budgets else (*budgets, self), outer))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process_wide:
            _process_wide.remove(self)
            return
        # Not by a token, which would have to be kept for each task that is in the block.
        block = _block.get()
        assert block is not None, "a budget's block is left in the context that it was entered in"
        _block.set(block.outer)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()

    def __repr__(self) -> str:
        limits = {**self.caps._asdict(), "seconds": self.max_seconds}
        given = ", ".join(f"max_{name}={value}" for name, value in limits.items() if value is not None)
        return f"budget({given})"


budget = Budget
"""The name under which programs know it: `afnio.budget(max_calls=100)`."""


def current_budgets() -> tuple[Budget, ...]:
    """Return the budgets that govern what is launched here, outermost first."""
    block = _block.get()
    budgets = () if block is None else block.budgets
    return (*dict.fromkeys(_process_wide), *budgets) if _process_wide else budgets


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
