"""The ops as functions."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afnio.autodiff import Add, Split, Sum, Variable
from afnio.cognitive.chat_completion import ChatCompletion, Completion
from afnio.cognitive.evaluator import Evaluation, FeedbackBy
from afnio.cognitive.evaluators import Deterministic, ExactMatch
from afnio.cognitive.judge import LMJudge
from afnio.models import ChatClient

Reduction = Callable[[list[Any]], Any] | None
Messages = Sequence[Mapping[str, Any]]


def add(x: Variable, y: Variable) -> Variable:
    """Return `x + y` per sample: a sum of numbers, or two texts one after the other."""
    total: Variable = Add.apply(x, y)
    return total


def sum(x: Sequence[Variable]) -> Variable:
    """Return the sum of numbers per sample, or texts each in its `<ITEM>`."""
    total: Variable = Sum.apply(x)
    return total


def split(
    x: Variable, sep: str | Variable | None = None, maxsplit: int | Variable = -1
) -> tuple[Variable, ...]:
    """Return the parts of each text; waits for it, as only its value shows how many there are."""
    return Split.apply(x, sep, maxsplit)


def chat_completion(
    forward_model_client: ChatClient,
    messages: Messages,
    inputs: Mapping[str, Any] | None = None,
    **completion_args: Any,
) -> Completion:
    """Return a model's reply to the filled messages, one for each sample."""
    return ChatCompletion.apply(forward_model_client, messages, inputs, **completion_args)


def exact_match_evaluator(
    prediction: Variable,
    target: Variable | str | list[Any],
    reduction_fn: Reduction = builtins.sum,
    reduction_fn_purpose: str | None = "summation",
    feedback: FeedbackBy = "rules",
) -> Evaluation:
    """Return 1 per sample that equals its target, else 0, reduced; and the explanation."""
    return ExactMatch.apply(prediction, target, reduction_fn, reduction_fn_purpose, feedback)


def deterministic_evaluator(
    prediction: Variable,
    target: Variable | str | list[Any] | None,
    eval_fn: Callable[[Any, Any], Any],
    eval_fn_purpose: str,
    success_fn: Callable[[list[Any]], Any] | None = None,
    reduction_fn: Reduction = builtins.sum,
    reduction_fn_purpose: str | None = "summation",
    feedback: FeedbackBy = "rules",
) -> Evaluation:
    """Return `eval_fn(prediction, target)` per sample, reduced; and the explanation."""
    return Deterministic.apply(
        prediction, target, eval_fn, eval_fn_purpose, success_fn, reduction_fn, reduction_fn_purpose, feedback
    )


def lm_judge_evaluator(
    forward_model_client: ChatClient,
    messages: Messages,
    prediction: Variable,
    target: Variable | str | list[Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    success_fn: Callable[[list[Any]], Any] | None = None,
    reduction_fn: Reduction = builtins.sum,
    reduction_fn_purpose: str | None = "summation",
    eval_mode: bool | Variable = True,
    **completion_args: Any,
) -> Evaluation:
    """Return a model's score per sample, reduced; and its explanation."""
    return LMJudge.apply(
        forward_model_client,
        messages,
        prediction,
        target,
        inputs,
        success_fn,
        reduction_fn,
        reduction_fn_purpose,
        eval_mode,
        **completion_args,
    )
