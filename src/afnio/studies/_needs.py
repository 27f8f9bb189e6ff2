"""Needs: what rows cost, and how a budget is divided: the first rows, the training, the held-out rows.

`CallCount` measures. `Needs` refuses a budget that can't pay for a whole optimization, and says how much of it the
training gets. What depends on spending is decided by `CallCount`, which counts a reply from the journal like one from
the wire, so that a run that is continued decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, final

from afnio.models._client import ChatModel
from afnio.models._prices import price_of
from afnio.optim._edit_state import DRAWS
from afnio.optim._sizes import SampleCost, Sizes
from afnio.runtime._budget import Budget
from afnio.runtime._spending import Amount, cost
from afnio.runtime.events import CallEnded, CallReplayed, Usage
from afnio.studies._rows import HELD, Row, by_input
from afnio.studies._rules import MOST_CHARACTERS
from afnio.studies._subject import Subject

# Rows that are scored first, which shows what a row costs.
FIRST: Final = 8
# The held-out rows may take this share of the budget: a training that gets less finds nothing to measure.
HELD_SHARE: Final = 0.5
# The held-out rows are reserved with this factor, because calls are retried and replies vary in length.
SPARE: Final = 1.1
# The smallest step of the search.
SMALLEST: Final = Sizes(chains=1, inner=1, minibatch=3, race=6, first=3, keep=2)


@final
@dataclass(slots=True)
class CallCount:
    """Adds up the calls that it hears of, as a subscriber to events.

    A call that a journal answers counts like one that was sent. So a run that is continued counts as it did before,
    and decides the same. A budget doesn't: replays are free, and all that was spent before counts from the start.

    Attributes:
        calls: that got a reply.
        replayed: those of them that a journal answered.
        usage: their tokens, by model and account.
    """

    calls: int = 0
    replayed: int = 0
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded | CallReplayed) and event.reply is not None:
            key = event.model, event.account
            self.calls += 1
            self.replayed += isinstance(event, CallReplayed)
            self.usage[key] = self.usage.get(key, Usage()) + event.reply.usage

    @property
    def tokens(self) -> int:
        return sum(usage.total_tokens for usage in self.usage.values())

    @property
    def cost(self) -> Decimal | None:
        """Dollars, or None if a price is unknown. Reads prices from files, so not for the runtime's loop."""
        prices = {key: price_of(*key) for key in self.usage}
        if None in prices.values():
            return None
        return sum((cost(prices[key], usage) for key, usage in self.usage.items()), Decimal(0))  # type: ignore[arg-type]

    def each(self, rows: int) -> Amount:
        """Return what one of `rows` rows cost, an unknown price as 0. Its parts may be fractions."""
        return Amount(self.calls / rows, self.tokens / rows, (self.cost or Decimal(0)) / rows)  # type: ignore[arg-type]


def cost_factors(measured: Amount, critic: ChatModel, prompts: int) -> tuple[float, float]:
    """Return the average cost of a training call relative to an agent call, in tokens and in dollars.

    About one call in twelve is the proposer's, which reads eight mistakes. With several prompts three in ten are
    critics', which read a row each. Prompts get longer. Reads prices from files, so not for the runtime's loop.

    Args:
        measured: what a row of the agent takes.
    """
    calls = max(float(measured.calls), 0.01)
    tokens, dollars = max(1.0, measured.tokens / calls), float(measured.cost) / calls
    others = [(0.08, 8 * tokens + 500, 400)]
    others += [(0.3, 2 * tokens + 500, 100)] if prompts > 1 else []
    own = 1.2 * (1 - sum(share for share, _, _ in others))
    in_tokens = own + sum(share * (read + written) for share, read, written in others) / tokens
    price = price_of(str(critic.completion_args.get("model")), critic.client.account.url)
    if price is None or not dollars:
        return in_tokens, in_tokens
    bills = [
        share * (read * float(price.input) + written * float(price.output)) / 1e6
        for share, read, written in others
    ]
    return in_tokens, own + sum(bills) / dollars


@final
class Needs:
    """The calls that an optimization needs of its budget, and how they are divided.

    Args:
        held: the held-out rows, all of them if there are several trainings.
    """

    def __init__(
        self,
        subject: Subject,
        held: Sequence[Row],
        critic: ChatModel,
        budget: Budget,
        draws: int = 1,
        trainings: int = 1,
    ) -> None:
        self._subject, self._critic, self._caps = subject, critic, budget.caps
        self._start = subject.texts
        self._spent = budget.ledger.total.amount  # by whatever else the budget is for
        self._factors = {"calls": 1.0, "tokens": 1.0, "dollars": 1.0}
        self._calls = 1.0  # of a row
        self._inputs = len(by_input(held))
        self._rows = draws * len(held) / max(1, self._inputs)  # of an input, with its draws
        self._trainings = trainings
        guards = len(subject.rules.guards)
        self._firm = trainings * DRAWS * guards
        self._smallest = SMALLEST._replace(guards=guards)

    @property
    def calls(self) -> int | None:
        """The calls that the budget has for this run."""
        return None if self._caps.calls is None else max(1, self._caps.calls - self._spent.calls)

    def sample(self, each: float) -> SampleCost:
        """Return what a row takes in the training, if it takes `each` calls: with several prompts a critic too."""
        prompts = len(self._subject.parameters)
        return SampleCost(max(1, math.ceil(each)), 0 if prompts == 1 else 1, prompts)

    def check_calls(self, each: float) -> None:
        """Raise if the calls can't pay for the fewest held-out rows and one step at so many calls a row."""
        most = self.calls
        if most is None:
            return
        counted, step = self._fewest(each)
        needed = sum(counted.values()) + step
        if most < needed:
            parts = ", ".join(f"{number} {part}" for part, number in counted.items())
            raise ValueError(
                f"budget must pay for at least {needed} calls (got {most}): {parts}, and {step} for "
                f"{'one step' if self._trainings == 1 else 'one step of each training'}; give more"
            )

    def _fewest(self, each: float) -> tuple[dict[str, int], int]:
        """Return the calls that can't be less, by what they are for, and those of the smallest step."""
        sizes = {"to begin": FIRST, "for guards": self._firm, f"for {HELD} held-out rows": self._least}
        counted = {part: math.ceil(number * each) for part, number in sizes.items() if number}
        return counted, self._trainings * self._smallest.cost(self.sample(each))

    def usual_calls(self, each: float) -> int:
        """Return the calls of the shortest optimization that scores all held-out rows, with at least one step."""
        counted, step = self._fewest(each)
        rest = max(0.0, 2 * self._inputs * self._rows - self._least)
        return sum(counted.values()) + step + math.ceil(rest * each)

    def check(self, measured: Amount) -> int:
        """Return how many held-out inputs to score, now that it is known what a row costs: all, if that pays for them.

        Raises:
            ValueError: if the budget can't pay for the fewest and one step.
        """
        self.check_calls(max(1.0, measured.calls))
        self._calls = max(measured.calls, 0.01)
        prompts = len(self._subject.parameters)
        self._factors["tokens"], self._factors["dollars"] = cost_factors(measured, self._critic, prompts)
        size = float(self._inputs)
        for unit, left, each in self._limits(measured):
            if self._inputs:
                size = min(size, (left / each - FIRST - self._firm) * HELD_SHARE / (2 * self._rows))
            needed = (FIRST + self._firm + self._least + self._step(unit)) * each
            if unit != "calls" and left < needed:
                raise ValueError(
                    f"budget must be at least {_in(unit, needed)} (got {_in(unit, left)}): a row takes "
                    f"{_in(unit, each, 6)}, and {HELD} held-out rows and one step take as much as "
                    f"{math.ceil(needed / each)} rows; give more"
                )
        return min(self._inputs, max(HELD, int(size)))

    @property
    def _least(self) -> float:
        """Rows that the fewest held-out inputs take, with both prompts."""
        return 2 * HELD * self._rows

    def _step(self, unit: str) -> float:
        """Return how many of the agent's rows the smallest step costs as much as, one in each training."""
        return (
            self._trainings
            * self._smallest.cost(self.sample(self._calls))
            * self._factors[unit]
            / self._calls
        )

    def _limits(self, measured: Amount) -> Iterator[tuple[str, float, float]]:
        """Yield each unit that is limited, with what is left of it and what a row takes."""
        caps, spent = self._caps, self._spent
        if caps.calls is not None:
            yield "calls", caps.calls - spent.calls, max(1.0, measured.calls)
        if caps.tokens is not None and measured.tokens:
            yield "tokens", caps.tokens - spent.tokens, measured.tokens
        if caps.cost is not None and measured.cost:
            yield "dollars", float(caps.cost - spent.cost), float(measured.cost)

    def looks(self, measured: Amount, rows: int) -> Amount:
        """Return what is reserved for scoring so many rows: more than they take, if possible."""
        # The new prompts may be longer than the old ones that were measured, in each call.
        limits, start = self._subject.rules.lengths, self._start
        longer = sum((limits[name] or 2 * MOST_CHARACTERS) - len(text) for name, text in start.items()) / 4
        growth = 1 + max(0.0, longer) * measured.calls / max(1, measured.tokens) / 2
        first = FIRST + self._firm
        most = {unit: left - (first + self._step(unit)) * each for unit, left, each in self._limits(measured)}
        return Amount(
            int(min(rows * measured.calls * SPARE + 1, most.get("calls", math.inf))),
            int(min(rows * measured.tokens * SPARE * growth + 1, most.get("tokens", math.inf))),
            Decimal(min(rows * float(measured.cost) * SPARE * growth, most.get("dollars", math.inf))),
        )

    def with_half(self, looks: Amount, spent: CallCount) -> Amount:
        """Return `looks`, and half of what they and the calls so far leave of the budget, for another training."""
        caps, before = self._caps, self._spent
        calls = 0 if caps.calls is None else caps.calls - before.calls - looks.calls - spent.calls
        tokens = 0 if caps.tokens is None else caps.tokens - before.tokens - looks.tokens - spent.tokens
        dollars = Decimal(0)
        if caps.cost is not None:
            dollars = caps.cost - before.cost - looks.cost - (spent.cost or 0)
        return looks + Amount(max(0, calls // 2), max(0, tokens // 2), max(Decimal(0), dollars / 2))

    def training_calls(self, measured: Amount, looks: Amount, spent: CallCount) -> float:
        """Return about how many calls the training may take; infinite if only time is limited."""
        used = {
            "calls": float(looks.calls + spent.calls),
            "tokens": looks.tokens + spent.tokens,
            "dollars": float(looks.cost + (spent.cost or 0)),
        }
        limits = [math.inf]
        for unit, left, each in self._limits(measured):
            rest = left - used[unit]
            limits.append(rest if unit == "calls" else rest / each * self._calls / self._factors[unit])
        return max(0.0, min(limits))


def _in(unit: str, amount: float, digits: int = 4) -> str:
    return f"${amount:.{digits}f}" if unit == "dollars" else f"{amount:,.0f} {unit}"
