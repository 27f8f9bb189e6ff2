"""Estimate: what a training will ask for, found by rehearsing one batch with made-up replies."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import final

from rich import box
from rich.console import Console
from rich.table import Table

from afnio.runtime._limits import Account, given_limits
from afnio.runtime._spending import Price, cost
from afnio.runtime.events import Usage
from afnio.trainer.quantities import clock, money

MINUTE = 60.0


@final
@dataclass(frozen=True, slots=True)
class Item:
    """The calls of one kind: for the same purpose, to the same model of the same account.

    Attributes:
        phase: train, or val.
        low, high: calls of the whole training; low where every answer is right, high where every one is wrong.
        prompt_tokens, output_tokens: of one call, on average.
        price: None where nobody says.
    """

    phase: str
    purpose: str
    model: str
    account: Account
    low: int
    high: int
    prompt_tokens: float
    output_tokens: float
    price: Price | None

    def usage(self, calls: int) -> Usage:
        return Usage(round(calls * self.prompt_tokens), round(calls * self.output_tokens))

    def cost(self, calls: int) -> Decimal | None:
        """Dollars of so many of these calls; None where the price is unknown."""
        return None if self.price is None else cost(self.price, self.usage(calls), max(calls, 1))


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training asks for; nothing was called to find out. `str()` of it is a table.

    The low bound is that of a training in which every answer is right, so that nothing has to be made better;
    the high one that in which every answer is wrong. Retries come on top, and the thoughts of models that
    reason; a prompt that grows makes calls dearer. Tokens of prompts are counted by the clients
    (`ChatClient.count_tokens`), those of replies are a guess from what is usual.

    Attributes:
        steps: optimizer steps.
        chain: calls that have to wait for each other, from the first step to the last one.
        seconds_per_call: what the time is computed with.
        note: what couldn't be rehearsed, and why.
    """

    items: Sequence[Item]
    epochs: int
    steps: int
    chain: tuple[int, int]
    seconds_per_call: float
    note: str | None = None

    @property
    def calls(self) -> tuple[int, int]:
        """Low and high."""
        return sum(item.low for item in self.items), sum(item.high for item in self.items)

    @property
    def tokens(self) -> tuple[int, int]:
        """In and out together, low and high."""
        low = sum(item.usage(item.low).total_tokens for item in self.items)
        return low, sum(item.usage(item.high).total_tokens for item in self.items)

    @property
    def cost(self) -> tuple[Decimal, Decimal] | None:
        """Dollars, low and high; None where the price of a model is unknown."""
        low = [item.cost(item.low) for item in self.items]
        high = [item.cost(item.high) for item in self.items]
        known = [amount for amount in (*low, *high) if amount is not None]
        if len(known) < len(low) + len(high):
            return None
        return sum(known[: len(low)], Decimal(0)), sum(known[len(low) :], Decimal(0))

    @property
    def seconds(self) -> tuple[float, float]:
        """Low and high: the calls that wait for each other, or what the accounts' limits let through."""
        low, high = (
            max(
                length * self.seconds_per_call,
                *(self._throttled(account, high=high) for account in self._accounts()),
                0.0,
            )
            for length, high in zip(self.chain, (False, True), strict=True)
        )
        return low, high

    def _accounts(self) -> Iterable[Account]:
        return dict.fromkeys(item.account for item in self.items)

    def _throttled(self, account: Account, *, high: bool) -> float:
        """Return the seconds that an account's calls take because of its limits."""
        limits = given_limits(account)
        if limits is None:
            return 0.0
        calls = tokens = 0
        for item in self.items:
            if item.account == account:
                number = item.high if high else item.low
                calls += number
                tokens += item.usage(number).total_tokens
        times = [0.0]
        if limits.max_in_flight is not None:
            times.append(math.ceil(calls / limits.max_in_flight) * self.seconds_per_call)
        if limits.requests_per_minute is not None:
            times.append(calls / limits.requests_per_minute * MINUTE)
        if limits.tokens_per_minute is not None:
            times.append(tokens / limits.tokens_per_minute * MINUTE)
        return max(times)

    def table(self) -> Table:
        """Return the numbers as a table of rich's."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in ("phase", "model"):
            table.add_column(name, overflow="fold")
        for name in ("calls", "tokens in", "tokens out", "cost"):
            table.add_column(name, justify="right", overflow="fold")
        for item in self.items:
            low, high = item.usage(item.low), item.usage(item.high)
            table.add_row(
                f"{item.phase} {item.purpose}",
                item.model,
                _span(item.low, item.high),
                _span(low.prompt_tokens, high.prompt_tokens),
                _span(low.completion_tokens, high.completion_tokens),
                _dollars(item.cost(item.low), item.cost(item.high)),
            )
        total = self.cost
        low, high = (sum((item.usage(n) for item, n in self._numbers(end)), Usage()) for end in (0, 1))
        table.add_row(
            "all",
            "",
            _span(*self.calls),
            _span(low.prompt_tokens, high.prompt_tokens),
            _span(low.completion_tokens, high.completion_tokens),
            "unknown" if total is None else _dollars(*total),
            style="bold",
        )
        return table

    def _numbers(self, end: int) -> list[tuple[Item, int]]:
        return [(item, (item.low, item.high)[end]) for item in self.items]

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=110, color_system=None, highlight=False).print(self.table())
        low, high = map(clock, self.seconds)
        time = low if low == high else f"{low} to {high}"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs:,} epochs"
        lines = [
            *(line.rstrip() for line in text.getvalue().splitlines()),
            f"{epochs}, {self.steps:,} steps, {time} at {self.seconds_per_call:g} s a call.",
            "Low: every answer is right. High: every answer is wrong. Retries and thoughts come on top.",
            *([] if self.note is None else [self.note]),
        ]
        return "\n".join(lines)


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _dollars(low: Decimal | None, high: Decimal | None) -> str:
    if low is None or high is None:
        return "unknown"
    return money(low) if low == high else f"{money(low)} to {money(high)}"
