"""Amount: what budgets count, and the caps on it."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple, final

from afnio.runtime.budget.price import minus, plus


@final
class Amount(NamedTuple):
    """Calls on the wire, tokens in and out, dollars.

    >>> Amount(1, 100) + Amount(1, 20, Decimal("0.5"))
    Amount(calls=2, tokens=120, cost=Decimal('0.5'))
    """

    calls: int = 0
    tokens: int = 0
    cost: Decimal = Decimal(0)

    def __add__(self, other: Amount) -> Amount:  # type: ignore[override]
        return Amount(self.calls + other.calls, self.tokens + other.tokens, plus(self.cost, other.cost))

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.calls - other.calls, self.tokens - other.tokens, minus(self.cost, other.cost))


@final
class Caps(NamedTuple):
    """The most that may be spent; None where there is no limit."""

    calls: int | None = None
    tokens: int | None = None
    cost: Decimal | None = None

    def exceeded(self, amount: Amount) -> Iterator[str]:
        """Yield the fields in which `amount` is more than allowed.

        >>> list(Caps(calls=10, tokens=100).exceeded(Amount(11, 100)))
        ['calls']
        """
        if self.calls is not None and amount.calls > self.calls:
            yield "calls"
        if self.tokens is not None and amount.tokens > self.tokens:
            yield "tokens"
        if self.cost is not None and amount.cost > self.cost:
            yield "cost"
