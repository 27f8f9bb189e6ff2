"""Comparing two runs: who does better on the samples that both evaluated, and how sure that is.

Two mean scores say little: the runs may have seen different samples, and samples differ more than prompts do. So
scores are paired. Samples are matched by key (a digest of the sample's inputs), and the interval is one of the mean
*difference* on the matched samples. It is much narrower than the two means' intervals suggest.

`compare` does that for the last evaluation of each sample and for each kind of phase, such as the last validation.
`afnio runs compare` and the studio's comparison both show its result. `wilson` and `student_quantile` are for others
that need an interval without scipy.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Final, NamedTuple

from afnio.tellurio._schema import evaluation_of

MOST_SAME: Final = 12
"""The most phases that are compared because they have the same name."""


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """Two phases of the same kind, one of each run.

    Attributes:
        kind: the phase's name without the numbers of epochs, steps and repetitions.
        first, second: the names of the phases.
        means: the mean of all scores of each phase.
        samples: how many samples each phase has.
        paired: second minus first, over the samples in both.
    """

    kind: str
    first: str
    second: str
    means: tuple[float | None, float | None]
    samples: tuple[int, int]
    paired: Paired


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of two runs.

    Attributes:
        last: second minus first over the last evaluation of each sample, in any phase.
        kinds: for each kind of phase in both runs, the last phase of each.
        same: other phases with the same name in both runs, those with the most samples first.
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
    compared = {one.first for one in kinds if one.first == one.second}
    shared = [phase for phase in first.phases if phase in second.phases and phase not in compared]
    shared.sort(key=lambda phase: -len(first.phases[phase]))
    same = [_phases(first, second, phase, phase) for phase in shared[:MOST_SAME]]
    return Comparison(_paired(first.last, second.last), kinds, same)


Sample = tuple[str, int]
"""A sample's key, and its place among the samples of a phase with this key: equal samples differ by their order."""


class Scores:
    """The scores of one run.

    >>> found = Scores([("val", "a", 0.0), ("val#2/batch 1", "a", 1.0), ("val#2/batch 2", "b", 0.5)])
    >>> found.phases
    {'val': {('a', 0): 0.0}, 'val#2': {('a', 0): 1.0, ('b', 0): 0.5}}
    >>> found.last, found.kinds()
    ({('a', 0): 1.0, ('b', 0): 0.5}, {'val': 'val#2'})

    Args:
        rows: phase, key and score of each sample in the order of evaluation, as `StoreReader.scores` returns them.

    Attributes:
        phases: the scores by phase, in the order in which the phases began. The batches of an evaluation are one phase.
        last: the last score of each sample, in any phase.
    """

    def __init__(self, rows: Iterable[tuple[str, str, float]]) -> None:
        self.phases: dict[str, dict[Sample, float]] = {}
        self.last: dict[Sample, float] = {}
        known: dict[str, tuple[dict[Sample, float], Counter[str]]] = {}
        for phase, key, score in rows:
            if phase not in known:
                name = evaluation_of(phase)
                scores = self.phases.setdefault(name, {})
                known[phase] = known.setdefault(name, (scores, Counter()))
            scores, seen = known[phase]
            sample = key, seen[key]
            seen[key] += 1
            scores[sample] = self.last[sample] = score

    def kinds(self) -> dict[str, str]:
        """The phase of each kind that began last."""
        return {kind_of(phase): phase for phase in self.phases}


_NUMBER: Final = re.compile(r"(?:#| )\d+")


def kind_of(phase: str) -> str:
    """Return a phase's name without the numbers of epochs, steps and repetitions.

    >>> kind_of("epoch 3/val#2")
    'epoch/val'
    """
    return _NUMBER.sub("", phase)


def _phases(first: Scores, second: Scores, one: str, other: str) -> PhaseComparison:
    mine, theirs = first.phases[one], second.phases[other]
    means, sizes = (_mean(mine), _mean(theirs)), (len(mine), len(theirs))
    return PhaseComparison(kind_of(one), one, other, means, sizes, _paired(mine, theirs))


def _paired(first: Mapping[Sample, float], second: Mapping[Sample, float]) -> Paired:
    both = [sample for sample in first if sample in second]
    return paired_interval([first[sample] for sample in both], [second[sample] for sample in both])


def _mean(scores: Mapping[Sample, float]) -> float | None:
    return sum(scores.values()) / len(scores) if scores else None


# Intervals of a share and of a mean difference.

Z: Final = NormalDist().inv_cdf(0.975)
"""Standard normal quantile of a two-sided 95 % interval."""


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
