"""Scoring: how an agent and a metric score rows, as every part of a study does it.

`Scorer` is the user's metric for the rows of one batch, and `RowMetric` the evaluator around it, which writes feedback
on wrong rows. `Scored` is the outcome of a pass, and `Scoring` runs passes. A row that crashes has no score: if it
counted as wrong, an agent with a flaky tool would look like one with a bad prompt.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from afnio.autodiff._function import Context
from afnio.autodiff._graph import no_grad
from afnio.autodiff._variable import Variable, bind
from afnio.cognitive._evaluators import Evaluator, Judgement, record, succeeded
from afnio.cognitive._members import mode
from afnio.cognitive._prompts import deterministic_feedback
from afnio.errors import (
    BatchError,
    BudgetExceeded,
    JournalError,
    MetricError,
    ScoreError,
    UnknownPriceError,
    first_of,
    hint,
    reason,
)
from afnio.models._trace import Rehearsed, rehearsing, tracing
from afnio.runtime._blocking import task_group
from afnio.runtime._callables import call_in_node, may_fail, tolerate
from afnio.runtime._kernel import Job, Outcomes
from afnio.runtime._tracebacks import Failure
from afnio.runtime._waiting import scope, wait_async
from afnio.studies._rows import Row, in_words
from afnio.studies._subject import Subject, Traced

# The share of rows that must not crash.
QUORUM: Final = 0.9
# The highest score, and the negative of the lowest one: their squares can be summed up.
HIGHEST: Final = 1e100

# The metric


@final
class Scorer:
    """The user's metric, for the rows of one batch.

    Attributes:
        outputs: the agent's outputs in words, by lane.
        feedback: the metric's feedback, by lane, if it gave any.
        places: gets the addresses below which the metric's own calls are.
    """

    def __init__(
        self, metric: Callable[..., Any], rows: Sequence[Row], perfect: float, places: set[str]
    ) -> None:
        self.rows = rows
        self.places = places
        self.outputs: dict[int, str] = {}
        self.feedback: dict[int, str] = {}
        self.perfect = perfect
        self._metric = metric
        self._wants, self._labelled = wanted_by(metric), takes_expected(metric)
        self.name = getattr(metric, "__name__", type(metric).__name__)
        if self.name == "<lambda>":
            self.name = "metric"

    def of(self, row: Row) -> Scorer:
        """Return the same metric for one row, without another check of its signature."""
        scorer = copy.copy(self)
        scorer.rows, scorer.outputs, scorer.feedback = [row], {}, {}
        return scorer

    async def __call__(self, job: Job, lane: int, output: Any) -> tuple[Any, str | None]:
        """Return a row's score and the metric's feedback.

        Raises:
            MetricError: for a score that isn't a number.
        """
        row = self.rows[lane]
        self.places.add(f"{job.launch.address}/")
        value = output.value if isinstance(output, Traced) else output
        self.outputs[lane] = in_words(value)
        others = {"inputs": row.inputs, "trace": output.trace.calls if isinstance(output, Traced) else []}
        wanted = {name: others[name] for name in self._wants}
        expected = [row.expected] if self._labelled else []
        call: Any = functools.partial(self._metric, value, *expected, **wanted)
        try:
            returned = await call_in_node(job, call)
        except BaseException as error:
            if first_of(error, SystemExit, contexts=True) is None:
                raise
            raise MetricError(
                f"the metric must return a score (got sys.exit() for row {row.number}); raise an error instead"
            ) from None
        feedback = None
        if isinstance(returned, tuple) and len(returned) == 2:
            returned, feedback = returned
        score = returned.item() if getattr(returned, "shape", None) in ((), (1,)) else returned
        if not isinstance(score, int | float) or not abs(score) <= HIGHEST:
            raise MetricError(
                f"the metric must return True, False, a number or (score, feedback) (got {_short(returned)} for row "
                f"{row.number})"
            )
        if score > self.perfect:
            raise MetricError(
                f"a score must be at most perfect={self.perfect:g} (got {score:g} for row {row.number}); pass "
                "perfect=…, the score of a right row"
            )
        if feedback is not None and not isinstance(feedback, str):
            raise MetricError(
                f"the metric's feedback must be a text (got {_short(feedback)} for row {row.number})"
            )
        if feedback is not None:
            self.feedback[lane] = feedback
        return score, feedback


def takes_expected(metric: Callable[..., Any]) -> bool:
    """Return False for a metric whose second parameter is missing, or named inputs or trace: it needs no labels."""
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return True
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return True
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 and positional[1].name not in _OTHERS


def wanted_by(metric: Callable[..., Any]) -> list[str]:
    """Return which of inputs and trace a metric takes by name.

    Raises:
        TypeError: for one that can't be called so.

    >>> wanted_by(lambda output, expected, inputs: True), wanted_by(lambda output, inputs: True)
    (['inputs'], ['inputs'])
    """
    if not callable(metric):
        raise TypeError(f"metric must be a function of output and expected (got {metric!r})")
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return []
    others = parameters[2 if takes_expected(metric) else 1 :]
    names = [one.name for one in others if one.name in _OTHERS and one.kind is not one.POSITIONAL_ONLY]
    needed = [
        one.name
        for one in others
        if one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and one.name not in names
    ]
    if needed or not parameters:
        raise TypeError(
            f"metric must take (output, expected), or (output) alone, and by name inputs and trace if it wants them "
            f"(got {inspect.signature(metric)})"
        )
    return names


_OTHERS: Final = ("inputs", "trace")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


@final
class RowMetric(Evaluator):
    """The evaluator around the user's metric: the score of a lane, and its feedback."""

    @classmethod
    async def run_forward(
        cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Outcomes:
        output, scorer = args[0], kwargs["scorer"]
        lane = ctx.lane or 0
        score, feedback = await scorer(job, lane, output)
        expected = in_words(scorer.rows[lane].expected)
        prediction = output if type(output) in (int, float, bool) else scorer.outputs[lane]
        return record(
            ctx,
            prediction=prediction,
            target=expected,
            score=score,
            explanation=feedback or deterministic_feedback(kwargs["purpose"], prediction, expected, score),
            success=await succeeded(job, None, scorer.perfect, score),
        )


# The scores of a pass


@final
@dataclass(slots=True)
class Scored:
    """A pass over rows with one set of prompts: scores, outputs in words, errors; by row."""

    scores: list[float | None] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def __add__(self, other: Scored) -> Scored:
        """Return the pass over the rows of both."""
        return Scored(self.scores + other.scores, self.outputs + other.outputs, self.errors + other.errors)


def check_draws(draws: Any) -> None:
    """Raise if it isn't a number of draws."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be a whole number, 1 or more (got {draws!r})")


def check_crashes(errors: Sequence[BaseException], rows: int) -> None:
    """Raise if more than a tenth of the rows crashed. One of several may."""
    if len(errors) > may_fail(rows, QUORUM):
        first = errors[0]
        advice = f" ({text})" if (text := hint(first)) else ""
        raise BatchError(
            f"{len(errors)} of {rows} rows crashed, more than a tenth; the first with {reason(first)}{advice}",
            [error for error in errors if isinstance(error, Exception)] or [RuntimeError(repr(first))],
        ) from None


def raise_fatal(error: BaseException) -> None:
    """Raise what isn't one row's failure: the end of a budget, a broken journal, an unusable score."""
    for kind in (UnknownPriceError, BudgetExceeded, JournalError, ScoreError):
        fatal = first_of(error, kind)
        if fatal is not None:
            raise fatal


class Scoring:
    """Scores rows with an agent and a metric: what every part that looks at rows shares."""

    def __init__(self, subject: Subject, metric: Callable[..., Any], perfect: float) -> None:
        if isinstance(perfect, bool) or not isinstance(perfect, int | float) or math.isnan(perfect):
            raise TypeError(f"perfect must be a number, the score of a right row (got {perfect!r})")
        wanted_by(metric)
        self.subject, self.metric, self.perfect = subject, metric, perfect
        self.metric_places: set[str] = set()

    async def evaluated(self, rows: Sequence[Row]) -> tuple[Judgement, Scorer]:
        """Launch the agent and the metric on rows."""
        scorer = Scorer(self.metric, rows, self.perfect, self.metric_places)
        evaluation = RowMetric.apply(
            await self.output(rows),
            scorer=scorer,
            purpose=scorer.name,
            feedback_by="rules",
            reduction_fn=None,
            reduction_fn_purpose=None,
        )
        return evaluation, scorer

    async def output(self, rows: Sequence[Row]) -> Variable:
        """Launch the agent on rows."""
        output = self.subject(rows)
        if inspect.isawaitable(output) and not isinstance(output, Variable):
            output = await output
        if not isinstance(output, Variable):
            raise TypeError(f"a Module's forward must return a Variable (got {_short(output)})")
        return output

    async def scored(
        self, name: str, rows: Sequence[Row], *versions: Mapping[str, str], tolerant: bool = False
    ) -> list[Scored]:
        """Score rows with each version of the prompts, side by side.

        Args:
            tolerant: rows may crash.

        Raises:
            BatchError: if more than a tenth of the rows crashed.
        """
        async with scope(name=name):
            results = await self.scored_as(
                {f"{name} {number}": texts for number, texts in enumerate(versions, 1)}, rows
            )
        for result in results if not tolerant else ():
            check_crashes(result.errors, len(rows))
        return results

    async def scored_as(self, versions: Mapping[str, Mapping[str, str]], rows: Sequence[Row]) -> list[Scored]:
        """Score rows with each version of the prompts, side by side, each in a scope of its name. Rows may crash."""
        results = [Scored() for _ in versions]

        async def one(number: int, name: str, texts: Mapping[str, str]) -> None:
            parameters = self.subject.parameters
            values: dict[Variable, Any] = {
                parameters[key]: Variable(text, parameters[key].role) for key, text in texts.items()
            }
            async with scope(name=name):
                with bind(values):
                    results[number] = await self.read(*await self.evaluated(rows))

        with no_grad(), mode(False), tolerate(1e-9):
            async with task_group() as tasks:
                for number, (name, texts) in enumerate(versions.items()):
                    tasks.start_soon(one, number, name, texts)
        return results

    async def read(self, evaluation: Judgement, scorer: Scorer) -> Scored:
        """Wait for the scores of an evaluation."""
        slots = evaluation.score.sample_slots
        await wait_async(slots)
        result = Scored()
        for lane, slot in enumerate(slots):
            outcome = slot.outcome
            if isinstance(outcome, Failure):
                outcome.mark_read()
                result.errors.append(outcome.error)
            failed = isinstance(outcome, Failure) or outcome is None
            result.scores.append(None if failed else float(outcome))
            result.outputs.append(scorer.outputs.get(lane))
        for error in result.errors:
            raise_fatal(error)
        return result

    async def rehearsed(self, row: Row) -> Sequence[Rehearsed]:
        """Return the calls that a row makes. It is run with made-up replies, which sends nothing."""
        with rehearsing() as rehearsal:
            try:
                await self.scored("rehearsal", [row], self.subject.texts, tolerant=True)
            except Exception:  # made-up replies may be of no use to the agent or the metric
                logging.getLogger("afnio").debug("a row could not be rehearsed", exc_info=True)
        return rehearsal.calls

    async def unsent(self, row: Row) -> list[str]:
        """Return the prompts that no request of a row contains, as far as made-up replies show. It sends nothing.

        The prompts are marked, because an agent may change them before it sends them. A prompt counts as sent if its
        mark arrives, or if nothing can be seen: the agent makes no call, fails on made-up replies, or offers tools,
        which these don't call.
        """
        texts = self.subject.texts
        marks = {name: f"mark{place}of{len(texts)}" for place, name in enumerate(texts)}
        marked = {name: f"{mark} {texts[name]} {mark}" for name, mark in marks.items()}
        sent = await self._requests(row, marked)
        missing = [name for name, mark in marks.items() if mark not in sent.lower()]
        if not sent or len(missing) < len(texts):
            return missing if sent else []
        # If the requests differ from those without marks, a prompt arrives in a form that hides its mark.
        return missing if await self._requests(row, texts) == sent else []

    async def _requests(self, row: Row, texts: Mapping[str, str]) -> str:
        """Return a row's requests to models as JSON lines; nothing if these can't be all of them."""
        agent = Scoring(self.subject, lambda output: True, 1.0)
        with rehearsing() as rehearsal, tracing() as trace:
            try:
                (scored,) = await agent.scored("rehearsal", [row], texts, tolerant=True)
            except Exception:
                return ""
        if scored.outputs[0] is None or any(call.params.get("tools") for call in rehearsal.calls):
            return ""
        return "\n".join(sorted(json.dumps(call.request, default=repr) for call in trace.calls))
