"""Comparison: two runs' scores on the samples that both have, for the command line and the studio alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from afnio.tellurio.interval import Paired, paired_interval
from afnio.tellurio.scores import Sample, Scores, kind_of

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
