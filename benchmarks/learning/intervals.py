"""Intervals: how far a difference of two methods may lie from the one that was measured.

A paired bootstrap (Efron & Tibshirani, 1993, ch. 16): test items and seeds are drawn anew with replacement,
each item with what both methods made of it, and the difference of means is taken each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import pstdev
from typing import NamedTuple

from benchmarks.learning.outcome import Scores

KIND = "paired bootstrap over test items and seeds, 95 %, percentiles of 1,000 draws"
DRAWS = 1000


class Lead(NamedTuple):
    """How far one method is ahead of another, with its interval and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float

    def text(self, stands: bool, *, short: bool = False) -> str:
        """Return it in points, with `*` if it stands."""
        gain = f"{100 * self.mean:+.1f}{'*' if stands else ''}"
        return gain if short else f"{gain} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def difference(ours: Sequence[Scores], theirs: Sequence[Scores], seed: int = 0) -> tuple[float, float, float]:
    """Return the difference of mean scores and the ends of its interval."""
    return lead(ours, theirs, seed)[:3]


def lead(ours: Sequence[Scores], theirs: Sequence[Scores], seed: int = 0) -> Lead:
    """Return the difference of mean scores, and how sure it is.

    The p-value is that of a normal distribution with the standard deviation of the draws, because Holm's correction of
    a table asks for smaller ones than a thousand draws can show. An item that either had no answer for is left out of
    that pair of runs: a failure is no wrong answer.

    >>> lead([[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]).mean
    0.5
    """
    pairs = [_differences(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    items, rng = len(pairs[0]), random.Random(seed)
    draws = sorted(
        _mean(rng.choices(pairs, k=len(pairs)), rng.choices(range(items), k=items)) for _ in range(DRAWS)
    )
    low, high = draws[round(0.025 * (DRAWS - 1))], draws[round(0.975 * (DRAWS - 1))]
    gain, error = _mean(pairs, range(items)), pstdev(draws)
    p = math.erfc(abs(gain) / error / math.sqrt(2)) if error else float(gain == 0)
    return Lead(gain, low, high, p)


def holm(values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Return which of the p-values of one table stand together at `level` (Holm, 1979).

    >>> holm([0.04, 0.001, 0.02])
    [True, True, True]
    >>> holm([0.04, 0.001, 0.03])
    [False, True, False]
    """
    standing = [False] * len(values)
    for place, number in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if values[number] > level / (len(values) - place):
            break
        standing[number] = True
    return standing


def _differences(mine: Scores, other: Scores) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(mine, other, strict=True)]


def _mean(runs: Sequence[Sequence[float | None]], chosen: Sequence[int]) -> float:
    values = [value for run in runs for item in chosen if (value := run[item]) is not None]
    return sum(values) / len(values) if values else 0.0
