"""Sizes and rows of one step of `EditTGD`: how much it does, what that costs, and which samples it uses.

Both are decided before the first call of a step, from the budget, the seed and the data's order alone. So a repeated
run does the same, and a journal finds its calls.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, final

SHARE: Final = 1 / 3
WIDE_SHARE: Final = 0.4
WIDE: Final = 4
"""A step with more chains than this may cost `WIDE_SHARE` of the budget, one with fewer `SHARE`."""


class Sizes(NamedTuple):
    """The sizes of one step; see `EditTGD` for the names. `guards` is their number."""

    chains: int
    inner: int
    minibatch: int
    race: int
    first: int
    keep: int
    guards: int = 0

    def smaller(self, wanted: Sizes) -> Sizes | None:
        """Return the next smaller sizes. None at the smallest.

        One long chain learns more than two short ones, so the number of chains shrinks first. Then it is the race or
        the minibatch, whichever has shrunk least. Three mistakes are the fewest that a proposer can generalise from,
        and six samples the fewest that a race can rank anything on. Chains get shorter only when nothing else is left.
        """
        if self.chains > 1:
            return self._replace(chains=self.chains - 1)
        options = [
            (getattr(self, name) - 1) / getattr(wanted, name)
            if getattr(self, name) > min(getattr(wanted, name), least)
            else 0.0
            for name, least in _SMALLEST.items()
        ]
        if not any(options):
            return self._replace(inner=self.inner - 1) if self.inner > 1 else None
        name = list(_SMALLEST)[options.index(max(options))]
        made = self._replace(**{name: getattr(self, name) - 1})
        return made._replace(first=max(min(wanted.first, 3), round(wanted.first * made.race / wanted.race)))

    def cost(self, sample: SampleCost) -> int:
        """Return the calls of a step, if half of the samples need a critic and a place is contested.

        A chain's first small step has the mistakes of the last race, so it runs no samples.
        """
        learned = sample.forward + sample.critics / 2
        several = self.chains > 1
        candidates = 1 + self.chains + several
        raced = candidates * min(self.first, self.race) + min(self.keep, candidates) * max(
            0, self.race - self.first
        )
        calls = self.chains * (self.inner - 1) * self.minibatch * learned + raced * sample.forward
        calls += self.race * sample.critics / 2 + min(self.keep, candidates) * self.guards * sample.forward
        return math.ceil(calls) + (self.chains * self.inner + several) * sample.prompts


_SMALLEST: Final = {"race": 6, "minibatch": 3}


class SampleCost(NamedTuple):
    """The calls that one sample takes.

    Attributes:
        forward: to run and score it.
        critics: to criticise it. 0 if the proposer reads the mistakes.
        prompts: parameters that may change, each with a proposal.
    """

    forward: int
    critics: int
    prompts: int


def affordable(wanted: Sizes, sample: SampleCost, calls: int, reserve: int) -> Sizes:
    """Return the largest sizes whose step costs no more than its share of the budget.

    If none does, the smallest ones, as long as the budget pays for one step of them.

    Raises:
        ValueError: if it doesn't.

    >>> affordable(Sizes(3, 4, 12, 24, 12, 2), SampleCost(1, 0, 1), 1_200, 0)
    Sizes(chains=3, inner=4, minibatch=12, race=24, first=12, keep=2, guards=0)
    >>> affordable(Sizes(3, 4, 12, 24, 12, 2), SampleCost(1, 0, 1), 200, 0)
    Sizes(chains=1, inner=4, minibatch=9, race=17, first=8, keep=2, guards=0)
    >>> affordable(Sizes(3, 3, 8, 24, 8, 2), SampleCost(3, 2, 3), 60, 20)
    Traceback (most recent call last):
    ValueError: the budget must pay for one step of 45 calls and a reserve of 20 (got 60); raise it, or lower race
    """
    left = calls - reserve
    share = WIDE_SHARE if wanted.chains > WIDE else SHARE
    sizes = wanted
    while sizes.cost(sample) > left * share and (smaller := sizes.smaller(wanted)) is not None:
        sizes = smaller
    if sizes.cost(sample) > left:
        held = f" and a reserve of {reserve:,}" if reserve else ""
        raise ValueError(
            f"the budget must pay for one step of {sizes.cost(sample):,} calls{held} (got {calls:,}); raise it, or "
            "lower race"
        )
    return sizes


# Rows: the order in which training samples are used.


@final
class RowStream:
    """Numbers of training samples, epoch after epoch, each in another order."""

    def __init__(self, count: int, seed: int, epoch: int = 0, waiting: Sequence[int] = ()) -> None:
        self.count, self.seed, self.epoch = count, seed, epoch
        self.waiting = list(waiting)

    def copy(self) -> RowStream:
        return RowStream(self.count, self.seed, self.epoch, self.waiting)

    def take(self, number: int, avoid: Iterable[int] = ()) -> list[int]:
        """Take the next rows that aren't in `avoid`. Rows that are skipped come next. Fewer if there aren't enough.

        >>> stream = RowStream(4, seed=0)
        >>> one = stream.take(2)
        >>> sorted(one + stream.take(9, avoid=one))
        [0, 1, 2, 3]
        """
        taken: dict[int, None] = {}
        barred = set(avoid)
        while len(taken) < number:
            free = next((row for row in self.waiting if row not in barred and row not in taken), None)
            if free is not None:
                self.waiting.remove(free)
                taken[free] = None
            elif len(barred | set(taken)) >= self.count:
                break
            else:
                order = list(range(self.count))
                random.Random(f"{self.seed}/epoch/{self.epoch}").shuffle(order)
                self.epoch += 1
                self.waiting += order
        return list(taken)


class Rows(NamedTuple):
    """The training samples of one step.

    Attributes:
        chains: for each chain the samples of each of its small steps.
        race: samples that no edit of the step is made from.
    """

    chains: list[list[list[int]]]
    race: list[int]


def rows_for(stream: RowStream, sizes: Sizes, *, forwards: int, raced: Iterable[int] = ()) -> Rows:
    """Take the samples of a step.

    No edit of the step may be made from a sample of its race. Its first edits are made from the winner's mistakes in
    the last race, so the race avoids that one's samples too. The chains get at least half of all samples. If these are
    too few for all chains, each goes through them in an order of its own, several times if its small steps need more.

    Args:
        forwards: how many small steps of each chain run samples.
        raced: the samples of the last race.

    >>> rows = rows_for(RowStream(8, seed=0), Sizes(2, 2, 4, 24, 8, 2), forwards=2, raced=[0, 1, 2, 3])
    >>> sorted(rows.race), [sorted(shard) for chain in rows.chains for shard in chain]
    ([4, 5, 6, 7], [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    """
    before = set(raced)
    others = stream.count - len(before)
    most = min(sizes.race, max(stream.count // 2, 1))
    if others < max(min(most, stream.count // 4), 1):
        before, others = set[int](), stream.count
    fresh = stream.take(min(most, others), avoid=before)
    size = min(sizes.minibatch, stream.count - len(fresh))
    shared = stream.count - len(fresh) < sizes.chains * forwards * size
    used, chains = list(fresh), list[list[list[int]]]()
    for number in range(sizes.chains):
        mine = stream.take(forwards * size, avoid=fresh if shared else used)
        used += mine
        draw = random.Random(f"{stream.seed}/again/{stream.epoch}/{number}")
        chains.append(list(_shards(mine, forwards, size, draw)))
    return Rows(chains, fresh)


def _shards(rows: Sequence[int], count: int, size: int, draw: random.Random) -> Iterator[list[int]]:
    waiting = list(rows)
    for _ in range(count):
        if len(waiting) < size:
            waiting = draw.sample(rows, len(rows))
        yield waiting[:size]
        del waiting[:size]
