"""Holdout: samples that are not trained on, drawn in blocks from a dataset, a loader or a list of batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

from afnio.autodiff import Variable
from afnio.utils.data import DataLoader
from afnio.utils.data.collate import collate


class Block(NamedTuple):
    """Units that are evaluated together: samples of a dataset, or one batch of a list of batches."""

    units: tuple[int, ...]


@final
class Holdout:
    """Where held-out samples come from.

    Args:
        data: a `Dataset`; a `DataLoader`, of which the dataset and `collate_fn` are taken, not the order;
            or a list of batches, which are taken whole.

    >>> holdout = Holdout([["a", "b"], ["c", "d"]])
    >>> [holdout.batch(block.units) for block in holdout.draw(random.Random(0), samples=2, block_size=2)]
    [['c', 'd']]
    """

    def __init__(self, data: Any) -> None:
        self._collate: Callable[[list[Any]], Any] = collate
        self.whole = isinstance(data, list | tuple)
        """Whether a unit is a batch."""
        if isinstance(data, DataLoader):
            self._collate, data = data.collate_fn, data.dataset
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(f"held-out data is a Dataset, a DataLoader or a list of batches (got {data!r})")
        if len(data) == 0:
            raise ValueError("held-out data is empty (got 0 samples); nothing could be compared on it")
        self._data: Sequence[Any] = data

    def __len__(self) -> int:
        return len(self._data)

    def draw(self, generator: random.Random, *, samples: int, block_size: int) -> list[Block]:
        """Return blocks of `block_size` with `samples` in all, or all that there are, in random order.

        Of a list of batches, each is a block, and there are as many as blocks would be.
        """
        count = -(-samples // block_size) if self.whole else samples
        order = generator.sample(range(len(self)), min(count, len(self)))
        return self.blocks(order, block_size)

    def blocks(self, units: Sequence[int], block_size: int) -> list[Block]:
        """Return `units` in blocks, in their order."""
        size = 1 if self.whole else block_size
        return [Block(tuple(units[start : start + size])) for start in range(0, len(units), size)]

    def size(self, block: Block, otherwise: int) -> int:
        """Return how many samples a block has; `otherwise` for a batch of no known structure."""
        return _length(self.batch(block.units), otherwise) if self.whole else len(block.units)

    def batch(self, units: Sequence[int]) -> Any:
        """Return what `evaluate` gets for `units`."""
        if self.whole:
            (unit,) = units
            return self._data[unit]
        return self._collate([self._data[unit] for unit in units])

    def by_unit(self, units: Sequence[int], scores: Sequence[float | None]) -> dict[int, list[float | None]]:
        """Return the scores that `evaluate` gave the batch of `units`, for each unit.

        Raises:
            ValueError: if there isn't one for each sample.
        """
        if self.whole:
            return {units[0]: list(scores)}
        if len(scores) != len(units):
            raise ValueError(
                f"evaluate returned {len(scores)} scores for a batch of {len(units)} samples; it needs one for each, "
                "None for one that failed"
            )
        return {unit: [score] for unit, score in zip(units, scores, strict=True)}


def _length(batch: Any, otherwise: int) -> int:
    if isinstance(batch, Variable) and batch.batch:
        return int(batch.shape[0])
    if isinstance(batch, list):
        return len(batch)
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else ()
    return next((length for part in parts if (length := _length(part, 0))), otherwise)
