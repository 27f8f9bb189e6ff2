"""Metric: sums over samples, so that a mean over batches is the mean over their samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, final

from afnio.tellurio.interval import wilson


@final
@dataclass(frozen=True, slots=True)
class Metric:
    """One metric over samples.

    Attributes:
        total: the sum over the samples.
        samples: how many; failed and missing ones are not among them.
        binary: whether each sample's value is known and 0 or 1, so that the mean is a proportion.

    >>> (Metric.of([1, 0, None, 1]) + Metric.of([True])).mean
    0.75
    """

    total: float
    samples: int
    binary: bool = False

    @classmethod
    def of(cls, values: Iterable[Any]) -> Metric:
        """Return the metric of samples' values; None is left out."""
        present = [value for value in values if value is not None]
        return cls(sum(present), len(present), all(value in (0, 1) for value in present))

    @property
    def mean(self) -> float | None:
        """The mean per sample, None without any."""
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
    """What a batch gave, or several together.

    Attributes:
        metrics: by name; "loss" is the score.
        values: what can't be averaged, by name; of several batches the last.
        samples: how many there were, failed ones among them.
        failed: how many failed. They count in no metric.
        skipped: batches that gave nothing.
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
        """Return means by name, "loss" first, with "loss_sum", "failed", and the bounds of proportions.

        >>> sorted(Outcome({"loss": Metric.of([1, 0])}, samples=2).flat())
        ['failed', 'loss', 'loss_high', 'loss_low', 'loss_sum']
        """
        flat: dict[str, float] = {}
        for name in sorted(self.metrics, key=lambda name: (name != "loss", name)):
            metric = self.metrics[name]
            if metric.mean is None:
                continue
            flat[name] = float(metric.mean)
            if name == "loss":
                flat["loss_sum"] = float(metric.total)
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
    """Return several outcomes as one, added in their order, as sums of floats depend on it."""
    return sum(outcomes, Outcome())
