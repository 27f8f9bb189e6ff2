"""Improves: a step changes a prompt only if that is better on held-out samples, by more than noise.

A proposal that answers the feedback of one batch may do worse on every other batch, and prompts that grow by a sentence
per step end up worse than they began. `Improves` compares proposals with the current value first.

One step, in `Trial`:

* The incumbent is evaluated while `k` candidates are proposed. Its scores are kept until it is replaced.
* Each candidate is evaluated block by block. After each block `Race` gives a verdict on it: continue, drop, accept.
* The evaluations of a dropped candidate are cancelled, with their calls.

`Race` judges blocks by their number, not by when they arrived, so a repeated run accepts the same candidate. Only the
number of calls depends on timing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import anyio

from afnio.autodiff._backward import launch_grad
from afnio.autodiff._graph import enable_grad
from afnio.autodiff._variable import Variable, bind
from afnio.errors import ScoreError
from afnio.optim._holdout import Evaluate, EvaluationBlock, Holdout, called, digest, sample_scores, scores_of
from afnio.optim._optimizer import Acceptance, Candidate, Change, Decision, StepInputs, proposals
from afnio.optim._tgd import Reduced, gathered_of
from afnio.optim.search._races import Race, Verdict
from afnio.runtime._callables import tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Priority, draw_seed, prioritised
from afnio.runtime._waiting import scope

TRIED = 64
"""Rejected candidates that are not evaluated again for the same incumbent."""


@final
class Improves(Acceptance):
    """Accept a proposal only if it beats the current value on held-out samples by more than noise.

    A step proposes `k` candidates concurrently, each with a value for all parameters, and evaluates them concurrently
    on one minibatch of held-out samples, with `afnio.bind`. Scores are paired by sample. After each block of samples,
    a candidate with less than a 10 % chance of being accepted is dropped and its calls are cancelled. On all samples
    a candidate is accepted if a one-sided sign-flip test finds it better. Of several accepted ones, the one that gained
    most becomes the value. If none is accepted, the values stay, the step's changes give the reason, and the next
    prompt shows the proposals as tried.

    Candidates differ because a model at a temperature answers differently each time. With `temperature=0` or a `seed`,
    equal requests get equal replies. Then the first candidate is made from all of the feedback, and each other one
    from a random half of it.

    Racing is after CAPO (Zehle et al., 2025, arXiv:2504.16005), without its barrier after each block and with a test
    that doesn't assume a distribution. If the account has free capacity, a candidate that survives its first block
    gets all others immediately, at speculative priority. If calls queue, each block waits for the verdict on the one
    before. So a step takes two latencies on a free account, and saves calls on a busy one.

    Args:
        evaluate: Called with a batch. Runs the agent and returns an evaluator's `(score, …)`, or a list of numbers with
            None for samples that failed. A `def` may read values; an `async def` awaits them.
        data: Held-out samples: a `Dataset`, a list of samples, or a `DataLoader`, of which the dataset and `collate_fn`
            are used. `evaluate` gets them in batches, as a `DataLoader` makes them.
        k: The number of candidates.
        minibatch_size: The number of samples to compare on, drawn again for each step.
        block_size: The number of samples after which a candidate may be dropped.
        confidence: The probability that a step changes nothing if no candidate is better (Šidák, over the k).
        quorum: The fraction of the samples that must have both scores. Failed samples are left out of the comparison.
        seed: Seed of the draws. By default it comes from the run.

    Raises:
        TypeError, ValueError: for arguments that can't work.

    >>> import afnio, afnio.cognitive as cog
    >>> from afnio.testing import ScriptedClient
    >>> prompt = cog.Parameter("Say yes.", role="prompt", requires_grad=True)
    >>> def evaluate(batch):
    ...     return [float(word in prompt.data) for word in batch]
    >>> accept = Improves(evaluate, ["no"] * 64, k=2)
    >>> client = ScriptedClient([{"value": "Say no."}, {"value": "Say yes!"}])
    >>> optimizer = afnio.optim.TGD([prompt], client, accept=accept, model="m")
    >>> prompt.append_grad(afnio.Variable("They expect no."))
    >>> _ = optimizer.step()
    >>> prompt.data
    'Say no.'
    """

    def __init__(
        self,
        evaluate: Evaluate,
        data: Any,
        k: int = 4,
        *,
        minibatch_size: int = 64,
        block_size: int = 16,
        confidence: float = 0.8,
        quorum: float = 0.9,
        seed: int | None = None,
    ) -> None:
        if not callable(evaluate):
            raise TypeError(f"evaluate must be a callable of a batch (got {evaluate!r})")
        for name, number in (("k", k), ("minibatch_size", minibatch_size), ("block_size", block_size)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number from 1 upwards (got {number!r})")
        for name, fraction in (("confidence", confidence), ("quorum", quorum)):
            if not 0 < fraction <= 1 or (name == "confidence" and fraction == 1):
                raise ValueError(f"{name} must be above 0 and below 1 (got {fraction!r})")
        self._evaluate = evaluate
        self._holdout = Holdout(data)
        self._k, self._minibatch_size, self._block_size = k, minibatch_size, block_size
        self._confidence, self._quorum = confidence, quorum
        self._seed = seed
        self._draws = 0
        self._next = 1
        self._incumbent = _Incumbent(0, None, {}, [])

    def begin(self) -> None:
        if self._seed is None:
            self._seed = draw_seed()

    async def decide(self, inputs: StepInputs) -> Decision:
        name = digest(inputs.values)
        incumbent = self._incumbent
        if incumbent.digest is None:
            incumbent = _Incumbent(incumbent.number, name, {}, [])
        elif incumbent.digest != name:  # assigned from outside, so the known scores are another value's
            incumbent = _Incumbent(self._take_number(), name, {}, [])
        draw = random.Random(f"{self._seed}/{self._draws}")
        blocks = self._holdout.draw(draw, samples=self._minibatch_size, block_size=self._block_size)
        sizes = [len(block.units) for block in blocks]
        race = Race(sizes, candidates=self._k, confidence=self._confidence, quorum=self._quorum)
        numbers = range(self._next, self._next + self._k)
        trial = Trial(
            inputs, race, evaluate=self._evaluate, holdout=self._holdout, blocks=blocks, numbers=numbers,
            feedback=lambda candidate: self._shown(inputs, candidate), known=incumbent.scores,
            tried=incumbent.tried, quorum=self._quorum,
        )  # fmt: skip
        await trial.run()
        self._draws += 1
        self._next += self._k
        return self._conclude(inputs, incumbent, blocks, numbers, race, trial)

    def _take_number(self) -> int:
        self._next += 1
        return self._next - 1

    def _shown(self, inputs: StepInputs, candidate: int) -> Mapping[int, Sequence[Variable]]:
        """Return the feedback for a candidate's proposals, by position."""
        shown: dict[int, Sequence[Variable]] = {}
        for position, gradients in inputs.feedback.items():
            group = inputs.options[position]
            arguments = {**group, **(group.get("completion_args") or {})}
            shown[position] = gradients
            repeats = arguments.get("temperature") == 0 or arguments.get("seed") is not None
            if candidate and repeats and len(gradients) > 1:
                draw = random.Random(f"{self._seed}/{self._draws}/{candidate}/{position}")
                half = sorted(draw.sample(range(len(gradients)), -(-len(gradients) // 2)))
                if isinstance(gradients, Reduced):
                    shown[position] = gradients.part(half)
                else:
                    shown[position] = [gradients[number] for number in half]
        return shown

    def _conclude(
        self,
        inputs: StepInputs,
        incumbent: _Incumbent,
        blocks: Sequence[EvaluationBlock],
        numbers: Sequence[int],
        race: Race,
        trial: Trial,
    ) -> Decision:
        verdicts = [race.verdict(candidate) or Verdict("dropped", 0) for candidate in range(self._k)]
        units = [unit for block in blocks for unit in block.units]
        if trial.compared:
            incumbent.keep({unit: trial.incumbent.get(unit, [None]) for unit in units})
        winner, errors = race.winner, _errors(verdicts)
        words = [_words(verdict, winner, number, numbers) for number, verdict in enumerate(verdicts)]
        scores = tuple(score for unit in units for score in incumbent.scores.get(unit, [None]))
        candidates = [Candidate(incumbent.number, (), inputs.values, scores, "incumbent")] + [
            Candidate(number, (incumbent.number,), values, verdict.scores, text)
            for number, values, verdict, text in zip(numbers, trial.values, verdicts, words, strict=True)
        ]
        if errors:
            self._incumbent = incumbent
            return Decision(inputs.values, (), tuple(candidates), errors)
        rejected = _rejected(inputs.values, trial.values, verdicts)
        if winner is None:
            reason = self._reason(verdicts)
            logging.getLogger("afnio").warning("the step changed nothing: %s", reason)
            for values, verdict in zip(trial.values, verdicts, strict=True):
                if verdict.outcome in ("rejected", "dropped"):
                    incumbent.tried = [*incumbent.tried, digest(values)][-TRIED:]
            self._incumbent = incumbent
            changes = _unchanged(inputs, trial.changes, reason)
            return Decision(inputs.values, changes, tuple(candidates), (), rejected)
        values = trial.values[winner]
        seen = [unit for block in blocks[: verdicts[winner].blocks] for unit in block.units]
        self._incumbent = _Incumbent(numbers[winner], digest(values), {}, [])
        self._incumbent.keep({unit: trial.scores[winner][unit] for unit in seen})
        changes = tuple(trial.changes[winner][position] for position in sorted(trial.changes[winner]))
        return Decision(values, changes, tuple(candidates), (), rejected)

    def _reason(self, verdicts: Sequence[Verdict]) -> str:
        compared = [verdict for verdict in verdicts if verdict.outcome in ("rejected", "dropped")]
        if not compared:
            return f"none of {self._k} proposals could be tried ({verdicts[0].error})"
        best = max(compared, key=lambda verdict: verdict.gain)
        return (
            f"none of {self._k} proposals beat the current value by more than noise; the best scored {best.mean:.3g} "
            f"against {best.against:.3g} on {len(best.scores)} held-out samples (p={best.p:.2g})"
        )

    def state_dict(self) -> dict[str, Any]:
        incumbent = self._incumbent
        return {
            "seed": self._seed,
            "draws": self._draws,
            "next": self._next,
            "incumbent": incumbent.number,
            "digest": incumbent.digest,
            "scores": {str(unit): list(scores) for unit, scores in incumbent.scores.items()},
            "tried": list(incumbent.tried),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seed, self._draws, self._next = state["seed"], state["draws"], state["next"]
        scores = {int(unit): list(scores) for unit, scores in state["scores"].items()}
        self._incumbent = _Incumbent(state["incumbent"], state["digest"], scores, list(state["tried"]))

    def __repr__(self) -> str:
        return f"Improves(k={self._k}, minibatch_size={self._minibatch_size}, confidence={self._confidence})"


@final
class _Incumbent:
    """The values that candidates must beat, with their scores by held-out sample and the candidates they beat."""

    def __init__(self, number: int, digest: str | None, scores: UnitScores, tried: list[str]) -> None:
        self.number = number
        self.digest = digest
        self.scores = scores
        self.tried = tried

    def keep(self, scores: Mapping[int, list[float | None]]) -> None:
        """Add scores, so that they aren't paid for again. Leave out failed samples, which get another chance."""
        self.scores = {**self.scores, **{u: s for u, s in scores.items() if None not in s}}


def _errors(verdicts: Sequence[Verdict]) -> tuple[BaseException, ...]:
    """Return the errors for the step to raise: those of the candidates if all failed, equal ones once."""
    wrong = [verdict.error for verdict in verdicts if isinstance(verdict.error, ScoreError)]
    if wrong:  # the evaluator's max_score is wrong, so no comparison means anything
        return (wrong[0],)
    if any(verdict.outcome != "failed" for verdict in verdicts):
        return ()
    errors: list[BaseException] = []
    for verdict in verdicts:
        error = verdict.error
        if error is None or isinstance(error, NotTriedError):
            continue
        if not any(type(error) is type(known) and str(error) == str(known) for known in errors):
            errors.append(error)
    return tuple(errors)


def _words(verdict: Verdict, winner: int | None, candidate: int, numbers: Sequence[int]) -> str:
    if isinstance(verdict.error, NotTriedError):
        return f"not tried: {verdict.error}"
    if verdict.outcome == "accepted" and winner is not None and winner != candidate:
        return f"better, but candidate {numbers[winner]} gained more: {str(verdict).partition(': ')[2]}"
    return str(verdict)


def _rejected(
    before: Sequence[Any], tried: Sequence[Sequence[Any]], verdicts: Sequence[Verdict]
) -> tuple[tuple[int, Mapping[str, Any]], ...]:
    """Return the proposals that didn't help, by position."""
    return tuple(
        (position, {"value": value, "score": verdict.mean, "against": verdict.against})
        for values, verdict in zip(tried, verdicts, strict=True)
        if verdict.outcome in ("rejected", "dropped")
        for position, value in enumerate(values)
        if value != before[position]
    )


def _unchanged(
    inputs: StepInputs, proposed: Sequence[Mapping[int, Change]], reason: str
) -> tuple[Change, ...]:
    changes: list[Change] = []
    for position, gradients in inputs.feedback.items():
        first = next((found[position] for found in proposed if position in found), None)
        evidence = () if first is None else first.evidence
        value, role = inputs.values[position], inputs.parameters[position].role
        changes.append(Change(role, value, value, gathered_of(gradients), reason, evidence))
    return tuple(changes)


# One step: candidates are proposed and evaluated concurrently until their race is over.


UnitScores = dict[int, list[float | None]]
"""Scores by number of the held-out sample, each a list of one."""


@final
class NotTriedError(Exception):
    """A candidate that needn't be evaluated, such as one that equals the current value."""


@final
class Trial:
    """One step: the tasks that propose and evaluate candidates, and what they have found so far.

    Args:
        inputs: The step's parameters, values and feedback.
        race: Judges the candidates.
        numbers: The candidates' numbers.
        feedback: Returns the feedback for the n-th candidate's proposals, by position of the parameter.
        known: The incumbent's scores from earlier steps, by unit.
        tried: Digests of candidates that were rejected earlier.
    """

    def __init__(
        self,
        inputs: StepInputs,
        race: Race,
        *,
        evaluate: Evaluate,
        holdout: Holdout,
        blocks: Sequence[EvaluationBlock],
        numbers: Sequence[int],
        feedback: Callable[[int], Mapping[int, Sequence[Variable]]],
        known: Mapping[int, Sequence[float | None]],
        tried: Sequence[str],
        quorum: float,
    ) -> None:
        self._inputs, self._race = inputs, race
        self._evaluate, self._holdout, self._quorum = evaluate, holdout, quorum
        self._blocks, self._numbers, self._feedback = blocks, numbers, feedback
        self._tried = tried
        self.incumbent: UnitScores = {unit: list(scores) for unit, scores in known.items()}
        self.values: list[tuple[Any, ...]] = [inputs.values for _ in numbers]
        self.changes: list[dict[int, Change]] = [{} for _ in numbers]
        self.scores: list[UnitScores] = [{} for _ in numbers]
        self._proposed = [anyio.Event() for _ in numbers]
        self._passed = [[anyio.Event() for _ in blocks] for _ in numbers]
        self._cancels = [anyio.CancelScope() for _ in numbers]
        self._measuring = anyio.CancelScope()

    async def run(self) -> None:
        """Propose and evaluate until the race is over. A failure is the verdict on its candidate, not raised."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._measure_incumbent)
            for candidate in range(len(self._numbers)):
                tasks.start_soon(self._run, candidate)

    @property
    def compared(self) -> bool:
        """True if a candidate differs from the incumbent. Otherwise the incumbent needn't be evaluated either."""
        return any(values != self._inputs.values for values in self.values)

    async def _measure_incumbent(self) -> None:
        """Evaluate the incumbent while candidates are proposed, on the samples without a known score."""
        with self._measuring:
            async with scope(name="incumbent"), anyio.create_task_group() as tasks:
                for number, block in enumerate(self._blocks):
                    tasks.start_soon(self._measure_block, number, block)

    async def _measure_block(self, number: int, block: EvaluationBlock) -> None:
        missing = [unit for unit in block.units if None in self.incumbent.get(unit, [None])]
        found: Sequence[float | None] | BaseException
        try:
            if missing:
                measured = await self._scores(self._inputs.values, missing, number, Priority.VALIDATION)
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
                # Of equal candidates, evaluate the first by number. The quickest would differ from run to run.
                for earlier in self._proposed[:candidate]:
                    await earlier.wait()
                self._compare_with_earlier(candidate)
                self._settle()
                await self._race_on(candidate)

    async def _race_on(self, candidate: int) -> None:
        """Evaluate block by block, or all blocks after the first concurrently if the account has free capacity.

        The first block rules out most candidates. If calls queue, the next block waits until the candidate has survived
        the block before. Calls that aren't sent needn't be cancelled, and others can use the capacity.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._evaluate_block, candidate, 0, Priority.VALIDATION)
            for number in range(1, len(self._blocks)):
                await self._passed[candidate][number - 1].wait()
                tasks.start_soon(self._evaluate_block, candidate, number, Priority.VALIDATION)

    async def _propose(self, candidate: int) -> None:
        changes, failed = await proposals(self._inputs, self._feedback(candidate))
        for error in failed.values():
            raise error
        values = list(self._inputs.values)
        for position, change in changes.items():
            values[position] = change.after
        self.changes[candidate] = changes
        if tuple(values) == self._inputs.values:
            reasons = [change.rejected for change in changes.values() if change.rejected]
            raise NotTriedError(reasons[0] if reasons else "it is the current value")
        if digest(values) in self._tried:
            raise NotTriedError("it was tried before")
        self.values[candidate] = tuple(values)

    def _compare_with_earlier(self, candidate: int) -> None:
        mine = self.values[candidate]
        if mine != self._inputs.values and mine in self.values[:candidate]:
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
        name, bound = f"block {number}", self._inputs.bound(values)
        scores = await scores_of(
            self._evaluate, batch, bound, name=name, urgency=urgency, quorum=self._quorum
        )
        return self._holdout.by_unit(units, scores)

    def _settle(self) -> None:
        """Release the next block of survivors, and cancel evaluations that can't change the result any more."""
        for candidate, cancel in enumerate(self._cancels):
            for passed in self._passed[candidate][: self._race.survived(candidate)]:
                passed.set()
            if not self._race.running(candidate):
                self._proposed[candidate].set()
                cancel.cancel()
        if self._race.over and not self.compared:
            self._measuring.cancel()


# Evaluation with gradients.


async def learnt_from(
    evaluate: Evaluate,
    batch: Any,
    values: Mapping[Variable, Any],
    *,
    name: str,
    urgency: Priority,
    quorum: float,
) -> tuple[list[float | None], list[list[Variable]]]:
    """Return the samples' scores, and the gradients of each Variable in `values`. Their `grad` stays unchanged.

    See `scores_of` for the arguments. `evaluate` must return `(score, explanation)`.
    """
    async with scope(name=name):
        owner = current_scope()
        with bind(values), enable_grad(), tolerate(quorum), prioritised(urgency):
            result = await called(evaluate, batch)
            scores = await sample_scores(result)
            explanation = result[1] if isinstance(result, tuple) and len(result) > 1 else None
            if not isinstance(explanation, Variable) or not explanation.requires_grad:
                raise TypeError(
                    f"evaluate must return (score, explanation) that parameters led to (got {result!r}); is it run "
                    "under no_grad, or does it use other parameters?"
                )
            gradients = await launch_grad(explanation, list(values))
        owner.unread()
    return scores, gradients
