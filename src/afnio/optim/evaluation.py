"""Evaluation: run `evaluate` on a batch with other values in the parameters, and read the samples' scores."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afnio.autodiff._backward import launch_grad, resolve
from afnio.autodiff._data import plain
from afnio.autodiff._variable import Variable, bind, enable_grad, no_grad
from afnio.runtime._callables import is_async, to_thread, tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Priority, prioritised
from afnio.runtime._waiting import scope

Evaluate = Callable[[Any], Any]
"""Called with a batch; returns its score, or a tuple that begins with it. `def` or `async def`."""


async def scores_of(
    evaluate: Evaluate,
    batch: Any,
    values: Mapping[Variable, Any],
    *,
    name: str,
    urgency: Priority,
    quorum: float,
) -> list[float | None]:
    """Return the score of each sample of `batch` with `values` in place of the parameters' own.

    Args:
        name: of the scope that owns all that it launches; who cancels this call cancels that, and only that.
        urgency: of its calls.
        quorum: the fraction of the samples that must not fail; those that do score None.
    """
    async with scope(name=name):
        owner = current_scope()
        with bind(values), no_grad(), tolerate(quorum), prioritised(urgency):
            scores = await sample_scores(await called(evaluate, batch))
        owner.unread()  # a failed sample counts as missing; nobody has to be told again when the scope is left
    return scores


async def learnt_from(
    evaluate: Evaluate,
    batch: Any,
    values: Mapping[Variable, Any],
    *,
    name: str,
    urgency: Priority,
    quorum: float,
) -> tuple[list[float | None], list[list[Variable]]]:
    """Return the samples' scores and, for each Variable in `values`, its gradients, which its `grad` doesn't get.

    See `scores_of` for the arguments; `evaluate` returns `(score, explanation)`.
    """
    async with scope(name=name):
        owner = current_scope()
        with bind(values), enable_grad(), tolerate(quorum), prioritised(urgency):
            result = await called(evaluate, batch)
            scores = await sample_scores(result)
            explanation = result[1] if isinstance(result, tuple) and len(result) > 1 else None
            if not isinstance(explanation, Variable) or not explanation.requires_grad:
                raise TypeError(
                    f"evaluate must return (score, explanation) that parameters led to (got {result!r}); is it run "
                    "under no_grad, or does it use other parameters?"
                )
            gradients = await launch_grad(explanation, list(values))
        owner.unread()
    return scores, gradients


async def called(function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function: on this loop if it is `async def`, else in a worker thread, where it may read."""
    result = await function(*args) if is_async(function) else await to_thread(function, *args)
    return await result if inspect.iscoroutine(result) else result


async def sample_scores(result: Any) -> list[float | None]:
    """Return the samples' scores of what `evaluate` returned; waits for them."""
    score = result[0] if isinstance(result, tuple) and result else result
    if isinstance(score, Variable):
        await resolve(score)
        samples = score.samples if hasattr(score, "samples") else score.data
    else:
        samples = score
    if not isinstance(samples, Sequence) or isinstance(samples, str):
        raise TypeError(
            f"evaluate must return the score of each sample (got {result!r}): an evaluator's (score, explanation), "
            "or a list of numbers"
        )
    return [None if sample is None else _number(sample) for sample in samples]


def _number(sample: Any) -> float:
    sample = plain(sample)
    if not isinstance(sample, bool | int | float):
        raise TypeError(f"a sample's score is a number or None (got {sample!r})")
    return float(sample)


def digest(values: Sequence[Any]) -> str:
    """Return a name for parameters' values that is the same in the next run."""
    text = json.dumps(list(values), ensure_ascii=False, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
