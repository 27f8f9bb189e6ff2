"""Estimate: what a call may use up, before anybody knows what it will."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, final

from afnio.runtime.budget.amount import Amount
from afnio.runtime.budget.price import Price, cost
from afnio.runtime.events import Usage
from afnio.runtime.output_estimate import OutputEstimate

SHARE: Final = 0.95
"""Share of the replies that a budget's reserve covers; more than admission's, as money is at stake."""


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

    def usage(self, lengths: OutputEstimate) -> Usage:
        """Return what an attempt is reserved for."""
        output = self.max_output_tokens
        return Usage(
            self.prompt_tokens, lengths.tokens(self.purpose, self.model) if output is None else output
        )

    @property
    def least(self) -> Usage:
        """What an attempt needs whatever the guess about its output is."""
        return Usage(self.prompt_tokens, self.max_output_tokens or 0)

    def amount(self, usage: Usage) -> Amount:
        """Return `usage` as one call of this price."""
        dollars = Decimal(0) if self.price is None else cost(self.price, usage)
        return Amount(1, usage.prompt_tokens + usage.completion_tokens, dollars)
