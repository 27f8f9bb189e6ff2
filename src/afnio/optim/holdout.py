"""Holdout: samples that are not trained on, drawn in blocks from a dataset, a loader or a list."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

from afnio.utils.data import DataLoader
from afnio.utils.data.collate import collate


class Block(NamedTuple):
    """Samples that are evaluated together, by number."""

    units: tuple[int, ...]


@final
class Holdout:
    """Where held-out samples come from.

    Args:
        data: a `Dataset` or a list of samples; or a `DataLoader`, of which the dataset and `collate_fn` are
            taken, not the order.

    >>> holdout = Holdout([("a", 1), ("b", 2), ("c", 3)])
    >>> [holdout.batch(block.units) for block in holdout.blocks(range(3), 2)]
    [(['a', 'b'], [1, 2]), (['c'], [3])]
    """

    def __init__(self, data: Any) -> None:
        self._collate: Callable[[list[Any]], Any] = collate
        if isinstance(data, DataLoader):
            self._collate, data = data.collate_fn, data.dataset
        if isinstance(data, str) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(f"held-out data is a Dataset, a DataLoader or a list of samples (got {data!r})")
        if len(data) == 0:
            raise ValueError("held-out data is empty (got 0 samples); nothing could be compared on it")
        self._data: Sequence[Any] = data

    def __len__(self) -> int:
        return len(self._data)

    def draw(self, generator: random.Random, *, samples: int, block_size: int) -> list[Block]:
        """Return blocks of `block_size` with `samples` in all, or all that there are, in random order."""
        return self.blocks(generator.sample(range(len(self)), min(samples, len(self))), block_size)

    def blocks(self, units: Sequence[int], block_size: int) -> list[Block]:
        """Return `units` in blocks, in their order."""
        return [Block(tuple(units[start : start + block_size])) for start in range(0, len(units), block_size)]

    def batch(self, units: Sequence[int]) -> Any:
        """Return what `evaluate` gets for `units`."""
        return self._collate([self._data[unit] for unit in units])

    def by_unit(self, units: Sequence[int], scores: Sequence[float | None]) -> dict[int, list[float | None]]:
        """Return the scores that `evaluate` gave the batch of `units`, for each unit.

        Raises:
            ValueError: if there isn't one for each sample.
        """
        if len(scores) != len(units):
            raise ValueError(
                f"evaluate returned {len(scores)} scores for a batch of {len(units)} samples; it needs one for each, "
                "None for one that failed"
            )
        return {unit: [score] for unit, score in zip(units, scores, strict=True)}
