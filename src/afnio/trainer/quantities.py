"""Quantities: numbers, durations, dollars and metrics as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

LONGEST: Final = 24
"""Characters of a metric that is a text."""


def summary(facts: Mapping[str, str]) -> list[str]:
    """Return named texts as facts.

    >>> summary({"epoch": "1/5", "val loss": "0.5000"})
    ['epoch 1/5', 'val loss 0.5000']
    """
    return [f"{name} {text}" for name, text in facts.items()]


def metrics(values: Mapping[str, Any], *, intervals: bool = False) -> dict[str, str]:
    """Return metrics as texts: the loss first, then by name; sums, bounds and counts of failures are left out.

    Args:
        intervals: give the bounds of a proportion's 95 % interval with it.

    >>> metrics({"accuracy": 0.75, "loss": 0.5, "loss_sum": 33.0, "note": "fine", "failed": 0.0})
    {'loss': '0.5000', 'accuracy': '0.7500', 'note': 'fine'}
    >>> metrics({"accuracy": 0.75, "accuracy_low": 0.63, "accuracy_high": 0.84}, intervals=True)
    {'accuracy': '0.7500 (0.63 to 0.84)'}
    """
    companions = {f"{name}_{kind}" for name in values for kind in ("sum", "low", "high")}
    names = sorted(set(values) - companions - {"failed"}, key=lambda name: (name != "loss", name))
    texts = {name: number(values[name]) for name in names if values[name] is not None}
    if not intervals:
        return texts
    return {name: text + _interval(values, name) for name, text in texts.items()}


def _interval(values: Mapping[str, Any], name: str) -> str:
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"


def number(value: Any) -> str:
    """Return a number as people read it: four digits after the point where it is small.

    >>> number(0.5), number(24.51234), number(66), number(1234567.0)
    ('0.5000', '24.51', '66', '1,234,567')
    """
    if isinstance(value, bool | int) or not isinstance(value, float):
        text = " ".join(str(value).split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def short(count: int) -> str:
    """Return a large count in few characters.

    >>> short(950), short(12_400), short(3_450_000)
    ('950', '12.4k', '3.5M')
    """
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.1f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def money(amount: Decimal) -> str:
    """Return dollars, to the cent where there are some.

    >>> [money(Decimal(text)) for text in ("0", "0.00001", "0.01234", "12.5")]
    ['$0.00', 'under $0.0001', '$0.0123', '$12.50']
    """
    if amount and amount < Decimal("0.0001"):
        return "under $0.0001"
    return f"${amount:,.4f}" if 0 < amount < 1 else f"${amount:,.2f}"


def clock(seconds: float) -> str:
    """Return a duration.

    >>> clock(72.4), clock(90_000)
    ('1:12', '25:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
