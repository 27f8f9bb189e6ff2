"""Ledger: what was spent, for each phase, client and model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

from afnio.runtime.budget.amount import Amount
from afnio.runtime.budget.price import Price, cost, plus
from afnio.runtime.events import Usage

COLUMNS: Final = (
    "phase", "client", "model", "calls", "attempts", "unknown", "tokens in", "cached", "tokens out", "cost",
)  # fmt: skip
"""Headings of `Ledger.rows`."""

_SCHEMA: Final = 1
_NO_TOKENS: Final = Usage()


class Item(NamedTuple):
    """What a ledger tells apart; `client` is the label of an account."""

    purpose: str
    client: str
    model: str


@final
@dataclass(frozen=True, slots=True)
class Spent:
    """A sum over attempts.

    Attributes:
        calls: those that got a reply.
        attempts: requests on the wire, retries and failures among them.
        unknown: attempts whose tokens nobody knows: timed out, cut off, or answered without counts.
        usage: tokens as the provider counted them.
        reserved: tokens that the unknown attempts may have used; they count as spent.
        known_cost: dollars of the attempts whose price is known, the unknown ones at their reserve.
        unpriced: attempts whose price is unknown.
        prices: the prices, with the versions of their tables, that `known_cost` was computed with.
    """

    calls: int = 0
    attempts: int = 0
    unknown: int = 0
    usage: Usage = _NO_TOKENS
    reserved: Usage = _NO_TOKENS
    known_cost: Decimal = Decimal(0)
    unpriced: int = 0
    prices: tuple[Price, ...] = ()

    @classmethod
    def of(
        cls,
        price: Price | None,
        usage: Usage = _NO_TOKENS,
        *,
        calls: int = 0,
        attempts: int = 0,
        unknown: int = 0,
        reserved: Usage = _NO_TOKENS,
    ) -> Spent:
        """Return a sum with its cost at `price`; None leaves the cost unknown, not 0.

        >>> Spent.of(None, Usage(10, 5), calls=1, attempts=1).cost is None
        True
        """
        if price is None:
            return cls(calls, attempts, unknown, usage, reserved, unpriced=calls + unknown)
        known = plus(cost(price, usage, max(calls, 1)), cost(price, reserved, max(unknown, 1)))
        return cls(calls, attempts, unknown, usage, reserved, known, 0, (price,))

    @property
    def cost(self) -> Decimal | None:
        """Dollars, None where some price is unknown."""
        return None if self.unpriced else self.known_cost

    @property
    def amount(self) -> Amount:
        """What a budget counts of it."""
        total = self.usage + self.reserved
        return Amount(self.attempts, total.prompt_tokens + total.completion_tokens, self.known_cost)

    def __add__(self, other: Spent) -> Spent:
        prices = self.prices
        if other.prices and other.prices != prices:
            prices = tuple(dict.fromkeys(prices + other.prices))
        return Spent(
            self.calls + other.calls,
            self.attempts + other.attempts,
            self.unknown + other.unknown,
            self.usage + other.usage,
            self.reserved + other.reserved,
            plus(self.known_cost, other.known_cost),
            self.unpriced + other.unpriced,
            prices,
        )


@final
@dataclass(frozen=True, slots=True)
class Ledger:
    """A snapshot of what was spent; it never changes, and two of them add up.

    >>> from afnio.runtime.budget import Item, Spent
    >>> from afnio.runtime.events import Usage
    >>> one = Ledger({Item("forward", "https://host", "m"): Spent(calls=2, attempts=3, usage=Usage(20, 4))})
    >>> both = one + one
    >>> both.total.calls, Ledger.from_json(both.to_json()) == both
    (4, True)
    """

    items: Mapping[Item, Spent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    def __add__(self, other: Ledger) -> Ledger:
        items = dict(self.items)
        for item, spent in other.items.items():
            items[item] = items[item] + spent if item in items else spent
        return Ledger(items)

    def __reduce__(self) -> tuple[type[Ledger], tuple[dict[Item, Spent]]]:
        return Ledger, (dict(self.items),)

    @property
    def total(self) -> Spent:
        total = Spent()
        for spent in self.items.values():
            total += spent
        return total

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the cells under `COLUMNS` as text: one row for each item, in order, then their total."""
        for item, spent in sorted(self.items.items()):
            yield (*item, *_cells(spent))
        yield ("total", "", "", *_cells(self.total))

    def to_json(self) -> str:
        entries = [{**item._asdict(), **_fields(spent)} for item, spent in sorted(self.items.items())]
        return json.dumps({"ledger": _SCHEMA, "items": entries})

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Return the ledger that `to_json` wrote.

        Raises:
            ValueError: for a text that is no ledger, or of a newer Afnio.
        """
        try:
            parsed = json.loads(text)
            schema = parsed["ledger"]
            if schema == _SCHEMA:
                return cls({_item(entry): _spent(entry) for entry in parsed["items"]})
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise ValueError(
                f"this is no ledger ({text[:80]!r}: {error}); give what to_json() wrote"
            ) from error
        raise ValueError(f"this ledger has schema {schema!r}, not {_SCHEMA}; read it with a newer Afnio")

    def __str__(self) -> str:
        calls, attempts, unknown, tokens_in, cached, tokens_out, dollars = _cells(self.total)
        return (
            f"{calls} calls, {attempts} attempts ({unknown} unknown), {tokens_in} tokens in ({cached} cached), "
            f"{tokens_out} tokens out, {dollars}"
        )


def dollars(amount: Decimal) -> str:
    """Return an amount as people write it, with as many digits as it has and at least two.

    >>> dollars(Decimal("0.5")), dollars(Decimal("0.000195"))
    ('$0.50', '$0.000195')
    """
    text = f"{amount:f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0'):0<2}"


def _cells(spent: Spent) -> tuple[str, ...]:
    tokens = spent.usage + spent.reserved
    numbers = (
        spent.calls, spent.attempts, spent.unknown,
        tokens.prompt_tokens, tokens.cached_tokens, tokens.completion_tokens,
    )  # fmt: skip
    known = dollars(spent.known_cost)
    if spent.unpriced:  # a sum that leaves something out says so
        known = f"{known} + {spent.unpriced} unpriced" if spent.known_cost else f"{spent.unpriced} unpriced"
    return (*(f"{number:,}" for number in numbers), known)


def _fields(spent: Spent) -> dict[str, Any]:
    return {
        "calls": spent.calls,
        "attempts": spent.attempts,
        "unknown": spent.unknown,
        "usage": asdict(spent.usage),
        "reserved": asdict(spent.reserved),
        "known_cost": str(spent.known_cost),
        "unpriced": spent.unpriced,
        "prices": [price.to_dict() for price in spent.prices],
    }


def _item(entry: Mapping[str, Any]) -> Item:
    return Item(entry["purpose"], entry["client"], entry["model"])


def _spent(entry: Mapping[str, Any]) -> Spent:
    return Spent(
        entry["calls"],
        entry["attempts"],
        entry["unknown"],
        Usage(**entry["usage"]),
        Usage(**entry["reserved"]),
        Decimal(entry["known_cost"]),
        entry["unpriced"],
        tuple(Price.from_dict(price) for price in entry["prices"]),
    )
