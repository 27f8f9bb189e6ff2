"""Held-out samples, and running a user's `evaluate` on them with other values of the parameters."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from afnio.autodiff._backward import resolve
from afnio.autodiff._graph import no_grad
from afnio.autodiff._variable import Variable, bind, plain
from afnio.errors import BudgetExceeded, JournalError, ScoreError
from afnio.runtime._callables import is_async, to_thread, tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Priority, prioritised
from afnio.runtime._waiting import scope
from afnio.utils.data import DataLoader, collate


@final
class Holdout:
    """Held-out samples.

    Args:
        data: a `Dataset` or a list of samples. Of a `DataLoader`, the dataset and `collate_fn` are used, not its order.

    Raises:
        TypeError: for data without a length, such as an iterator, which could be read only once.
        ValueError: for no samples.

    >>> Holdout([("a", 1), ("b", 2), ("c", 3)]).batch([2, 0])
    (['c', 'a'], [3, 1])
    """

    def __init__(self, data: Any) -> None:
        self._collate: Callable[[list[Any]], Any] = collate
        if isinstance(data, DataLoader):
            self._collate, data = data.collate_fn, data.dataset
        if isinstance(data, str) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"held-out data must be a Dataset, a DataLoader or a list of samples (got {data!r})"
            )
        if len(data) == 0:
            raise ValueError(
                "held-out data must have at least one sample (got 0); nothing can be compared on none"
            )
        self._data: Sequence[Any] = data

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, units: Sequence[int]) -> Any:
        """Return the batch of `units`, collated for `evaluate`."""
        return self._collate([self._data[unit] for unit in units])

    def by_unit(self, units: Sequence[int], scores: Sequence[float | None]) -> dict[int, list[float | None]]:
        """Return the scores of the batch of `units`, by unit.

        Raises:
            ValueError: if `evaluate` didn't return one for each sample.
        """
        if len(scores) != len(units):
            raise ValueError(
                f"evaluate must return one score for each of {len(units)} samples (got {len(scores)}); "
                "return None for a sample that failed"
            )
        return {unit: [score] for unit, score in zip(units, scores, strict=True)}


# Evaluation: run `evaluate` on a batch with other values bound to the parameters, and read the scores.


Evaluate = Callable[[Any], Any]
"""Called with a batch. Returns its score, or a tuple that starts with it. `def` or `async def`."""


async def scores_of(
    evaluate: Evaluate,
    batch: Any,
    values: Mapping[Variable, Any],
    *,
    name: str,
    urgency: Priority,
    quorum: float,
) -> list[float | None]:
    """Return the score of each sample of `batch`, with `values` bound to the parameters. None if a sample failed.

    Args:
        name: name of the scope for everything that `evaluate` launches. Cancelling this call cancels that scope.
        urgency: priority of its calls.
        quorum: the fraction of the samples that must not fail.
    """
    async with scope(name=name):
        owner = current_scope()
        with bind(values), no_grad(), tolerate(quorum), prioritised(urgency):
            scores = await sample_scores(await called(evaluate, batch))
        owner.unread()  # a failed sample counts as missing, so don't raise its error when the scope is left
    return scores


async def called(function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function: an `async def` on this loop, a `def` in a worker thread, where it may read values."""
    result = await function(*args) if is_async(function) else await to_thread(function, *args)
    return await result if inspect.iscoroutine(result) else result


async def sample_scores(result: Any) -> list[float | None]:
    """Return the samples' scores from the result of `evaluate`. Waits for them."""
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
        raise TypeError(f"a sample's score must be a number or None (got {sample!r})")
    if not math.isfinite(sample):  # no comparison with NaN is true, so such a sample would win every test
        raise ScoreError(
            f"a sample's score must be a finite number or None (got {sample}); return None for a sample that failed"
        )
    return float(sample)


_ENDS: Final = (BudgetExceeded, JournalError, ScoreError)
"""Errors that end a step: no part of it could be judged after them."""


def raise_end(error: BaseException) -> None:
    """Raise the first error that ends a step, if `error` is one or is a group with one."""
    if isinstance(error, _ENDS):
        raise error
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        raise_end(inner)


def digest(values: Sequence[Any]) -> str:
    """Return a hash of parameters' values that is the same in every run."""
    text = json.dumps(list(values), ensure_ascii=False, default=repr)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
