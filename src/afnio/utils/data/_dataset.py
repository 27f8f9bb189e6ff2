"""Dataset and IterableDataset: samples by index, and samples in a stream."""

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
        """Return the sample at `index`, from 0."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    def __iter__(self) -> Iterator[T_co]:
        """Yield all samples in order. Ends at the length, so `__getitem__` needn't raise IndexError."""
        return (self[index] for index in range(len(self)))


class IterableDataset(ABC, Generic[T_co]):
    """A stream of samples without indices: a large file, a queue, a generator.

    Each `for` over a loader is a new epoch and calls `__iter__` again. If the length is known, write `__len__` too, and
    the loader has a length.

    >>> class Countdown(IterableDataset[int]):
    ...     def __iter__(self):
    ...         return iter([3, 2, 1])
    >>> list(Countdown())
    [3, 2, 1]
    """

    @abstractmethod
    def __iter__(self) -> Iterator[T_co]:
        """Return the samples of one epoch."""
