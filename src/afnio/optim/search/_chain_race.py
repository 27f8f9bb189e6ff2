"""Candidates of `EditTGD`: how the agent is run with them, and how they race.

`Runner` runs the agent with other values of its parameters. `EntryRace` runs candidates on the same samples, side by
side, and ranks them. Candidates have scopes of their own, named by number, so the addresses of their calls don't
depend on which of them is first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, final

from afnio.autodiff._backward import launch_grad
from afnio.autodiff._graph import enable_grad
from afnio.autodiff._variable import Variable, bind
from afnio.errors import BudgetExceeded, JournalError, ScoreError
from afnio.models._backward_model import backward_by, backward_model
from afnio.optim._blocks import Edit
from afnio.optim._edits import Mistake, Quoting
from afnio.optim._holdout import Evaluate, Holdout, called, sample_scores
from afnio.optim._optimizer import StepInputs, side_by_side
from afnio.optim.search._sizes import Sizes
from afnio.runtime._callables import quorum_holds, tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Priority, prioritised
from afnio.runtime._waiting import scope

_ENDS: Final = (BudgetExceeded, JournalError, ScoreError)
"""Errors that end a step: no part of it could be judged after them."""


def raise_end(error: BaseException) -> None:
    """Raise the first error that ends a step, if `error` is one or is a group with one."""
    if isinstance(error, _ENDS):
        raise error
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        raise_end(inner)


@final
@dataclass(frozen=True, slots=True)
class ChainSetup:
    """The arguments of `EditTGD`, which documents them, that its steps read."""

    evaluate: Evaluate
    train: Holdout
    max_chars: int | None
    prune_every: int | None
    critics: bool | None
    quorum: float

    def direct(self, parameters: Sequence[Variable]) -> bool:
        """Return True if the proposer reads the mistakes without a critic."""
        if self.critics is not None:
            return not self.critics
        return sum(parameter.requires_grad for parameter in parameters) == 1


# Running the agent.


@final
class Runner:
    """Runs the agent on training samples, with other values of its parameters."""

    def __init__(self, setup: ChainSetup, inputs: StepInputs) -> None:
        self._setup, self._inputs = setup, inputs
        self._direct = setup.direct(inputs.parameters)

    async def learn(
        self, values: Sequence[Any], units: Sequence[int], name: str, quorum: float | None = None
    ) -> tuple[list[float | None], list[list[Mistake]]]:
        """Run samples forward and backward. Return their scores, and the mistakes of each parameter."""
        async with scope(name=name):
            scores, explanation = await self.forward(
                values, units, "forward", Priority.TRAINING, quorum=quorum
            )
            return scores, await self.mistakes(explanation, units, "backward", quorum=quorum)

    async def forward(
        self,
        values: Sequence[Any],
        units: Sequence[int],
        name: str,
        level: Priority,
        quorum: float | None = None,
    ) -> tuple[list[float | None], Any]:
        """Run samples, with the graph recorded. Return their scores (None for those that failed) and explanation."""
        setup = self._setup
        async with scope(name=name):
            owner = current_scope()
            with (
                bind(self._inputs.bound(values)),
                enable_grad(),
                tolerate(quorum or setup.quorum),
                prioritised(level),
            ):
                result = await called(setup.evaluate, setup.train.batch(units))
                scores = await sample_scores(result)
            owner.unread()  # a failed sample counts as missing, so don't raise its error when the scope is left
        setup.train.by_unit(units, scores)  # raises if there isn't one for each sample
        explanation = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        if not isinstance(explanation, Variable) or not explanation.requires_grad:
            raise TypeError(
                f"evaluate must return (score, explanation) that parameters led to (got {result!r}); is it run "
                "under no_grad, or does it use other parameters?"
            )
        return scores, explanation

    async def mistakes(
        self, explanation: Variable, units: Sequence[int], name: str, quorum: float | None = None
    ) -> list[list[Mistake]]:
        """Send feedback backward. Return that of each parameter, in the order of the samples."""
        parameters = self._inputs.parameters
        async with scope(name=name):
            owner = current_scope()
            with self._critic(), tolerate(quorum or self._setup.quorum), prioritised(Priority.TRAINING):
                gradients = await launch_grad(explanation, list(parameters))
            owner.unread()
        return [
            [self._mistake(entry, units) for entry in found] if parameter.requires_grad else []
            for parameter, found in zip(parameters, gradients, strict=True)
        ]

    def _mistake(self, entry: Variable, units: Sequence[int]) -> Mistake:
        lane = next((t.get("sample") for t in entry.provenance if isinstance(t, Mapping)), None)
        unit = units[lane] if isinstance(lane, int) and 0 <= lane < len(units) else None
        return Mistake(unit, str(entry.data), entry.provenance, self._direct)

    def _critic(self) -> AbstractContextManager[Any]:
        if not self._direct:
            return nullcontext()
        known = backward_model()
        group = next(
            o for p, o in zip(self._inputs.parameters, self._inputs.options, strict=True) if p.requires_grad
        )
        client = known.client if known is not None else group["model_client"]
        arguments = known.completion_args if known is not None else group["completion_args"]
        return backward_by(Quoting(client, arguments))


# Candidates.


@final
@dataclass(slots=True)
class Entry:
    """A candidate of a race.

    Attributes:
        values: One text for each parameter.
        edits: For each parameter its edits of the current text.
        mistakes: For each parameter the feedback that its edits were made from.
        note: Why it isn't raced. Empty if it is.
        place: Its number in the race.
        number: Its number among all candidates.
        left_out: The position and the text of the block that it does without, if that is what it tries.
    """

    name: str
    values: tuple[str, ...]
    edits: list[list[Edit]] = field(default_factory=list)
    mistakes: list[list[Mistake]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    note: str = ""
    place: int = 0
    number: int = 0
    left_out: tuple[int, str] | None = None
    error: Exception | None = None
    scores: list[float | None] = field(default_factory=list)
    graphs: list[tuple[Any, list[int]]] = field(default_factory=list)
    verdict: str = ""


@final
class RacedEntries(NamedTuple):
    """A race's candidates, its samples, and the candidate that goes on; None if none could be judged."""

    entries: list[Entry]
    units: list[int]
    winner: Entry | None


@final
class EntryRace:
    """Runs the candidates of one step."""

    def __init__(self, runner: Runner, sizes: Sizes, quorum: float) -> None:
        self._runner, self._sizes, self._quorum = runner, sizes, quorum

    async def run(
        self, entries: Sequence[Entry], units: Sequence[int], *, staged: bool = True
    ) -> RacedEntries:
        """Run candidates on fresh samples: some for all, the rest for the best."""
        racing = [entry for entry in entries if not entry.note]
        if len(racing) < 2 or not units:
            return RacedEntries(list(entries), list(units), entries[0] if racing else None)
        for place, entry in enumerate(racing):
            entry.place = place
        sizes = self._sizes
        staged = staged and len(racing) > sizes.keep and len(units) > sizes.first
        head = list(units[: sizes.first]) if staged else list(units)
        async with scope(name="race"):
            await self._run(racing, head, 1)
            left = self._best(racing, sizes.keep if staged else len(racing))
            if staged:
                await self._run(left, list(units[sizes.first :]), 2)
                left = self._best(left, len(left))
        return RacedEntries(list(entries), list(units), left[0])

    async def _run(self, entries: Sequence[Entry], units: list[int], stage: int) -> None:
        async def one(entry: Entry) -> None:
            try:
                async with scope(name=f"candidate {entry.place} part {stage}"):
                    scores, explanation = await self._runner.forward(
                        entry.values, units, "samples", Priority.VALIDATION
                    )
            except Exception as error:
                raise_end(error)
                entry.error = error
                scores, explanation = [None] * len(units), None
            entry.scores += scores
            if explanation is not None:
                entry.graphs.append((explanation, units))

        await side_by_side([partial(one, entry) for entry in entries])

    def _best(self, entries: Sequence[Entry], most: int) -> list[Entry]:
        """Return the best candidates, by their sums on the samples that all of them have a score of."""
        able = [e for e in entries if self._enough(sum(s is not None for s in e.scores), len(e.scores))]
        for entry in entries:
            if entry not in able:
                scored = sum(s is not None for s in entry.scores)
                reason = f": {entry.error}" if entry.error is not None else ""
                entry.verdict = f"failed: only {scored} of {len(entry.scores)} samples have a score{reason}"
        if not able:
            raise entries[0].error or RuntimeError(
                f"no candidate has enough scores (quorum={self._quorum}); the race decides nothing"
            )
        columns = [c for c in zip(*(e.scores for e in able), strict=True) if None not in c]
        sums = [
            math.fsum(score for score in column if score is not None) for column in zip(*columns, strict=True)
        ]
        sums = sums or [0.0] * len(able)
        order = sorted(range(len(able)), key=lambda number: (-sums[number], able[number].place))
        best = able[order[0]]
        for number in order:
            entry = able[number]
            what = f"{sums[number]:g} against {sums[order[0]]:g} of {best.name} on {len(columns)} samples"
            entry.verdict = (
                f"lost: {what}" if number != order[0] else f"{sums[number]:g} on {len(columns)} samples"
            )
        return [able[number] for number in order[:most]]

    def _enough(self, scored: int, samples: int) -> bool:
        return scored > 0 and quorum_holds(scored, samples, self._quorum)

    async def mistakes(self, winner: Entry, name: str) -> list[list[Mistake]]:
        """Return the winner's mistakes in the race, by parameter, for the next step's proposals."""
        parts: list[list[list[Mistake]]] = [[] for _ in winner.graphs]

        async def part(number: int) -> None:
            explanation, units = winner.graphs[number]
            parts[number] = await self._runner.mistakes(explanation, units, f"part {number + 1}")

        async with scope(name=name):
            await side_by_side([partial(part, number) for number in range(len(parts))])
        return [[m for found in parts for m in found[position]] for position in range(len(winner.values))]
