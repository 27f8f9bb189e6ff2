"""Options and outcomes: what a Trainer was asked to do, and what its steps gave.

From the top: the Trainer's arguments with their checks; `Metric` and `Outcome`, sums over samples; `StepOutput`, which
takes apart what a user's step returned; and the quorum, how many samples of a step or a pass may fail.

Metrics are kept as sums, not as means of batches. Otherwise the last two of 68 samples would count as a
third of everything, and a failed sample would count as a wrong one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from numbers import Real
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, final

from afnio.autodiff._variable import Variable
from afnio.cognitive._evaluators import Score
from afnio.errors import (
    BatchError,
    BudgetExceeded,
    JournalError,
    ProviderDownError,
    TransientModelError,
    first_of,
)
from afnio.runtime._callables import may_fail
from afnio.runtime._waiting import wait_async
from afnio.stats import wilson

# A number of batches, or a fraction of them, 1.0 for all.
Share: TypeAlias = int | float
# Epochs of a fit without any limit.
DEFAULT_EPOCHS: Final = 10


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """The arguments of a Trainer, described there."""

    max_epochs: int | None
    min_epochs: int | None
    max_steps: int | None
    min_steps: int | None
    max_time: float | None
    max_cost: float | None
    limit_train_batches: Share | None
    limit_val_batches: Share | None
    limit_test_batches: Share | None
    limit_predict_batches: Share | None
    val_check_interval: Share
    accumulate_grad_batches: int
    quorum: float | None
    seed: int | None
    enable_checkpointing: bool
    enable_progress_bar: bool
    enable_agent_summary: bool
    root: Path
    fast_dev_run: bool
    monitor: str | None
    mode: Literal["min", "max"]
    save_top_k: int

    @property
    def epochs(self) -> int | None:
        """Epochs at most, or None if only steps, time or money end the training."""
        if self.fast_dev_run:
            return 1
        if self.max_epochs == -1:
            return None
        others = (self.max_steps, self.max_time, self.max_cost)
        return DEFAULT_EPOCHS if self.max_epochs is None and others == (None,) * 3 else self.max_epochs

    @property
    def checkpointing(self) -> bool:
        return self.enable_checkpointing and not self.fast_dev_run

    def limit(self, phase: str) -> Share | None:
        """Return the limit of the batches of a phase."""
        if self.fast_dev_run:
            return 1
        limit: Share | None = getattr(self, f"limit_{phase}_batches")
        return limit


def checked(options: TrainerOptions) -> TrainerOptions:
    """Return `options`. Raise in the constructor for a value that can't work, not hours later in a fit."""
    for name in ("max_steps", "accumulate_grad_batches"):
        _check_count(name, getattr(options, name), 1)
    if options.max_epochs != -1:
        _check_count("max_epochs", options.max_epochs, 1)
    for name in ("min_epochs", "min_steps"):
        _check_count(name, getattr(options, name), 0)
    for name in ("max_time", "max_cost"):
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value < 0):
            raise ValueError(f"{name} must be a number of 0 or more (got {value!r}); omit it for no limit")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        _check_share(name, getattr(options, name), 0)
    _check_share("val_check_interval", options.val_check_interval, 1)
    if options.quorum is not None and not 0 < options.quorum <= 1:
        raise ValueError(
            f"quorum must be above 0 and at most 1 (got {options.quorum}); None lets no sample fail"
        )
    if options.seed is not None and (isinstance(options.seed, bool) or not isinstance(options.seed, int)):
        raise TypeError(f"seed must be a whole number (got {options.seed!r}); omit it for another each time")
    if options.mode not in ("min", "max"):
        raise ValueError(
            f'mode must be "max" or "min" (got {options.mode!r}); "max" where a larger value is better'
        )
    if (options.min_epochs or 0) > (options.epochs or math.inf):
        raise ValueError(f"min_epochs={options.min_epochs} is more than max_epochs={options.epochs}")
    if (options.min_steps or 0) > (options.max_steps or math.inf):
        raise ValueError(f"min_steps={options.min_steps} is more than max_steps={options.max_steps}")
    return options


def seconds_of(max_time: Any) -> float | None:
    """Return a time limit in seconds, given as a number, a timedelta, a dict of its arguments, or "DD:HH:MM:SS".

    >>> seconds_of("00:01:30:00"), seconds_of({"minutes": 2}), seconds_of(5)
    (5400.0, 120.0, 5.0)
    """
    if max_time is None:
        return None
    if isinstance(max_time, timedelta):
        return max_time.total_seconds()
    if isinstance(max_time, dict):
        return timedelta(**max_time).total_seconds()
    if isinstance(max_time, str):
        parts = max_time.split(":")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts):
            raise ValueError(f'max_time as a text has the form "DD:HH:MM:SS" (got {max_time!r})')
        days, hours, minutes, seconds = map(int, parts)
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    if isinstance(max_time, bool) or not isinstance(max_time, Share):
        raise TypeError(
            f"max_time must be a number of seconds, a timedelta, a dict or a text (got {max_time!r})"
        )
    return float(max_time)


def _check_count(name: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be a whole number, {least} or more (got {value!r})")


def _check_share(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not whole and not (isinstance(value, float) and 0 < value <= 1):
        raise ValueError(
            f"{name} must be a number of batches, {least} or more, or a fraction up to 1.0 (got {value!r})"
        )


# Metrics, as sums over samples


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One metric over samples.

    Attributes:
        total: the sum over the samples.
        samples: how many have a value; failed and missing ones don't.
        binary: True if each sample's value is known and 0 or 1, so that the mean is a proportion.

    >>> (Metric.of([1, 0, None, 1]) + Metric.of([True])).mean
    0.75
    """

    total: float
    samples: int
    binary: bool = False

    @classmethod
    def of(cls, values: Iterable[Any]) -> Metric:
        """Return the metric of samples' values. None is left out."""
        present = [value for value in values if value is not None]
        return cls(sum(present), len(present), all(value in (0, 1) for value in present))

    @property
    def mean(self) -> float | None:
        """The mean per sample, or None without samples."""
        return self.total / self.samples if self.samples else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of a proportion; None for other metrics."""
        return wilson(int(self.total), self.samples) if self.binary and self.samples else None

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.total + other.total, self.samples + other.samples, self.binary and other.binary)


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """The metrics and counts of a batch, or of several batches together.

    Attributes:
        metrics: by name, such as "score".
        values: results that can't be averaged, by name; of several batches the last one's.
        samples: how many there were, failed ones included.
        failed: how many failed. They count in no metric.
        skipped: batches for which the step returned None.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        metrics = dict(self.metrics)
        for name, metric in other.metrics.items():
            metrics[name] = metrics[name] + metric if name in metrics else metric
        return Outcome(
            metrics,
            {**self.values, **other.values},
            self.samples + other.samples,
            self.failed + other.failed,
            self.skipped + other.skipped,
        )

    def flat(self) -> dict[str, float]:
        """Return means by name, "score" first, with "score_sum", "failed", and the bounds of proportions.

        >>> sorted(Outcome({"score": Metric.of([1, 0])}, samples=2).flat())
        ['failed', 'score', 'score_high', 'score_low', 'score_sum']
        """
        flat: dict[str, float] = {}
        for name in sorted(self.metrics, key=lambda name: (name != "score", name)):
            metric = self.metrics[name]
            if metric.mean is None:
                continue
            flat[name] = float(metric.mean)
            if name == "score":
                flat["score_sum"] = float(metric.total)
            if metric.interval is not None:
                flat[f"{name}_low"], flat[f"{name}_high"] = metric.interval
        flat["failed"] = float(self.failed)
        return flat

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, from which `from_json` makes the same again."""
        return {
            "metrics": {name: [m.total, m.samples, m.binary] for name, m in self.metrics.items()},
            "values": dict(self.values),
            "samples": self.samples,
            "failed": self.failed,
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_json` was called on."""
        metrics = {name: Metric(*parts) for name, parts in data["metrics"].items()}
        return cls(metrics, data["values"], data["samples"], data["failed"], data["skipped"])


def combined(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the sum of several outcomes, added in order: a sum of floats depends on it."""
    return sum(outcomes, Outcome())


# Reading what a step returned and logged


@final
@dataclass(slots=True)
class StepOutput:
    """The parts of what a step returned. Their values may still be pending.

    Attributes:
        score: a Variable or a number; None if the batch was skipped.
        explanation: the Variable that sends feedback; None outside of training.
        extras: further metrics, those that the step logged included.
        errors: of the samples that failed, filled in by `read`.
        lost: the error with which the whole batch failed, or None.
    """

    score: Any = None
    explanation: Variable | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    skipped: bool = False
    errors: list[BaseException] = field(default_factory=list)
    lost: BatchError | None = None


def taken_apart(returned: Any, logged: Mapping[str, Any], step: str) -> StepOutput:
    """Return the parts of what a step returned.

    Raises:
        TypeError, ValueError: for something that a step can't return.
    """
    if returned is None:
        return StepOutput(extras=dict(logged), skipped=True)
    if "score" in logged:
        raise ValueError(f'{step} logged "score", which names the score that it returns; log another name')
    extras = dict(logged)
    if isinstance(returned, Mapping):
        if "score" not in returned:
            raise TypeError(
                f'{step} returned a dict without "score" (its keys: {list(returned)}); put (score, explanation) there'
            )
        extras |= {name: value for name, value in returned.items() if name != "score"}
        returned = returned["score"]
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
        f"{step} must return (score, explanation), a dict with it as 'score', or None (got {returned!r})"
    )


async def read(output: StepOutput, size: int) -> Outcome:
    """Wait for a step's metrics.

    Args:
        size: samples of the batch.

    Raises:
        BatchError: if too many samples failed.
        BudgetExceeded, JournalError: if one of these ended samples. The samples have not failed then.
    """
    metrics: dict[str, Metric] = {}
    values: dict[str, Any] = {}
    failed, weight = 0, size
    if not output.skipped:
        samples, errors = await _samples(output.score)
        failed = len(errors)
        output.errors += errors.values()
        if samples is None:
            value = await _value(output.score)
            metrics["score"] = Metric(value * size, size) if value is not None else Metric(0, 0)
        elif all(value is None or is_number(value) for value in samples):
            metrics["score"] = Metric.of([plain(value) for value in samples])
            weight = metrics["score"].samples
        else:
            raise TypeError(f"a score must be a number (got {samples[0]!r}); return other things by name")
    for name, entry in output.extras.items():
        metric, value = await _metric(entry, weight)
        if metric is None:
            values[name] = _shown(value)
        else:
            metrics[name] = metric
    return Outcome(metrics, values, size, failed, int(output.skipped and not metrics))


def is_number(value: Any) -> bool:
    return isinstance(value, Real) or (hasattr(value, "item") and getattr(value, "shape", None) == ())


def plain(value: Any) -> Any:
    """Return a number as a Python number, because a NumPy scalar can't be written to a checkpoint."""
    return value.item() if hasattr(value, "item") else value


def batch_size(batch: Any) -> int:
    """Return how many samples a batch has: the length of the first Variable or list in it, else 1.

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


async def _samples(value: Any) -> tuple[Sequence[Any] | None, Mapping[int, BaseException]]:
    """Return a value for each sample and the errors of failed ones; None if the value isn't a batch."""
    if not isinstance(value, Variable):
        return (list(value), {}) if isinstance(value, list) else (None, {})
    if isinstance(value, Score):
        await value
        await wait_async(value.sample_slots)
        _raise_fatal(value.sample_errors)
        return value.samples, value.sample_errors
    await value
    if not value.batch:
        return None, {}
    _raise_fatal(value.errors)
    return value.data, value.errors


async def _value(entry: Any) -> Any:
    value = (await entry).data if isinstance(entry, Variable) else entry
    if value is not None and not is_number(value):
        raise TypeError(
            f"a score must be a number (got {value!r}); return other things under names of their own"
        )
    return plain(value)


async def _metric(entry: Any, weight: int) -> tuple[Metric | None, Any]:
    """Return a metric and None, or None and a value that can't be averaged."""
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], Variable):
        entry = entry[0]  # another score
    samples, _ = await _samples(entry)
    if samples is None:
        value = (await entry).data if isinstance(entry, Variable) else entry
        return (Metric(plain(value) * weight, weight), None) if is_number(value) else (None, value)
    if all(value is None or is_number(value) for value in samples):
        return Metric.of([plain(value) for value in samples]), None
    return None, list(samples)


def _shown(value: Any) -> Any:
    """Return a value that JSON can hold: itself, or its `repr`."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return repr(value)


def _raise_fatal(errors: Mapping[int, BaseException]) -> None:
    for error in errors.values():
        if isinstance(error, BudgetExceeded | JournalError):
            raise error


# The quorum: how many samples of a step or a pass may fail


# The highest quorum of a backward pass. Feedback gives a direction, and half of it gives the same one.
FEEDBACK: Final = 0.5
_ANY: Final = 1e-9
_SHOWN: Final = 3


def lenient(quorum: float | None) -> float:
    """Return the quorum of a single node. The samples of the whole step or pass are counted at its end."""
    return 1.0 if quorum is None else _ANY


def check_quorum(outcome: Outcome, quorum: float | None, errors: Sequence[BaseException], name: str) -> None:
    """Raise a `BatchError` if more samples failed than `quorum` allows. `name` is that of the step or pass."""
    allowed = may_fail(outcome.samples, 1.0 if quorum is None else quorum)
    if outcome.failed <= allowed:
        return
    if any(is_outage(error) for error in errors):
        fix = "see whether the model's server is up"
    else:
        fix = "take these samples out of the data, or give a lower Trainer(quorum=…)"
    raise BatchError(
        f"{outcome.failed} of {outcome.samples} samples of {name} failed ({causes(errors)}), and quorum={quorum} "
        f"allows {allowed}; {fix}",
        [error for error in errors if isinstance(error, Exception)] or [RuntimeError("unknown")],
    )


def errors_of(error: BatchError) -> list[BaseException]:
    """Return the error of each failed sample, or the group's errors if they don't belong to samples."""
    return [*(error.errors.values() or error.exceptions)]


def causes(errors: Sequence[BaseException]) -> str:
    """Return the errors' texts; equal ones appear once, with their count.

    >>> causes([ValueError("no"), ValueError("no"), KeyError("a")])
    "2 x ValueError: no; KeyError: 'a'"
    """
    counts = Counter(
        f"{type(leaf).__name__}: {' '.join(str(leaf).split())[:200]}"
        for error in errors
        for leaf in _leaves(error)
    )
    texts = [text if number == 1 else f"{number} x {text}" for text, number in counts.most_common(_SHOWN)]
    return "; ".join([*texts, "…"] if len(counts) > _SHOWN else texts)


def short_reason(error: BaseException) -> str:
    """Return why a step or a pass was cut short, in one line."""
    if not isinstance(error, BaseExceptionGroup):
        return str(error) or type(error).__name__
    why = causes(error.exceptions)
    return error.message if why in error.message else f"{error.message} ({why})"


def raise_fatal(error: BatchError) -> None:
    """Raise the error of a budget or a journal in `error`: it ends the training and isn't a sample's failure."""
    for kind in (BudgetExceeded, JournalError):
        fatal = first_of(error, kind)
        if fatal is not None:
            raise fatal


def is_outage(error: BaseException) -> bool:
    """Return True if a provider was away: the samples are not to blame."""
    return first_of(error, TransientModelError) is not None or first_of(error, ProviderDownError) is not None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
