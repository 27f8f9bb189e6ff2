"""check: what an `optimize` would do with these arguments, found out without a paid call.

Rows, agent and metric are looked at as far as that is free: the first row is run with made-up replies, and the metric
scores each label as if the agent had answered it. The rest is arithmetic: the calls that the budget must pay for, their
price, and the smallest gain that so many held-out rows show.
"""

from __future__ import annotations

import functools
import inspect
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Final, final

import anyio.to_thread

from afnio import cognitive as cog
from afnio.models._client import ChatClient, ChatModel
from afnio.models._prices import price_of
from afnio.models._trace import Rehearsed, rehearsing
from afnio.runtime._budget import Budget
from afnio.runtime._spending import Amount, cost
from afnio.runtime._tracebacks import folding
from afnio.runtime.events import Usage
from afnio.stats import power
from afnio.studies._needs import cost_factors
from afnio.studies._optimize import Optimization
from afnio.studies._rows import Row, by_input, in_words
from afnio.studies._scoring import takes_expected, wanted_by
from afnio.studies._study import job

# The share of rows that the new prompts get wrong and the old ones right, in what is said of gains.
LOSING: Final = 0.1
# Rows of each kind that are named.
SHOWN: Final = 5


@final
@dataclass(frozen=True, slots=True)
class Check:
    """What `afnio.check` found. Print it, or take it as JSON by `to_json`.

    Attributes:
        problems: sentences on what an optimization can't work with; empty if it can start.
        notes: sentences on what deserves a look.
        splits: the number of rows to train on and of those held out.
        contradictions: rows that have the inputs of another row, and another label.
        labels_right, labels_tried: labels that the metric scores as perfect if the agent answers with them, of how many
            were tried. None was tried if the metric takes no label, or asks a model.
        unsent: prompts that no request of the first row contains.
        calls_per_row: as the first row shows them; an agent that calls tools may make more.
        calls: the fewest and the most calls; the most is None if the budget doesn't limit them.
        dollars: the same in dollars; None if a price is unknown.
        gains: the smallest true gains, as shares, that are claimed in half of all runs and in four of five.
    """

    problems: Sequence[str]
    notes: Sequence[str]
    splits: Mapping[str, int]
    contradictions: Sequence[int]
    labels_right: int
    labels_tried: int
    unsent: Sequence[str]
    calls_per_row: int
    calls: tuple[int, int | None]
    dollars: tuple[float, float | None] | None
    gains: tuple[float | None, float | None]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        half, most = self.gains
        gains = (
            "none can be told from noise" if self.splits["held"] else "not measured, as no rows are held out"
        )
        if half is not None:
            more = "" if most is None else f", {100 * most:.0f} in four of five"
            gains = f"{100 * half:.0f} points are claimed in half of all runs{more}"
        facts = {
            "rows": f"{self.splits['train']} to train, {self.splits['held']} held out",
            "labels": f"the metric calls {self.labels_right} of {self.labels_tried} right"
            if self.labels_tried
            else "not tried",
            "prompts": f"not sent: {', '.join(self.unsent)}" if self.unsent else "sent",
            "calls": f"{_range(self.calls, '{:,.0f}')}, {self.calls_per_row} a row",
            "dollars": "a price is unknown" if self.dollars is None else _range(self.dollars, "${:.2f}"),
            "gain": gains,
        }
        lines = [*(f"{name:<9} {text}" for name, text in facts.items())]
        lines += [f"problem   {text}" for text in self.problems] + [
            f"note      {text}" for text in self.notes
        ]
        return "\n".join(["Can start." if self.ok else "Can't start.", "", *lines])

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def _range(ends: tuple[float, float | None], form: str) -> str:
    low, high = ends
    return f"{form.format(low)} or more" if high is None else f"{form.format(low)} to {form.format(high)}"


@folding
def check(
    agent: Callable[..., Any] | cog.Module,
    rows: Sequence[Any],
    metric: Callable[..., Any],
    *,
    critic: str | tuple[ChatClient, Any] | ChatModel,
    budget: float | Budget,
    **others: Any,
) -> Check:
    """Say what `afnio.optimize` would do with these arguments. No model is asked, so it is free.

    Blocks like `afnio.optimize`; on a running event loop, await it. The agent's code is run on one row, with made-up
    replies, and the metric on each label.

    Args:
        agent, rows, metric, critic, budget: as for `afnio.optimize`.
        others: all other arguments of `afnio.optimize`, such as `prompts`.

    Raises:
        TypeError, ValueError: for arguments that `afnio.optimize` refuses before its first call.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient("yes")
    >>> async def agree(text, system):
    ...     messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    ...     return (await client.achat(messages=messages, model="small")).content
    >>> rows = [(f"Is {number} odd?", "yes" if number % 2 else "no") for number in range(100)]
    >>> found = check(agree, rows, lambda output, expected: output == expected, prompts={"system": "Say yes or no."},
    ...               critic=(client, "large"), budget=afnio.budget(max_calls=500))
    >>> found.ok, found.splits, found.calls[1], found.labels_right
    (True, {'train': 50, 'held': 50}, 500, 100)
    """
    task = Optimization.of(agent, rows, metric, critic=critic, budget=budget, **others)
    return job(functools.partial(_checked, task), "check")


async def _checked(task: Optimization) -> Check:
    splits = task.splits
    everything = [*splits.train, *splits.held]
    held = len(by_input(task.held))
    problems, notes = [], [*task.notes]
    with task.bridge():
        calls = await task.rehearsed(splits.train[0])
        unsent = await task.unsent(splits.train[0])
    names = ", ".join(unsent)
    if unsent and len(unsent) == len(task.start):
        problems.append(
            f"no request of the first row contains a prompt ({names}): put them into the messages"
        )
    elif unsent:
        notes.append(f"the first row's requests contain nothing of {names}")
    if task.makes_calls and not calls:
        problems.append("the first row makes no call that Afnio sees; see makes_calls of afnio.optimize")
    if any(call.params.get("tools") for call in calls):
        notes.append("the agent offers tools, which made-up replies don't call, so a row may take more calls")
    right, tried, first_wrong = await _labels(task, everything)
    if first_wrong is not None and right == 0:
        problems.append(
            f"the metric calls no label right, not even as the answer to its own row: {first_wrong}"
        )
    elif first_wrong is not None:
        notes.append(f"the metric calls {tried - right} of {tried} labels wrong, the first: {first_wrong}")
    contradictions = [
        row.number
        for group in by_input(everything)
        if len({in_words(row.expected) for row in group}) > 1
        for row in group
    ]
    if contradictions:
        shown = ", ".join(map(str, sorted(contradictions)[:SHOWN]))
        notes.append(
            f"{len(contradictions)} rows have the inputs of another row and another label, such as {shown}"
        )
    each = max(1, len(calls))
    try:
        task.needs.check_calls(each)
    except ValueError as error:
        problems.append(str(error))
    fewest, most = task.needs.usual_calls(each), task.needs.calls
    fewest = fewest if most is None else min(fewest, most)
    dollars = await anyio.to_thread.run_sync(_dollars, task, calls, fewest, most)
    cap = task.budget.caps.cost
    if cap is not None and dollars is None:
        problems.append(
            "the budget is in dollars, and a model has no price; give afnio.budget(max_calls=…), or a price"
        )
    elif cap is not None and dollars is not None and dollars[0] > cap:
        problems.append(f"the budget of ${cap} can't pay for the fewest calls, about ${dollars[0]:.2f}")
    return Check(
        problems=tuple(problems),
        notes=tuple(notes),
        splits=task.sizes,
        contradictions=tuple(sorted(contradictions)),
        labels_right=right,
        labels_tried=tried,
        unsent=tuple(unsent),
        calls_per_row=len(calls),
        calls=(fewest, most),
        dollars=dollars,
        gains=await anyio.to_thread.run_sync(lambda: (smallest_gain(held, 0.5), smallest_gain(held, 0.8))),
    )


async def _labels(task: Optimization, rows: Sequence[Row]) -> tuple[int, int, str | None]:
    """Score each label as if it were the output. Returns those that are right, those tried, and the first wrong one."""
    if not takes_expected(task.metric):
        return 0, 0, None
    right = tried = 0
    first: str | None = None
    with rehearsing() as rehearsal:
        for row in rows:
            if row.expected is None:
                continue
            score, text = await _score(task.metric, row)
            if rehearsal.calls:  # a judge, whose replies are made up here
                return 0, 0, None
            tried += 1
            if score == task.perfect:
                right += 1
            else:
                first = first or f"row {row.number}, {text}"
    return right, tried, first


async def _score(metric: Callable[..., Any], row: Row) -> tuple[Any, str]:
    """Return a metric's score of a row's own label, and it in words; None if it fails."""
    others = {name: {"inputs": row.inputs, "trace": []}[name] for name in wanted_by(metric)}
    try:
        found = await anyio.to_thread.run_sync(
            functools.partial(metric, row.expected, row.expected, **others)
        )
        found = await found if inspect.isawaitable(found) else found
    except Exception as error:
        return None, f"fails with {type(error).__name__}: {error}"
    score = found[0] if isinstance(found, tuple) and found else found
    return score, f"returns {score!r} for {in_words(row.expected)[:80]!r}"


def _dollars(
    task: Optimization, calls: Sequence[Rehearsed], fewest: int, most: int | None
) -> tuple[float, float | None] | None:
    """Return what the fewest and the most calls cost, by the rehearsed row's; None if a price is unknown."""
    prices = [price_of(call.model, call.account.url) for call in calls]
    own = str(task.critic.completion_args.get("model"))
    if not calls or None in (*prices, price_of(own, task.critic.client.account.url)):
        return None
    usages = [Usage(call.prompt_tokens, call.output_tokens) for call in calls]
    row = sum((cost(price, usage) for price, usage in zip(prices, usages, strict=True) if price), Decimal(0))
    measured = Amount(len(calls), sum(usage.total_tokens for usage in usages), row)
    factor = cost_factors(measured, task.critic, len(task.start))[1]
    one = float(row) / len(calls)
    cap = task.budget.caps.cost
    highest = None if most is None else most * one * factor
    if cap is not None:
        highest = float(cap) if highest is None else min(float(cap), highest)
    return fewest * one, highest


def smallest_gain(rows: int, share: float) -> float | None:
    """Return the smallest true gain, in steps of a point, that is claimed in so large a share of runs.

    It is for right and wrong answers, if one row in ten gets worse. None if no gain is.

    >>> smallest_gain(100, 0.5), smallest_gain(2, 0.8)
    (0.12, None)
    """
    if not rows:
        return None
    points = range(1, round(100 * (1 - 2 * LOSING)) + 1)
    place = bisect_left(points, share, key=lambda point: power(rows, point / 100, losing=LOSING))
    return points[place] / 100 if place < len(points) else None
