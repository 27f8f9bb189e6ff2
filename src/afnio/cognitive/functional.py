"""The ops of agents, as functions and as modules: fill and ask a model, evaluate, add and split.

Each function checks its arguments at the caller's line, launches an op and returns Variables without waiting
(`split` alone waits).

The modules are for agents that keep ops as attributes and for hooks. Each has the signature and the documentation of
one function, and no state. `forward = staticmethod(function)` writes that signature once: type checkers read the types
of `module(...)` from it.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from afnio.autodiff import _ops as ops
from afnio.autodiff._function import Loop
from afnio.autodiff._variable import Variable
from afnio.cognitive import _chat
from afnio.cognitive._chat import Completion, input_variables, prepared
from afnio.cognitive._evaluators import (
    Deterministic,
    ExactMatch,
    FeedbackBy,
    Judgement,
    LMJudge,
    ReductionFn,
    SuccessFn,
)
from afnio.cognitive._module import Module
from afnio.cognitive._template import Messages, check_inputs
from afnio.models._client import ChatClient


def add(x: Variable, y: Variable) -> Variable:
    """Return `x + y` per sample: a sum of numbers, or two texts one after the other."""
    total: Variable = ops.Add.apply(x, y)
    return total


def sum(x: Sequence[Variable]) -> Variable:
    """Return the sum of numbers per sample, or texts each in its `<ITEM>`."""
    total: Variable = ops.Sum.apply(x)
    return total


def split(
    x: Variable, sep: str | Variable | None = None, maxsplit: int | Variable = -1
) -> tuple[Variable, ...]:
    """Return the parts of each text; waits for it, as only its value shows how many there are."""
    return ops.Split.apply(x, sep, maxsplit)


def chat_completion(
    forward_model_client: ChatClient,
    messages: Messages,
    inputs: Mapping[str, Any] | None = None,
    **completion_args: Any,
) -> Completion:
    """Return a model's reply to the filled messages, one for each sample.

    Args:
        forward_model_client: the client to call.
        messages: `{"role": str, "content": [Variable, …]}` each; `{name}` in a text is filled.
        inputs: for each name a str, a list of str (a batch), or a Variable.
        **completion_args: `model`, and anything else that the provider takes.

    Raises:
        TypeError, ValueError: for arguments that can't work.
        TemplateError: if inputs and placeholders don't fit.

    >>> from afnio.testing import ScriptedClient
    >>> messages = [{"role": "user", "content": [Variable("Greet {name}.")]}]
    >>> chat_completion(ScriptedClient("Hello!"), messages, {"name": ["Ada", "Grace"]}, model="m").data
    ['Hello!', 'Hello!']
    """
    copied, model = prepared("ChatCompletion", forward_model_client, messages, completion_args)
    variables = input_variables(inputs)
    check_inputs(messages, list(variables))
    completion: Completion = _chat.ChatCompletion.apply(copied, variables, model=model)
    return completion


def exact_match_evaluator(
    prediction: Variable,
    target: Variable | str | list[Any],
    reduction_fn: ReductionFn = builtins.sum,
    reduction_fn_purpose: str | None = "summation",
    feedback: FeedbackBy = "rules",
) -> Judgement:
    """Return 1 per sample that equals its target, else 0, reduced; and the explanation.

    The arguments are those of `deterministic_evaluator`.

    >>> score, explanation = exact_match_evaluator(Variable(["Rome", "rome"]), "Rome")
    >>> score.data, score.samples
    (1, [1, 0])
    """
    evaluation: Judgement = ExactMatch.apply(
        prediction,
        _as_target(target),
        purpose="exact match",
        feedback_by=feedback,
        reduction_fn=reduction_fn,
        reduction_fn_purpose=reduction_fn_purpose,
    )
    return evaluation


def deterministic_evaluator(
    prediction: Variable,
    target: Variable | str | list[Any] | None,
    eval_fn: Callable[[Any, Any], Any],
    eval_fn_purpose: str,
    success_fn: SuccessFn | None = None,
    reduction_fn: ReductionFn = builtins.sum,
    reduction_fn_purpose: str | None = "summation",
    feedback: FeedbackBy = "rules",
    max_score: float = 1,
    loop: Loop = "runtime",
    executor: Any = None,
    durable: int = False,
) -> Judgement:
    """Return `eval_fn(prediction, target)` per sample, reduced; and the explanation.

    A sample is right, and sends no feedback, if its score is True or `max_score`.

    Args:
        prediction: the value to score, one sample or a batch.
        target: the expected value, one for all samples or one for each; None if there is nothing to compare with.
        eval_fn: gets the plain values of one sample and returns its score, a number or a bool; `def` or `async def`.
            It may return `(score, feedback)`: that text then is the sample's explanation, and its feedback if it is
            wrong.
        eval_fn_purpose: a short noun for its measure, such as "similarity".
        success_fn: decides instead of `max_score` if a sample is right; it gets a list with that sample's score
            alone, such as `lambda scores: scores[0] >= 0.9`.
        reduction_fn: gets the list of the samples' scores and returns the batch's; None leaves a score for each.
        reduction_fn_purpose: a short noun for the reduction, such as "mean".
        feedback: "rules" writes it from prediction, target and score; "lm" asks the backward model to phrase it.
        max_score: the score of a right sample; `math.inf` if no score makes one right.
        loop: "caller" runs `async def` functions on the loop that calls this.
        executor: runs `eval_fn` in other processes: a callable that makes a `concurrent.futures.Executor`, an Executor,
            or `afnio.Workers`. For functions that compute: in a thread they slow down every call of the process.
        durable: True to journal what `eval_fn` returns in an executor; 2, 3, … once the function has changed.

    Raises:
        TypeError: if `eval_fn` can't be pickled for its executor.
        ScoreError: on reading, for a score above `max_score` where no `success_fn` is given.

    >>> prediction = Variable(["Rome", "rom"], role="capital", requires_grad=True)
    >>> score, explanation = deterministic_evaluator(prediction, "Rome", lambda p, t: p == t, "match")
    >>> _ = explanation.backward()
    >>> score.samples, prediction.grad[0].data
    ([True, False], [None, 'match: predicted "rom", expected "Rome", score false.'])
    """
    # Without targets leave the argument out: a target of None would mark every sample as missing.
    compared = (prediction,) if target is None else (prediction, _as_target(target))
    if executor is not None or durable:
        from afnio.runtime._remote import remote

        eval_fn = remote(eval_fn, executor, durable=durable, loop=loop)
    evaluation: Judgement = Deterministic.apply(
        *compared,
        eval_fn=eval_fn,
        purpose=eval_fn_purpose,
        success_fn=success_fn,
        max_score=max_score,
        feedback_by=feedback,
        reduction_fn=reduction_fn,
        reduction_fn_purpose=reduction_fn_purpose,
        loop=loop,
    )
    return evaluation


def lm_judge_evaluator(
    forward_model_client: ChatClient,
    messages: Messages,
    prediction: Variable,
    target: Variable | str | list[Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    success_fn: SuccessFn | None = None,
    reduction_fn: ReductionFn = builtins.sum,
    reduction_fn_purpose: str | None = "summation",
    eval_mode: bool | Variable = True,
    max_score: float = 1,
    **completion_args: Any,
) -> Judgement:
    """Return a model's score per sample, reduced; and its explanation.

    A sample is right, and sends no feedback, if its score is True or `max_score`.

    Args:
        forward_model_client: the judge.
        messages: the judge's prompt; `{prediction}` and `{target}` are filled for each sample. The request for an
            answer as an object with "score" and "explanation" is appended.
        prediction: the value to judge, one sample or a batch.
        target: the expected value, one for all samples or one for each; None if the prompt names none.
        inputs: the values of the other placeholders of the messages.
        success_fn: decides instead of `max_score` if a sample is right; it gets a list with that sample's score
            alone, such as `lambda scores: scores[0] >= 8`.
        reduction_fn: gets the list of the samples' scores and returns the batch's; None leaves a score for each.
        reduction_fn_purpose: a short noun for the reduction, such as "mean".
        eval_mode: feedback goes to the prediction; if False to the judge's own texts instead.
        max_score: the score of a right sample, 10 for a judge that gives up to 10; `math.inf` if no score makes one
            right.
        **completion_args: `model`, and anything else that the provider takes.

    Raises:
        ValueError: for inputs named prediction or target.
        ScoreError: on reading, for a score above `max_score` where no `success_fn` is given.
    """
    copied, model = prepared("LMJudgeEvaluator", forward_model_client, messages, completion_args)
    variables = input_variables(inputs)
    taken = [name for name in ("prediction", "target") if name in variables]
    if taken:
        raise ValueError(f"the input name {taken[0]!r} is filled by the judge itself; choose another one")
    targets = {} if target is None else {"target": _as_target(target)}
    check_inputs(messages, [*variables, "prediction", *targets])
    evaluation: Judgement = LMJudge.apply(
        prediction,
        copied,
        {**variables, **targets},
        model=model,
        purpose="judgement",
        success_fn=success_fn,
        max_score=max_score,
        eval_mode=bool(eval_mode.data if isinstance(eval_mode, Variable) else eval_mode),
        reduction_fn=reduction_fn,
        reduction_fn_purpose=reduction_fn_purpose,
    )
    return evaluation


def _as_target(target: Any) -> Variable:
    return target if isinstance(target, Variable) else Variable(target, role="target")


@final
class ChatCompletion(Module):
    """A model's reply to the filled messages, one for each sample; see `afnio.cognitive.functional.chat_completion`."""

    forward = staticmethod(chat_completion)


@final
class ExactMatchEvaluator(Module):
    """1 per sample that equals its target, else 0; see `afnio.cognitive.functional.exact_match_evaluator`.

    >>> from afnio import Variable
    >>> score, explanation = ExactMatchEvaluator()(Variable(["a", "b"]), ["a", "c"])
    >>> score.data, score.samples
    (1, [1, 0])
    """

    forward = staticmethod(exact_match_evaluator)


@final
class DeterministicEvaluator(Module):
    """The score that a function of yours gives each sample; see `afnio.cognitive.functional.deterministic_evaluator`.

    A sample is right, and sends no feedback, if its score is True or `max_score`, or if `success_fn` decides so.
    """

    forward = staticmethod(deterministic_evaluator)


@final
class LMJudgeEvaluator(Module):
    """The score that a model gives each sample; see `afnio.cognitive.functional.lm_judge_evaluator`.

    A sample is right, and sends no feedback, if its score is True or `max_score`, or if `success_fn` decides so.
    """

    forward = staticmethod(lm_judge_evaluator)
