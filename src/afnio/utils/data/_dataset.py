"""The samples to train on, by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


T_co = TypeVar("T_co", covariant=True)


class Dataset(ABC, Generic[T_co]):
    """A finite collection of samples with an index from 0.

    >>> class Squares(Dataset[int]):
    ...     def __getitem__(self, index: int) -> int:
    ...         return index * index
    ...     def __len__(self) -> int:
    ...         return 4
    >>> list(Squares())
    [0, 1, 4, 9]
    """

    @abstractmethod
    def __getitem__(self, index: int) -> T_co:
        """The sample at `index`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    def __iter__(self) -> Iterator[T_co]:
        """All samples in order; ends by the length, so `__getitem__` needn't raise IndexError."""
        return (self[index] for index in range(len(self)))


class IterableDataset(ABC, Generic[T_co]):
    """Samples that come one after the other and have no index: a file that is read, a queue, a generator.

    Each `for` over a loader begins a new epoch: it calls `__iter__` again. Where the length is known, a
    subclass writes `__len__`, and the loader has one too.

    >>> class Countdown(IterableDataset[int]):
    ...     def __iter__(self):
    ...         return iter([3, 2, 1])
    >>> list(Countdown())
    [3, 2, 1]
    """

    @abstractmethod
    def __iter__(self) -> Iterator[T_co]:
        """The samples of one epoch."""
