"""Offspring: how one new candidate comes about, from a parent's feedback or from two parents, and is tried."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, final

import anyio

from afnio.autodiff._variable import Variable
from afnio.optim.change import Change
from afnio.optim.evaluation import Evaluate, learnt_from, scores_of
from afnio.optim.holdout import Holdout
from afnio.optim.merge import Merge
from afnio.optim.pareto import Member
from afnio.optim.reduce import gathered_of
from afnio.optim.step import Round, for_each
from afnio.runtime._callables import quorum_holds
from afnio.runtime._kernel import Job
from afnio.runtime._settings import Priority
from afnio.runtime._waiting import scope

Credit = Literal["share", "round_robin", "all"]
Scores = list[float | None]


@final
class Workshop:
    """What all offspring of a step share: the agent's `evaluate`, the data, the step's work."""

    def __init__(
        self,
        job: Job,
        work: Round,
        evaluate: Evaluate,
        train: Holdout,
        validation: Holdout,
        *,
        block_size: int,
        quorum: float,
        credit: Credit,
    ) -> None:
        self.job, self.work, self.credit = job, work, credit
        self.train, self.validation = train, validation
        self._evaluate, self._block_size, self._quorum = evaluate, block_size, quorum

    async def learn(
        self, values: Sequence[Any], units: Sequence[int], name: str
    ) -> tuple[Scores, list[list[Variable]]]:
        """Run a minibatch of training samples forward and backward; its scores, and each parameter's gradients."""
        return await learnt_from(
            self._evaluate,
            self.train.batch(units),
            self.work.bound(values),
            name=name,
            urgency=Priority.TRAINING,
            quorum=self._quorum,
        )

    async def score(self, values: Sequence[Any], units: Sequence[int], name: str) -> Scores:
        """Return the scores of a minibatch of training samples."""
        return await self._scores(self.train, values, units, name, Priority.TRAINING)

    async def validate(
        self, values: Sequence[Any], name: str, units: Sequence[int] | None = None
    ) -> dict[int, Scores]:
        """Return the scores of all validation samples, or of those of `units`, by unit."""
        blocks = self.validation.blocks(
            range(len(self.validation)) if units is None else units, self._block_size
        )
        found: list[dict[int, Scores]] = [{} for _ in blocks]

        async def block(number: int) -> None:
            mine = blocks[number].units
            scores = await self._scores(self.validation, values, mine, f"block {number}", Priority.VALIDATION)
            found[number] = self.validation.by_unit(mine, scores)

        async with scope(name=name):
            await side_by_side([partial(block, number) for number in range(len(blocks))])
        return {unit: scores for part in found for unit, scores in part.items()}

    async def _scores(
        self, data: Holdout, values: Sequence[Any], units: Sequence[int], name: str, urgency: Priority
    ) -> Scores:
        return await scores_of(
            self._evaluate,
            data.batch(units),
            self.work.bound(values),
            name=name,
            urgency=urgency,
            quorum=self._quorum,
        )

    def enough(self, pairs: int, samples: int) -> bool:
        """Whether so many samples with both scores allow a comparison."""
        return pairs > 0 and quorum_holds(pairs, samples, self._quorum)


class Offspring(ABC):
    """A candidate in the making: `grow` it, then look at what became of it.

    Attributes:
        parents: the numbers of the members that it comes from.
        values: one for each parameter, None if it came to none that is worth a trial.
        tried: the scores of the samples that it had to prove itself on.
        validated: the scores of all validation samples, by unit, if it got so far.
        verdict: what became of it, in words.
        error: what made it fail.
        changes: what the proposer did, by position.
    """

    def __init__(self, workshop: Workshop, name: str, parents: tuple[int, ...]) -> None:
        self._workshop, self._name = workshop, name
        self.parents = parents
        self.values: tuple[Any, ...] | None = None
        self.validated: dict[int, Scores] | None = None
        self.tried: Scores = []
        self.verdict = ""
        self.error: BaseException | None = None
        self.changes: dict[int, Change] = {}

    async def grow(self) -> None:
        """Do it all, in a scope of its own; an error becomes the verdict."""
        try:
            async with scope(name=self._name):
                await self._grow()
        except Exception as error:
            self.error, self.verdict = error, f"failed: {error}"

    @abstractmethod
    async def _grow(self) -> None:
        """Make the values and have them prove themselves."""


@final
class Mutation(Offspring):
    """A child of one parent, with parameters rewritten by the feedback that the parent got on a minibatch.

    Args:
        parent: whose values are improved.
        units: training samples of the minibatch.
        turn: how often the parent had a child before, for taking turns among its parameters.
        draw: for the choice of the parameter.
        feedback: gradients that the parent has already, by position; then the minibatch only decides.
        known: whether values are in the pool.
    """

    def __init__(
        self,
        workshop: Workshop,
        name: str,
        parent: Member,
        units: Sequence[int],
        *,
        turn: int,
        draw: random.Random,
        feedback: Mapping[int, Sequence[Variable]] | None,
        known: Callable[[Sequence[Any]], bool],
    ) -> None:
        super().__init__(workshop, name, (parent.number,))
        self._parent, self._units = parent, units
        self._turn, self._draw = turn, draw
        self._feedback, self._known = feedback, known

    async def _grow(self) -> None:
        workshop, before = self._workshop, self._parent.values
        if self._feedback is None:
            scores, gradients = await workshop.learn(before, self._units, "parent")
            found = {n: g for n, g in enumerate(gradients) if g and workshop.work.parameters[n].requires_grad}
            reduced = await self._reduced(found)
        else:
            reduced = dict(self._feedback)
            scores = await workshop.score(before, self._units, "parent")
        if not reduced:
            self.verdict = "not made: no sample of the minibatch had feedback"
            return
        positions = self._credited(reduced)
        proposed = await for_each(
            workshop.job,
            "proposal",
            positions,
            lambda job, at: workshop.work.propose(job, at, reduced[at], before[at]),
        )
        values = list(before)
        for position, change in proposed.items():
            if isinstance(change, BaseException):
                raise change
            self.changes[position] = change
            values[position] = change.after
        if tuple(values) == before or self._known(values):
            reasons = [change.rejected for change in self.changes.values() if change.rejected]
            self.verdict = f"not tried: {reasons[0] if reasons else 'it is in the pool'}"
            return
        self.values = tuple(values)
        await self._prove(scores)

    async def _reduced(self, found: Mapping[int, Sequence[Variable]]) -> dict[int, Sequence[Variable]]:
        work, before = self._workshop.work, self._parent.values
        reduced = await for_each(
            self._workshop.job, "reduce", found, lambda job, at: work.reduce(job, at, found[at], before[at])
        )
        for outcome in reduced.values():
            if isinstance(outcome, BaseException):
                raise outcome
        return {at: outcome for at, outcome in reduced.items() if not isinstance(outcome, BaseException)}

    def _credited(self, reduced: Mapping[int, Sequence[Variable]]) -> list[int]:
        """Return the parameters to rewrite, among those that feedback reached."""
        positions = sorted(reduced)
        if self._workshop.credit == "all":
            return positions
        if self._workshop.credit == "round_robin":
            return [positions[self._turn % len(positions)]]
        return self._draw.choices(positions, [gathered_of(reduced[position]) for position in positions])

    async def _prove(self, scores: Scores) -> None:
        """Accept on strict improvement on the parent's minibatch, then validate."""
        assert self.values is not None
        workshop = self._workshop
        self.tried = await workshop.score(self.values, self._units, "child")
        pairs = [(a, b) for a, b in zip(self.tried, scores, strict=True) if a is not None and b is not None]
        mine, theirs = math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs)
        if not workshop.enough(len(pairs), len(scores)):
            raise RuntimeError(
                f"only {len(pairs)} of {len(scores)} samples of the minibatch have both scores"
            )
        if mine <= theirs:
            self.verdict = f"rejected: {mine:g} against {theirs:g} on a minibatch of {len(pairs)}"
            return
        self.validated = await workshop.validate(self.values, "validation")
        self.verdict = f"accepted: {mine:g} against {theirs:g} on a minibatch of {len(pairs)}"


@final
class Merged(Offspring):
    """A child of two parents.

    Args:
        units: validation samples on which it has to do as well as the better of its parents.
        theirs: for each of those units, the scores of one parent and of the other.
    """

    def __init__(
        self, workshop: Workshop, name: str, merge: Merge, theirs: Mapping[int, tuple[Scores, Scores]]
    ) -> None:
        super().__init__(workshop, name, (merge.one.number, merge.other.number))
        self.merge, self._theirs = merge, theirs
        self.values = merge.values

    async def _grow(self) -> None:
        assert self.values is not None
        workshop, units = self._workshop, list(self._theirs)
        found = await workshop.validate(self.values, "trial", units)
        self.tried = [score for unit in units for score in found[unit]]
        rows = [
            row
            for unit in units
            for row in zip(found[unit], *self._theirs[unit], strict=True)
            if None not in row
        ]
        if not workshop.enough(len(rows), len(self.tried)):
            raise RuntimeError(f"only {len(rows)} of {len(self.tried)} samples have the scores of all three")
        mine, one, other = (
            math.fsum(score for score in column if score is not None) for column in zip(*rows, strict=True)
        )
        if mine < max(one, other):
            self.verdict = f"rejected: {mine:g} against {max(one, other):g} on {len(rows)} samples"
            return
        rest = [unit for unit in range(len(workshop.validation)) if unit not in found]
        self.validated = {
            **found,
            **(await workshop.validate(self.values, "validation", rest) if rest else {}),
        }
        self.verdict = f"accepted: {mine:g} against {max(one, other):g} on {len(rows)} samples"


async def side_by_side(works: Sequence[Callable[[], Any]]) -> None:
    """Do all; the first error in order is raised bare, once the others are cancelled."""
    errors: dict[int, Exception] = {}

    async def one(number: int) -> None:
        try:
            await works[number]()
        except Exception as error:
            errors[number] = error
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for number in range(len(works)):
            tasks.start_soon(one, number)
    if errors:
        raise errors[min(errors)]
