"""Prices: what a model costs at an endpoint, from the user's file or from genai-prices."""

from __future__ import annotations

import os
from decimal import Decimal
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from afnio.models.price_file import PriceFile
from afnio.runtime._spending import Price, Tier, cost

__all__ = ["ENVIRONMENT", "Price", "Tier", "cost", "price_of"]

ENVIRONMENT: Final = "AFNIO_PRICES"
"""Names the user's price file; without it `~/.config/afnio/prices.toml` is read where it exists."""


def price_of(model: str, provider_url: str) -> Price | None:
    """Return what `model` costs at the endpoint whose base URL is `provider_url`, None where nobody says.

    The user's file comes first, then genai-prices if it is installed (`afnio[prices]`), whose bundled table
    is used as it is; nothing is fetched. Each answer is kept for the life of the process. The first one
    reads a file or imports a package (0.2 s): ask in a thread, not on a loop.

    Raises:
        ValueError: for a price file that is none, naming the line or the key.
        OSError: for a price file that `AFNIO_PRICES` names and that can't be read.

    >>> print(price_of("a-model-of-my-own", "http://127.0.0.1:8080/v1"))
    None
    """
    return _price_of(_user_file(), model, provider_url)


@cache
def _price_of(file: Path | None, model: str, url: str) -> Price | None:
    price = None if file is None else _read(file).find(model, url)
    return price or _listed(model, url)


_read = cache(PriceFile.read)


def _user_file() -> Path | None:
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).expanduser()
    default = Path("~/.config/afnio/prices.toml").expanduser()
    return default if default.is_file() else None


def _listed(model: str, url: str) -> Price | None:
    """Return the price in the table of genai-prices."""
    try:
        package: Any = import_module("genai_prices")
    except ImportError:
        return None
    nothing = package.Usage(input_tokens=0, output_tokens=0)
    try:
        # Only the table's row is wanted: versions 0.0.x add tiers up, which no provider does.
        row = package.calc_price(nothing, model, provider_api_url=url).model_price
    except LookupError:
        return None
    return _from_row(row, version("genai-prices"))


def _from_row(row: Any, table: str) -> Price | None:
    """Return a row of genai-prices; None if it bills by something else than tokens in and out."""
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
    """Return the rates of prompts that are just longer than `start`."""
    prompt, cached, output = rates
    return _rate_above(prompt, start), _rate_above(cached, start), _rate_above(output, start)


def _rate_above(rate: Any, start: int) -> Decimal:
    if not hasattr(rate, "tiers"):
        return Decimal(rate)
    reached = [tier.price for tier in rate.tiers if tier.start <= start]
    return Decimal(reached[-1] if reached else rate.base)
