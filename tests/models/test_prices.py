"""Prices: the user's file first, then the table of genai-prices, else nobody says."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from afnio.models import price_of
from afnio.runtime import Price, Tier

HOST = "https://api.openai.com/v1"
ENVIRONMENT = "AFNIO_PRICES"

TOML = """
version = "2026-11"

[[price]]
model = "qwen3-8b"
url = "http://127.0.0.1"
input = 0
output = 0

[[price]]
model = "qwen3-*"
input = 0.15
cached = 0.0375
output = 0.6
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No price file of whoever runs the tests. Answers are kept: each test asks about models or files of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return tmp_path


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.usefixtures("without_package")
def test_unknown() -> None:
    """Without a file and a table nothing has a price."""
    assert price_of("gpt-5-mini", HOST) is None


@pytest.mark.usefixtures("without_package")
def test_file_in_the_configuration_folder(home: Path) -> None:
    """It is found without being named; the first row that fits the model and the endpoint wins."""
    path = written(home / ".config" / "afnio" / "prices.toml", TOML)
    rates = Decimal("0.15"), Decimal("0.0375"), Decimal("0.6")
    assert Price(*rates, str(path), "2026-11") == price_of("qwen3-8b", HOST)
    assert Decimal(0) == price_of("qwen3-8b", "http://127.0.0.1:8080/v1").output  # type: ignore[union-attr]
    assert price_of("llama", HOST) is None


@pytest.mark.usefixtures("without_package")
def test_named_json_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`AFNIO_PRICES` names a file; without a version its digest is one; cached tokens cost as input."""
    row = {"model": "m", "input": 0.1, "output": "0.2"}
    path = written(home / "prices.json", json.dumps({"price": [row]}))
    monkeypatch.setenv(ENVIRONMENT, "~/prices.json")
    price = price_of("m", HOST)
    assert price is not None
    assert (Decimal("0.1"), Decimal("0.1"), Decimal("0.2")) == (price.input, price.cached, price.output)
    assert (str(path), 12) == (price.source, len(price.version))


def test_named_file_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was named must be there."""
    monkeypatch.setenv(ENVIRONMENT, "/no/such/prices.toml")
    with pytest.raises(FileNotFoundError):
        price_of("m", HOST)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.toml", "version = 1\n[[price]\n", r"p.toml can't be read as TOML .*line 2"),
        ("p.json", '{"price": [\n', r"p.json can't be read as JSON .*line 2"),
        ("p.toml", "version = 1", r"p.toml: price must be a list of prices"),
        ("p.json", "[]", r"p.json: price must be a list"),
        ("p.toml", "prices = 1\nprice = []", r"p.toml: prices isn't a known key; use price, version"),
        ("p.json", '{"price": [3]}', r"price 1 must be a table .got 3."),
        ("p.toml", "[[price]]\ninput = 1", r"price 1: model must be a model's name .got None."),
        (
            "p.toml",
            '[[price]]\nmodel = "m"\nurl = 3',
            r"price 1 \('m'\): url must be the start of a base URL .got 3.",
        ),
        (
            "p.toml",
            '[[price]]\nmodel = "m"\ntier = "fast"',
            r"tier must be 'flex' or 'batch', or be left out",
        ),
        ("p.toml", '[[price]]\nmodel = "m"\nprompt = 3', r"price 1 \('m'\): prompt isn't a known key"),
        (
            "p.toml",
            '[[price]]\nmodel = "m"\ninput = 1',
            r"price 1 \('m'\): output must be dollars .*got None",
        ),
        (
            "p.toml",
            '[[price]]\nmodel = "m"\ninput = -1\noutput = 1',
            r"input must be dollars .*got -1",
        ),
        ("p.toml", '[[price]]\nmodel = "m"\ninput = true\noutput = 1', r"input must be dollars .*got True"),
        ("p.toml", '[[price]]\nmodel = "m"\ninput = "x"\noutput = 1', r"input must be dollars .*got 'x'"),
        ("p.toml", '[[price]]\nmodel = "m"\ninput = nan\noutput = 1', r"input must be dollars .*NaN"),
        ("p.toml", '[[price]]\nmodel = "m"\ninput = 1\noutput = 1\ncached = []', r"cached must be dollars"),
    ],
)
def test_damaged_files(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str) -> None:
    """The error names the file and the line or the key."""
    monkeypatch.setenv(ENVIRONMENT, str(written(home / name, text)))
    with pytest.raises(ValueError, match=said):
        price_of("m", HOST)


def test_file_that_is_no_text(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8 are named as such."""
    path = home / "p.toml"
    path.write_bytes(b"\xff\xfe")
    monkeypatch.setenv(ENVIRONMENT, str(path))
    with pytest.raises(ValueError, match="can't be read as TOML"):
        price_of("m", HOST)


class Rate(SimpleNamespace):
    """A tiered rate as genai-prices has it."""


def table(monkeypatch: pytest.MonkeyPatch, row: Any) -> list[tuple[str, str]]:
    """Install a package that knows one model."""
    asked: list[tuple[str, str]] = []

    def calc_price(usage: Any, model: str, *, provider_api_url: str) -> Any:
        asked.append((model, provider_api_url))
        if not model.startswith("known"):
            raise LookupError(model)
        return SimpleNamespace(model_price=row)

    package: Any = ModuleType("genai_prices")
    package.Usage, package.calc_price = SimpleNamespace, calc_price
    monkeypatch.setitem(sys.modules, "genai_prices", package)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    return asked


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table, tiers merged, with the table's version; each is looked up once."""
    tier = SimpleNamespace(start=200, price=Decimal(4))
    row = SimpleNamespace(
        input_mtok=Rate(base=Decimal(2), tiers=[tier]), cache_read_mtok=Decimal(1), output_mtok=Decimal(8)
    )
    asked = table(monkeypatch, row)
    tiers = (Tier(200, Decimal(4), Decimal(1), Decimal(8)),)
    expected = Price(Decimal(2), Decimal(1), Decimal(8), "genai-prices", "9.9", tiers)
    assert price_of("known", HOST) == price_of("known", HOST) == expected
    assert price_of("other", HOST) is None
    assert asked == [("known", HOST), ("other", HOST)]


@pytest.mark.parametrize("extra", [{"output_mtok": None}, {"requests_kcount": Decimal(5)}])
def test_rows_that_bill_otherwise(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]) -> None:
    """A model that isn't billed by tokens in and out alone has no price here, rather than a wrong one."""
    row = SimpleNamespace(**{"input_mtok": Decimal(1), "output_mtok": Decimal(1), **extra})
    asked = table(monkeypatch, row)
    model = f"known with {next(iter(extra))}"
    assert price_of(model, HOST) is None
    assert asked == [(model, HOST)]


def test_file_comes_before_the_table(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user wrote holds."""
    asked = table(monkeypatch, None)
    written(home / ".config" / "afnio" / "prices.toml", TOML)
    assert price_of("qwen3-8b", HOST) is not None
    assert asked == []


@pytest.mark.skipif(find_spec("genai_prices") is None, reason="afnio[prices] is not installed")
def test_the_real_table() -> None:
    """The package itself: a model of OpenAI's has a price, a tiered one its tiers, a local endpoint none."""
    price = price_of("gpt-4o-mini", HOST)
    assert price is not None
    assert (Decimal("0.15"), Decimal("0.075"), Decimal("0.6")) == (price.input, price.cached, price.output)
    long = price_of("gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai")
    assert long is not None
    assert [tier.above for tier in long.tiers] == [200_000]
    assert price_of("gpt-4o-mini", "http://127.0.0.1:8000/v1") is None
