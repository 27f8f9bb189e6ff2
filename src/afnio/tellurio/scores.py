"""Scores: what a run's samples scored, phase by phase, so that those of another run can be held against them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from afnio.tellurio.phase import evaluation_of

_NUMBER: Final = re.compile(r"(?:#| )\d+")

Sample = tuple[str, int]
"""A sample's key, and which of those with that key it is: equal samples are told apart by their order."""


class Scores:
    """The scores of one run.

    >>> found = Scores([("val", "a", 0.0), ("val#2/batch 1", "a", 1.0), ("val#2/batch 2", "b", 0.5)])
    >>> found.phases
    {'val': {('a', 0): 0.0}, 'val#2': {('a', 0): 1.0, ('b', 0): 0.5}}
    >>> found.last, found.kinds()
    ({('a', 0): 1.0, ('b', 0): 0.5}, {'val': 'val#2'})

    Args:
        rows: phase, key and score of each sample, in the order in which they were evaluated.

    Attributes:
        phases: the scores by phase, in the order in which those began; the batches of one evaluation are one phase.
        last: the last score of each sample, whatever the phase.
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
        """For each kind of phase the one that began last."""
        return {kind_of(phase): phase for phase in self.phases}


def kind_of(phase: str) -> str:
    """A phase without the numbers of its epochs, steps and repetitions.

    >>> kind_of("epoch 3/val#2")
    'epoch/val'
    """
    return _NUMBER.sub("", phase)
