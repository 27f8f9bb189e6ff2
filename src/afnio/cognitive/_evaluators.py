"""Evaluator: what all evaluators share: a score and an explanation for each sample, and a reduction."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, final

from afnio.autodiff._data import Feedback, checked
from afnio.autodiff._function import Arguments, Context, Function, Later, Said, edges_to, tell_launch
from afnio.autodiff._graph import Node
from afnio.autodiff._variable import Origin, Variable, is_grad_enabled
from afnio.cognitive._chat import check_texts, input_variables
from afnio.cognitive._critic import criticize
from afnio.cognitive._prompts import JUDGE_SCHEMA, block, deterministic_feedback, wording
from afnio.cognitive._reduction import ask
from afnio.cognitive._template import as_text, check_inputs, check_messages, rendered
from afnio.errors import ScoreError
from afnio.models._backward_model import get_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args, response_format
from afnio.runtime._callables import batch_failure, call_in_node, current_quorum
from afnio.runtime._kernel import Failure, Job, Launch, Outcomes, Slot
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import wait
from afnio.runtime.events import SampleScored, emit, listening

FeedbackBy = Literal["rules", "lm"]
SuccessFn = Callable[[list[Any]], object]
"""Whether a sample is right. It gets a list with that sample's score alone, so that `all` is one."""
MAX_LISTED = 50
"""Samples that a batch explanation lists at most."""


@final
class Score(Variable):
    """A score; of a batch, the reduction of its samples' scores."""

    __slots__ = ("_sample_slots",)

    _sample_slots: Sequence[Slot]

    @property
    @folding
    def samples(self) -> list[Any]:
        """The score of each sample, None where it is missing or failed; waits for them.

        Raises:
            ScoreError: for a score above `max_score`, which is no failure of its sample's.
        """
        wait(self._sample_slots)
        for slot in self._sample_slots:
            if isinstance(slot.outcome, Failure) and isinstance(slot.outcome.error, ScoreError):
                raise slot.outcome.raised()
        return [None if isinstance(slot.outcome, Failure) else slot.outcome for slot in self._sample_slots]

    @property
    def sample_errors(self) -> dict[int, BaseException]:
        """The errors of failed samples by index; waits for the scores of all, and raises nothing."""
        wait(self._sample_slots)
        found = enumerate(slot.outcome for slot in self._sample_slots)
        return {lane: outcome.error for lane, outcome in found if isinstance(outcome, Failure)}

    @property
    def sample_slots(self) -> Sequence[Slot]:
        """One slot for each sample, for those who await them."""
        return self._sample_slots


class Evaluation(NamedTuple):
    """What an evaluator returns: unpack it, or `score, explanation = await loss_fn(...)`."""

    score: Score
    explanation: Variable

    @folding
    def __await__(self) -> Generator[Any, None, Evaluation]:
        yield from self.score.__await__()
        yield from self.explanation.__await__()
        return self


class Evaluator(Function):
    """Base of the evaluators; a subclass says what one sample's score and explanation are.

    The prediction is the first Variable among its arguments. A sample that succeeded sends no feedback;
    one that failed sends its explanation. Missing samples are left out.
    """

    outputs = ("score", "explanation")
    seedless = True
    to_prediction: ClassVar[bool] = True

    @classmethod
    def evaluate(
        cls,
        arguments: Arguments,
        *,
        prediction: Variable,
        reduction_fn: Callable[[list[Any]], Any] | None,
        reduction_fn_purpose: str | None,
        purpose: str,
        gets_feedback: Callable[[Variable], bool],
    ) -> Evaluation:
        """Launch the evaluation of every sample, and its reduction, and return both Variables at once."""
        check_purpose("reduction_fn", reduction_fn, reduction_fn_purpose)
        launch = Launch(cls.__name__)
        roles = [f"Evaluation result {name} of {prediction.role}" for name in cls.outputs]
        wanted = [
            is_grad_enabled() and variable.requires_grad and gets_feedback(variable)
            for variable in arguments.variables
        ]
        input_roles = [variable.role for variable in arguments.variables]
        size = arguments.size
        lanes: Sequence[int | None] = [None] if size is None else range(size)
        contexts = [Context(arguments, wanted, input_roles, roles, lane) for lane in lanes]
        columns = [[Slot(launch) for _ in lanes] for _ in cls.outputs]
        node = None
        if any(wanted):
            edges = edges_to(arguments, wanted)
            node = Node(cls, cls.__name__, launch.line, size, edges, columns, contexts, launch.address)
        tell_launch(launch, arguments, "evaluator")
        arguments.forget()
        _launch_samples(cls, launch, arguments, contexts, columns)
        reduced = size is not None and reduction_fn is not None
        faces = columns
        if reduced:
            faces = [[Slot(launch)], [Slot(launch)]]
            assert reduction_fn is not None
            _Reduction(launch, reduction_fn, str(reduction_fn_purpose), purpose).add(columns, faces)
        origin = Origin(launch.name, launch.line, launch.address)
        batch = size is not None and not reduced
        score = Score.over(faces[0], batch, roles[0], node=node, output_nr=0, origin=origin)
        score._sample_slots = columns[0]
        explanation = Variable.over(faces[1], batch, roles[1], node=node, output_nr=1, origin=origin)
        launch.holders = [weakref.ref(score), weakref.ref(explanation)]
        launch.start()
        return Evaluation(score, explanation)

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        if ctx.arguments.kwargs.get("feedback_by") == "lm":
            get_backward_model_client()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said | Later:
        asked = [feedback.text for incoming in ctx.feedback for feedback in incoming if feedback.text]
        own = [] if ctx.success else [ctx.explanation]
        if not own and not asked:
            return [None] * len(ctx.wanted)
        found = {"sample": ctx.lane, "node": ctx.node, "prediction": ctx.prediction, "score": ctx.score}
        trail = ({**found, **ctx.details},)
        if ctx.feedback_by == "lm":
            return partial(_phrased, job, ctx, [*own, *asked], trail)
        return _to_first(ctx, "\n".join([*own, *asked]), trail)


def check_purpose(name: str, function: Any, purpose: str | None) -> None:
    """Raise for a function that isn't one, or comes without a word on what it is for."""
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


def check_prediction(prediction: Any) -> None:
    """Raise if `prediction` is no Variable."""
    if not isinstance(prediction, Variable):
        raise TypeError(f"prediction must be a Variable (got {prediction!r}); wrap it: afnio.Variable(...)")


def check_success(success_fn: Any, max_score: Any) -> None:
    """Raise if `success_fn` can't be called, if `max_score` is no number, or if both are given."""
    if success_fn is not None and not callable(success_fn):
        raise TypeError(
            f"success_fn must be a callable of a list with one sample's score, or None (got {success_fn!r})"
        )
    if isinstance(max_score, bool) or not isinstance(max_score, Real):
        raise TypeError(f"max_score must be a number (got {max_score!r}); math.inf sets no bound")
    if success_fn is not None and max_score != 1:
        raise ValueError(
            f"max_score={max_score!r} has no effect beside a success_fn, which decides alone; give one of the two"
        )


def check_feedback(feedback: FeedbackBy) -> None:
    """Raise for a way of feedback that there isn't."""
    if feedback not in ("rules", "lm"):
        raise ValueError(f"feedback must be 'rules' or 'lm' (got {feedback!r})")


def checked_score(name: str, score: Any) -> Any:
    """Return a score if it can be one; None would silently mark the sample as missing."""
    if score is None or isinstance(score, list | tuple | dict):
        raise TypeError(
            f"{name} must return one score for one prediction and target (got {score!r}); it is called for "
            "each sample"
        )
    return checked(score)


def as_targets(target: Any) -> Variable:
    """Return an evaluator's target as a Variable."""
    return target if isinstance(target, Variable) else Variable(target, role="target")


async def succeeded(job: Job, success_fn: SuccessFn | None, max_score: float, score: Any) -> bool:
    """Whether one sample is right, so that it needs no feedback: its score is `max_score`, or `success_fn` says so.

    Asked sample by sample, as a whole batch that has to pass would be a barrier and would send feedback
    on samples that were right.

    Raises:
        ScoreError: for a score above `max_score`, which only a `success_fn` may judge.
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


def record(
    ctx: Context,
    *,
    prediction: Any,
    score: Any,
    explanation: str,
    success: bool,
    feedback_by: FeedbackBy = "rules",
    **details: Any,
) -> Outcomes:
    """Keep for the backward pass what an evaluator found about one sample, and return its outputs."""
    ctx.prediction = prediction
    ctx.score = score
    ctx.explanation = explanation
    ctx.success = success
    ctx.feedback_by = feedback_by
    ctx.details = details
    return [score, explanation]


def explain(purpose: str, prediction: Any, target: Any, score: Any) -> str:
    return deterministic_feedback(purpose, prediction, target, score)


def _launch_samples(
    cls: type[Evaluator],
    launch: Launch,
    arguments: Arguments,
    contexts: Sequence[Context],
    columns: Sequence[Sequence[Slot]],
) -> None:
    async def run(job: Job, values: list[Any]) -> Outcomes:
        args, kwargs = arguments.fill(values)
        ctx = contexts[job.lane or 0]
        found: Outcomes = await cls.run_forward(job, ctx, args, kwargs)
        _tell(job, ctx)
        return found

    def inline(job: Job, values: list[Any]) -> Outcomes:
        args, kwargs = arguments.fill(values)
        ctx = contexts[job.lane or 0]
        found: Outcomes = cls.forward(ctx, *args, **kwargs)
        _tell(job, ctx)
        return found

    for number, ctx in enumerate(contexts):
        launch.add(
            inline if cls.inline else run,
            arguments.lane(number),
            [column[number] for column in columns],
            lane=ctx.lane,
        )


def _tell(job: Job, ctx: Context) -> None:
    """Tell whoever listens what `record` was given for a sample."""
    ctx.node = job.launch.address
    if listening():
        target = ctx.details.get("target")
        scored = SampleScored(
            ctx.node, job.lane, ctx.prediction, target, ctx.score, ctx.explanation, ctx.success
        )
        emit(scored)


@final
class _Reduction:
    """The score and the explanation of a batch, from those of its samples."""

    def __init__(self, launch: Launch, function: Callable[[list[Any]], Any], noun: str, purpose: str) -> None:
        self._launch = launch
        self._function = function
        self._noun = noun
        self._purpose = purpose
        self._quorum = current_quorum()

    def add(self, columns: Sequence[Sequence[Slot]], faces: Sequence[Sequence[Slot]]) -> None:
        self._launch.add(
            self._body,
            [slot for column in columns for slot in column],
            [faces[0][0], faces[1][0]],
            part="reduce",
            gather=True,
        )

    async def _body(self, job: Job, outcomes: list[Any]) -> Outcomes:
        size = len(outcomes) // 2
        scores, explanations = outcomes[:size], outcomes[size:]
        error = batch_failure(scores, self._launch.title, self._quorum)
        if error is not None:
            raise error
        present = [
            n for n, score in enumerate(scores) if score is not None and not isinstance(score, Failure)
        ]
        if not present:
            return [None, None]
        score = checked(await call_in_node(job, self._function, [scores[number] for number in present]))
        failed = sum(isinstance(outcome, Failure) for outcome in scores)
        lines = [f"{self._purpose}: the {self._noun} over {len(present)} samples is {score}."]
        if failed:
            lines.append(f"{failed} samples failed and are left out.")
        lines += [f"Sample {number}: {explanations[number]}" for number in present[:MAX_LISTED]]
        if len(present) > MAX_LISTED:
            lines.append(f"… and {len(present) - MAX_LISTED} more.")
        return [score, "\n".join(lines)]


def _to_first(ctx: Context, text: str, trail: tuple[Any, ...]) -> Said:
    """Address the prediction, the first Variable that the evaluator was given."""
    said: list[Feedback | None] = [None] * len(ctx.wanted)
    said[0] = Feedback(text, ctx.prediction, trail)
    return said


async def _phrased(job: Job, ctx: Context, texts: Sequence[str], trail: tuple[Any, ...]) -> Said:
    """Have the backward model put the evaluator's findings in words."""
    messages = [
        {"role": "system", "content": wording("phrase.system")},
        {"role": "user", "content": "\n".join(block("feedback", text) for text in texts)},
    ]
    reply = await get_backward_model_client().complete(messages, "backward", job=job)
    return _to_first(ctx, str(reply), trail)


# The deterministic evaluators: exact match, and any function of a prediction and a target.


@final
class ExactMatch(Evaluator):
    """1 where prediction and target are equal, else 0; a sample that matches sends no feedback."""

    inline = True

    @classmethod
    def apply(
        cls,
        prediction: Variable,
        target: Variable | str | list[Any],
        reduction_fn: Callable[[list[Any]], Any] | None = sum,
        reduction_fn_purpose: str | None = "summation",
        feedback: FeedbackBy = "rules",
    ) -> Evaluation:
        """Launch the comparison and return score and explanation at once."""
        check_prediction(prediction)
        check_feedback(feedback)
        return cls.evaluate(
            Arguments((prediction, as_targets(target)), {"feedback_by": feedback}),
            prediction=prediction,
            reduction_fn=reduction_fn,
            reduction_fn_purpose=reduction_fn_purpose,
            purpose="exact match",
            gets_feedback=lambda variable: variable is prediction,
        )

    @staticmethod
    def forward(ctx: Context, *args: Any, **kwargs: Any) -> Outcomes:
        prediction, target = args
        score = int(prediction == target)
        return record(
            ctx,
            prediction=prediction,
            score=score,
            explanation=explain("exact match", prediction, target, score),
            success=score == 1,
            target=target,
            **kwargs,
        )


@final
class Deterministic(Evaluator):
    """The score that a function of yours gives a prediction and its target."""

    @classmethod
    def apply(
        cls,
        prediction: Variable,
        target: Variable | str | list[Any] | None,
        eval_fn: Callable[[Any, Any], Any],
        eval_fn_purpose: str,
        success_fn: SuccessFn | None = None,
        reduction_fn: Callable[[list[Any]], Any] | None = sum,
        reduction_fn_purpose: str | None = "summation",
        feedback: FeedbackBy = "rules",
        max_score: float = 1,
    ) -> Evaluation:
        """Launch `eval_fn(prediction, target)` for each sample and return score and explanation at once.

        Args:
            eval_fn: gets the plain values of one sample; any callable, sync or async.
            eval_fn_purpose: what it measures, a short noun for the explanation.
            success_fn: gets a list with one sample's score; where true, the sample is right. Without it
                a sample is right whose score is True or `max_score`.
            max_score: the score of a right sample; a higher one fails the launch.
        """
        check_prediction(prediction)
        check_feedback(feedback)
        if not callable(eval_fn):
            raise TypeError(f"eval_fn must be a callable of a prediction and a target (got {eval_fn!r})")
        check_purpose("eval_fn", eval_fn, eval_fn_purpose)
        check_success(success_fn, max_score)
        # An evaluation without targets must still run: None would mark every sample as missing.
        args = (prediction,) if target is None else (prediction, as_targets(target))
        own = {"eval_fn": eval_fn, "success_fn": success_fn, "max_score": max_score}
        return cls.evaluate(
            Arguments(args, {**own, "purpose": eval_fn_purpose, "feedback_by": feedback}),
            prediction=prediction,
            reduction_fn=reduction_fn,
            reduction_fn_purpose=reduction_fn_purpose,
            purpose=eval_fn_purpose,
            gets_feedback=lambda variable: variable is prediction,
        )

    @classmethod
    async def run_forward(
        cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Outcomes:
        prediction, target = args if len(args) == 2 else (args[0], None)
        score = checked_score("eval_fn", await call_in_node(job, kwargs["eval_fn"], prediction, target))
        return record(
            ctx,
            prediction=prediction,
            score=score,
            explanation=explain(kwargs["purpose"], prediction, target, score),
            success=await succeeded(job, kwargs["success_fn"], kwargs["max_score"], score),
            feedback_by=kwargs["feedback_by"],
            target=target,
        )


# Judge: the evaluator that asks a model for a score and an explanation.


Judgement = tuple[Any, str]
_RESERVED = ("prediction", "target")


@final
class LMJudge(Evaluator):
    """Score and explanation as a model gives them; its explanation is the feedback."""

    @classmethod
    def apply(
        cls,
        forward_model_client: ChatClient,
        messages: Sequence[Mapping[str, Any]],
        prediction: Variable,
        target: Variable | str | list[Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        success_fn: SuccessFn | None = None,
        reduction_fn: Callable[[list[Any]], Any] | None = sum,
        reduction_fn_purpose: str | None = "summation",
        eval_mode: bool | Variable = True,
        max_score: float = 1,
        **completion_args: Any,
    ) -> Evaluation:
        """Launch one judgement for each sample and return score and explanation at once.

        Args:
            messages: the judge's prompt; `{prediction}` and `{target}` are filled by themselves.
            success_fn: gets a list with one sample's score; where true, the sample is right and sends no
                feedback. Without it a sample is right whose score is True or `max_score`.
            eval_mode: feedback goes to the prediction; if False to the judge's own texts instead.
            max_score: the score of a right sample, 10 for a judge that gives up to 10; a higher one fails the
                launch.

        Raises:
            ValueError: for inputs named prediction or target.
        """
        if not isinstance(forward_model_client, ChatClient):
            raise TypeError(f"LMJudgeEvaluator takes a model client (got {forward_model_client!r})")
        check_prediction(prediction)
        check_success(success_fn, max_score)
        check_messages(messages)
        check_completion_args(**completion_args)
        variables = input_variables(inputs)
        taken = [name for name in _RESERVED if name in variables]
        if taken:
            raise ValueError(f"the input name {taken[0]!r} is filled by the judge itself; choose another one")
        targets = {} if target is None else {"target": as_targets(target)}
        check_inputs(messages, [*variables, "prediction", *targets])
        if "response_format" in completion_args:
            completion_args["response_format"] = response_format(completion_args["response_format"])
        judges_prediction = bool(eval_mode.data if isinstance(eval_mode, Variable) else eval_mode)
        own = [part for message in messages for part in message["content"]]
        tuned = [*own, *variables.values()]
        return cls.evaluate(
            Arguments(
                (
                    prediction,
                    [{"role": m["role"], "content": list(m["content"])} for m in messages],
                    {**variables, **targets},
                ),
                {
                    "model": ChatModel(forward_model_client, completion_args),
                    "success_fn": success_fn,
                    "max_score": max_score,
                    "eval_mode": judges_prediction,
                },
            ),
            prediction=prediction,
            reduction_fn=reduction_fn,
            reduction_fn_purpose=reduction_fn_purpose,
            purpose="judgement",
            gets_feedback=(
                (lambda variable: variable is prediction)
                if judges_prediction
                else (lambda variable: any(variable is text for text in tuned))
            ),
        )

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
            score=score,
            explanation=explanation,
            success=await succeeded(job, kwargs["success_fn"], kwargs["max_score"], score),
            target=values.get("target"),
        )

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        if not ctx.arguments.kwargs["eval_mode"]:
            get_backward_model_client()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said | Later:
        if ctx.arguments.kwargs["eval_mode"]:
            return super().run_backward(job, ctx)
        # Consumers saw a number; told so, the critic would take it for an edited reply.
        asked = [Feedback(f.text, trail=f.trail) for incoming in ctx.feedback for f in incoming if f.text]
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


def _judgement(answer: Mapping[str, Any]) -> Judgement:
    score = answer["score"]
    if isinstance(score, dict | list) or score is None:
        raise ValueError(f'"score" must be a number, true, false or a text (got {score!r})')
    return score, str(answer["explanation"])
