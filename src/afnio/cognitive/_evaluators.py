"""Evaluators: ops that score each sample, say why, and start the backward pass.

An evaluator is a Function with two outputs, a score and an explanation, that differs from other ops in three ways:

* It has a `reduce` part. Each lane's score and explanation are computed on their own; `reduction_fn` then makes one
  score of a batch's, and the explanation lists the samples. `Score.samples` still reads the single scores, so they
  needn't wait for the slowest sample.
* It needs no seed. `explanation.backward()` starts from the explanations themselves.
* Only samples that went wrong send feedback. Feedback on a right sample would ask the optimizer to change a
  prompt that works. Right is decided sample by sample (`succeeded`); deciding it for a whole batch would be a barrier,
  and one wrong sample would send feedback on all.

`ExactMatch` and `Deterministic` write their feedback by rules, or have the backward model phrase it; `LMJudge` asks a
model for score and explanation. The public forms with all their arguments are in `afnio.cognitive.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple, final

from afnio.autodiff._function import (
    Arguments,
    Context,
    Function,
    LaneFeedback,
    Later,
    Loop,
    Op,
    checked_loop,
)
from afnio.autodiff._graph import Feedback
from afnio.autodiff._variable import Variable, checked, plain
from afnio.cognitive._chat import check_texts, criticize
from afnio.cognitive._prompts import JUDGE_SCHEMA, ask, block, deterministic_feedback, wording
from afnio.cognitive._template import as_text, rendered
from afnio.errors import ScoreError
from afnio.models._backward_model import get_backward_model_client
from afnio.runtime._callables import batch_failure, call_in_node, current_quorum
from afnio.runtime._kernel import Job, Launch, Outcomes, Slot
from afnio.runtime._tracebacks import Failure, folding
from afnio.runtime._waiting import wait
from afnio.runtime.events import SampleScored, emit, listening

FeedbackBy = Literal["rules", "lm"]
# Decides if a sample is right. It gets a list with that sample's score alone, so `all` is one.
SuccessFn = Callable[[list[Any]], object]
# Makes the batch's score of the list of its samples' scores; None keeps a score for each sample.
ReductionFn = Callable[[list[Any]], Any] | None

# How many samples a batch's explanation lists at most.
MAX_LISTED = 50


class Judgement(NamedTuple):
    """The two outputs of an evaluator: unpack it, or `score, explanation = await loss_fn(...)`."""

    score: Score
    explanation: Variable

    @folding
    def __await__(self) -> Generator[Any, None, Judgement]:
        yield from self.score.__await__()
        yield from self.explanation.__await__()
        return self


@final
class Score(Variable):
    """A score; of a batch, the reduction of its samples' scores."""

    __slots__ = ("_sample_slots",)

    _sample_slots: Sequence[Slot]

    @property
    @folding
    def samples(self) -> list[Any]:
        """The score of each sample, None if it is missing or failed; waits for them.

        Raises:
            ScoreError: for a score above `max_score`. That is a mistake of the program, not of one sample.
        """
        wait(self._sample_slots)
        for slot in self._sample_slots:
            if isinstance(slot.outcome, Failure) and isinstance(slot.outcome.error, ScoreError):
                raise slot.outcome.raised()
        return [None if isinstance(slot.outcome, Failure) else slot.outcome for slot in self._sample_slots]

    @property
    def sample_errors(self) -> dict[int, BaseException]:
        """The errors of failed samples by index; waits for all scores, and raises nothing."""
        wait(self._sample_slots)
        outcomes = enumerate(slot.outcome for slot in self._sample_slots)
        return {lane: outcome.error for lane, outcome in outcomes if isinstance(outcome, Failure)}

    @property
    def sample_slots(self) -> Sequence[Slot]:
        """One slot for each sample, for callers that await them one by one."""
        return self._sample_slots


class Evaluator(Function):
    """Base of the evaluators. A subclass computes one sample's score and explanation, and ends with `record`.

    The prediction is the first argument. The options `purpose`, `reduction_fn` and `reduction_fn_purpose` are keyword
    arguments.
    """

    outputs = ("score", "explanation")
    seedless = True
    kind = "evaluator"

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        options = arguments.kwargs
        prediction = arguments.args[0]
        if not isinstance(prediction, Variable):
            raise TypeError(
                f"prediction must be a Variable (got {prediction!r}); wrap it: afnio.Variable(...)"
            )
        _check_purpose("reduction_fn", options["reduction_fn"], options["reduction_fn_purpose"])

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        return [f"Evaluation result {name} of {arguments.args[0].role}" for name in cls.outputs]

    @classmethod
    def wanted(cls, arguments: Arguments) -> Sequence[bool]:
        # The prediction alone gets feedback; a target is never to blame.
        prediction = arguments.args[0]
        return [variable.requires_grad and variable is prediction for variable in arguments.variables]

    @classmethod
    def reduce(cls, launch: Launch, op: Op) -> Sequence[list[Slot]] | None:
        options = op.arguments.kwargs
        function = options["reduction_fn"]
        if op.arguments.size is None or function is None:
            return None
        score, explanation = Slot(launch), Slot(launch)
        reduction = _BatchScore(
            function, options["reduction_fn_purpose"], options["purpose"], launch.title, current_quorum()
        )
        scores, explanations = op.slots
        launch.add(reduction, [*scores, *explanations], [score, explanation], part="reduce", gather=True)
        return [[score], [explanation]]

    @classmethod
    def variable_type(cls, number: int) -> type[Variable]:
        return Score if number == 0 else Variable

    @classmethod
    def wrap(cls, outputs: list[Variable], op: Op) -> Judgement:
        score, explanation = outputs
        assert isinstance(score, Score)
        score._sample_slots = op.slots[0]
        return Judgement(score, explanation)

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        if ctx.arguments.kwargs.get("feedback_by") == "lm":
            get_backward_model_client()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback | Later:
        asked = [feedback.text for incoming in ctx.feedback for feedback in incoming if feedback.text]
        texts = asked if ctx.success else [ctx.explanation, *asked]
        if not texts:
            return [None] * len(ctx.wanted)
        if ctx.feedback_by == "lm":
            return partial(_phrased, job, ctx, texts)
        return _to_prediction(ctx, "\n".join(texts))


def record(
    ctx: Context,
    *,
    prediction: Any,
    target: Any,
    score: Any,
    explanation: str,
    success: bool,
    feedback_by: FeedbackBy = "rules",
) -> Outcomes:
    """Keep one sample's evaluation for the backward pass, report it to subscribers, and return its outputs."""
    ctx.prediction = prediction
    ctx.target = target
    ctx.score = score
    ctx.explanation = explanation
    ctx.success = success
    ctx.feedback_by = feedback_by
    if listening():
        assert ctx.address is not None
        emit(SampleScored(ctx.address, ctx.lane, prediction, target, score, explanation, success))
    return [score, explanation]


async def succeeded(job: Job, success_fn: SuccessFn | None, max_score: float, score: Any) -> bool:
    """Return True if one sample is right: its score is True or `max_score`, or `success_fn` decides so.

    Raises:
        ScoreError: for a score above `max_score`, unless there is a `success_fn`.
    """
    if success_fn is not None:
        return bool(await call_in_node(job, success_fn, [score]))
    if not isinstance(score, int | float) or isinstance(score, bool):
        return score is True
    if score > max_score:
        raise ScoreError(
            f"a score must not exceed max_score={max_score:g} (got {score!r}); pass max_score=…, the score of a right "
            "sample (math.inf if no score makes one right), or a success_fn"
        )
    return score == max_score


def _to_prediction(ctx: Context, text: str) -> LaneFeedback:
    """Return feedback on the prediction, the first Variable among the arguments, and on nothing else."""
    source = {
        "sample": ctx.lane,
        "node": ctx.address,
        "prediction": ctx.prediction,
        "score": ctx.score,
        "target": ctx.target,
    }
    return [Feedback(text, ctx.prediction, (source,)), *[None] * (len(ctx.wanted) - 1)]


async def _phrased(job: Job, ctx: Context, texts: Sequence[str]) -> LaneFeedback:
    """Ask the backward model to put the evaluator's findings in words."""
    messages = [
        {"role": "system", "content": wording("phrase.system")},
        {"role": "user", "content": "\n".join(block("feedback", text) for text in texts)},
    ]
    reply = await get_backward_model_client().ask(messages, "backward", job=job)
    return _to_prediction(ctx, str(reply))


@final
@dataclass(frozen=True, slots=True)
class _BatchScore:
    """The reduction of a batch: makes one score of its samples' scores, and one explanation of theirs.

    Missing and failed samples are left out, as long as the quorum (see `afnio.tolerate`) holds.
    """

    function: Callable[[list[Any]], Any]
    noun: str
    purpose: str
    title: str
    quorum: float | None

    async def __call__(self, job: Job, outcomes: list[Any]) -> Outcomes:
        size = len(outcomes) // 2
        scores, explanations = outcomes[:size], outcomes[size:]
        error = batch_failure(scores, self.title, self.quorum)
        if error is not None:
            raise error
        present = [
            n for n, score in enumerate(scores) if score is not None and not isinstance(score, Failure)
        ]
        if not present:
            return [None, None]
        score = checked(await call_in_node(job, self.function, [scores[number] for number in present]))
        failed = sum(isinstance(outcome, Failure) for outcome in scores)
        lines = [f"{self.purpose}: the {self.noun} over {len(present)} samples is {score}."]
        if failed:
            lines.append(f"{failed} samples failed and are left out.")
        lines += [f"Sample {number}: {explanations[number]}" for number in present[:MAX_LISTED]]
        if len(present) > MAX_LISTED:
            lines.append(f"… and {len(present) - MAX_LISTED} more.")
        return [score, "\n".join(lines)]


# The evaluators.


@final
class ExactMatch(Evaluator):
    """1 if prediction and target are equal, else 0."""

    inline = True

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        super().check(arguments)
        _check_feedback(arguments.kwargs["feedback_by"])

    @staticmethod
    def forward(ctx: Context, *args: Any, **kwargs: Any) -> Outcomes:
        prediction, target = args
        score = int(prediction == target)
        return record(
            ctx,
            prediction=prediction,
            target=target,
            score=score,
            explanation=deterministic_feedback(kwargs["purpose"], prediction, target, score),
            success=score == 1,
            feedback_by=kwargs["feedback_by"],
        )


@final
class Deterministic(Evaluator):
    """The score that a user's function gives a prediction and its target, and its feedback if it gives one."""

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        super().check(arguments)
        options = arguments.kwargs
        if not callable(options["eval_fn"]):
            raise TypeError(
                f"eval_fn must be a callable of a prediction and a target (got {options['eval_fn']!r})"
            )
        _check_purpose("eval_fn", options["eval_fn"], options["purpose"])
        _check_feedback(options["feedback_by"])
        _check_success(options["success_fn"], options["max_score"])

    @classmethod
    def loop_of(cls, arguments: Arguments) -> Loop:
        return checked_loop(arguments.kwargs["loop"])

    @classmethod
    async def run_forward(
        cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Outcomes:
        prediction, target = args if len(args) == 2 else (args[0], None)
        returned = await call_in_node(job, kwargs["eval_fn"], prediction, target)
        score, feedback = _scored(returned, texts=kwargs["success_fn"] is not None)
        generated = deterministic_feedback(kwargs["purpose"], prediction, target, score)
        return record(
            ctx,
            prediction=prediction,
            target=target,
            score=score,
            explanation=generated if feedback is None else feedback,
            success=await succeeded(job, kwargs["success_fn"], kwargs["max_score"], score),
            feedback_by=kwargs["feedback_by"],
        )


def _scored(returned: Any, *, texts: bool) -> tuple[Any, str | None]:
    """Return the score that an `eval_fn` returned, and the feedback if it came with one.

    Args:
        texts: whether a text is a score too, because a `success_fn` says which texts are good.

    Raises:
        TypeError, ValueError: for anything but a number. The error of the batch names the samples.
    """
    score, feedback = returned, None
    if isinstance(returned, tuple) and len(returned) == 2:
        score, feedback = returned
    score = plain(score)
    valid = isinstance(score, int | float) or (texts and isinstance(score, str))
    if not valid or not isinstance(feedback, str | None):
        raise TypeError(
            "eval_fn must return a number or a bool for one sample, or (score, feedback) with a text "
            f"(got {returned!r:.200}); convert it first"
        )
    if isinstance(score, float) and math.isnan(score):
        raise ValueError("eval_fn must return a number (got NaN); return the score of a wrong sample instead")
    return score, feedback


@final
class LMJudge(Evaluator):
    """The score and the explanation that a model gives.

    With `eval_mode` the explanation is feedback on the prediction. Without it the judge itself is tuned: a critic
    turns the explanation into feedback on the judge's own messages and inputs.
    """

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        super().check(arguments)
        _check_success(arguments.kwargs["success_fn"], arguments.kwargs["max_score"])

    @classmethod
    def wanted(cls, arguments: Arguments) -> Sequence[bool]:
        if arguments.kwargs["eval_mode"]:
            return super().wanted(arguments)
        _, messages, inputs = arguments.args
        tuned = [text for message in messages for text in message["content"]]
        tuned += [variable for name, variable in inputs.items() if name != "target"]
        return [
            variable.requires_grad and any(variable is text for text in tuned)
            for variable in arguments.variables
        ]

    @classmethod
    async def run_forward(
        cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Outcomes:
        prediction, messages, values = args
        values = {**values, "prediction": prediction}
        check_texts(values)
        sent = rendered(messages, values)
        first = {"role": sent[0]["role"], "content": as_text(sent[0]["content"]) + wording("judge.format")}
        score, explanation = await ask(
            kwargs["model"],
            job,
            [first, *sent[1:]],
            schema=JUDGE_SCHEMA,
            parse=_judgement,
            repair=wording("judge.repair"),
            purpose="judge",
        )
        if any(ctx.wanted):
            ctx.sent = sent
        return record(
            ctx,
            prediction=prediction,
            target=values.get("target"),
            score=score,
            explanation=explanation,
            success=await succeeded(job, kwargs["success_fn"], kwargs["max_score"], score),
        )

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        if not ctx.arguments.kwargs["eval_mode"]:
            get_backward_model_client()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback | Later:
        if ctx.arguments.kwargs["eval_mode"]:
            return super().run_backward(job, ctx)
        # Leave out `seen`: consumers saw a number, and the critic would think that the reply was edited.
        asked = [
            Feedback(f.text, provenance=f.provenance) for incoming in ctx.feedback for f in incoming if f.text
        ]
        if ctx.success and not asked:
            return [None] * len(ctx.wanted)
        values = ctx.lane_values()
        (_, _, inputs), _ = ctx.arguments.fill(values)
        return partial(
            criticize,
            job,
            ctx,
            get_backward_model_client(),
            values=values,
            inputs=inputs,
            sent=ctx.sent,
            reply=f"score: {ctx.score}\n{ctx.explanation}",
            reply_format=None,
            feedback=asked or [Feedback(ctx.explanation)],
            wanted=ctx.wanted,
        )


def _judgement(answer: Mapping[str, Any]) -> tuple[Any, str]:
    """Return score and explanation of a judge's reply; ValueError asks it for another one."""
    score = answer["score"]
    if isinstance(score, dict | list) or score is None:
        raise ValueError(f'"score" must be a number, true, false or a text (got {score!r})')
    return score, str(answer["explanation"])


# Checks of arguments.


def _check_purpose(name: str, function: Any, purpose: str | None) -> None:
    if function is None and purpose is None:
        return
    if function is None and name == "reduction_fn":
        raise ValueError(
            f"reduction_fn_purpose={purpose!r} was given without a reduction_fn; give both, or None for both"
        )
    if not callable(function):
        raise TypeError(f"{name} must be a callable or None (got {function!r})")
    if not isinstance(purpose, str) or not purpose:
        raise ValueError(f'{name} needs {name}_purpose, a short noun such as "mean" (got {purpose!r})')


def _check_success(success_fn: Any, max_score: Any) -> None:
    if success_fn is not None and not callable(success_fn):
        raise TypeError(
            f"success_fn must be a callable of a list with one sample's score, or None (got {success_fn!r})"
        )
    if isinstance(max_score, bool) or not isinstance(max_score, Real):
        raise TypeError(f"max_score must be a number (got {max_score!r}); math.inf sets no bound")
    if success_fn is not None and max_score != 1:
        raise ValueError(
            f"max_score={max_score!r} has no effect with a success_fn, which decides alone; give one of the two"
        )


def _check_feedback(feedback: FeedbackBy) -> None:
    if feedback not in ("rules", "lm"):
        raise ValueError(f"feedback must be 'rules' or 'lm' (got {feedback!r})")
