"""Ledgers: immutable sums that travel as JSON and show what they leave out."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime.budgets import ITEM, PRICE

from afnio.runtime import Ledger, Price, Tier
from afnio.runtime._spending import COLUMNS, Item, Spent, cost
from afnio.runtime.events import Usage

COUNTS = st.integers(0, 10**9)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
RATES = st.decimals(0, 1000, places=6)
PRICES = st.builds(
    Price,
    RATES,
    RATES,
    RATES,
    st.text(),
    st.text(),
    st.just(()) | st.tuples(st.builds(Tier, COUNTS, *[RATES] * 3)),
)
SPENT = st.builds(
    lambda price, usage, calls, unknown, reserved: Spent.of(
        price, usage, calls=calls, attempts=calls + unknown, unknown=unknown, reserved=reserved
    ),
    st.none() | PRICES, USAGES, COUNTS, COUNTS, USAGES,
)  # fmt: skip
NAMES = st.sampled_from(["a", "b"])
LEDGERS = st.builds(Ledger, st.dictionaries(st.builds(Item, NAMES, NAMES, NAMES), SPENT, max_size=4))


@given(LEDGERS, LEDGERS, LEDGERS)
def test_addition_and_json(one: Ledger, two: Ledger, three: Ledger) -> None:
    """Sums don't depend on the grouping, and JSON brings the same ledger back."""
    both = (one + two) + three
    assert both == one + (two + three)
    assert one == one + Ledger() == Ledger() + one
    assert both == Ledger.from_json(both.to_json())
    assert both == pickle.loads(pickle.dumps(both))
    assert both.total.amount.tokens == sum(ledger.total.amount.tokens for ledger in (one, two, three))
    assert all(len(COLUMNS) == len(row) for row in both.rows())


def test_snapshots_never_change() -> None:
    """Neither the ledger nor the dict that it was made from changes it."""
    items = {ITEM: Spent(calls=1)}
    ledger = Ledger(items)
    items[ITEM] = Spent(calls=2)
    assert ledger.items[ITEM].calls == 1
    with pytest.raises(TypeError):
        ledger.items[ITEM] = Spent()  # type: ignore[index]


def test_prices_are_kept_with_the_cost() -> None:
    """A new table changes no old cost: the sum keeps both prices."""
    newer = Price(Decimal(3), Decimal(3), Decimal(3), "test", "2")
    total = Spent.of(PRICE, Usage(1_000_000, 0), calls=1) + Spent.of(newer, Usage(1_000_000, 0), calls=1)
    assert (Decimal(4), ("1", "2")) == (total.cost, tuple(price.version for price in total.prices))


def test_rows() -> None:
    """Rows are text for a table, sorted, with a total that says what it leaves out."""
    ledger = Ledger(
        {
            ITEM: Spent.of(PRICE, Usage(1500, 100, 500), calls=2, attempts=3),
            Item("backward", "https://host", "n"): Spent.of(
                None, unknown=1, attempts=1, reserved=Usage(7, 3)
            ),
        }
    )
    assert list(ledger.rows()) == [
        ("backward", "https://host", "n", "0", "1", "1 (at most 10 tokens)", "0", "0", "0", "1 unpriced"),
        ("forward", "https://host", "m", "2", "3", "0", "1,500", "500", "100", "$0.00145"),
        ("total", "", "", "2", "4", "1 (at most 10 tokens)", "1,500", "500", "100", "$0.00145 + 1 unpriced"),
    ]
    assert "2 calls, 4 attempts (1 unknown (at most 10 tokens)), 1,500 tokens in" in str(ledger)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no ledger"),
        ("[]", "no ledger"),
        ('{"items": []}', "no ledger"),
        ('{"ledger": 1, "items": [{"purpose": "forward"}]}', "no ledger"),
        ('{"ledger": 2, "items": []}', "schema 2, not 1; read it with a newer Afnio"),
    ],
)
def test_damaged_json(text: str, said: str) -> None:
    """What is no ledger is one clear error."""
    with pytest.raises(ValueError, match=said):
        Ledger.from_json(text)


def test_json_is_plain() -> None:
    """Other programs can read it; dollars are text, as a float would not be exact."""
    entry: dict[str, Any] = json.loads(Ledger({ITEM: Spent.of(PRICE, Usage(1, 0), calls=1)}).to_json())[
        "items"
    ][0]
    assert ("forward", "m", Decimal("0.000001")) == (
        entry["purpose"], entry["model"], Decimal(entry["known_cost"]),
    )  # fmt: skip


def test_tiers() -> None:
    """A prompt over the threshold is dearer as a whole; sums of calls go by their mean prompt."""
    price = Price(*[Decimal(1)] * 3, tiers=(Tier(100, *[Decimal(2)] * 3), Tier(1000, *[Decimal(3)] * 3)))
    million = Decimal(1_000_000)
    assert [cost(price, Usage(prompt)) * million for prompt in (100, 101, 1001)] == [100, 202, 3003]
    assert cost(price, Usage(300), calls=3) * million == 300


@given(PRICES, USAGES)
def test_cost_is_exact(price: Price, usage: Usage) -> None:
    """Integers of a millionth of a millionth of a dollar give the same sum."""
    rates: Price | Tier = (
        price.tiers[0] if price.tiers and usage.prompt_tokens > price.tiers[0].above else price
    )
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    units = [int(rate * 10**6) for rate in (rates.input, rates.cached, rates.output)]
    total = units[0] * (usage.prompt_tokens - cached) + units[1] * cached + units[2] * usage.completion_tokens
    assert total == int(cost(price, usage).scaleb(12))
