"""Judge: the evaluator that asks a model for a score and an explanation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

from afnio.autodiff._data import Feedback
from afnio.autodiff._function import Arguments, Context, Later, Said
from afnio.autodiff._variable import Variable
from afnio.cognitive.chat_completion import check_texts, input_variables
from afnio.cognitive.criticism import criticize
from afnio.cognitive.evaluator import (
    Evaluation,
    Evaluator,
    SuccessFn,
    as_targets,
    check_prediction,
    check_success,
    record,
    succeeded,
)
from afnio.cognitive.prompts import JUDGE_SCHEMA, wording
from afnio.cognitive.structured import ask
from afnio.cognitive.template import as_text, check_inputs, check_messages, rendered
from afnio.models._backward_model import get_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args, response_format
from afnio.runtime._kernel import Job, Outcomes

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
