"""ParetoSearch: a pool of candidates that grows by mutations and merges, several at once."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, final

from afnio.errors import ScoreError
from afnio.optim.change import Candidate, Change
from afnio.optim.evaluation import Evaluate
from afnio.optim.holdout import Holdout
from afnio.optim.merge import possible_merges, trial_samples
from afnio.optim.offspring import Credit, Merged, Mutation, Offspring, Scores, Workshop, side_by_side
from afnio.optim.pareto import Member, Pool
from afnio.optim.step import Acceptance, Decision, Round
from afnio.runtime._kernel import Job, within
from afnio.runtime._settings import draw_seed
from afnio.runtime._waiting import scope


@final
class ParetoSearch(Acceptance):
    """The search of `ParetoTGD`; see there for the arguments."""

    needs_feedback = False

    def __init__(
        self,
        evaluate: Evaluate,
        train: Any,
        validation: Any,
        *,
        proposals: int,
        minibatch_size: int,
        credit: Credit,
        merges: int,
        block_size: int,
        quorum: float,
        seed: int | None,
    ) -> None:
        if not callable(evaluate):
            raise TypeError(f"evaluate must be a callable of a batch (got {evaluate!r})")
        counts = {"proposals": proposals, "minibatch_size": minibatch_size, "block_size": block_size}
        for name, number in {**counts, "merges": merges + 1 if isinstance(merges, int) else merges}.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"{name} must be a whole number, 1 or more, merges 0 or more (got {number!r})"
                )
        if credit not in ("share", "round_robin", "all"):
            raise ValueError(f"credit must be 'share', 'round_robin' or 'all' (got {credit!r})")
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum!r})")
        self._evaluate = evaluate
        self._train, self._validation = Holdout(train), Holdout(validation)
        self._proposals, self._minibatch_size, self._credit = proposals, minibatch_size, credit
        self._block_size, self._quorum, self._seed = block_size, quorum, seed
        self.pool = Pool()
        self._rounds = 0
        self._drawn = 0
        self._next = 0
        self._merges_left = merges
        self._merged: list[list[int]] = []
        self._turns: dict[int, int] = {}
        self._grew = False

    def begin(self) -> None:
        if self._seed is None:
            self._seed = draw_seed()

    async def decide(self, job: Job, work: Round) -> Decision:
        workshop = Workshop(
            job, work, self._evaluate, self._train, self._validation,
            block_size=self._block_size, quorum=self._quorum, credit=self._credit,
        )  # fmt: skip
        current = self.pool.find(work.values)
        start = Member(self._next, (), work.values, ()) if current is None else None
        draw = random.Random(f"{self._seed}/round/{self._rounds}")
        offspring = self._offspring(workshop, draw, current or start)
        validated: list[dict[int, Scores]] = []

        async def validate_start() -> None:
            assert start is not None
            async with scope(name="start"):
                validated.append(await workshop.validate(start.values, "validation"))

        with within(job.scope):
            works = [child.grow for child in offspring]
            await side_by_side(works if start is None else [validate_start, *works])
        return self._conclude(work, offspring, start, validated)

    def _offspring(self, workshop: Workshop, draw: random.Random, current: Member | None) -> list[Offspring]:
        """Decide, before anything is asked, who has children and on what they are tried."""
        assert current is not None
        offspring: list[Offspring] = []
        feedback = workshop.work.feedback
        turns = dict(self._turns)
        # Feedback that a training loop has gathered is about the current values; it is used first.
        count = self._proposals + bool(feedback)
        for number in range(count):
            gathered = feedback if feedback and number == 0 else None
            parent = current if gathered or not self.pool.members else self.pool.parent(draw)
            turn = turns[parent.number] = turns.get(parent.number, -1) + 1
            offspring.append(
                Mutation(
                    workshop,
                    f"proposal {number}",
                    parent,
                    self._minibatch(self._drawn + number * self._stride),
                    turn=turn,
                    draw=random.Random(f"{self._seed}/credit/{self._rounds}/{number}"),
                    feedback=gathered,
                    known=lambda values: self.pool.find(values) is not None,
                )
            )
        merges = possible_merges(self.pool, self._merged) if self._grew and self._merges_left else []
        if merges:
            merge = draw.choice(merges)
            theirs = {
                unit: ([merge.one.scores[unit]], [merge.other.scores[unit]])
                for unit in trial_samples(merge, draw)
            }
            offspring.append(Merged(workshop, "merge", merge, theirs))
        return offspring

    @property
    def _stride(self) -> int:
        """Training samples of a minibatch."""
        return min(self._minibatch_size, len(self._train))

    def _minibatch(self, start: int) -> list[int]:
        """Return the training samples from `start` on, in an order shuffled anew each epoch."""
        units, size = [], len(self._train)
        for position in range(start, start + self._stride):
            epoch, place = divmod(position, size)
            order = list(range(size))
            random.Random(f"{self._seed}/epoch/{epoch}").shuffle(order)
            units.append(order[place])
        return units

    def _conclude(
        self,
        work: Round,
        offspring: Sequence[Offspring],
        start: Member | None,
        validated: Sequence[Mapping[int, Scores]],
    ) -> Decision:
        candidates: list[Candidate] = []
        if start is not None:
            scores = self._flat(validated[0])
            if all(score is None for score in scores):
                error = RuntimeError("no validation sample of the start has a score")
                return Decision(work.values, (), (), (error,))
            self.pool.add(Member(self._next, (), work.values, scores))
            candidates.append(Candidate(self._next, (), work.values, scores, "start"))
            self._next += 1
        self._grew = start is not None and len(self.pool.members) > 1
        by_position: dict[int, Change] = {}
        for child in offspring:
            candidates.append(self._judged(child, work))
            for position, change in child.changes.items():
                by_position.setdefault(position, change)
        self._rounds += 1
        self._drawn += self._stride * sum(isinstance(child, Mutation) for child in offspring)
        for child in offspring:
            if isinstance(child, Mutation):
                (parent,) = child.parents
                self._turns[parent] = self._turns.get(parent, -1) + 1
        errors = tuple(child.error for child in offspring if child.error is not None)
        values = self.pool.best.values
        if len(errors) < len(offspring):
            errors = tuple(error for error in errors if isinstance(error, ScoreError))[:1]
        if not self._grew and not errors:
            told = "; ".join(dict.fromkeys(child.verdict for child in offspring))
            logging.getLogger("afnio").info("the step added no candidate to the pool: %s", told)
        return Decision(values, self._changes(work, by_position, values), tuple(candidates), errors)

    def _judged(self, child: Offspring, work: Round) -> Candidate:
        """Add a child to the pool if it was validated, and return what to tell of it."""
        number, verdict = self._next, child.verdict
        self._next += 1
        values = child.values or work.values
        scores: tuple[float | None, ...] = tuple(child.tried)
        if isinstance(child, Merged):
            self._merges_left -= 1
            self._merged.append(list(child.merge.key))
        if child.validated is not None and child.values is not None:
            scores = self._flat(child.validated)
            if self.pool.find(values) is not None:
                verdict = "not taken: another one of this step is equal"
            elif all(score is None for score in scores):
                verdict = "failed: no validation sample has a score"
            else:
                self.pool.add(Member(number, child.parents, values, scores))
                self._grew = True
        return Candidate(number, child.parents, values, scores, verdict)

    def _flat(self, scores: Mapping[int, Scores]) -> tuple[float | None, ...]:
        return tuple(score for unit in sorted(scores) for score in scores[unit])

    def _changes(
        self, work: Round, proposed: Mapping[int, Change], values: Sequence[Any]
    ) -> tuple[Change, ...]:
        changes: list[Change] = []
        for position, (before, after) in enumerate(zip(work.values, values, strict=True)):
            change, role = proposed.get(position), work.parameters[position].role
            gradients, evidence = (0, ()) if change is None else (change.gradients, change.evidence)
            if before != after:
                changes.append(Change(role, before, after, gradients, None, evidence))
            elif change is not None:
                reason = "no candidate with another value is the best on the validation samples"
                changes.append(Change(role, before, before, gradients, reason, evidence))
        return tuple(changes)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "rounds": self._rounds,
            "drawn": self._drawn,
            "next": self._next,
            "merges_left": self._merges_left,
            "merged": [list(key) for key in self._merged],
            "turns": {str(number): turn for number, turn in self._turns.items()},
            "grew": self._grew,
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seed, self._rounds, self._drawn = state["seed"], state["rounds"], state["drawn"]
        self._next, self._merges_left, self._grew = state["next"], state["merges_left"], state["grew"]
        self._merged = [list(key) for key in state["merged"]]
        self._turns = {int(number): turn for number, turn in state["turns"].items()}
        self.pool.load_state_dict(state["pool"])

    def __repr__(self) -> str:
        return f"ParetoSearch(proposals={self._proposals}, pool={len(self.pool.members)})"
