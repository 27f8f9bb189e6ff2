"""Merge: one candidate out of two whose ancestor is the same, each parameter from the one that changed it.

Source: Agrawal et al., arXiv:2507.19457, appendix on system-aware merge.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, final

from afnio.optim.pareto import Member, Pool

SAMPLES: Final = 15
"""Validation samples on which a merged candidate has to hold its own before it gets all of them."""


@final
@dataclass(frozen=True, slots=True)
class Merge:
    """Two members of the front, their common ancestor, and the values that come of them."""

    one: Member
    other: Member
    ancestor: Member
    values: tuple[Any, ...]

    @property
    def key(self) -> tuple[int, int, int]:
        return self.one.number, self.other.number, self.ancestor.number


def possible_merges(pool: Pool, tried: Sequence[Sequence[int]]) -> list[Merge]:
    """Return the merges that could help, those `tried` left out.

    Neither is the other's ancestor, their ancestor scores no better than either, each changed a parameter that the
    other left alone, and the result is not in the pool.
    """
    found: list[Merge] = []
    known = [tuple(key) for key in tried]
    for one, other in combinations(sorted(pool.front), 2):
        mine, theirs = pool.ancestors(one), pool.ancestors(other)
        if one in theirs or other in mine:
            continue
        for number in mine:
            if number not in theirs or (one, other, number) in known:
                continue
            merge = _merged(pool[one], pool[other], pool[number])
            if merge is not None and pool.find(merge.values) is None:
                found.append(merge)
    return found


def _merged(one: Member, other: Member, ancestor: Member) -> Merge | None:
    if ancestor.mean > min(one.mean, other.mean):
        return None
    triples = list(zip(ancestor.values, one.values, other.values, strict=True))
    by_one = any(theirs == before != mine for before, mine, theirs in triples)
    by_other = any(mine == before != theirs for before, mine, theirs in triples)
    if not (by_one and by_other):
        return None
    better = one if (one.mean, -one.number) >= (other.mean, -other.number) else other
    values = [
        theirs if mine == before else mine if theirs == before else better.values[position]
        for position, (before, mine, theirs) in enumerate(triples)
    ]
    return Merge(one, other, ancestor, tuple(values))


def trial_samples(merge: Merge, draw: random.Random, count: int = SAMPLES) -> list[int]:
    """Draw samples on which to try a merge: as many where one is better, where the other is, and where none is.

    >>> one, other = Member(1, (0,), ("x",), (1, 1, 0, 0, 1)), Member(2, (0,), ("y",), (0, 0, 1, 1, 1))
    >>> sorted(trial_samples(Merge(one, other, one, ("z",)), random.Random(0), count=3))[-1]
    4
    """
    groups: tuple[list[int], list[int], list[int]] = ([], [], [])
    for sample, (mine, theirs) in enumerate(zip(merge.one.scores, merge.other.scores, strict=True)):
        if mine is not None and theirs is not None:
            groups[0 if mine > theirs else 1 if theirs > mine else 2].append(sample)
    chosen: list[int] = []
    for group in groups:
        chosen += draw.sample(group, min(len(group), count // 3))
    rest = [sample for group in groups for sample in group if sample not in chosen]
    return sorted(chosen + draw.sample(rest, max(0, min(len(rest), count - len(chosen)))))
