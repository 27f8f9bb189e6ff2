"""Estimate: what a call may use up, before anybody knows what it will."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, final

from afnio.runtime.budget.amount import Amount
from afnio.runtime.budget.price import Price, cost
from afnio.runtime.events import Usage

DEFAULT_OUTPUT: Final = 512
"""Output tokens reserved for a call without a maximum, before one like it has been answered."""
WINDOW: Final = 256
"""Replies that the running 95th percentile is taken over."""


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """Who asks whom, and the most tokens that one attempt may use up.

    Attributes:
        client: label of the account, as ledgers show it.
        prompt_tokens: counted, or estimated from above; a prompt that turns out longer is counted in full.
        max_output_tokens: what the request allows, or None; then the running 95th percentile of the
            output of this purpose and model is reserved, `DEFAULT_OUTPUT` before there is any.
        price: None where it is unknown; a budget with `max_cost` refuses the call then.
    """

    model: str
    client: str
    purpose: str
    prompt_tokens: int
    max_output_tokens: int | None = None
    price: Price | None = None

    def usage(self, lengths: OutputLengths) -> Usage:
        """Return what an attempt is reserved for."""
        output = self.max_output_tokens
        return Usage(
            self.prompt_tokens, lengths.expected(self.purpose, self.model) if output is None else output
        )

    @property
    def least(self) -> Usage:
        """What an attempt needs whatever the guess about its output is."""
        return Usage(self.prompt_tokens, self.max_output_tokens or 0)

    def amount(self, usage: Usage) -> Amount:
        """Return `usage` as one call of this price."""
        dollars = Decimal(0) if self.price is None else cost(self.price, usage)
        return Amount(1, usage.prompt_tokens + usage.completion_tokens, dollars)


@final
class OutputLengths:
    """The running 95th percentile of the output tokens of each purpose and model; one for each runtime.

    >>> lengths = OutputLengths()
    >>> lengths.expected("forward", "m")
    512
    >>> for tokens in range(100):
    ...     lengths.observe("forward", "m", tokens)
    >>> lengths.expected("forward", "m")
    94
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[deque[int], list[int]]] = {}

    def observe(self, purpose: str, model: str, tokens: int) -> None:
        newest, ordered = self._seen.setdefault((purpose, model), (deque(), []))
        newest.append(tokens)
        insort(ordered, tokens)
        if len(newest) > WINDOW:
            del ordered[bisect_left(ordered, newest.popleft())]

    def expected(self, purpose: str, model: str) -> int:
        seen = self._seen.get((purpose, model))
        if seen is None:
            return DEFAULT_OUTPUT
        ordered = seen[1]
        return ordered[math.ceil(0.95 * len(ordered)) - 1]

    async def aclose(self) -> None:
        return
