"""Statistics of scores, without scipy: intervals of a share and of a mean difference, and the paired test.

Two mean scores say little: samples differ far more in difficulty than prompts do in quality. So the scores of two texts
are paired by sample, and intervals and tests are of the differences, which cancel the difficulty.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance
from typing import Final, NamedTuple

NORMAL: Final = NormalDist()
Z: Final = NORMAL.inv_cdf(0.975)
"""Standard normal quantile of a two-sided 95 % interval."""

Scores = Sequence[float | None]
"""Scores of samples, in order. None for samples that failed."""


# Intervals.


class Paired(NamedTuple):
    """A mean difference (second minus first) and its 95 % interval; the bounds are None if there is no interval."""

    samples: int
    won: int
    lost: int
    difference: float
    low: float | None
    high: float | None
    method: str

    @property
    def is_clear(self) -> bool:
        """Return True if the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare scores of the same samples, in the same order.

    Scores of 0 and 1 get the adjusted Wald interval of Bonett and Price (2012). It is accurate for few samples, and its
    bounds can't leave -1 to 1. Other scores get Student's t interval of the differences.

    >>> found = paired_interval([0, 0, 1, 1], [1, 1, 1, 0])
    >>> found.won, found.lost, round(found.difference, 2), round(found.low, 2), round(found.high, 2)
    (2, 1, 0.25, -0.55, 0.88)
    """
    if len(first) != len(second):
        raise ValueError(
            f"both sequences must have the same length (got {len(first)} and {len(second)}); "
            "pass the scores of the same samples"
        )
    differences = [after - before for before, after in zip(first, second, strict=True)]
    count = len(differences)
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    mean = fmean(differences) if differences else 0.0
    if not differences:
        return Paired(0, 0, 0, 0.0, None, None, "no sample in common")
    if {*first, *second} <= {0, 1}:
        better, worse = (won + 1) / (count + 2), (lost + 1) / (count + 2)
        center = better - worse
        reach = Z * math.sqrt((better + worse - center**2) / (count + 2))
        low, high = max(-1.0, center - reach), min(1.0, center + reach)
        return Paired(count, won, lost, mean, low, high, "adjusted Wald, paired (Bonett and Price)")
    if count < 2:
        return Paired(count, won, lost, mean, None, None, "one sample has no interval")
    reach = student_quantile(count - 1) * math.sqrt(variance(differences) / count)
    return Paired(count, won, lost, mean, mean - reach, mean + reach, "Student's t of the differences")


def wilson(correct: int, total: int, z: float = Z) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson, 1927).

    The textbook's normal interval has no width at 0/n and leaves [0, 1] near it. Wilson's does neither.

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
    # At 0 and at `total` the bound is exactly 0 or 1. Rounding could put it on the wrong side of the share.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def student_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, otherwise within 1 %.

    The approximation is Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5).

    >>> [round(student_quantile(n), 2) for n in (1, 2, 5, 30)]
    [12.71, 4.3, 2.57, 2.04]
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    n, z = freedom, Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))


# The test.

GRID: Final = 5_000
"""Steps of the grid that differences are rounded to."""
MANY: Final = 128
"""With more differences of several sizes only the largest are enumerated."""
LARGEST: Final = 10
"""How many these are."""


def differences(candidate: Sequence[float | None], incumbent: Sequence[float | None]) -> list[float]:
    """Return the differences of samples that both have a score of. A failed sample isn't a wrong answer.

    >>> differences([1, None, 0], [0, 1, 0])
    [1.0, 0.0]
    """
    pairs = zip(candidate, incumbent, strict=True)
    return [float(ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None]


def p_value(pairs: Sequence[float]) -> float:
    """Return the probability of a mean at least as high if each difference had either sign by chance.

    This is the sign-flip test. It doesn't assume a distribution of scores. It is exact if all differences other than 0
    are multiples of one size; for right and wrong answers it is McNemar's test, one-sided. Other differences are
    rounded to a grid, and the probability is never below the exact one. The normal approximation would be, where a few
    large differences stand among small ones; it serves only beyond 128 differences, for all but the largest.

    >>> p_value([1, 1, 1, 1, 0, 0]), p_value([0, 0])
    (0.0625, 1.0)
    >>> p_value([1.0, 0.01, 0.01]), p_value([0.3, 0.1, -0.1, 0.2])
    (0.125, 0.1875)
    """
    found = [pair for pair in pairs if pair]
    sizes = [abs(pair) for pair in found]
    if not sizes:
        return 1.0
    if max(sizes) == min(sizes):
        wins = sum(pair > 0 for pair in found)
        tail = sum(math.comb(len(sizes), number) for number in range(wins, len(sizes) + 1))
        return tail / (1 << len(sizes))
    if len(sizes) > MANY:
        return _approximate(found)
    step = _step(sizes)
    steps = [round(size / step) for size in sizes]
    # A sum of rounded sizes may be off by `error` in each direction. Count every sum that may be as high.
    error = math.fsum(abs(size / step - whole) for size, whole in zip(sizes, steps, strict=True))
    gained = sum(whole for whole, pair in zip(steps, found, strict=True) if pair > 0)
    return _tail(steps, max(0, math.ceil(gained - error - 1e-6)))


def _step(sizes: Sequence[float]) -> float:
    """Return a step that all sizes are multiples of, if there is a simple one; else one that is small enough."""
    for parts in range(1, 9):
        step = min(sizes) / parts
        if math.fsum(sizes) / step <= GRID and all(
            abs(size / step - round(size / step)) < 1e-6 for size in sizes
        ):
            return step
    return math.fsum(sizes) / GRID


def _tail(steps: Sequence[int], least: int) -> float:
    """Return the share of all subsets of `steps` with a sum of at least `least`.

    The number of subsets by sum is a polynomial, the product of (1 + x**step). It is held in one whole number, with
    `width` bits for each coefficient, so that multiplying is a shift and an addition.
    """
    width = len(steps) + 1
    subsets = 1
    for step in steps:
        subsets += subsets << (step * width)
    # The sum of the digits of a number is the number itself modulo (base - 1).
    return ((subsets >> (least * width)) % ((1 << width) - 1)) / (1 << len(steps))


def _approximate(pairs: Sequence[float]) -> float:
    """Enumerate the signs of the largest differences, and take the sum of the others for normal."""
    ordered = sorted(pairs, key=abs)
    largest, others = [abs(pair) for pair in ordered[-LARGEST:]], ordered[:-LARGEST]
    total = math.fsum(pairs) - abs(ordered[0])  # sums move in steps of twice the smallest difference at least
    spread = math.sqrt(math.fsum(pair * pair for pair in others))
    signs = itertools.product((1, -1), repeat=LARGEST)
    sums = (math.fsum(size * sign for size, sign in zip(largest, signed, strict=True)) for signed in signs)
    return math.fsum(NORMAL.cdf((reached - total) / spread) for reached in sums) / 2**LARGEST
