"""PriceFile: the prices that a user writes down, for models that no table knows."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NoReturn, final

from afnio.runtime._spending import Price

_FILE_KEYS: Final = {"version", "price"}
_PRICE_KEYS: Final = {"model", "url", "input", "cached", "output"}


@final
@dataclass(frozen=True, slots=True)
class Row:
    """Prices for the models that match `model`, where the endpoint's base URL begins with `url`."""

    model: str
    url: str
    price: Price

    def fits(self, model: str, url: str) -> bool:
        return fnmatchcase(model, self.model) and url.startswith(self.url)


@final
@dataclass(frozen=True, slots=True)
class PriceFile:
    """A TOML or JSON file of prices, the first row that fits wins.

    In TOML, where `version`, `url` and `cached` may be left out and `model` may hold `*`:

        version = "2026-11"

        [[price]]
        model = "qwen3-*"
        url = "http://127.0.0.1:8080"
        input = 0.15      # dollars per million tokens
        cached = 0.075    # else as `input`
        output = 0.60

    In JSON the same keys: {"version": "2026-11", "price": [{"model": …}]}.
    """

    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path) -> PriceFile:
        """Return the prices in the file at `path`.

        Raises:
            ValueError: naming the file and the line or key at which it is no list of prices.
            OSError: when it can't be read.
        """
        content = path.read_bytes()
        try:
            table = _parse(path, content)
        except ValueError as error:  # a JSONDecodeError, a TOMLDecodeError, no UTF-8: each names the place
            raise ValueError(f"{path} can't be read as {_format(path)} ({error}); mend that line") from error
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

    def find(self, model: str, url: str) -> Price | None:
        return next((row.price for row in self.rows if row.fits(model, url)), None)


def _parse(path: Path, content: bytes) -> Any:
    text = content.decode()
    if _format(path) == "JSON":
        return json.loads(text, parse_float=Decimal)
    return tomllib.loads(text, parse_float=Decimal)


def _format(path: Path) -> str:
    return "JSON" if path.suffix.lower() == ".json" else "TOML"


def _row(source: str, version: str, number: int, row: Any) -> Row:
    if not isinstance(row, Mapping):
        _refuse(source, f"price {number}", f"must be a table (got {row!r})")
    model, url = row.get("model"), row.get("url", "")
    if not isinstance(model, str) or not model:
        _refuse(source, f"price {number}: model", f"must be a model's name (got {model!r})")
    place = f"price {number} ({model!r})"
    if not isinstance(url, str):
        _refuse(source, f"{place}: url", f"must be the start of a base URL (got {url!r})")
    _check_keys(source, f"{place}: ", row, _PRICE_KEYS)
    rates = {key: _rate(source, f"{place}: {key}", row.get(key)) for key in ("input", "output")}
    cached = _rate(source, f"{place}: cached", row["cached"]) if "cached" in row else rates["input"]
    return Row(model, url, Price(rates["input"], cached, rates["output"], source, version))


def _rate(source: str, place: str, value: Any) -> Decimal:
    try:
        rate = Decimal(value) if isinstance(value, int | str | Decimal) else Decimal("NaN")
    except InvalidOperation:
        rate = Decimal("NaN")
    if isinstance(value, bool) or not rate.is_finite() or rate < 0:
        _refuse(source, place, f"must be dollars per million tokens, 0 or more (got {value!r})")
    return rate


def _check_keys(source: str, place: str, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            _refuse(source, f"{place}{key}", f"is no key of it; there are {', '.join(sorted(known))}")


def _refuse(source: str, place: str, why: str) -> NoReturn:
    raise ValueError(f"{source}: {place} {why}")
