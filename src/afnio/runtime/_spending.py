"""Spending: prices, amounts and ledgers, as plain values.

`Price` turns the tokens of a call into exact dollars. `AttemptEstimate` is the most that one attempt may use up before
anything is known about its reply; budgets reserve it. `Spent` sums up attempts, and `Ledger` keeps one `Spent` for each
phase, client and model. Unknown prices stay unknown (`cost` is None): counted as 0 they would look free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

from afnio.runtime._limits import OutputEstimate
from afnio.runtime.events import Usage

# Don't use the current decimal context: launches inherit the user's, and its precision may be three digits.
_EXACT: Final = Context(prec=60)


@final
@dataclass(frozen=True, slots=True)
class Tier:
    """Prices of all tokens of a request whose prompt has more than `above` tokens."""

    above: int
    input: Decimal
    cached: Decimal
    output: Decimal


@final
@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens.

    Attributes:
        input: of prompt tokens that weren't in the provider's cache.
        cached: of prompt tokens that were.
        output: of completion tokens, including reasoning.
        source: of the price: a file's path, "genai-prices", ….
        version: of that table, kept with each cost, so that old costs never change.
        tiers: higher prices of long prompts, ascending.
    """

    input: Decimal
    cached: Decimal
    output: Decimal
    source: str = ""
    version: str = ""
    tiers: tuple[Tier, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the price as JSON types. Decimals become text, because floats wouldn't be exact."""
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


# The service tier that is slower than the standard one, and cheaper at some providers.
FLEX: Final = "flex"
# The tier of replies that came by a provider's batch API. No provider names it: the engine does.
BATCH: Final = "batch"


def at_tier(url: str, tier: str) -> str:
    """Return the name of an account's URL in ledgers and journals for a reply of a service tier.

    Other names than "flex" and "batch" have the standard price, so they have the URL's own row.

    >>> at_tier("https://api.openai.com/v1", "flex"), at_tier("https://api.openai.com/v1", "default")
    ('https://api.openai.com/v1#flex', 'https://api.openai.com/v1')
    """
    return f"{url}#{tier}" if tier in (FLEX, BATCH) else url


def plus(one: Decimal, other: Decimal) -> Decimal:
    """Return the exact sum, regardless of the caller's decimal context."""
    return _EXACT.add(one, other)


def times(one: Decimal, other: Decimal) -> Decimal:
    return _EXACT.multiply(one, other)


def minus(one: Decimal, other: Decimal) -> Decimal:
    return _EXACT.subtract(one, other)


def _rates(prices: Price | Tier) -> dict[str, str]:
    return {"input": str(prices.input), "cached": str(prices.cached), "output": str(prices.output)}


def _decimals(fields: Mapping[str, Any]) -> tuple[Decimal, Decimal, Decimal]:
    return Decimal(fields["input"]), Decimal(fields["cached"]), Decimal(fields["output"])


# Estimates of attempts, and the limits of budgets.


# Share of the replies that a reserve covers; more than admission's, because money is at stake.
RESERVE_SHARE: Final = 0.95


@final
@dataclass(frozen=True, slots=True)
class AttemptEstimate:
    """The most that one attempt may use up.

    Attributes:
        client: URL of the account, as ledgers show it.
        prompt_tokens: counted, or estimated from above. A prompt that turns out longer is counted in full.
        max_output_tokens: what the request allows, or None; then the running 95th percentile of the
            output of this purpose and model is reserved, `DEFAULT_OUTPUT` before there is any.
        price: None if unknown. A budget with `max_cost` refuses the call then.
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
        """The part of it that doesn't depend on a guess about the reply."""
        return Usage(self.prompt_tokens, self.max_output_tokens or 0)

    def amount(self, usage: Usage) -> Amount:
        """Return `usage` as one call of this price."""
        dollars = Decimal(0) if self.price is None else cost(self.price, usage)
        return Amount(1, usage.prompt_tokens + usage.completion_tokens, dollars)


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
    """The most that may be spent, or None without a limit."""

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


# Spending.


# Headings of `Ledger.rows`.
COLUMNS: Final = (
    "phase", "client", "model", "calls", "attempts", "unknown", "tokens in", "cached", "tokens out", "cost",
)  # fmt: skip
_SCHEMA: Final = 1
_NO_TOKENS: Final = Usage()


class Item(NamedTuple):
    """A row of a ledger; `client` is the URL of an account."""

    purpose: str
    client: str
    model: str


@final
@dataclass(frozen=True, slots=True)
class Spent:
    """A sum over attempts.

    Attributes:
        calls: that got a reply.
        attempts: requests sent, including retries and failures.
        unknown: attempts whose tokens are unknown: timed out, cut off, or answered without counts.
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
        priced = plus(cost(price, usage, max(calls, 1)), cost(price, reserved, max(unknown, 1)))
        return cls(calls, attempts, unknown, usage, reserved, priced, 0, (price,))

    @property
    def cost(self) -> Decimal | None:
        """Dollars, or None if some price is unknown."""
        return None if self.unpriced else self.known_cost

    @property
    def amount(self) -> Amount:
        """The part of it that budgets limit."""
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

    >>> from afnio.runtime._spending import Item, Spent
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
            ValueError: if the text isn't a ledger, or a newer Afnio wrote it.
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
        count, separator, most = unknown.partition(" ")
        return (
            f"{calls} calls, {attempts} attempts ({count} unknown{separator}{most}), {tokens_in} tokens in "
            f"({cached} cached), {tokens_out} tokens out, {dollars}"
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
    # What a lost attempt may have used isn't what was used.
    unknown, most = f"{spent.unknown:,}", spent.reserved.total_tokens
    if most:
        unknown = f"{unknown} (at most {most:,} tokens)"
    used = spent.usage.prompt_tokens, spent.usage.cached_tokens, spent.usage.completion_tokens
    cost_text = dollars(spent.known_cost)
    if spent.unpriced:  # the sum leaves them out, so it must show them
        cost_text = (
            f"{cost_text} + {spent.unpriced} unpriced" if spent.known_cost else f"{spent.unpriced} unpriced"
        )
    return (
        f"{spent.calls:,}",
        f"{spent.attempts:,}",
        unknown,
        *(f"{number:,}" for number in used),
        cost_text,
    )


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


# Token counts, which providers get wrong.


# Counts above it are impossible: the largest contexts are a tenth of it.
MOST_TOKENS: Final = 100_000_000


def possible_usage(usage: Usage, prompt_tokens: int, output_tokens: int) -> Usage:
    """Return `usage` itself, or one in which impossible counts are replaced by the expected ones.

    0 would make the reply free, and a huge number would end every budget.
    """
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    if all(isinstance(count, int) and 0 <= count <= MOST_TOKENS for count in counts):
        return usage
    return Usage(*map(_count, counts, (prompt_tokens, output_tokens, 0, 0)))


def _count(tokens: Any, otherwise: int) -> int:
    """Return a count of tokens as a whole number, 0 for None; `otherwise` if it is impossible."""
    try:
        whole = math.ceil(tokens or 0)
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinite
        return otherwise
    return whole if 0 <= whole <= MOST_TOKENS else otherwise
