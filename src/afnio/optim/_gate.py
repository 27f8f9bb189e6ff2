"""Gate: one test, at the end of a run, of the result against the start.

A run looks at hundreds of candidates, and the one that looks best is partly lucky. Nothing inside the run can bound
that. One test can, if it uses samples that nothing else saw and compares one text with one other: if the result is no
better than the start, it passes with a probability of at most `level`, however many candidates, steps and looks came
before. There is nothing to correct.

The test is the one-sided sign-flip test on paired scores (`p_value`; for right and wrong answers it is
McNemar's). The level is 0.5 on purpose: the result is kept unless the rows speak against it. A level of 0.25 refused
about half of the results that were truly 8 to 14 points better (32 rows, simulated). What must not pass is a text that
is much worse: with 64 rows, one that is ten points worse passes in 3 to 6 % of runs.

A second test on the same rows isn't independent of the first: the run went on because of it. So a look uses rows that
no earlier look used. If too few are left, all rows are used again, and the level is halved with each look.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, final

from afnio.autodiff._graph import enable_grad
from afnio.autodiff._variable import Variable, bind
from afnio.errors import AfnioError, BatchError, ReplyError
from afnio.models._trace import rehearsal, rehearsing
from afnio.optim._holdout import Evaluate, Holdout, called, sample_scores, scores_of
from afnio.optim._optimizer import Candidate, Change, Decision, Optimizer, StepLane, launch_step, side_by_side
from afnio.runtime._budget import current_budgets
from afnio.runtime._callables import quorum_holds, tolerate
from afnio.runtime._kernel import Job, Launch, Slot, current_scope, working
from afnio.runtime._settings import Priority, draw_seed
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, scope, wait
from afnio.stats import differences, p_value

FEWEST: Final = 12
"""Rows below which a test says nothing: a gain of ten points would pass as often as chance."""
LEVEL: Final = 0.5
ENOUGH: Final = 32
"""Rows of a look that may cost the larger share of a budget."""
SHARE: Final = 1 / 3
"""Both looks at up to `ENOUGH` rows together may cost this share of a budget."""
WIDE_SHARE: Final = 1 / 4
"""Those at more rows may cost this share: rows beyond `ENOUGH` find small gains, but the training needs calls too."""


@final
@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The evidence of one look.

    Attributes:
        passed: True if the result was kept.
        p: the p-value of the sign-flip test. 1 if the texts are equal, which costs no call.
        level: the level that it was compared with.
        stopped: True if the first part of the rows was evidence of harm, so that the others weren't used.
        start, result: mean scores on the rows that both have a score of. None if the texts are equal. `result` is
            also None if its replies can't be used; `start` is then the mean of all its rows.
        wins, losses, ties: rows on which the result scored more, less or the same.
        rows: the numbers of the rows that were used.
        failed: how many of them have no pair of scores.
    """

    passed: bool
    p: float
    level: float
    start: float | None
    result: float | None
    wins: int = 0
    losses: int = 0
    ties: int = 0
    rows: tuple[int, ...] = ()
    failed: int = 0
    stopped: bool = False

    @classmethod
    def of(
        cls,
        start: Sequence[float | None],
        result: Sequence[float | None],
        rows: Sequence[int],
        level: float = LEVEL,
        *,
        stopped: bool = False,
    ) -> Self:
        """Compare scores of the same rows. Those without both scores are left out; one must have both.

        >>> verdict = GateVerdict.of([0, 0, 1, 0], [1, 1, 0, None], [3, 4, 6, 9])
        >>> verdict.passed, verdict.p, verdict.wins, verdict.losses, verdict.failed
        (True, 0.5, 2, 1, 1)
        """
        pairs = [(a, b) for a, b in zip(start, result, strict=True) if a is not None and b is not None]
        found = differences(result, start)
        p = p_value(found)
        means = [math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True)]
        wins, losses = sum(d > 0 for d in found), sum(d < 0 for d in found)
        return cls(
            p <= level and not stopped, p, level, means[0], means[1], wins, losses, len(found) - wins - losses,
            tuple(rows), len(rows) - len(pairs), stopped,
        )  # fmt: skip

    def __str__(self) -> str:
        if not self.rows:
            return "not tested: the result is the start"
        if self.result is None:
            return (
                f"the start is kept: with the result {self.failed} of {len(self.rows)} held-out rows have no score "
                f"({self.start:.3g} with the start)"
            )
        kept = "the result is kept" if self.passed else "the start is kept"
        if self.stopped:
            kept += " on evidence of harm"
        return (
            f"{kept}: {self.result:.3g} against {self.start:.3g} on {self.wins + self.losses + self.ties} held-out "
            f"rows ({self.wins} better, {self.losses} worse), p={self.p:.2g}, level {self.level:g}"
        )


@final
class Gate:
    """Keep the result of a training only if held-out rows don't speak against it; otherwise restore the start.

    Call `start` before the training and `judge` after it. It works with every optimizer. As a callback of a Trainer it
    does both itself: `Trainer(callbacks=[gate])`.

    Neither early stopping nor the choice of a checkpoint may see the gate's rows.

    Args:
        evaluate: called with a batch. Runs the agent and returns an evaluator's `(score, …)`, or a list of numbers with
            None for rows that failed. A `def` may read values; an `async def` awaits them.
        rows: held-out samples: a `Dataset`, a list of samples, or a `DataLoader`, of which the dataset and `collate_fn`
            are used. The more there are, the fewer small gains are refused and small losses kept.
        level: the result passes if p is at most this.
        size: rows for one look. By default all. With several looks in mind, give a part of them.
        budget: calls that the whole run may take. Both looks together use a quarter of it at most, or a third for up
            to 32 rows; so fewer rows if it is small. By default the lowest `max_calls` of the `afnio.budget` blocks
            around. What a row costs is found by running one with made-up replies.
        quorum: the fraction of the rows that must have both scores.
        seed: seed of the choice of rows. By default it comes from the run.

    Raises:
        TypeError, ValueError: for arguments that can't work, and for fewer than 12 rows.

    >>> import afnio
    >>> prompt = afnio.Parameter("Say no.", role="prompt")
    >>> gate = Gate(lambda batch: [float(word in prompt.data) for word in batch], ["yes"] * 40)
    >>> _ = gate.start([prompt])
    >>> prompt.data = "Say yes."
    >>> print(gate.judge().wait())
    the result is kept: 1 against 0 on 40 held-out rows (40 better, 0 worse), p=9.1e-13, level 0.5
    >>> prompt.data = "Say maybe."
    >>> gate.judge().wait().passed, prompt.data
    (False, 'Say no.')
    """

    critical = True
    """For a Trainer: its errors end the training."""

    def __init__(
        self,
        evaluate: Evaluate,
        rows: Any,
        level: float = LEVEL,
        *,
        size: int | None = None,
        budget: int | None = None,
        quorum: float = 0.9,
        seed: int | None = None,
    ) -> None:
        if not callable(evaluate):
            raise TypeError(f"evaluate must be a callable of a batch (got {evaluate!r})")
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
            raise ValueError(f"level must be above 0 and below 1 (got {level!r})")
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum!r})")
        for name, number in (("size", size), ("budget", budget)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} must be a whole number, 1 or more (got {number!r})")
        self._evaluate = evaluate
        self._data = Holdout(rows)
        self._level, self._quorum, self._budget, self._seed = float(level), quorum, budget, seed
        self._size = len(self._data) if size is None else min(size, len(self._data))
        if self._size < FEWEST:
            raise ValueError(
                f"a gate must have at least {FEWEST} rows (got {self._size}); hold out more, or train without a gate"
            )
        self._parameters: list[Variable] = []
        self._start: list[Any] | None = None
        self._noted: Slot | None = None
        self._used: list[int] = []
        self._reused = 0
        self._verdicts: list[GateVerdict] = []
        self._loaded = False

    @property
    def verdicts(self) -> list[GateVerdict]:
        """The evidence of all looks, oldest first."""
        return list(self._verdicts)

    @folding
    def start(self, params: Iterable[Variable] | Optimizer) -> Pending[None]:
        """Note the values to go back to, and check that a budget pays for the gate.

        Launches and returns. Waits where a blocking wait is allowed; on an event loop, await the `Pending`. Values that
        `load_state_dict` has restored stay, so a resumed run is compared with its first start.

        Raises:
            ValueError: if a budget can't pay for 12 rows, before any call. If the state is one of another number of
                parameters.
        """
        self._parameters = _listed(params)
        if self._seed is None:
            self._seed = draw_seed(f"{current_scope().path}/Gate")
        keep, self._loaded = self._loaded and self._start is not None, False
        if keep and self._start is not None and len(self._start) != len(self._parameters):
            raise ValueError(
                f"the gate's state must be of these {len(self._parameters)} parameters (got {len(self._start)})"
            )
        return self._note(keep=keep)

    @folding
    def restart(self) -> Pending[None]:
        """Compare with the values that the parameters have now. Rows that were used stay used."""
        if self._noted is None:
            raise RuntimeError("a gate must know its parameters; call gate.start(parameters) first")
        return self._note(keep=False)

    def _note(self, *, keep: bool) -> Pending[None]:
        launch = Launch("Gate.start")
        slot = Slot(launch)

        async def body(job: Job, values: list[Any]) -> list[None]:
            with working(job):
                if not keep:
                    self._start = list(values)
                await self._affordable(tuple(values))
            return [None]

        launch.add(body, [parameter.own_slots[0] for parameter in self._parameters], [slot])
        launch.start()
        self._noted = slot
        return Pending(slot, lambda _: None).wait_if_allowed()

    @property
    def rows(self) -> int:
        """The number of rows of the next look, before a budget lowers it."""
        return self._size

    def cost(self, calls: int = 1) -> int:
        """Return the calls of one judgement, if a sample takes `calls` of them: two looks at `rows` rows."""
        return 2 * self._size * calls

    @folding
    def judge(self) -> Pending[GateVerdict]:
        """Compare the parameters' values with the start. If the test fails, they get the start's values again.

        Launches and returns; the parameters are pending until the verdict. Waits for it where a blocking wait is
        allowed; on an event loop, await the `Pending`. If too many of the result's replies can't be used, the start is
        kept. If the comparison itself fails, as in an outage, the values stay as they are and no rows are used up, so
        it can be repeated.

        Raises:
            RuntimeError: without a `start`, or if too many rows failed.
            ValueError: if a budget can't pay for 12 rows, before the first call.
        """
        if self._noted is None:
            raise RuntimeError("a gate must know the start; call gate.start(parameters) before the training")
        verdicts: list[GateVerdict] = []
        places = range(len(self._parameters))
        lane = StepLane("all", places, places, [self._noted], lambda values: self._decide(values, verdicts))
        end = launch_step(Launch("Gate.judge"), "Gate", self._parameters, [lane])
        return Pending(end, lambda _: verdicts[0]).wait_if_allowed()

    async def _decide(self, values: tuple[Any, ...], verdicts: list[GateVerdict]) -> Decision:
        assert self._start is not None
        start = tuple(self._start)
        if values == start:
            verdicts.append(GateVerdict(True, 1.0, self._level, None, None))
            self._verdicts.append(verdicts[0])
            return Decision(values)
        size = await self._affordable(values)
        units, level, again = self._drawn(size)
        scores: list[list[float | None]] = [[], []]
        unusable: list[int] = []

        async def look(number: int) -> None:
            bound = dict(zip(self._parameters, (start, values)[number], strict=True))
            try:
                scores[number] = await scores_of(
                    self._evaluate, self._data.batch(units), bound, name=("held/start", "held/result")[number],
                    urgency=Priority.VALIDATION, quorum=self._quorum,
                )  # fmt: skip
            except BatchError as error:
                if number == 0 or not _by_replies(error):
                    raise
                scores[number], unusable[:] = [None] * len(units), error.samples
            self._data.by_unit(units, scores[number])

        await side_by_side([lambda: look(0), lambda: look(1)])
        if unusable:
            able = [score for score in scores[0] if score is not None]
            mean = math.fsum(able) / len(able)
            verdict = GateVerdict(False, 1.0, level, mean, None, rows=tuple(units), failed=len(unusable))
        else:
            verdict = self._tested(units, scores[0], scores[1], level)
        # From here on nothing fails, so the rows are used up exactly if there is a verdict.
        self._used = sorted({*self._used, *units})
        self._reused += again
        self._verdicts.append(verdict)
        verdicts.append(verdict)
        if not verdict.passed:
            logging.getLogger("afnio").warning("the gate restored the start: %s", verdict)
        return decision_of([one.role for one in self._parameters], start, values, verdict, scores)

    def _drawn(self, size: int) -> tuple[list[int], float, bool]:
        """Return the rows of this look, its level, and True if they were used before."""
        draw = random.Random(f"{self._seed}/{len(self._verdicts)}")
        fresh = [row for row in range(len(self._data)) if row not in set(self._used)]
        need = min(size, ENOUGH)
        if len(fresh) >= need:
            return sorted(draw.sample(fresh, min(size, len(fresh)))), self._level, False
        level = self._level / 2 ** (self._reused + 1)
        logging.getLogger("afnio").warning(
            "the gate has %d unused rows left, so it uses rows again and halves its level to %g; give more rows",
            len(fresh),
            level,
        )
        return sorted(draw.sample(range(len(self._data)), size)), level, True

    def _tested(
        self,
        units: Sequence[int],
        start: Sequence[float | None],
        result: Sequence[float | None],
        level: float,
    ) -> GateVerdict:
        both = len(differences(result, start))
        if not both or not quorum_holds(both, len(units), self._quorum):
            raise RuntimeError(
                f"only {both} of {len(units)} rows of the gate have both scores (quorum={self._quorum}); the "
                "values stay as they are, call judge() again"
            )
        return GateVerdict.of(start, result, units, level)

    async def _affordable(self, values: tuple[Any, ...]) -> int:
        """Return the number of rows for a look that the budget pays for."""
        calls = self._budget if self._budget is not None else _limit()
        if calls is None:
            return self._size
        each = await self._rehearsed(values)
        most = rows_for(calls, each)
        if most < FEWEST:
            raise ValueError(
                f"the budget must pay for a gate of {FEWEST} rows with a third of its calls: two looks of {each} "
                f"calls a row are {2 * each * FEWEST}, so {math.ceil(2 * each * FEWEST / SHARE)} calls (got {calls})"
            )
        return min(self._size, most)

    async def _rehearsed(self, values: tuple[Any, ...]) -> int:
        """Return how many calls one row takes. It is run with made-up replies, which sends nothing."""
        if rehearsal.get() is not None:
            return 1
        bound = dict(zip(self._parameters, values, strict=True))
        with rehearsing() as rehearsed:
            try:
                async with scope(name="rehearsal"):
                    with bind(bound), enable_grad(), tolerate(1e-6):
                        await sample_scores(await called(self._evaluate, self._data.batch([0])))
            except Exception:  # made-up replies may be of no use to the agent
                logging.getLogger("afnio").debug("a row could not be rehearsed", exc_info=True)
        return max(1, len(rehearsed.calls))

    # In a Trainer

    async def on_fit_start(self, trainer: Any, agent: Any) -> None:
        """Note the agent's values."""
        await self.start(agent.parameters())

    async def on_fit_end(self, trainer: Any, agent: Any) -> None:
        """Judge the training, and show the verdict."""
        trainer.tell(f"gate: {await self.judge()}")

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return the start, the rows that were used, and all evidence, as JSON can hold it. Waits for the start."""
        if self._noted is not None:
            wait([self._noted])
        return {
            "start": None if self._start is None else list(self._start),
            "rows_used": list(self._used),
            "reused": self._reused,
            "seed": self._seed,
            "verdicts": [
                {**{name: getattr(v, name) for name in v.__slots__}, "rows": list(v.rows)}
                for v in self._verdicts
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`. Further looks draw rows that weren't used, or split the level."""
        self._start = None if state["start"] is None else list(state["start"])
        self._used, self._reused, self._seed = list(state["rows_used"]), state["reused"], state["seed"]
        self._verdicts = [GateVerdict(**{**v, "rows": tuple(v["rows"])}) for v in state["verdicts"]]
        self._loaded = True

    def __repr__(self) -> str:
        return f"Gate(rows={len(self._data)}, level={self._level:g}, looks={len(self._verdicts)})"


def decision_of(
    roles: Sequence[str],
    start: tuple[Any, ...],
    values: tuple[Any, ...],
    verdict: GateVerdict,
    scores: Sequence[Sequence[float | None]],
) -> Decision:
    """Return what a verdict decides about parameters of these roles, as the step that a run records.

    Args:
        start, values: of the parameters before and after the training.
        scores: of both, by row.
    """
    after = values if verdict.passed else start
    changes = tuple(
        Change(role, before, now, 0, None if verdict.passed else str(verdict))
        for role, before, now in zip(roles, values, after, strict=True)
        if before != now
    )
    said = ("the start", f"accepted: {verdict}") if verdict.passed else (f"kept: {verdict}", str(verdict))
    candidates = (
        Candidate(None, (), start, tuple(scores[0]), said[0], "incumbent", verdict.rows),
        Candidate(None, (), values, tuple(scores[1]), said[1], "result", verdict.rows),
    )
    return Decision(after, changes, candidates)


def rows_for(calls: int, each: int) -> int:
    """Return the rows that a budget of `calls` pays both looks of a gate for, if a row takes `each` of them.

    >>> rows_for(150, 1), rows_for(300, 1), rows_for(600, 1), rows_for(300, 3)
    (25, 37, 75, 16)
    """
    few, many = (int(calls * share) // (2 * each) for share in (SHARE, WIDE_SHARE))
    return max(min(few, ENOUGH), many)


def _listed(params: Iterable[Variable] | Optimizer) -> list[Variable]:
    if isinstance(params, Optimizer):
        return [parameter for group in params.param_groups for parameter in group["params"]]
    if isinstance(params, Variable):
        raise TypeError(f"params must be an iterable of Parameters (got {params!r}); put it in a list")
    listed = list(params)
    if not listed:
        raise ValueError("params must have at least one parameter (got none)")
    return listed


def _by_replies(error: BaseException) -> bool:
    """Return True if samples failed by their replies alone, which are the text's work: not by a call or the engine."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_by_replies, error.exceptions))
    return isinstance(error, ReplyError) or not isinstance(error, AfnioError)


def _limit() -> int | None:
    caps = [b.caps.calls for b in current_budgets() if b.caps.calls is not None]
    return int(min(caps)) if caps else None
