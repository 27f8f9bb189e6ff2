"""Datasets, the order in which they are visited, and batches of them."""

from afnio.utils.data.batch_sampler import BatchSampler
from afnio.utils.data.collate import collate
from afnio.utils.data.dataloader import DataLoader
from afnio.utils.data.dataset import Dataset, IterableDataset
from afnio.utils.data.prioritized import PrioritizedSampler
from afnio.utils.data.sampler import (
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
    "PrioritizedSampler",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "WeightedRandomSampler",
    "collate",
]
