"""What the budgets' tests share: a runtime of the test's own loop, a price, estimates, turns of the loop."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anyio.lowlevel

from afnio.runtime import Price
from afnio.runtime._spending import AttemptEstimate, Item

PRICE = Price(Decimal(1), Decimal("0.5"), Decimal(2), "test", "1")
ITEM = Item("forward", "https://host", "m")


class FakeRuntime:
    """Keeps resources on the test's own loop, whose clock may be virtual."""

    def __init__(self) -> None:
        self._resources: dict[Any, Any] = {}

    def resource(self, key: Any, make: Callable[[], Any]) -> Any:
        return self._resources.setdefault(key, make())


def estimate(
    prompt: int = 10,
    output: int | None = 10,
    *,
    model: str = "m",
    purpose: str = "forward",
    price: Price | None = PRICE,
) -> AttemptEstimate:
    return AttemptEstimate(model, "https://host", purpose, prompt, output, price)


async def turns(count: int = 10) -> None:
    """Let the other tasks go on until they wait."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()
