"""Comparison: two runs' scores on the samples that both have."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from afnio.tellurio.reader import Reader
from afnio.tellurio.studio.paired_interval import Paired, paired_interval

PAGE: Final = 5_000
_NUMBER: Final = re.compile(r"(?:#| )\d+")
_BATCH: Final = re.compile(r"/batch \d+$")

Sample = tuple[str, int]
"""A sample's key, and which of those with that key it is: equal samples are told apart by their order."""


@dataclass(frozen=True, slots=True)
class PhaseComparison:
    """Two phases of the same kind, one of each run, over the samples that both have.

    Attributes:
        kind: the phase without the numbers of its epochs, steps and repetitions.
        first, second: the phases, the last of that kind in each run.
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


def compare(first: Reader, first_run: str, second: Reader, second_run: str) -> list[PhaseComparison]:
    """Compare the last phase of each kind that both runs have, such as the last validation."""
    theirs = last_phases(second, second_run)
    found = []
    for kind, phase in last_phases(first, first_run).items():
        if kind in theirs:
            one, other = scores(first, first_run, phase), scores(second, second_run, theirs[kind])
            both = [sample for sample in one if sample in other]
            paired = paired_interval([one[sample] for sample in both], [other[sample] for sample in both])
            means, sizes = (_mean(one), _mean(other)), (len(one), len(other))
            found.append(PhaseComparison(kind, phase, theirs[kind], means, sizes, paired))
    return found


def last_phases(reader: Reader, run_id: str) -> dict[str, str]:
    """For each kind of phase the one that a run began last; the batches of one evaluation are one phase."""
    phases = dict.fromkeys(_BATCH.sub("", phase) for phase in reader.phases(run_id))
    return {_NUMBER.sub("", phase): phase for phase in phases}


def scores(reader: Reader, run_id: str, phase: str) -> dict[Sample, float]:
    """A phase's scores by sample."""
    found: dict[Sample, float] = {}
    seen: Counter[str] = Counter()
    after = 0
    while page := reader.samples(run_id, after, PAGE, phase=phase):
        after = page[-1].id
        for sample in page:
            if sample.key is not None and sample.score is not None:
                found[sample.key, seen[sample.key]] = sample.score
                seen[sample.key] += 1
    return found


def _mean(found: dict[Sample, float]) -> float | None:
    return sum(found.values()) / len(found) if found else None
