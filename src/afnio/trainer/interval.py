"""Accuracy: a count of right answers, and how far the truth may lie from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

Z_95: Final = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson, 1927).

    The textbook's normal interval is empty at 0/n and leaves [0, 1] near it; this one does neither.

    >>> [round(bound, 3) for bound in wilson(25, 68)]
    [0.263, 0.486]
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct must be from 0 to total (got {correct} of {total})")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    weight = z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    # At the ends the bound is exact, and rounding must not push it past the count's own share.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers among those given.

    Attributes:
        failed: samples without a usable answer; a failure is not a wrong answer, so they are not in `total`.

    >>> str(Accuracy(25, 68))
    '25/68'
    """

    correct: int
    total: int
    failed: int = 0

    @property
    def share(self) -> float | None:
        return self.correct / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.total)

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.correct + other.correct, self.total + other.total, self.failed + other.failed)

    def __str__(self) -> str:
        return f"{self.correct}/{self.total}"
