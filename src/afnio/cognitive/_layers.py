"""The ops as modules: each wraps one function of `afnio.cognitive.functional` and holds nothing."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from afnio.autodiff._variable import Variable
from afnio.cognitive import functional as F  # noqa: N812 - as in the field
from afnio.cognitive._chat import Completion
from afnio.cognitive._evaluators import Evaluation, FeedbackBy, SuccessFn
from afnio.cognitive._module import Module
from afnio.cognitive.functional import Messages, Reduction
from afnio.models._client import ChatClient


@final
class Add(Module):
    """The sum of two Variables per sample."""

    def forward(self, x: Variable, y: Variable) -> Variable:
        return F.add(x, y)


@final
class Sum(Module):
    """The sum of many Variables per sample."""

    def forward(self, x: Sequence[Variable]) -> Variable:
        return F.sum(x)


@final
class Split(Module):
    """The parts of each text; waits for it."""

    def forward(
        self, x: Variable, sep: str | Variable | None = None, maxsplit: int | Variable = -1
    ) -> tuple[Variable, ...]:
        return F.split(x, sep, maxsplit)


@final
class ChatCompletion(Module):
    """A model's reply to the filled messages, one for each sample."""

    def forward(
        self,
        forward_model_client: ChatClient,
        messages: Messages,
        inputs: Mapping[str, Any] | None = None,
        **completion_args: Any,
    ) -> Completion:
        return F.chat_completion(forward_model_client, messages, inputs, **completion_args)


@final
class ExactMatchEvaluator(Module):
    """1 per sample that equals its target, else 0.

    >>> from afnio import Variable
    >>> score, explanation = ExactMatchEvaluator()(Variable(["a", "b"]), ["a", "c"])
    >>> score.data, score.samples
    (1, [1, 0])
    """

    def forward(
        self,
        prediction: Variable,
        target: Variable | str | list[Any],
        reduction_fn: Reduction = builtins.sum,
        reduction_fn_purpose: str | None = "summation",
        feedback: FeedbackBy = "rules",
    ) -> Evaluation:
        return F.exact_match_evaluator(prediction, target, reduction_fn, reduction_fn_purpose, feedback)


@final
class DeterministicEvaluator(Module):
    """The score that a function of yours gives each sample; see `deterministic_evaluator` for the arguments.

    A sample is right, and sends no feedback, if its score is True or `max_score`, or where `success_fn` says so.
    """

    def forward(
        self,
        prediction: Variable,
        target: Variable | str | list[Any] | None,
        eval_fn: Callable[[Any, Any], Any],
        eval_fn_purpose: str,
        success_fn: SuccessFn | None = None,
        reduction_fn: Reduction = builtins.sum,
        reduction_fn_purpose: str | None = "summation",
        feedback: FeedbackBy = "rules",
        max_score: float = 1,
    ) -> Evaluation:
        return F.deterministic_evaluator(
            prediction,
            target,
            eval_fn,
            eval_fn_purpose,
            success_fn,
            reduction_fn,
            reduction_fn_purpose,
            feedback,
            max_score,
        )


@final
class LMJudgeEvaluator(Module):
    """The score that a model gives each sample; see `lm_judge_evaluator` for the arguments.

    A sample is right, and sends no feedback, if its score is True or `max_score`, or where `success_fn` says so.
    """

    def forward(
        self,
        forward_model_client: ChatClient,
        messages: Messages,
        prediction: Variable,
        target: Variable | str | list[Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        success_fn: SuccessFn | None = None,
        reduction_fn: Reduction = builtins.sum,
        reduction_fn_purpose: str | None = "summation",
        eval_mode: bool | Variable = True,
        max_score: float = 1,
        **completion_args: Any,
    ) -> Evaluation:
        return F.lm_judge_evaluator(
            forward_model_client,
            messages,
            prediction,
            target,
            inputs,
            success_fn,
            reduction_fn,
            reduction_fn_purpose,
            eval_mode,
            max_score,
            **completion_args,
        )
