"""Intervals: how far a difference of two methods may lie from the one that was measured.

A paired bootstrap (Efron & Tibshirani, 1993, ch. 16): test items and seeds are drawn anew with replacement,
each item with what both methods made of it, and the difference of means is taken each time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.learning.outcome import Scores

KIND = "paired bootstrap over test items and seeds, 95 %, percentiles of 1,000 draws"
DRAWS = 1000
FLIPS = 10_000


def difference(ours: Sequence[Scores], theirs: Sequence[Scores], seed: int = 0) -> tuple[float, float, float]:
    """Return the difference of mean scores and the ends of its interval.

    An item that either had no answer for is left out of that pair of runs: a failure is no wrong answer.

    >>> difference([[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]])[0]
    0.5
    """
    pairs = [_differences(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    items, rng = len(pairs[0]), random.Random(seed)
    draws = sorted(
        _mean(rng.choices(pairs, k=len(pairs)), rng.choices(range(items), k=items)) for _ in range(DRAWS)
    )
    low, high = draws[round(0.025 * (DRAWS - 1))], draws[round(0.975 * (DRAWS - 1))]
    return _mean(pairs, range(items)), low, high


def p_value(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """Return the two-sided p-value of no difference: the part of the seeds' sign flips that differ as much.

    >>> round(p_value([[1.0]] * 8, [[0.0]] * 8), 3)
    0.009
    """
    gains = [_mean([_differences(a, b)], range(len(a))) for a, b in zip(ours, theirs, strict=True)]
    rng, seen = random.Random(0), abs(sum(gains)) - 1e-9
    flips = (abs(sum(gain * rng.choice((-1, 1)) for gain in gains)) for _ in range(FLIPS))
    return (1 + sum(flip >= seen for flip in flips)) / (1 + FLIPS)


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
