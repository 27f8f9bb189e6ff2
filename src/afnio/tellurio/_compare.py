"""Comparing two runs: who does better on the samples that both evaluated, and how sure that is.

Two mean scores say little: the runs may have seen different samples, and samples differ more than prompts do. So
scores are paired. Samples are matched by key (a digest of the sample's inputs), and the interval is one of the mean
*difference* on the matched samples. It is much narrower than the two means' intervals suggest.

`compare` does that for the last evaluation of each sample and for each kind of phase, such as the last validation.
`afnio runs compare` and the studio's comparison both show its result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from afnio._figures import counted
from afnio.stats import Paired, paired_interval
from afnio.tellurio._schema import evaluation_of

# Kinds of phases on rows that nothing was chosen by.
TESTS: Final = ("test", "held/result")
# The end of the name of a phase in which a gate scores the prompts that a training began with.
START: Final = "held/start"
# The most phases that are compared because they have the same name.
MOST_SAME: Final = 12


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """Two phases of the same kind, one of each run.

    Attributes:
        kind: the phase's name without the numbers of epochs, steps and repetitions.
        first, second: the names of the phases.
        means: the mean scores over the samples in both; without any, over all of each phase.
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
class RunComparison:
    """A comparison of two runs.

    Attributes:
        last: second minus first over the last evaluation of each sample, in any phase.
        kinds: for each kind of phase in both runs, the last phase of each; those that measure a gain first.
        same: other phases with the same name in both runs, those with the most samples first.
    """

    last: Paired
    kinds: list[PhaseComparison]
    same: list[PhaseComparison]

    @property
    def test(self) -> PhaseComparison | None:
        """The rows of a test, if both runs evaluated some of the same; else None."""
        return next((one for one in self.kinds if one.kind in TESTS and one.paired.samples), None)

    @property
    def main(self) -> Paired:
        """What decides: the difference on the rows of a test, or else the last evaluation of each sample."""
        return self.last if self.test is None else self.test.paired

    def claim(self, first: str, second: str) -> str:
        """Return a sentence that says which of the runs is better, on the rows of a test if both have one.

        Args:
            first, second: names of the runs.

        >>> one, other = (Scores([("test", "a", 0.0), ("test", "b", score)]) for score in (0.0, 1.0))
        >>> compare(one, other).claim("calm-lynx", "brisk-fox")
        "calm-lynx and brisk-fox can't be told apart on 2 samples of test: +0.500 (95 %: -0.563 to 1.000)."
        """
        paired = self.main
        if not paired.samples:
            return "No sample was evaluated in both runs, so they can't be compared."
        of = "" if self.test is None else f" of {self.test.kind}"
        word = "better" if paired.difference > 0 else "worse"
        said = (
            f"{second} is {word} than {first}"
            if paired.is_clear
            else f"{first} and {second} can't be told apart"
        )
        interval = "" if paired.low is None else f" (95 %: {paired.low:.3f} to {paired.high:.3f})"
        return f"{said} on {counted(paired.samples, 'sample')}{of}: {paired.difference:+.3f}{interval}."


def compare(first: Scores, second: Scores) -> RunComparison:
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
    kinds.sort(key=lambda one: TESTS.index(one.kind) if one.kind in TESTS else len(TESTS))
    compared = {one.first for one in kinds if one.first == one.second}
    shared = [phase for phase in first.phases if phase in second.phases and phase not in compared]
    shared.sort(key=lambda phase: -len(first.phases[phase]))
    same = [_phases(first, second, phase, phase) for phase in shared[:MOST_SAME]]
    return RunComparison(_paired(first.last, second.last), kinds, same)


# A sample's key, and its place among the samples of a phase with this key: equal samples differ by their
# order.
Sample = tuple[str, int]


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
        last: the last score of each sample, in any phase but that of the prompts that a gate compares others with:
            both are scored side by side.
    """

    def __init__(self, rows: Iterable[tuple[str, str, float]]) -> None:
        self.phases: dict[str, dict[Sample, float]] = {}
        self.last: dict[Sample, float] = {}
        phases: dict[str, tuple[dict[Sample, float], Counter[str]]] = {}
        for phase, key, score in rows:
            if phase not in phases:
                name = evaluation_of(phase)
                scores = self.phases.setdefault(name, {})
                phases[phase] = phases.setdefault(name, (scores, Counter()))
            scores, seen = phases[phase]
            sample = key, seen[key]
            seen[key] += 1
            scores[sample] = score
            if not evaluation_of(phase).endswith(START):
                self.last[sample] = score

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
    both = [sample for sample in mine if sample in theirs]
    means = _mean(mine, both or mine), _mean(theirs, both or theirs)
    sizes = len(mine), len(theirs)
    return PhaseComparison(kind_of(one), one, other, means, sizes, _paired(mine, theirs))


def _paired(first: Mapping[Sample, float], second: Mapping[Sample, float]) -> Paired:
    both = [sample for sample in first if sample in second]
    return paired_interval([first[sample] for sample in both], [second[sample] for sample in both])


def _mean(scores: Mapping[Sample, float], samples: Iterable[Sample]) -> float | None:
    values = [scores[sample] for sample in samples]
    return sum(values) / len(values) if values else None
