"""Datasets, the order in which they are visited, and batches of them."""

from __future__ import annotations

from afnio._public import show_in
from afnio.utils.data._dataloader import DataLoader, Dataset, IterableDataset, collate
from afnio.utils.data._sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

__all__ = [
    "BatchSampler",
    "DataLoader",
    "Dataset",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "WeightedRandomSampler",
    "collate",
]

show_in(__name__, globals(), __all__)
