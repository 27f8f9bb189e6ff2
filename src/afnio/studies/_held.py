"""Held-out rows: the new prompts beside the old ones, once, on rows that nothing else saw.

A training looks at dozens of candidates, and the one that looks best is partly lucky. So nothing in a training says
whether its result is better. These rows do, and by how much:

1. `HeldOut.judge` scores both on the first 40 % of the rows. It stops there if they are evidence of harm.
2. Otherwise it scores the rest. The new prompts are kept unless all rows speak against them (`optim.GateVerdict`).
3. The claim is the paired gain on all rows, with a 95 % interval (`_figures`). Step 1 stops no result for success, so
   it makes no false claim likelier, and the interval needs no correction. A result that was stopped has no interval:
   that of its first rows would be too low.

What a result that was stopped leaves of the budget pays for a second attempt. It is tested on the rows that step 1 left
(`HeldOut.rest`), all at once, with an interval of 97.5 %: both attempts together claim falsely as seldom as one does.

A row that crashes scores 0 here, with the old prompts as with the new ones; or the lowest score, if scores can be
negative. Left out, the rows that a prompt breaks would count in its favour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from typing import Any, Final, Self, final

import anyio.to_thread

from afnio.errors import ModelError, first_of
from afnio.optim._gate import GateVerdict, decision_of
from afnio.runtime._kernel import current_scope
from afnio.runtime._waiting import scope
from afnio.runtime.events import StepEnded, emit, subscribed
from afnio.stats import p_value
from afnio.studies._needs import CallCount
from afnio.studies._rows import Row, means_by_input
from afnio.studies._scoring import Scored, Scoring, check_crashes
from afnio.studies._training import shown

# The part of the rows that is scored first.
FIRST_SHARE: Final = 0.4
# With fewer rows all are scored at once: 40 % of them would hardly ever be evidence of harm.
STAGED: Final = 48
PAIR: Final = "old and new prompts"
# A result is stopped if the p-value of a loss is at most this.
HARM: Final = 0.1


@final
@dataclass(frozen=True, slots=True)
class HeldScores:
    """Both prompts on the same rows; without new prompts, the old ones.

    Attributes:
        rows: that were scored.
        looks: the passes: of the old prompts, and of the new ones if there are any.
        before, after: the scores of each input, the means of its rows.
        verdict: on the new prompts; None without any.
        confidence: of the interval of their gain.
        takes: how many times the tokens, the cost and the calls of a row the new prompts take; none if it is unknown.
    """

    rows: Sequence[Row] = ()
    looks: Sequence[Scored] = ()
    before: Sequence[float] = ()
    after: Sequence[float] = ()
    verdict: GateVerdict | None = None
    confidence: float = 0.95
    takes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row], looks: Sequence[Scored]) -> Self:
        """Compare passes over the same rows. A row that crashed scores 0, or the lowest score if that is lower."""
        lowest = min([0.0, *(score for look in looks for score in look.scores if score is not None)])
        scores = ([lowest if score is None else score for score in look.scores] for look in looks)
        means = means_by_input([row.key for row in rows], *scores)
        return cls(rows, looks, means[0], means[-1])

    @property
    def crashed(self) -> int:
        """How many rows crashed, with the old prompts or with the new ones."""
        return sum(None in scores for scores in zip(*(look.scores for look in self.looks), strict=True))


def first_rows(rows: int) -> int:
    """Return how many of the rows are scored first, to stop a result that does harm; 0 if they are too few.

    >>> first_rows(100), first_rows(47)
    (40, 0)
    """
    return round(FIRST_SHARE * rows) if rows >= STAGED else 0


def harms(before: Sequence[float], after: Sequence[float]) -> bool:
    """Return True if scores of the same rows are evidence that the new prompts do harm."""
    return p_value([a - b for a, b in zip(before, after, strict=True)]) <= HARM


@final
class HeldOut:
    """The held-out rows of one study.

    Args:
        groups: these rows by input, in a random order.
        draws: how often each row is scored with each prompt.
        confidence: of the interval of a gain.
        first: how many of the groups are scored first, to stop a result that does harm.
    """

    def __init__(
        self,
        study: Scoring,
        groups: Sequence[list[Row]],
        draws: int = 1,
        *,
        confidence: float = 0.95,
        first: int | None = None,
    ) -> None:
        self._study, self._groups, self._draws = study, groups, draws
        self._confidence = confidence
        self._first = first_rows(len(groups)) if first is None else first
        self._counts = {"start": CallCount(), "result": CallCount()}

    @property
    def rest(self) -> HeldOut:
        """The rows that no look has used after a result was stopped, for a second attempt."""
        halved = (1 + self._confidence) / 2
        return HeldOut(self._study, self._groups[self._first :], self._draws, confidence=halved, first=0)

    @property
    def runs(self) -> int:
        """How often the agent runs in `judge`, with both prompts together."""
        return 2 * self._draws * sum(map(len, self._groups))

    async def judge(self, start: Mapping[str, str], rest: Mapping[str, str] | None = None) -> HeldScores:
        """Compare the prompts that the agent has now with `start`, and restore these if the others aren't kept.

        Args:
            rest: the prompts that are compared on the rows after the first ones, if others.

        Raises:
            BatchError: if more than a tenth of the rows crash with `start`, or fail by their model calls with either.
        """
        texts = self._study.subject.texts
        if texts == start:
            async with scope(name="held"):
                return await self._scored(HeldScores(), self._groups, {"start/batch 1": start})
        first = self._first
        found, stopped = HeldScores(), False
        async with scope(name="held"):
            path = current_scope().path
            with subscribed(partial(self._count, path)):
                if first:
                    both = {"start/batch 1": start, "result/batch 1": texts}
                    found = await self._scored(found, self._groups[:first], both)
                    stopped = harms(found.before, found.after)
                if not stopped:
                    both = {"start/batch 2": start}
                    if rest != start:
                        both["result/batch 2"] = texts if rest is None else rest
                    found = await self._scored(found, self._groups[first:], both)
        numbers = [group[0].number for group in self._groups[: len(found.before)]]
        verdict = GateVerdict.of(found.before, found.after, numbers, stopped=stopped)
        takes = await anyio.to_thread.run_sync(self._takes)
        found = replace(found, verdict=verdict, takes=takes, confidence=self._confidence)
        self._decide(start, texts, found, f"{path}/gate")
        return found

    def _count(self, path: str, event: Any) -> None:
        """Add a call of the agent's to those of the prompts that it was made with."""
        address = getattr(event, "address", "")
        if not address.startswith(tuple(self._study.metric_places)):
            for name, count in self._counts.items():
                if address.startswith(f"{path}/{name}/"):
                    count(event)

    def _takes(self) -> dict[str, float]:
        """Return how many times as much the new prompts take. Reads prices from files."""
        old, new = self._counts.values()
        pairs = {
            "tokens": (old.tokens, new.tokens),
            "cost": (old.cost, new.cost),
            "calls": (old.calls, new.calls),
        }
        return {name: float(b / a) for name, (a, b) in pairs.items() if a and b}

    async def _scored(
        self, before: HeldScores, groups: Sequence[list[Row]], versions: Mapping[str, Mapping[str, str]]
    ) -> HeldScores:
        """Score these rows, and return the comparison on them and on the rows of the one before."""
        rows = [row for group in groups for row in group]
        draws = [f"/draw {number}" for number in range(1, self._draws + 1)] if self._draws > 1 else [""]
        named = {f"{name}{draw}": texts for name, texts in versions.items() for draw in draws}
        with shown("test", PAIR, len(named) * len(rows)):
            passes = await self._study.scored_as(named, rows)
        looks = [
            reduce(add, passes[first : first + self._draws]) for first in range(0, len(passes), self._draws)
        ]
        rows = rows * self._draws
        check_crashes(looks[0].errors, len(rows))
        for look in looks:  # an outage says nothing about prompts
            check_crashes([error for error in look.errors if first_of(error, ModelError)], len(rows))
        if before.looks:
            looks = looks * (len(before.looks) // len(looks))  # equal prompts have equal scores
            looks = [old + new for old, new in zip(before.looks, looks, strict=True)]
        return HeldScores.of([*before.rows, *rows], looks)

    def _decide(
        self, start: Mapping[str, str], texts: Mapping[str, str], found: HeldScores, address: str
    ) -> None:
        """Restore the old prompts if the new ones aren't kept, and report the decision as a step."""
        verdict = found.verdict
        assert verdict is not None
        parameters = self._study.subject.parameters
        roles = [parameter.role for parameter in parameters.values()]
        old, new = (tuple(version[name] for name in parameters) for version in (start, texts))
        decision = decision_of(roles, old, new, verdict, (found.before, found.after))
        if not verdict.passed:
            self._study.subject.write(start)
        values = tuple(zip(roles, decision.values, strict=True))
        emit(StepEnded(address, "Gate", decision.changes, None, decision.candidates, values))
