"""Sizes and rows of one step of `EditTGD`: how much it does, what that costs, and which samples it uses.

Both are decided before the first call of a step, from the budget, the seed and the data's order alone. So a repeated
run does the same, and a journal finds its calls.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, final

SHARE: Final = 0.25
WIDE_SHARE: Final = 0.4
WIDE: Final = 4
"""A step with more chains than this may cost `WIDE_SHARE` of the budget, one with fewer `SHARE`."""


class Sizes(NamedTuple):
    """What one step does; see `EditTGD` for the names."""

    chains: int
    inner: int
    minibatch: int
    race: int
    first: int
    keep: int

    def smaller(self, wanted: Sizes) -> Sizes | None:
        """Return the next smaller sizes: less of what has shrunk least so far. None at the smallest.

        Three mistakes are the fewest that a proposer can generalise from, and six samples the fewest that a race can
        rank anything on. Chains get shorter only when nothing else is left.
        """
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
        calls += self.race * sample.critics / 2
        return math.ceil(calls) + (self.chains * self.inner + several) * sample.prompts


_SMALLEST: Final = {"race": 6, "minibatch": 3, "chains": 1}


class SampleCost(NamedTuple):
    """The calls that one sample takes.

    Attributes:
        forward: To run and score it.
        critics: To criticise it. 0 if the proposer reads the mistakes.
        prompts: Parameters that may change, each with a proposal.
    """

    forward: int
    critics: int
    prompts: int


def affordable(wanted: Sizes, sample: SampleCost, calls: int, reserve: int) -> Sizes:
    """Return the largest sizes whose step costs no more than its share of the budget.

    If none does, the smallest ones, as long as the budget pays for one step of them.

    Raises:
        ValueError: if it doesn't.

    >>> affordable(Sizes(3, 3, 8, 24, 8, 2), SampleCost(1, 0, 1), 1_200, 0)
    Sizes(chains=3, inner=3, minibatch=8, race=24, first=8, keep=2)
    >>> affordable(Sizes(3, 3, 8, 24, 8, 2), SampleCost(1, 0, 1), 300, 0)
    Sizes(chains=2, inner=3, minibatch=6, race=16, first=5, keep=2)
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
            found = next((row for row in self.waiting if row not in barred and row not in taken), None)
            if found is not None:
                self.waiting.remove(found)
                taken[found] = None
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
        chains: For each chain the samples of each of its small steps.
        race: Samples that are in none of these.
    """

    chains: list[list[list[int]]]
    race: list[int]


def rows_for(stream: RowStream, sizes: Sizes, *, forwards: int) -> Rows:
    """Take the samples of a step.

    If there are too few, chains share theirs. If there are too few for one chain, a quarter of all is kept for the
    race.

    Args:
        forwards: How many small steps of each chain run samples.

    >>> rows = rows_for(RowStream(8, seed=0), Sizes(2, 2, 4, 24, 8, 2), forwards=2)
    >>> len(rows.race), [len(shard) for chain in rows.chains for shard in chain]
    (2, [3, 3, 3, 3])
    """
    wanted = sizes.chains * forwards * sizes.minibatch
    race = min(sizes.race, max(stream.count - forwards * sizes.minibatch, stream.count // 4, 1))
    fresh = stream.take(race)
    chains: list[list[list[int]]] = []
    shared = stream.count - len(fresh) < wanted
    used: list[int] = list(fresh)
    for _ in range(sizes.chains):
        mine: list[int] = stream.take(sizes.minibatch * forwards, avoid=fresh if shared else used)
        used += mine
        size = max(1, math.ceil(len(mine) / forwards)) if forwards else 0
        shards = [mine[at * size : (at + 1) * size] for at in range(forwards)]
        chains.append([shard or mine[:size] for shard in shards])
    return Rows(chains, fresh)
