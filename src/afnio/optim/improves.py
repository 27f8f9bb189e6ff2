"""Improves: a step changes something only if that is better on samples that were not trained on."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, final

from afnio.autodiff._variable import Variable
from afnio.errors import ScoreError
from afnio.optim.change import Candidate, Change
from afnio.optim.evaluation import Evaluate, digest
from afnio.optim.holdout import Block, Holdout
from afnio.optim.racing import Race, Verdict
from afnio.optim.reduce import Reduced, gathered_of
from afnio.optim.step import Acceptance, Decision, Round
from afnio.optim.trial import NotTriedError, Trial, UnitScores
from afnio.runtime._kernel import Job, within
from afnio.runtime._settings import draw_seed

TRIED = 64
"""Rejected candidates that are not evaluated again for the same incumbent."""


@final
class Improves(Acceptance):
    """Accept a proposal only if it beats the current value on held-out samples by more than noise.

    A step proposes `k` candidates side by side, each for all parameters, and evaluates them side by side on one
    minibatch of held-out samples, with `afnio.bind`; the incumbent is evaluated while they are proposed, and its
    scores are kept for as long as it stays. Scores are paired by sample. After each block of samples a candidate
    that has less than a tenth of a chance to be accepted is dropped and its calls are cancelled; decisions rest on
    blocks in the order of their numbers, never on who answered first. On all samples a candidate is accepted if
    a one-sided sign-flip test finds it better; of several, the one that gained most becomes the value. If none is,
    the values stay, the proposals are remembered for the next prompt, and the step says so.

    Candidates differ because a model at a temperature answers differently each time. Where `temperature=0` or a
    `seed` is asked for, equal requests get equal replies, so the first candidate is made from all of the feedback
    and each other from a random half of it.

    Racing is after CAPO (Zehle et al., 2025, arXiv:2504.16005), without its barrier after each block and with a
    test that supposes no distribution. Who survives the first block gets the others at once, at speculative priority,
    if the account has room for what it is asked; where calls queue, each block waits for the verdict on the one
    before. So a gate takes two latencies where there is room, and saves calls where there is none.

    Args:
        evaluate: called with a batch, runs the agent and returns `(score, …)`: what an evaluator returns, or
            a list of numbers, None for samples that failed. `def` (it may read) or `async def`.
        data: samples that are not trained on: a `Dataset`, a list of samples, or a `DataLoader`, of which the dataset
            and `collate_fn` are used. `evaluate` gets them in batches, as a `DataLoader` makes them.
        k: candidates.
        minibatch_size: samples on which they are compared, drawn anew for each step.
        block_size: samples after which a candidate may be dropped.
        confidence: probability that a step changes nothing if no candidate is better (Šidák, over the k).
        quorum: fraction of the samples that must have both scores; failed ones are left out, never wrong.
        seed: of the draws; from the run by default.

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

    async def decide(self, job: Job, work: Round) -> Decision:
        name = digest(work.values)
        incumbent = self._incumbent
        if incumbent.digest is None:
            incumbent = _Incumbent(incumbent.number, name, {}, [])
        elif incumbent.digest != name:  # assigned from outside: what is known is about another value
            incumbent = _Incumbent(self._take_number(), name, {}, [])
        draw = random.Random(f"{self._seed}/{self._draws}")
        blocks = self._holdout.draw(draw, samples=self._minibatch_size, block_size=self._block_size)
        sizes = [len(block.units) for block in blocks]
        race = Race(sizes, candidates=self._k, confidence=self._confidence, quorum=self._quorum)
        numbers = range(self._next, self._next + self._k)
        trial = Trial(
            job, work, race, evaluate=self._evaluate, holdout=self._holdout, blocks=blocks, numbers=numbers,
            feedback=lambda candidate: self._shown(work, candidate), known=incumbent.scores,
            tried=incumbent.tried, quorum=self._quorum,
        )  # fmt: skip
        with within(job.scope):
            await trial.run()
        self._draws += 1
        self._next += self._k
        return self._conclude(work, incumbent, blocks, numbers, race, trial)

    def _take_number(self) -> int:
        self._next += 1
        return self._next - 1

    def _shown(self, work: Round, candidate: int) -> Mapping[int, Sequence[Variable]]:
        """Return the feedback that a candidate is made from."""
        shown: dict[int, Sequence[Variable]] = {}
        for position, gradients in work.feedback.items():
            group = work.groups[position]
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
        work: Round,
        incumbent: _Incumbent,
        blocks: Sequence[Block],
        numbers: Sequence[int],
        race: Race,
        trial: Trial,
    ) -> Decision:
        verdicts = [race.verdict(candidate) or Verdict("dropped", 0) for candidate in range(self._k)]
        units = [unit for block in blocks for unit in block.units]
        if trial.compared:
            incumbent.keep({unit: trial.incumbent.get(unit, [None]) for unit in units})
        winner, errors = race.winner, _errors(verdicts)
        told = [_told(verdict, winner, number, numbers) for number, verdict in enumerate(verdicts)]
        scores = tuple(score for unit in units for score in incumbent.scores.get(unit, [None]))
        candidates = [Candidate(incumbent.number, (), work.values, scores, "incumbent")] + [
            Candidate(number, (incumbent.number,), values, verdict.scores, words)
            for number, values, verdict, words in zip(numbers, trial.values, verdicts, told, strict=True)
        ]
        if errors:
            self._incumbent = incumbent
            return Decision(work.values, (), tuple(candidates), errors)
        rejected = _rejected(work.values, trial.values, verdicts)
        if winner is None:
            reason = self._reason(verdicts)
            logging.getLogger("afnio").warning("the step changed nothing: %s", reason)
            for values, verdict in zip(trial.values, verdicts, strict=True):
                if verdict.outcome in ("rejected", "dropped"):
                    incumbent.tried = [*incumbent.tried, digest(values)][-TRIED:]
            self._incumbent = incumbent
            changes = _unchanged(work, trial.changes, reason)
            return Decision(work.values, changes, tuple(candidates), (), rejected)
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
    """What is known of the values that candidates have to beat."""

    def __init__(self, number: int, digest: str | None, scores: UnitScores, tried: list[str]) -> None:
        self.number = number
        self.digest = digest
        self.scores = scores
        self.tried = tried

    def keep(self, scores: Mapping[int, list[float | None]]) -> None:
        """Keep scores, so that they are not paid for again; failed samples get another chance."""
        self.scores = {**self.scores, **{u: s for u, s in scores.items() if None not in s}}


def _errors(verdicts: Sequence[Verdict]) -> tuple[BaseException, ...]:
    """Return what the step raises: the candidates' errors, if that is all that came of it; equal ones once."""
    wrong = [verdict.error for verdict in verdicts if isinstance(verdict.error, ScoreError)]
    if wrong:  # an argument of the evaluator's: none of the comparisons means anything
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


def _told(verdict: Verdict, winner: int | None, candidate: int, numbers: Sequence[int]) -> str:
    if isinstance(verdict.error, NotTriedError):
        return f"not tried: {verdict.error}"
    if verdict.outcome == "accepted" and winner is not None and winner != candidate:
        return f"better, but candidate {numbers[winner]} gained more: {str(verdict).partition(': ')[2]}"
    return str(verdict)


def _rejected(
    before: Sequence[Any], tried: Sequence[Sequence[Any]], verdicts: Sequence[Verdict]
) -> tuple[tuple[int, Mapping[str, Any]], ...]:
    """Return the proposals that did not help, by position."""
    return tuple(
        (position, {"value": value, "score": verdict.mean, "against": verdict.against})
        for values, verdict in zip(tried, verdicts, strict=True)
        if verdict.outcome in ("rejected", "dropped")
        for position, value in enumerate(values)
        if value != before[position]
    )


def _unchanged(work: Round, proposed: Sequence[Mapping[int, Change]], reason: str) -> tuple[Change, ...]:
    changes: list[Change] = []
    for position, gradients in work.feedback.items():
        first = next((found[position] for found in proposed if position in found), None)
        evidence = () if first is None else first.evidence
        value, role = work.values[position], work.parameters[position].role
        changes.append(Change(role, value, value, gathered_of(gradients), reason, evidence))
    return tuple(changes)
