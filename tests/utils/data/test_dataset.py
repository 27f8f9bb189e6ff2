"""Datasets: what a subclass has to bring and what it gets."""

from __future__ import annotations

import pytest

from afnio.utils.data import Dataset


class Endless(Dataset[int]):
    """Computes its samples, so that no index is out of range."""

    def __getitem__(self, index: int) -> int:
        return index * 10

    def __len__(self) -> int:
        return 3


def test_a_dataset_without_its_methods_cannot_be_made() -> None:
    """The base class is abstract."""
    with pytest.raises(TypeError, match="abstract"):
        Dataset()  # type: ignore[abstract]


def test_iteration_ends_at_the_length() -> None:
    """A loop over a dataset that never raises IndexError ends all the same."""
    assert list(Endless()) == [0, 10, 20]
