"""Splits: the messages that the demo trains on, chooses by, and tests with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from afnio import tellurio as te
from afnio.utils.data._dataloader import DataLoader
from afnio.utils.data._sampler import WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport
from afnio.utils.datasets.facility_support import Item


@dataclass(frozen=True, slots=True)
class Splits:
    """FacilitySupport's three splits, or the first messages of each."""

    train: Sequence[Item]
    validation: Sequence[Item]
    test: Sequence[Item]

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    def loader_of_training(self, batch_size: int, seed: int) -> DataLoader:
        """Return the training loader of the tutorial: every label is drawn as often as the others."""
        weights = sample_weights(self.train)
        sampler = WeightedRandomSampler(weights, num_samples=len(self.train), replacement=True, seed=seed)
        return DataLoader(self.train, sampler=sampler, batch_size=batch_size)


def load_splits(messages: int | None) -> Splits:
    """Return the splits, fetched if need be.

    Args:
        messages: how many of each are used; None for all.

    Raises:
        DownloadError: if no source has the file.
    """
    train, validation, test = (
        _head(FacilitySupport("train"), messages),
        _head(FacilitySupport("val"), messages),
        _head(FacilitySupport("test"), messages),
    )
    return Splits(train, validation, test)


def sample_weights(items: Sequence[Item]) -> list[float]:
    """Return a weight for each item, so that each label's weights have the same sum."""
    with te.suppress_variable_notifications():
        labels = [sentiment.data for _, (_, sentiment, _) in items]
    return [len(labels) / labels.count(label) for label in labels]


def _head(data: FacilitySupport, messages: int | None) -> list[Item]:
    return [data[index] for index in range(min(len(data), messages or len(data)))]
