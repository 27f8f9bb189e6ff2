"""The deterministic evaluators: exact match, and any function of a prediction and a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from afnio.autodiff._function import Arguments, Context
from afnio.autodiff._variable import Variable
from afnio.cognitive.evaluator import (
    Evaluation,
    Evaluator,
    FeedbackBy,
    SuccessFn,
    as_targets,
    check_feedback,
    check_prediction,
    check_purpose,
    check_success,
    checked_score,
    explain,
    record,
    succeeded,
)
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import Job, Outcomes


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
