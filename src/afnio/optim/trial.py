"""Trial: one step's candidates, proposed and evaluated side by side until their race is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import anyio

from afnio.autodiff._variable import Variable
from afnio.optim.change import Change
from afnio.optim.evaluation import Evaluate, digest, scores_of
from afnio.optim.holdout import Block, Holdout
from afnio.optim.racing import Race
from afnio.optim.step import Round, proposals
from afnio.runtime._admission import Crowd, crowd
from afnio.runtime._kernel import Job
from afnio.runtime._settings import Priority
from afnio.runtime._waiting import scope

UnitScores = dict[int, list[float | None]]
"""Scores by number of the held-out sample; a list of one."""


@final
class NotTriedError(Exception):
    """A candidate that there is no reason to evaluate."""


@final
class Trial:
    """What is under way in one step; on the runtime's loop, in the step's scope.

    Args:
        numbers: of the candidates.
        feedback: what the proposer of the n-th candidate is shown, by position of the parameter.
        known: the incumbent's scores of units that were evaluated before.
        tried: digests of candidates that were rejected before.
    """

    def __init__(
        self,
        job: Job,
        work: Round,
        race: Race,
        *,
        evaluate: Evaluate,
        holdout: Holdout,
        blocks: Sequence[Block],
        numbers: Sequence[int],
        feedback: Callable[[int], Mapping[int, Sequence[Variable]]],
        known: Mapping[int, Sequence[float | None]],
        tried: Sequence[str],
        quorum: float,
    ) -> None:
        self._job, self._work, self._race = job, work, race
        self._evaluate, self._holdout, self._quorum = evaluate, holdout, quorum
        self._blocks, self._numbers, self._feedback = blocks, numbers, feedback
        self._tried = tried
        self.incumbent: UnitScores = {unit: list(scores) for unit, scores in known.items()}
        self.values: list[tuple[Any, ...]] = [work.values for _ in numbers]
        self.changes: list[dict[int, Change]] = [{} for _ in numbers]
        self.scores: list[UnitScores] = [{} for _ in numbers]
        self._proposed = [anyio.Event() for _ in numbers]
        self._passed = [[anyio.Event() for _ in blocks] for _ in numbers]
        self._crowd = Crowd()
        self._cancels = [anyio.CancelScope() for _ in numbers]
        self._measuring = anyio.CancelScope()

    async def run(self) -> None:
        """Propose and evaluate until it is decided who wins; failures are the candidates' verdicts."""
        counting = crowd.set(self._crowd)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._measure_incumbent)
                for candidate in range(len(self._numbers)):
                    tasks.start_soon(self._run, candidate)
        finally:
            crowd.reset(counting)

    @property
    def compared(self) -> bool:
        """Whether any candidate was worth an evaluation; otherwise the incumbent's is given up."""
        return any(values != self._work.values for values in self.values)

    async def _measure_incumbent(self) -> None:
        """Evaluate the incumbent while the proposals are on their way, where it hasn't been already."""
        with self._measuring:
            async with scope(name="incumbent"), anyio.create_task_group() as tasks:
                for number, block in enumerate(self._blocks):
                    tasks.start_soon(self._measure_block, number, block)

    async def _measure_block(self, number: int, block: Block) -> None:
        missing = [unit for unit in block.units if None in self.incumbent.get(unit, [None])]
        found: Sequence[float | None] | BaseException
        try:
            if missing:
                measured = await self._scores(self._work.values, missing, number, Priority.VALIDATION)
                self.incumbent.update(measured)
            found = [score for unit in block.units for score in self.incumbent[unit]]
        except Exception as error:
            found = error
        self._race.add_incumbent(number, found)
        self._settle()

    async def _run(self, candidate: int) -> None:
        with self._cancels[candidate]:
            async with scope(name=f"candidate {self._numbers[candidate]}"):
                try:
                    await self._propose(candidate)
                except Exception as error:
                    self._race.fail(candidate, error)
                self._proposed[candidate].set()
                # Of equal candidates the first is evaluated; which is the first must not depend on who was quicker.
                for earlier in self._proposed[:candidate]:
                    await earlier.wait()
                self._compare_with_earlier(candidate)
                self._settle()
                await self._race_on(candidate)

    async def _race_on(self, candidate: int) -> None:
        """Evaluate block by block; once there is room for all that the account is asked, all others at once.

        The first block rules out most. Where calls queue, the next block waits until the candidate has survived the
        one before: what is not sent need not be cancelled, and others use the room.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._evaluate_block, candidate, 0, Priority.VALIDATION)
            for number in range(1, len(self._blocks)):
                urgency = Priority.SPECULATIVE
                if number == 1 or self._crowd.dense:
                    await self._passed[candidate][number - 1].wait()
                    urgency = Priority.VALIDATION
                tasks.start_soon(self._evaluate_block, candidate, number, urgency)

    async def _propose(self, candidate: int) -> None:
        found = await proposals(self._job, self._work, self._feedback(candidate))
        errors = [change for change in found.values() if not isinstance(change, Change)]
        if errors:
            raise errors[0]
        changes = {number: change for number, change in found.items() if isinstance(change, Change)}
        values = list(self._work.values)
        for position, change in changes.items():
            values[position] = change.after
        self.changes[candidate] = changes
        if tuple(values) == self._work.values:
            reasons = [change.rejected for change in changes.values() if change.rejected]
            raise NotTriedError(reasons[0] if reasons else "it is the current value")
        if digest(values) in self._tried:
            raise NotTriedError("it was tried before")
        self.values[candidate] = tuple(values)

    def _compare_with_earlier(self, candidate: int) -> None:
        mine = self.values[candidate]
        if mine != self._work.values and mine in self.values[:candidate]:
            earlier = self._numbers[self.values.index(mine)]
            self._race.fail(candidate, NotTriedError(f"it equals candidate {earlier}"))

    async def _evaluate_block(self, candidate: int, number: int, urgency: Priority) -> None:
        units = self._blocks[number].units
        found: Sequence[float | None] | BaseException
        try:
            measured = await self._scores(self.values[candidate], units, number, urgency)
            self.scores[candidate].update(measured)
            found = [score for unit in units for score in measured[unit]]
        except Exception as error:
            found = error
        self._race.add(candidate, number, found)
        self._settle()

    async def _scores(
        self, values: Sequence[Any], units: Sequence[int], number: int, urgency: Priority
    ) -> UnitScores:
        batch = self._holdout.batch(units)
        name, bound = f"block {number}", self._work.bound(values)
        scores = await scores_of(
            self._evaluate, batch, bound, name=name, urgency=urgency, quorum=self._quorum
        )
        return self._holdout.by_unit(units, scores)

    def _settle(self) -> None:
        """Let survivors go on and cancel what can't matter any more, with its calls."""
        for candidate, cancel in enumerate(self._cancels):
            for passed in self._passed[candidate][: self._race.survived(candidate)]:
                passed.set()
            if not self._race.running(candidate):
                self._proposed[candidate].set()
                cancel.cancel()
        if self._race.over and not self.compared:
            self._measuring.cancel()
