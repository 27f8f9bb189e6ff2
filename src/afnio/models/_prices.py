"""Prices: what a model costs at an endpoint, for budgets in dollars and for what runs show.

Prices come from the user's price file, then from the package genai-prices if it is installed (`afnio[prices]`). Its
bundled table is used and nothing is fetched. Without a price, cost is unknown and never guessed: a budget in dollars
refuses such a model.

The user's file is named by AFNIO_PRICES, or it is ~/.config/afnio/prices.toml. It is TOML or JSON, and the first row
that matches is used. In TOML:

    version = "2026-11"

    [[price]]
    model = "qwen3-*"
    url = "http://127.0.0.1:8080"
    input = 0.15      # dollars per million tokens
    cached = 0.075    # default: the price of input
    output = 0.60
    tier = "flex"     # or "batch"; default: the standard service tier

`version`, `url`, `cached` and `tier` may be left out. Without a row for it, a tier has its share of the standard price
at the providers that are known to reduce it (`_SHARES`), and the full price elsewhere. JSON has the same keys:
{"version": "2026-11", "price": [{"model": …}]}.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, final
from urllib.parse import urlsplit

from afnio.runtime._budget import Budget, current_budgets, run_ceiling
from afnio.runtime._callables import look_up
from afnio.runtime._spending import BATCH, FLEX, Ledger, Price, Spent, Tier, at_tier, times
from afnio.runtime._waiting import active_journal

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal

# The environment variable with the path of the user's price file.
ENVIRONMENT: Final = "AFNIO_PRICES"


def price_of(model: str, provider_url: str) -> Price | None:
    """Return the price of `model` at the endpoint with the base URL `provider_url`, or None if it is unknown.

    A URL that ends with `#flex` or `#batch`, as in ledgers, has the price of that tier.

    Answers are cached for the life of the process. The first one reads a file or imports a package, which takes
    0.2 s: call it in a thread, not on an event loop.

    Raises:
        ValueError: if the price file isn't valid. The message names the line or the key.
        OSError: if the file that `AFNIO_PRICES` names can't be read.

    >>> print(price_of("a-model-of-my-own", "http://127.0.0.1:8080/v1"))
    None
    """
    return _price_of(_user_file(), model, provider_url)


@cache
def _price_of(file: Path | None, model: str, url: str) -> Price | None:
    url, _, tier = url.partition("#")
    table = None if file is None else _read(file)
    if tier and table is not None and (price := table.find(model, url, tier)) is not None:
        return price
    price = (None if table is None else table.find(model, url)) or _listed(model, url)
    return _shared(price, _share(url, tier)) if price is not None and tier else price


# Shares of the standard price by provider and tier. The tier "flex" of another provider (Groq) costs the full
# price.
#
# Sources: https://platform.openai.com/docs/guides/flex-processing,
# https://platform.openai.com/docs/guides/batch,
# https://docs.anthropic.com/en/docs/build-with-claude/batch-processing, https://console.groq.com/docs/batch
_SHARES: Final = {
    ("api.openai.com", FLEX): Decimal("0.5"),
    ("api.openai.com", BATCH): Decimal("0.5"),
    ("api.anthropic.com", BATCH): Decimal("0.5"),
    ("api.groq.com", BATCH): Decimal("0.5"),
}


def _share(url: str, tier: str) -> Decimal:
    host = urlsplit(url).hostname or ""
    of_host = (
        share for (name, of), share in _SHARES.items() if of == tier and f".{host}".endswith(f".{name}")
    )
    return next(of_host, Decimal(1))


def _shared(price: Price, share: Decimal) -> Price:
    def rates(of: Price | Tier) -> dict[str, Any]:
        return {name: times(getattr(of, name), share) for name in ("input", "cached", "output")}

    tiers = tuple(replace(tier, **rates(tier)) for tier in price.tiers)
    return replace(price, **rates(price), tiers=tiers)


def _user_file() -> Path | None:
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).expanduser()
    default = Path("~/.config/afnio/prices.toml").expanduser()
    return default if default.is_file() else None


async def governed_prices(model: str, url: str) -> tuple[Price | None, Mapping[str, Price | None]]:
    """Return a model's prices for the budgets of this context: the standard one, and those by service tier.

    They are None if unknown, or if there are no budgets.

    First it charges the budgets for the spending of earlier runs that the context's journal recorded.
    """
    budgets, ceiling = current_budgets(), run_ceiling.get()
    if not budgets and (ceiling is None or ceiling.budget is None):
        return None, {}

    journal = active_journal.get()
    if journal is not None:
        await _count_earlier_runs(budgets, journal)
    asked = (os.environ.get(ENVIRONMENT), model, url)
    if asked not in _looked_up:
        # In a thread: the first lookup reads a file or imports a package. Later ones need no thread, and so
        # leave the calls of a batch in their order.
        _looked_up[asked] = await look_up(_prices_of, model, url)
    return _looked_up[asked]


def _prices_of(model: str, url: str) -> tuple[Price | None, Mapping[str, Price | None]]:
    return price_of(model, url), {tier: price_of(model, at_tier(url, tier)) for tier in (FLEX, BATCH)}


# Answers of `price_of`, for the runtime's thread.
_looked_up: dict[tuple[str | None, str, str], tuple[Price | None, Mapping[str, Price | None]]] = {}


async def _count_earlier_runs(budgets: tuple[Budget, ...], journal: Journal) -> None:
    new = [budget for budget in budgets if not budget.has_charged(journal)]
    if not new:
        return
    ledger = await look_up(earlier_ledger, journal)
    for budget in new:
        if not budget.has_charged(journal):  # another call may have charged it during the await
            budget.charge(ledger, journal)


def earlier_ledger(journal: Journal) -> Ledger:
    """Return the spending that a journal recorded before it was opened. Call it in a thread: it looks prices up."""
    items = {}
    for item, spent in journal.spent_before.items.items():
        items[item] = Spent.of(
            price_of(item.model, item.client),
            spent.usage,
            calls=spent.calls,
            attempts=spent.attempts,
            unknown=spent.unknown,
            reserved=spent.reserved,
        )
    return Ledger(items)


# The price file


_FILE_KEYS: Final = {"version", "price"}
_PRICE_KEYS: Final = {"model", "url", "tier", "input", "cached", "output"}


@final
@dataclass(frozen=True, slots=True)
class PriceRow:
    """The price of the models that match the pattern `model`, at endpoints whose base URL begins with `url`.

    It holds at the service tier `tier`; "" is the standard one.
    """

    model: str
    url: str
    price: Price
    tier: str = ""

    def fits(self, model: str, url: str, tier: str) -> bool:
        return tier == self.tier and fnmatchcase(model, self.model) and url.startswith(self.url)


@final
@dataclass(frozen=True, slots=True)
class PriceFile:
    """The rows of a price file. The first one that matches is used."""

    rows: tuple[PriceRow, ...]

    @classmethod
    def read(cls, path: Path) -> PriceFile:
        """Return the prices in the file at `path`.

        Raises:
            ValueError: if it isn't a valid price file. The message names the file and the line or key.
            OSError: if it can't be read.
        """
        content = path.read_bytes()
        try:
            table = _parse(path, content)
        except ValueError as error:  # its text names the line, or the byte that isn't UTF-8
            raise ValueError(
                f"{path} can't be read as {_format(path)} ({error}); correct that line"
            ) from error
        return cls.of(table, str(path), hashlib.sha256(content).hexdigest()[:12])

    @classmethod
    def of(cls, table: Any, source: str, digest: str) -> PriceFile:
        """Return the prices of a parsed file.

        >>> rows = [{"model": "m", "input": 1, "output": 2}]
        >>> PriceFile.of({"price": rows}, "prices.toml", "c0ffee").find("m", "https://host").output
        Decimal('2')
        """
        if not isinstance(table, Mapping) or not isinstance(table.get("price"), list):
            _refuse(source, "price", "must be a list of prices ([[price]] in TOML)")
        _check_keys(source, "", table, _FILE_KEYS)
        version = str(table.get("version", digest))
        return cls(tuple(_row(source, version, n, row) for n, row in enumerate(table["price"], 1)))

    def find(self, model: str, url: str, tier: str = "") -> Price | None:
        return next((row.price for row in self.rows if row.fits(model, url, tier)), None)


def _parse(path: Path, content: bytes) -> Any:
    text = content.decode()
    if _format(path) == "JSON":
        return json.loads(text, parse_float=Decimal)
    import tomllib

    return tomllib.loads(text, parse_float=Decimal)


def _format(path: Path) -> str:
    return "JSON" if path.suffix.lower() == ".json" else "TOML"


def _row(source: str, version: str, number: int, row: Any) -> PriceRow:
    if not isinstance(row, Mapping):
        _refuse(source, f"price {number}", f"must be a table (got {row!r})")
    model, url = row.get("model"), row.get("url", "")
    if not isinstance(model, str) or not model:
        _refuse(source, f"price {number}: model", f"must be a model's name (got {model!r})")
    place = f"price {number} ({model!r})"
    if not isinstance(url, str):
        _refuse(source, f"{place}: url", f"must be the start of a base URL (got {url!r})")
    tier = row.get("tier", "")
    if tier not in ("", FLEX, BATCH):
        _refuse(source, f"{place}: tier", f"must be {FLEX!r} or {BATCH!r}, or be left out (got {tier!r})")
    _check_keys(source, f"{place}: ", row, _PRICE_KEYS)
    rates = {key: _rate(source, f"{place}: {key}", row.get(key)) for key in ("input", "output")}
    cached = _rate(source, f"{place}: cached", row["cached"]) if "cached" in row else rates["input"]
    return PriceRow(model, url, Price(rates["input"], cached, rates["output"], source, version), tier)


def _rate(source: str, place: str, value: Any) -> Decimal:
    try:
        rate = Decimal(value) if isinstance(value, int | str | Decimal) else Decimal("NaN")
    except InvalidOperation:
        rate = Decimal("NaN")
    if isinstance(value, bool) or not rate.is_finite() or rate < 0:
        _refuse(source, place, f"must be dollars per million tokens, 0 or more (got {value!r})")
    return rate


def _check_keys(source: str, place: str, table: Mapping[str, Any], allowed: set[str]) -> None:
    for key in table:
        if key not in allowed:
            _refuse(source, f"{place}{key}", f"isn't a known key; use {', '.join(sorted(allowed))}")


def _refuse(source: str, place: str, why: str) -> NoReturn:
    raise ValueError(f"{source}: {place} {why}")


_read = cache(PriceFile.read)


# The table of genai-prices


def _listed(model: str, url: str) -> Price | None:
    """Return the price in the table of genai-prices."""
    try:
        package: Any = import_module("genai_prices")
    except ImportError:
        return None
    nothing = package.Usage(input_tokens=0, output_tokens=0)
    try:
        # Take the table's row and not the computed price: versions 0.0.x add up tiers, unlike the providers.
        row = package.calc_price(nothing, model, provider_api_url=url).model_price
    except LookupError:
        return None
    from importlib.metadata import version  # 10 ms, that not every program needs to pay

    return _from_row(row, version("genai-prices"))


def _from_row(row: Any, table: str) -> Price | None:
    """Return the price in a row of genai-prices, or None if it bills for more than input and output tokens."""
    prompt, cached, output = (
        getattr(row, f"{kind}_mtok", None) for kind in ("input", "cache_read", "output")
    )
    if prompt is None or output is None or getattr(row, "requests_kcount", None):
        return None
    rates = (prompt, prompt if cached is None else cached, output)
    starts = sorted({tier.start for rate in rates for tier in getattr(rate, "tiers", ())})
    tiers = tuple(Tier(start, *_rates_above(rates, start)) for start in starts)
    return Price(*_rates_above(rates, -1), "genai-prices", table, tiers)


def _rates_above(rates: tuple[Any, Any, Any], start: int) -> tuple[Decimal, Decimal, Decimal]:
    """Return the rates (input, cached, output) for prompts of more than `start` tokens."""
    prompt, cached, output = rates
    return _rate_above(prompt, start), _rate_above(cached, start), _rate_above(output, start)


def _rate_above(rate: Any, start: int) -> Decimal:
    if not hasattr(rate, "tiers"):
        return Decimal(rate)
    reached = [tier.price for tier in rate.tiers if tier.start <= start]
    return Decimal(reached[-1] if reached else rate.base)
