"""Step output: how what a step returned and logged is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, final

from afnio.autodiff._variable import Variable
from afnio.cognitive._evaluators import Score
from afnio.errors import BatchError, BudgetExceeded, JournalError
from afnio.runtime._waiting import wait_async
from afnio.trainer.metric import Metric, Outcome


@final
@dataclass(slots=True)
class StepOutput:
    """What a step returned, taken apart; nothing has been waited for.

    Attributes:
        loss: a Variable or a number; None if the batch was skipped.
        explanation: what sends feedback; None outside of training.
        extras: further metrics, what the step logged among them.
        errors: of the samples that failed; `read` puts them there.
        lost: why the whole batch failed, None if it didn't.
    """

    loss: Any = None
    explanation: Variable | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    skipped: bool = False
    errors: list[BaseException] = field(default_factory=list)
    lost: BatchError | None = None


def taken_apart(returned: Any, logged: Mapping[str, Any], step: str) -> StepOutput:
    """Return the parts of what a step returned.

    Raises:
        TypeError: for something that a step can't return.
    """
    if returned is None:
        return StepOutput(extras=dict(logged), skipped=True)
    extras = dict(logged)
    if isinstance(returned, Mapping):
        if "loss" not in returned:
            raise TypeError(
                f'{step} returned a dict without "loss" (its keys: {list(returned)}); put (score, explanation) there'
            )
        extras |= {name: value for name, value in returned.items() if name != "loss"}
        returned = returned["loss"]
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise ValueError(f"{step} returned {len(returned)} values; return (score, explanation)")
        score, explanation = returned
        if not isinstance(explanation, Variable):
            raise TypeError(f"{step} must return (score, explanation) as Variables (got {explanation!r})")
        return StepOutput(score, explanation, extras)
    if isinstance(returned, Variable) or is_number(returned):
        return StepOutput(returned, None, extras)
    raise TypeError(
        f"{step} must return (score, explanation), a dict with it as 'loss', or None (got {returned!r})"
    )


async def read(output: StepOutput, size: int) -> Outcome:
    """Wait for a step's metrics.

    Args:
        size: samples of the batch.

    Raises:
        BatchError: if too many samples failed.
        BudgetExceeded, JournalError: if it ended samples; they are no failures of these.
    """
    metrics: dict[str, Metric] = {}
    values: dict[str, Any] = {}
    failed, weight = 0, size
    if not output.skipped:
        samples, errors = await _samples(output.loss)
        failed = len(errors)
        output.errors += errors.values()
        if samples is None:
            value = await _value(output.loss)
            metrics["loss"] = Metric(value * size, size) if value is not None else Metric(0, 0)
        elif all(value is None or is_number(value) for value in samples):
            metrics["loss"] = Metric.of([plain(value) for value in samples])
            weight = metrics["loss"].samples
        else:
            raise TypeError(f"a score must be a number (got {samples[0]!r}); return other things by name")
    for name, given in output.extras.items():
        metric, value = await _metric(given, weight)
        if metric is None:
            values[name] = _shown(value)
        else:
            metrics[name] = metric
    return Outcome(metrics, values, size, failed, int(output.skipped and not metrics))


def is_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "item") and getattr(value, "shape", None) == ())


def plain(value: Any) -> Any:
    """Return a number as a Python number; a NumPy scalar would not fit into a checkpoint."""
    return value.item() if hasattr(value, "item") else value


def batch_size(batch: Any) -> int:
    """Return the samples of a batch: of the first Variable or list in it; 1 for anything else.

    >>> batch_size((Variable(["a", "b"]), [1, 2])), batch_size("a text")
    (2, 1)
    """
    if isinstance(batch, Variable):
        return int(batch.shape[0]) if batch.batch else 1
    if isinstance(batch, Mapping):
        return batch_size(next(iter(batch.values()))) if batch else 0
    if isinstance(batch, tuple):
        return batch_size(batch[0]) if batch else 0
    return len(batch) if isinstance(batch, list) else 1


async def _samples(given: Any) -> tuple[Sequence[Any] | None, Mapping[int, BaseException]]:
    """Return a value for each sample and the errors of failed ones; None for what isn't one of a batch."""
    if not isinstance(given, Variable):
        return (list(given), {}) if isinstance(given, list) else (None, {})
    if isinstance(given, Score):
        await given
        await wait_async(given.sample_slots)
        _raise_fatal(given.sample_errors)
        return given.samples, given.sample_errors
    await given
    if not given.batch:
        return None, {}
    _raise_fatal(given.errors)
    return given.data, given.errors


async def _value(given: Any) -> Any:
    value = (await given).data if isinstance(given, Variable) else given
    if value is not None and not is_number(value):
        raise TypeError(
            f"a score must be a number (got {value!r}); return other things under names of their own"
        )
    return plain(value)


async def _metric(given: Any, weight: int) -> tuple[Metric | None, Any]:
    """Return a metric, or what can't be averaged."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Variable):
        given = given[0]  # another loss
    samples, _ = await _samples(given)
    if samples is None:
        value = (await given).data if isinstance(given, Variable) else given
        return (Metric(plain(value) * weight, weight), None) if is_number(value) else (None, value)
    if all(value is None or is_number(value) for value in samples):
        return Metric.of([plain(value) for value in samples]), None
    return None, list(samples)


def _shown(value: Any) -> Any:
    """Return what can't be averaged as a file can hold it; what JSON doesn't know as its text."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return repr(value)


def _raise_fatal(errors: Mapping[int, BaseException]) -> None:
    for error in errors.values():
        if isinstance(error, BudgetExceeded | JournalError):
            raise error
