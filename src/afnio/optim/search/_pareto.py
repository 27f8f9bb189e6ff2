"""ParetoTGD: a search over a pool of candidates, on textual gradients.

A single line of descent keeps one prompt, so a change that helps on some samples and hurts on others is lost. A pool
keeps both. Its Pareto front has the members that are the best on at least one validation sample, and new candidates are
made from those: a `Mutation` rewrites one parent's prompt by its feedback, and a `Merged` child takes each parameter
from one of two parents. `ParetoSearch` decides which children a step makes, `Pool` keeps the members, and `ParetoTGD`
is the optimizer around them.

All random draws of a step happen before its first call, from a seed, the step's number and the pool. So a repeated run
makes the same children, regardless of the order in which replies arrive.

Source: Agrawal et al., "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning", arXiv:2507.19457.
"""

from __future__ import annotations

import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Final, Literal, final

from afnio.autodiff._variable import Variable
from afnio.errors import ScoreError
from afnio.models._client import ChatClient
from afnio.optim._holdout import Evaluate, Holdout, scores_of
from afnio.optim._optimizer import Acceptance, Candidate, Change, Decision, StepInputs, for_each, side_by_side
from afnio.optim._tgd import TGD, Messages, gathered_of
from afnio.optim.search._improves import learnt_from
from afnio.runtime._callables import quorum_holds
from afnio.runtime._settings import Priority, draw_seed
from afnio.runtime._waiting import scope


@final
class ParetoTGD(TGD):
    """Textual gradient descent over a pool of candidates, after GEPA (Agrawal et al., arXiv:2507.19457).

    Each step makes several proposals concurrently:

    1. Draw a parent from the Pareto front of the scores on the validation samples, in proportion to the number of
       samples on which it is among the best.
    2. Run a minibatch of training samples forward and backward with the parent's values.
    3. Rewrite a parameter that feedback reached.
    4. If the child does strictly better on the same minibatch, evaluate it on all validation samples and add it to the
       pool.

    After a step that added a member, the next step also tries a merge of two members of the front, with each parameter
    from the one that changed it since their common ancestor. After each step the parameters hold the best member.

    Use it like any optimizer. `step()` needs no feedback, because it runs `evaluate` itself. Feedback that a loop or a
    closure has gathered in `grad` makes one more proposal, from the current values, so it works in a Trainer too.

    Differences from GEPA:

    * Feedback is textual gradients, so a parameter is rewritten by the feedback that reached it, not by whole traces.
    * The parameter to rewrite is drawn by its share of the feedback. `credit="round_robin"` takes turns as GEPA does,
      among parameters with feedback.
    * The proposals of a step, and a merge, run concurrently, from one front.
    * Failed samples are left out of every comparison instead of scoring 0.
    * A merge requires that each parent changed a parameter that the other left alone. It is tried on up to 15 samples
      instead of 5.

    Args:
        params, model_client, messages, inputs, constraints: As for `TGD`.
        evaluate: Called with a batch. Runs the agent and returns an evaluator's `(score, explanation)`, with its graph
            recorded. A `def` may read values; an `async def` awaits them.
        train, validation: A `Dataset`, a list of samples, or a `DataLoader`, of which the dataset and `collate_fn` are
            used. `evaluate` gets samples in batches, as a `DataLoader` makes them.
        proposals: The number of proposals per step.
        minibatch_size: The number of training samples for a proposal.
        credit: Which parameter a proposal rewrites: "share", "round_robin", or "all".
        merges: The number of merges to try at most.
        block_size: The number of validation samples that are evaluated together.
        quorum: The fraction of the samples that must not fail.
        search_seed: Seed of all draws. By default it comes from the run.
        **completion_args: `model`, and any other argument of `TGD` or the provider, such as a `seed` of the replies.

    Raises:
        TypeError, ValueError: for arguments that can't work.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> prompt = afnio.Parameter("Say 1.", role="prompt")
    >>> student = ScriptedClient(lambda request: "2" if "Say 2" in str(request.messages) else "1")
    >>> critic = ScriptedClient({"feedback": [{"variable": "v1", "text": "They expect 2."}]})
    >>> def evaluate(batch):
    ...     messages = [{"role": "user", "content": [prompt, afnio.Variable("{x}")]}]
    ...     pred = afnio.functional.chat_completion(student, messages, inputs={"x": afnio.Variable(batch)}, model="m")
    ...     return afnio.functional.exact_match_evaluator(pred, ["2"] * len(batch))
    >>> optimizer = afnio.optim.ParetoTGD(
    ...     [prompt], ScriptedClient({"value": "Say 2."}), evaluate, ["a", "b"], ["c", "d"], model="m")
    >>> _ = afnio.set_backward_model_client(critic, completion_args={"model": "m"})
    >>> _ = optimizer.step()
    >>> prompt.data, [member.mean for member in optimizer.pool]
    ('Say 2.', [0.0, 1.0])
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        model_client: ChatClient,
        evaluate: Evaluate,
        train: Any,
        validation: Any,
        *,
        proposals: int = 4,
        minibatch_size: int = 3,
        credit: Credit = "share",
        merges: int = 5,
        block_size: int = 16,
        quorum: float = 0.9,
        search_seed: int | None = None,
        messages: Messages | None = None,
        inputs: Mapping[str, Any] | None = None,
        constraints: Sequence[str | Variable] | None = None,
        **completion_args: Any,
    ) -> None:
        self._search = ParetoSearch(
            evaluate, train, validation, proposals=proposals, minibatch_size=minibatch_size, credit=credit,
            merges=merges, block_size=block_size, quorum=quorum, seed=search_seed,
        )  # fmt: skip
        super().__init__(
            params, model_client, messages, inputs, constraints, accept=self._search, **completion_args
        )

    @property
    def pool(self) -> list[PoolMember]:
        """All candidates that were validated, oldest first."""
        return list(self._search.pool.members)

    @property
    def front(self) -> list[PoolMember]:
        """The members that are among the best on some validation sample, without superfluous members."""
        pool = self._search.pool
        return [pool[number] for number in pool.front] if pool.members else []


# The pool: candidates with their scores on every validation sample (algorithm 2 of the paper).


@final
@dataclass(frozen=True, slots=True)
class PoolMember:
    """A candidate in the pool.

    Attributes:
        number: Unique within the optimizer.
        parents: The numbers of the members it was made from. Empty for a start.
        values: One for each parameter.
        scores: One for each validation sample. None if the sample failed.
    """

    number: int
    parents: tuple[int, ...]
    values: tuple[Any, ...]
    scores: tuple[float | None, ...]

    @property
    def mean(self) -> float:
        """The mean score of the samples that didn't fail."""
        present = [score for score in self.scores if score is not None]
        return math.fsum(present) / len(present) if present else -math.inf


@final
class Pool:
    """All validated candidates, oldest first.

    >>> pool = Pool()
    >>> pool.add(PoolMember(0, (), ("a",), (1.0, 0.0, 0.0)))
    >>> pool.add(PoolMember(1, (0,), ("b",), (0.0, 1.0, 1.0)))
    >>> pool.add(PoolMember(2, (0,), ("c",), (0.0, 0.0, 1.0)))
    >>> pool.front, pool.best.number
    ({0: 1, 1: 2}, 1)
    """

    def __init__(self) -> None:
        self.members: list[PoolMember] = []

    def add(self, member: PoolMember) -> None:
        self.members.append(member)

    def find(self, values: Sequence[Any]) -> PoolMember | None:
        """Return the member with these values."""
        return next((member for member in self.members if member.values == tuple(values)), None)

    def __getitem__(self, number: int) -> PoolMember:
        return next(member for member in self.members if member.number == number)

    @property
    def best(self) -> PoolMember:
        """The member with the highest mean, the oldest of equals."""
        return max(self.members, key=lambda member: (member.mean, -member.number))

    @property
    def front(self) -> dict[int, int]:
        """The numbers of the front's members, each with the number of samples on which it is among the best.

        A member is superfluous, and left out, if on every sample on which it is among the best another member is too.
        That other member must not be superfluous itself. Members with low means are tried first.
        """
        leaders = self._leaders()
        kept = dict.fromkeys(member.number for member in self.members)
        for member in sorted(self.members, key=lambda m: (m.mean, -m.number)):
            mine = [found for found in leaders if member.number in found]
            if all(any(other in kept for other in found if other != member.number) for found in mine):
                del kept[member.number]
        if not kept:  # no validation sample has any score
            kept = {self.best.number: None}
        return {number: sum(number in found for found in leaders) for number in kept}

    def _leaders(self) -> list[list[int]]:
        """Return the numbers of the best members on each sample. Leave out samples without a score."""
        leaders: list[list[int]] = []
        for sample in range(len(self.members[0].scores)):
            scores = [(m.number, score) for m in self.members if (score := m.scores[sample]) is not None]
            top = max((score for _, score in scores), default=0.0)
            leaders.append([number for number, score in scores if score == top])
        return [found for found in leaders if found]

    def parent(self, draw: random.Random) -> PoolMember:
        """Draw a member of the front, in proportion to the number of samples on which it is among the best."""
        front = self.front
        numbers = list(front)
        return self[draw.choices(numbers, [front[number] or 1 for number in numbers])[0]]

    def ancestors(self, number: int) -> list[int]:
        """Return the numbers of all ancestors of a member, oldest first."""
        found: dict[int, None] = {}
        ahead = list(self[number].parents)
        while ahead:
            ancestor = ahead.pop()
            if ancestor not in found:
                found[ancestor] = None
                ahead += self[ancestor].parents
        return sorted(found)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return all members, as JSON can hold them."""
        return [
            {
                "number": m.number,
                "parents": list(m.parents),
                "values": list(m.values),
                "scores": list(m.scores),
            }
            for m in self.members
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        self.members = [
            PoolMember(m["number"], tuple(m["parents"]), tuple(m["values"]), tuple(m["scores"]))
            for m in state
        ]


# The search: which children a step makes, and which join the pool.


@final
class ParetoSearch(Acceptance):
    """The acceptance of `ParetoTGD`, which documents the arguments."""

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
        self.evaluate = evaluate
        self.train, self.validation = Holdout(train), Holdout(validation)
        self._proposals, self._minibatch_size, self.credit = proposals, minibatch_size, credit
        self.block_size, self.quorum, self._seed = block_size, quorum, seed
        self.pool = Pool()
        self._steps = 0
        self._drawn = 0
        self._next = 0
        self._merges_left = merges
        self._merged: list[list[int]] = []
        self._turns: dict[int, int] = {}
        self._grew = False

    def begin(self) -> None:
        if self._seed is None:
            self._seed = draw_seed()

    async def decide(self, inputs: StepInputs) -> Decision:
        context = SearchContext(self, inputs)
        current = self.pool.find(inputs.values)
        start = PoolMember(self._next, (), inputs.values, ()) if current is None else None
        draw = random.Random(f"{self._seed}/round/{self._steps}")
        children = self._children(context, draw, current or start)
        validated: list[dict[int, Scores]] = []

        async def validate_start() -> None:
            assert start is not None
            async with scope(name="start"):
                validated.append(await context.validate(start.values, "validation"))

        tasks = [child.grow for child in children]
        await side_by_side(tasks if start is None else [validate_start, *tasks])
        return self._conclude(inputs, children, start, validated)

    def _children(
        self, context: SearchContext, draw: random.Random, current: PoolMember | None
    ) -> list[Child]:
        """Draw the parents and minibatches of all children, before the first call."""
        assert current is not None
        children: list[Child] = []
        feedback = context.inputs.feedback
        turns = dict(self._turns)
        # Feedback that a training loop has gathered is about the current values. Use it for the first proposal.
        count = self._proposals + bool(feedback)
        for number in range(count):
            gathered = feedback if feedback and number == 0 else None
            parent = current if gathered or not self.pool.members else self.pool.parent(draw)
            turn = turns[parent.number] = turns.get(parent.number, -1) + 1
            children.append(
                Mutation(
                    context,
                    f"proposal {number}",
                    parent,
                    self._minibatch(self._drawn + number * self._stride),
                    turn=turn,
                    draw=random.Random(f"{self._seed}/credit/{self._steps}/{number}"),
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
            children.append(Merged(context, "merge", merge, theirs))
        return children

    @property
    def _stride(self) -> int:
        """Training samples of a minibatch."""
        return min(self._minibatch_size, len(self.train))

    def _minibatch(self, start: int) -> list[int]:
        """Return the training samples from `start` on. Each epoch has another order."""
        units, size = [], len(self.train)
        for position in range(start, start + self._stride):
            epoch, place = divmod(position, size)
            order = list(range(size))
            random.Random(f"{self._seed}/epoch/{epoch}").shuffle(order)
            units.append(order[place])
        return units

    def _conclude(
        self,
        inputs: StepInputs,
        children: Sequence[Child],
        start: PoolMember | None,
        validated: Sequence[Mapping[int, Scores]],
    ) -> Decision:
        candidates: list[Candidate] = []
        if start is not None:
            scores = self._flat(validated[0])
            if all(score is None for score in scores):
                error = RuntimeError("no validation sample of the start has a score")
                return Decision(inputs.values, (), (), (error,))
            self.pool.add(PoolMember(self._next, (), inputs.values, scores))
            candidates.append(Candidate(self._next, (), inputs.values, scores, "start"))
            self._next += 1
        self._grew = start is not None and len(self.pool.members) > 1
        by_position: dict[int, Change] = {}
        for child in children:
            candidates.append(self._judged(child, inputs))
            for position, change in child.changes.items():
                by_position.setdefault(position, change)
        self._steps += 1
        self._drawn += self._stride * sum(isinstance(child, Mutation) for child in children)
        for child in children:
            if isinstance(child, Mutation):
                (parent,) = child.parents
                self._turns[parent] = self._turns.get(parent, -1) + 1
        errors = tuple(child.error for child in children if child.error is not None)
        values = self.pool.best.values
        if len(errors) < len(children):
            errors = tuple(error for error in errors if isinstance(error, ScoreError))[:1]
        if not self._grew and not errors:
            verdicts = "; ".join(dict.fromkeys(child.verdict for child in children))
            logging.getLogger("afnio").info("the step added no candidate to the pool: %s", verdicts)
        return Decision(values, self._changes(inputs, by_position, values), tuple(candidates), errors)

    def _judged(self, child: Child, inputs: StepInputs) -> Candidate:
        """Add a child to the pool if it was validated. Return it as plain data, with its verdict."""
        number, verdict = self._next, child.verdict
        self._next += 1
        values = child.values or inputs.values
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
                self.pool.add(PoolMember(number, child.parents, values, scores))
                self._grew = True
        return Candidate(number, child.parents, values, scores, verdict)

    def _flat(self, scores: Mapping[int, Scores]) -> tuple[float | None, ...]:
        return tuple(score for unit in sorted(scores) for score in scores[unit])

    def _changes(
        self, inputs: StepInputs, proposed: Mapping[int, Change], values: Sequence[Any]
    ) -> tuple[Change, ...]:
        changes: list[Change] = []
        for position, (before, after) in enumerate(zip(inputs.values, values, strict=True)):
            change, role = proposed.get(position), inputs.parameters[position].role
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
            "rounds": self._steps,
            "drawn": self._drawn,
            "next": self._next,
            "merges_left": self._merges_left,
            "merged": [list(key) for key in self._merged],
            "turns": {str(number): turn for number, turn in self._turns.items()},
            "grew": self._grew,
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seed, self._steps, self._drawn = state["seed"], state["rounds"], state["drawn"]
        self._next, self._merges_left, self._grew = state["next"], state["merges_left"], state["grew"]
        self._merged = [list(key) for key in state["merged"]]
        self._turns = {int(number): turn for number, turn in state["turns"].items()}
        self.pool.load_state_dict(state["pool"])

    def __repr__(self) -> str:
        return f"ParetoSearch(proposals={self._proposals}, pool={len(self.pool.members)})"


# A child: a new candidate, from one parent's feedback or from two parents, and its trial.


Credit = Literal["share", "round_robin", "all"]
Scores = list[float | None]


@final
@dataclass(frozen=True, slots=True)
class SearchContext:
    """What the children of a step share: the search with the agent's `evaluate` and the data, and the step's inputs."""

    search: ParetoSearch
    inputs: StepInputs

    async def learn(
        self, values: Sequence[Any], units: Sequence[int], name: str
    ) -> tuple[Scores, list[list[Variable]]]:
        """Run training samples forward and backward. Return their scores, and the gradients of each parameter."""
        return await learnt_from(
            self.search.evaluate,
            self.search.train.batch(units),
            self.inputs.bound(values),
            name=name,
            urgency=Priority.TRAINING,
            quorum=self.search.quorum,
        )

    async def score(self, values: Sequence[Any], units: Sequence[int], name: str) -> Scores:
        """Return the scores of training samples."""
        return await self._scores(self.search.train, values, units, name, Priority.TRAINING)

    async def validate(
        self, values: Sequence[Any], name: str, units: Sequence[int] | None = None
    ) -> dict[int, Scores]:
        """Return the scores of all validation samples, or of `units`, by unit."""
        blocks = self.search.validation.blocks(
            range(len(self.search.validation)) if units is None else units, self.search.block_size
        )
        found: list[dict[int, Scores]] = [{} for _ in blocks]

        async def block(number: int) -> None:
            mine = blocks[number].units
            scores = await self._scores(
                self.search.validation, values, mine, f"block {number}", Priority.VALIDATION
            )
            found[number] = self.search.validation.by_unit(mine, scores)

        async with scope(name=name):
            await side_by_side([partial(block, number) for number in range(len(blocks))])
        return {unit: scores for part in found for unit, scores in part.items()}

    async def _scores(
        self, data: Holdout, values: Sequence[Any], units: Sequence[int], name: str, urgency: Priority
    ) -> Scores:
        return await scores_of(
            self.search.evaluate,
            data.batch(units),
            self.inputs.bound(values),
            name=name,
            urgency=urgency,
            quorum=self.search.quorum,
        )

    def enough(self, pairs: int, samples: int) -> bool:
        """Return True if `pairs` of the samples are enough for a comparison."""
        return pairs > 0 and quorum_holds(pairs, samples, self.search.quorum)


class Child(ABC):
    """A candidate in the making. `grow` it, then read its attributes.

    Attributes:
        parents: The numbers of the members it comes from.
        values: One for each parameter. None if there is nothing new to try.
        tried: The scores of the samples of its trial.
        validated: The scores of all validation samples, by unit. None if it failed its trial.
        verdict: The result, in words.
        error: The error that made it fail.
        changes: The proposer's changes, by position.
    """

    def __init__(self, context: SearchContext, name: str, parents: tuple[int, ...]) -> None:
        self._context, self._name = context, name
        self.parents = parents
        self.values: tuple[Any, ...] | None = None
        self.validated: dict[int, Scores] | None = None
        self.tried: Scores = []
        self.verdict = ""
        self.error: BaseException | None = None
        self.changes: dict[int, Change] = {}

    async def grow(self) -> None:
        """Make and try it, in its own scope. An error becomes the verdict."""
        try:
            async with scope(name=self._name):
                await self._grow()
        except Exception as error:
            self.error, self.verdict = error, f"failed: {error}"

    @abstractmethod
    async def _grow(self) -> None:
        """Make the values and try them."""


@final
class Mutation(Child):
    """A child of one parent, with parameters rewritten by the parent's feedback on a minibatch.

    Args:
        parent: The member to improve.
        units: The training samples of the minibatch.
        turn: How many children the parent had before, for taking turns among its parameters.
        draw: Draws the parameter.
        feedback: Gradients that the parent has already, by position. The minibatch is then used for the trial only.
        known: Returns True if values are in the pool.
    """

    def __init__(
        self,
        context: SearchContext,
        name: str,
        parent: PoolMember,
        units: Sequence[int],
        *,
        turn: int,
        draw: random.Random,
        feedback: Mapping[int, Sequence[Variable]] | None,
        known: Callable[[Sequence[Any]], bool],
    ) -> None:
        super().__init__(context, name, (parent.number,))
        self._parent, self._units = parent, units
        self._turn, self._draw = turn, draw
        self._feedback, self._known = feedback, known

    async def _grow(self) -> None:
        context, before = self._context, self._parent.values
        if self._feedback is None:
            scores, gradients = await context.learn(before, self._units, "parent")
            found = {
                n: g for n, g in enumerate(gradients) if g and context.inputs.parameters[n].requires_grad
            }
            reduced = await self._reduced(found)
        else:
            reduced = dict(self._feedback)
            scores = await context.score(before, self._units, "parent")
        if not reduced:
            self.verdict = "not made: no sample of the minibatch had feedback"
            return
        positions = self._credited(reduced)
        self.changes, failed = await for_each(
            positions, lambda at: context.inputs.propose(at, reduced[at], before[at])
        )
        for error in failed.values():
            raise error
        values = [self.changes[at].after if at in self.changes else value for at, value in enumerate(before)]
        if tuple(values) == before or self._known(values):
            reasons = [change.rejected for change in self.changes.values() if change.rejected]
            self.verdict = f"not tried: {reasons[0] if reasons else 'it is in the pool'}"
            return
        self.values = tuple(values)
        await self._prove(scores)

    async def _reduced(self, found: Mapping[int, Sequence[Variable]]) -> dict[int, Sequence[Variable]]:
        inputs, before = self._context.inputs, self._parent.values
        reduced, failed = await for_each(found, lambda at: inputs.reduce(at, found[at], before[at]))
        for error in failed.values():
            raise error
        return reduced

    def _credited(self, reduced: Mapping[int, Sequence[Variable]]) -> list[int]:
        """Return the positions of the parameters to rewrite, among those with feedback."""
        positions = sorted(reduced)
        if self._context.search.credit == "all":
            return positions
        if self._context.search.credit == "round_robin":
            return [positions[self._turn % len(positions)]]
        return self._draw.choices(positions, [gathered_of(reduced[position]) for position in positions])

    async def _prove(self, scores: Scores) -> None:
        """Compare with the parent on its minibatch. Validate if strictly better."""
        assert self.values is not None
        context = self._context
        self.tried = await context.score(self.values, self._units, "child")
        pairs = [(a, b) for a, b in zip(self.tried, scores, strict=True) if a is not None and b is not None]
        mine, theirs = math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs)
        if not context.enough(len(pairs), len(scores)):
            raise RuntimeError(
                f"only {len(pairs)} of {len(scores)} samples of the minibatch have both scores"
            )
        if mine <= theirs:
            self.verdict = f"rejected: {mine:g} against {theirs:g} on a minibatch of {len(pairs)}"
            return
        self.validated = await context.validate(self.values, "validation")
        self.verdict = f"accepted: {mine:g} against {theirs:g} on a minibatch of {len(pairs)}"


@final
class Merged(Child):
    """A child of two parents. Its trial is on validation samples, where it must do as well as the better parent.

    Args:
        theirs: The scores of one parent and of the other, for each validation sample of the trial.
    """

    def __init__(
        self, context: SearchContext, name: str, merge: Merge, theirs: Mapping[int, tuple[Scores, Scores]]
    ) -> None:
        super().__init__(context, name, (merge.one.number, merge.other.number))
        self.merge, self._theirs = merge, theirs
        self.values = merge.values

    async def _grow(self) -> None:
        assert self.values is not None
        context, units = self._context, list(self._theirs)
        found = await context.validate(self.values, "trial", units)
        self.tried = [score for unit in units for score in found[unit]]
        rows = [
            row
            for unit in units
            for row in zip(found[unit], *self._theirs[unit], strict=True)
            if None not in row
        ]
        if not context.enough(len(rows), len(self.tried)):
            raise RuntimeError(f"only {len(rows)} of {len(self.tried)} samples have the scores of all three")
        mine, one, other = (
            math.fsum(score for score in column if score is not None) for column in zip(*rows, strict=True)
        )
        if mine < max(one, other):
            self.verdict = f"rejected: {mine:g} against {max(one, other):g} on {len(rows)} samples"
            return
        rest = [unit for unit in range(len(context.search.validation)) if unit not in found]
        self.validated = {
            **found,
            **(await context.validate(self.values, "validation", rest) if rest else {}),
        }
        self.verdict = f"accepted: {mine:g} against {max(one, other):g} on {len(rows)} samples"


# Merges: one candidate out of two with a common ancestor, each parameter from the one that changed it (the paper's
# appendix on system-aware merge).


SAMPLES: Final = 15
"""Validation samples of a merged candidate's trial, before it gets all of them."""


@final
@dataclass(frozen=True, slots=True)
class Merge:
    """Two members of the front, their common ancestor, and the merged values."""

    one: PoolMember
    other: PoolMember
    ancestor: PoolMember
    values: tuple[Any, ...]

    @property
    def key(self) -> tuple[int, int, int]:
        return self.one.number, self.other.number, self.ancestor.number


def possible_merges(pool: Pool, tried: Sequence[Sequence[int]]) -> list[Merge]:
    """Return the merges that could help, without those in `tried`.

    Neither parent is the other's ancestor. Their common ancestor scores no better than either. Each changed a parameter
    that the other left alone. The merged values aren't in the pool.
    """
    found: list[Merge] = []
    known = [tuple(key) for key in tried]
    for one, other in combinations(sorted(pool.front), 2):
        mine, theirs = pool.ancestors(one), pool.ancestors(other)
        if one in theirs or other in mine:
            continue
        for number in mine:
            if number not in theirs or (one, other, number) in known:
                continue
            merge = _merged(pool[one], pool[other], pool[number])
            if merge is not None and pool.find(merge.values) is None:
                found.append(merge)
    return found


def _merged(one: PoolMember, other: PoolMember, ancestor: PoolMember) -> Merge | None:
    if ancestor.mean > min(one.mean, other.mean):
        return None
    triples = list(zip(ancestor.values, one.values, other.values, strict=True))
    by_one = any(theirs == before != mine for before, mine, theirs in triples)
    by_other = any(mine == before != theirs for before, mine, theirs in triples)
    if not (by_one and by_other):
        return None
    better = one if (one.mean, -one.number) >= (other.mean, -other.number) else other
    values = [
        theirs if mine == before else mine if theirs == before else better.values[position]
        for position, (before, mine, theirs) in enumerate(triples)
    ]
    return Merge(one, other, ancestor, tuple(values))


def trial_samples(merge: Merge, draw: random.Random, count: int = SAMPLES) -> list[int]:
    """Draw samples for a merge's trial: a third each where one parent is better, where the other is, where none is.

    >>> import random
    >>> from afnio.optim.search import Merge, PoolMember
    >>> one, other = PoolMember(1, (0,), ("x",), (1, 1, 0, 0, 1)), PoolMember(2, (0,), ("y",), (0, 0, 1, 1, 1))
    >>> sorted(trial_samples(Merge(one, other, one, ("z",)), random.Random(0), count=3))[-1]
    4
    """
    groups: tuple[list[int], list[int], list[int]] = ([], [], [])
    for sample, (mine, theirs) in enumerate(zip(merge.one.scores, merge.other.scores, strict=True)):
        if mine is not None and theirs is not None:
            groups[0 if mine > theirs else 1 if theirs > mine else 2].append(sample)
    chosen: list[int] = []
    for group in groups:
        chosen += draw.sample(group, min(len(group), count // 3))
    rest = [sample for group in groups for sample in group if sample not in chosen]
    return sorted(chosen + draw.sample(rest, max(0, min(len(rest), count - len(chosen)))))
