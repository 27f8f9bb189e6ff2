"""Price: what a model's tokens cost, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Final, final

from afnio.errors import AfnioError
from afnio.runtime.events import Usage

_EXACT: Final = Context(prec=60)
"""A context of our own: launches inherit the user's, and its precision may be three digits."""


class UnknownPriceError(AfnioError, LookupError):
    """Dollars are limited, and nothing says what this model costs."""


@final
@dataclass(frozen=True, slots=True)
class Tier:
    """Prices of a request whose prompt has more than `above` tokens; they hold for all of its tokens."""

    above: int
    input: Decimal
    cached: Decimal
    output: Decimal


@final
@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens.

    Attributes:
        input: of prompt tokens that the provider didn't have in its cache.
        cached: of prompt tokens that it had.
        output: of completion tokens, those of reasoning among them.
        source: who says so: a file's path, "genai-prices", ….
        version: of that table, kept with each cost, so that old costs never change.
        tiers: dearer prices of long prompts, ascending.
    """

    input: Decimal
    cached: Decimal
    output: Decimal
    source: str = ""
    version: str = ""
    tiers: tuple[Tier, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the price as JSON types; decimals as text, as a float would not be exact."""
        rates: dict[str, Any] = _rates(self)
        tiers = [{"above": tier.above, **_rates(tier)} for tier in self.tiers]
        return {**rates, "source": self.source, "version": self.version, "tiers": tiers}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Price:
        tiers = tuple(Tier(tier["above"], *_decimals(tier)) for tier in fields["tiers"])
        return cls(*_decimals(fields), fields["source"], fields["version"], tiers)


def cost(price: Price, usage: Usage, calls: int = 1) -> Decimal:
    """Return the dollars that `usage` costs, exactly.

    The usage of several calls is priced in the tier of their mean prompt.

    >>> price = Price(Decimal("0.15"), Decimal("0.075"), Decimal("0.60"))
    >>> cost(price, Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=200))
    Decimal('0.000195')
    """
    rates: Price | Tier = price
    for tier in price.tiers:
        if usage.prompt_tokens > tier.above * calls:
            rates = tier
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    total = _EXACT.multiply(rates.input, usage.prompt_tokens - cached)
    total = _EXACT.fma(rates.cached, cached, total)
    total = _EXACT.fma(rates.output, usage.completion_tokens, total)
    return _EXACT.normalize(_EXACT.scaleb(total, -6))


def plus(one: Decimal, other: Decimal) -> Decimal:
    """Return the exact sum, whatever the caller's decimal context."""
    return _EXACT.add(one, other)


def minus(one: Decimal, other: Decimal) -> Decimal:
    return _EXACT.subtract(one, other)


def _rates(prices: Price | Tier) -> dict[str, str]:
    return {"input": str(prices.input), "cached": str(prices.cached), "output": str(prices.output)}


def _decimals(fields: Mapping[str, Any]) -> tuple[Decimal, Decimal, Decimal]:
    return Decimal(fields["input"]), Decimal(fields["cached"]), Decimal(fields["output"])
