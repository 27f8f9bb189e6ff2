"""Comparison: two runs' scores on the samples that both have, for the command line and the studio alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Final, NamedTuple

from afnio.tellurio._queries import Sample, Scores, kind_of

SAME: Final = 12
"""Phases of the same name that are compared, at most."""


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """Two phases of the same kind, one of each run, over the samples that both have.

    Attributes:
        kind: the phase without the numbers of its epochs, steps and repetitions.
        first, second: the phases.
        means: of all scores of either.
        samples: how many either has.
        paired: second minus first on those that both have.
    """

    kind: str
    first: str
    second: str
    means: tuple[float | None, float | None]
    samples: tuple[int, int]
    paired: Paired


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs' scores say of each other.

    Attributes:
        last: second minus first over the last evaluation of each sample, whatever its phase.
        kinds: the last phase of each kind that both have, such as the last validation.
        same: other phases that both have, by the same name; those with the most samples.
    """

    last: Paired
    kinds: list[PhaseComparison]
    same: list[PhaseComparison]


def compare(first: Scores, second: Scores) -> Comparison:
    """Pair the scores of two runs by sample.

    >>> before = Scores([("val", "a", 0.0), ("val", "b", 1.0)])
    >>> after = Scores([("val", "b", 1.0), ("val", "a", 1.0), ("val", "c", 0.0)])
    >>> found = compare(before, after)
    >>> found.last.samples, found.last.won, found.last.difference, found.kinds[0].samples
    (2, 1, 0.5, (2, 3))
    """
    theirs = second.kinds()
    kinds = [
        _phases(first, second, phase, theirs[kind]) for kind, phase in first.kinds().items() if kind in theirs
    ]
    told = {one.first for one in kinds if one.first == one.second}
    shared = [phase for phase in first.phases if phase in second.phases and phase not in told]
    shared.sort(key=lambda phase: -len(first.phases[phase]))
    same = [_phases(first, second, phase, phase) for phase in shared[:SAME]]
    return Comparison(_paired(first.last, second.last), kinds, same)


def _phases(first: Scores, second: Scores, one: str, other: str) -> PhaseComparison:
    mine, theirs = first.phases[one], second.phases[other]
    means, sizes = (_mean(mine), _mean(theirs)), (len(mine), len(theirs))
    return PhaseComparison(kind_of(one), one, other, means, sizes, _paired(mine, theirs))


def _paired(first: Mapping[Sample, float], second: Mapping[Sample, float]) -> Paired:
    both = [sample for sample in first if sample in second]
    return paired_interval([first[sample] for sample in both], [second[sample] for sample in both])


def _mean(scores: Mapping[Sample, float]) -> float | None:
    return sum(scores.values()) / len(scores) if scores else None


# Interval: how far the truth may lie from a share, or from the difference of two runs' scores.


Z: Final = NormalDist().inv_cdf(0.975)
"""Standard normal quantile of a two-sided 95 % interval."""


class Paired(NamedTuple):
    """The mean difference (second minus first) and its 95 % interval; None where no interval can be given."""

    samples: int
    won: int
    lost: int
    difference: float
    low: float | None
    high: float | None
    method: str

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare scores of the same samples, in the same order.

    Right-or-wrong scores take the adjusted Wald interval of Bonett and Price (2012), which holds for few
    samples; others Student's t of the differences.

    >>> found = paired_interval([0, 0, 1, 1], [1, 1, 1, 0])
    >>> found.won, found.lost, round(found.difference, 2), round(found.low, 2), round(found.high, 2)
    (2, 1, 0.25, -0.55, 0.88)
    """
    if len(first) != len(second):
        raise ValueError(f"paired scores need equal numbers of them (got {len(first)} and {len(second)})")
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


def student_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; exact for 1 and 2, else within 1 % (Cornish-Fisher).

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
