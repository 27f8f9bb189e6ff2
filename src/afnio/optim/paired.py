"""Paired: statistics on two texts' scores of the same samples.

A pair is the score of one sample under the candidate minus its score under the incumbent. Samples differ in how
hard they are far more than candidates do in how good they are; the differences leave that out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

EXACT: Final = 12
"""Differences that aren't 0, up to which all signs are tried one by one."""
EFFECT: Final = 0.5
"""How large effects are before anything is seen, as the standard deviation of (mean difference / its spread)."""
_NORMAL: Final = NormalDist()


def differences(candidate: Sequence[float | None], incumbent: Sequence[float | None]) -> list[float]:
    """Return one difference for each sample that both have a score of; a failed one is no wrong answer.

    >>> differences([1, None, 0], [0, 1, 0])
    [1.0, 0.0]
    """
    pairs = zip(candidate, incumbent, strict=True)
    return [float(ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None]


def p_value(pairs: Sequence[float]) -> float:
    """Return the probability of a mean at least so high if each difference had either sign by chance.

    The sign-flip test: it supposes nothing of how scores are distributed. It is exact where all differences
    that aren't 0 are of one size (right and wrong answers; then it is McNemar's test, one-sided) and where
    there are at most 12 of them; for more it takes the normal approximation.

    >>> p_value([1, 1, 1, 1, 0, 0]), p_value([0, 0])
    (0.0625, 1.0)
    """
    sizes = [abs(pair) for pair in pairs if pair]
    if not sizes:
        return 1.0
    total = math.fsum(pairs)
    if max(sizes) == min(sizes):
        wins = sum(pair > 0 for pair in pairs)
        tail = sum(math.comb(len(sizes), number) for number in range(wins, len(sizes) + 1))
        return tail / float(2 ** len(sizes))
    if len(sizes) <= EXACT:
        # Sums of the same numbers in another order differ in their last bits.
        least = total - 1e-9 * max(sizes)
        flips = itertools.product(*((size, -size) for size in sizes))
        return sum(math.fsum(signed) >= least for signed in flips) / float(2 ** len(sizes))
    return _NORMAL.cdf(-total / math.sqrt(math.fsum(size * size for size in sizes)))


def chance(pairs: Sequence[float], planned: int, alpha: float) -> float:
    """Return how probable it is that `planned` pairs, of which `pairs` are the first, will have p ≤ `alpha`.

    The predictive probability of a normal model with known spread. The effect's prior has mean 0 and a
    standard deviation of half the spread of the differences: weak, so that two blocks outweigh it. (Spiegelhalter,
    Freedman, Blackburn, 1986, on stopping trials early.)

    >>> chance([0.0] * 16, 64, 0.05)
    0.0
    >>> chance([1.0] * 12, 16, 0.05) > 0.9
    True
    """
    seen, left = len(pairs), planned - len(pairs)
    sizes = [abs(pair) for pair in pairs if pair]
    if left <= 0:
        return float(p_value(pairs) <= alpha)
    if not sizes:
        return 0.0
    largest = max(sizes)
    # One pair more than was seen, of the largest size, so that few differences don't look like certainty.
    spread = (math.fsum(size * size for size in sizes) + largest * largest) / (seen + 1)
    total, weight = math.fsum(pairs), seen * EFFECT * EFFECT
    effect = weight / (weight + 1) * total / seen
    doubt = EFFECT * EFFECT * spread / (weight + 1)
    needed = _NORMAL.inv_cdf(1 - alpha) * math.sqrt(planned * spread)
    if largest == min(sizes):  # the sum moves in steps, of which the exact test wants a whole one more
        needed += largest
    return _NORMAL.cdf((total + left * effect - needed) / math.sqrt(left * spread + left * left * doubt))


def each_alpha(confidence: float, candidates: int) -> float:
    """Return the level for each of `candidates`, so that all stay out together with `confidence` (Šidák).

    >>> round(each_alpha(0.8, 4), 3)
    0.054
    """
    return float(1 - confidence ** (1 / candidates))
