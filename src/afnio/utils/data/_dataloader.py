"""Datasets, and DataLoader: batches of one, epoch by epoch, that can be resumed in the middle.

A `Dataset` has samples by index, an `IterableDataset` a stream of them.

The loader asks a sampler for indices, looks the samples up, groups them, and merges each group (`collate`). Its state
is the epoch, the number of samples handed out, and the sampler's state at the epoch's start. To resume, the sampler
repeats its epoch and the loader skips the samples that were handed out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, Generic, TypeVar

from afnio.autodiff._variable import Variable
from afnio.utils.data._sampler import (
    BatchSampler,
    Cursor,
    RandomSampler,
    Sampler,
    SequentialSampler,
    batch_count,
    check_batch_size,
    check_flag,
    grouped,
)

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


class DataLoader:
    """Yields the dataset in batches; each `for` over it is a new epoch.

    `state_dict()` has the position of the next batch. If several loops run over one loader, it is that of the loop that
    began last. Resuming in the middle of an `IterableDataset` reads the samples before that and drops them.

    Args:
        dataset: samples by index, or an `IterableDataset`, which sets its own order.
        batch_size: samples in a batch.
        shuffle: draw a new order every epoch.
        sampler: sets the order: a `Sampler`, or any iterable of indices.
        drop_last: leave out a last batch that is smaller.
        seed: makes the shuffled order repeatable; drawn from the run's seed by default.
        collate_fn: merges the list of a batch's samples; `collate` by default.
        batch_sampler: sets the batches: a `BatchSampler`, or any iterable of lists of indices. It replaces
            `batch_size`, `shuffle`, `sampler` and `drop_last`.

    Raises:
        TypeError: for an argument or a dataset of the wrong type.
        ValueError: for arguments that contradict each other.

    >>> list(DataLoader(["a", "b", "c"], batch_size=2))
    [['a', 'b'], ['c']]
    """

    def __init__(
        self,
        dataset: Dataset[Any] | IterableDataset[Any] | Sequence[Any],
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
    ) -> None:
        check_batch_size(batch_size)
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        _check_order(dataset, shuffle, sampler, batch_sampler, batch_size, drop_last)
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.batch_sampler = batch_sampler
        self.sampler = sampler
        if sampler is None and batch_sampler is None and not isinstance(dataset, IterableDataset):
            self.sampler = RandomSampler(dataset, seed=seed) if shuffle else SequentialSampler(dataset)
        self.collate_fn = collate if collate_fn is None else collate_fn
        self._cursor = Cursor()
        self._epoch_state: dict[str, Any] = {}

    def __len__(self) -> int:
        """Return the number of batches in one epoch; TypeError if the source has no length."""
        if self.batch_sampler is not None:
            return batch_count(self.batch_sampler, "batch_sampler", 1, drop_last=False)
        source, name = (self.dataset, "dataset") if self.sampler is None else (self.sampler, "sampler")
        return batch_count(source, name, self.batch_size, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        epoch, start = self._cursor.begin()
        items = iter(self._items())
        # Take the sampler's state at the epoch's start. Skipping from there is right even for samplers that don't count
        # their position.
        self._epoch_state = self._sampler_state()
        return self._batches(epoch, islice(items, start, None))

    def _items(self) -> Iterable[Any]:
        """Return the items that the cursor counts: batches of indices, indices, or samples."""
        if self.batch_sampler is not None:
            return self.batch_sampler
        if self.sampler is not None:
            return self.sampler
        assert isinstance(self.dataset, IterableDataset)
        return self.dataset

    def _batches(self, epoch: int, items: Iterator[Any]) -> Iterator[Any]:
        whole = self.batch_sampler is not None
        for batch in items if whole else grouped(items, self.batch_size, drop_last=self.drop_last):
            samples = self._samples(batch)
            self._cursor.advance(epoch, 1 if whole else len(batch))
            yield self.collate_fn(samples)
        self._cursor.end(epoch)

    def _samples(self, batch: Sequence[Any]) -> list[Any]:
        if isinstance(self.dataset, IterableDataset):
            return list(batch)
        return [self.dataset[index] for index in batch]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the position in samples (with `batch_sampler` in batches), and the sampler's state."""
        sampler = self._epoch_state if self._cursor.running else self._sampler_state()
        return {**self._cursor.state_dict(), "sampler": dict(sampler)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the batch that came next when `state` was taken.

        If no batch was left in that epoch, the next loop over the loader is empty: it is the rest of the epoch.
        """
        sampler = state.get("sampler")
        if not isinstance(sampler, Mapping):
            raise ValueError(  # noqa: TRY004 (a saved state's content, not an argument's type)
                f"the state's 'sampler' must be the sampler's state (got {sampler!r}); "
                "pass the dict that state_dict() returned"
            )
        self._cursor.load_state_dict(state)
        own = self._stateful()
        if own is not None:
            own.load_state_dict(sampler)

    def _sampler_state(self) -> dict[str, Any]:
        own = self._stateful()
        return {} if own is None else own.state_dict()

    def _stateful(self) -> Sampler | BatchSampler | None:
        source = self.sampler if self.batch_sampler is None else self.batch_sampler
        return source if isinstance(source, Sampler | BatchSampler) else None


def _check_order(
    dataset: object, shuffle: bool, sampler: object, batch_sampler: object, batch_size: int, drop_last: bool
) -> None:
    """Raise if two arguments set the order or the batches, or if the dataset has no length."""
    if sampler is not None and shuffle:
        raise ValueError(
            f"shuffle must be left out with a sampler, which sets the order (got sampler {type(sampler).__name__})"
        )
    given = {"batch_size": batch_size != 1, "shuffle": shuffle, "sampler": sampler is not None}
    given["drop_last"] = drop_last
    if batch_sampler is not None and any(given.values()):
        names = ", ".join(name for name, is_given in given.items() if is_given)
        raise ValueError(
            f"{names} must be left out with a batch_sampler, which makes whole batches "
            f"(got {type(batch_sampler).__name__})"
        )
    if isinstance(dataset, IterableDataset) and (shuffle or sampler is not None or batch_sampler is not None):
        raise ValueError(
            "shuffle, sampler and batch_sampler must be left out with an IterableDataset, which sets its own order "
            f"(got {type(dataset).__name__}); shuffle in its __iter__"
        )
    if not isinstance(dataset, IterableDataset) and not isinstance(dataset, Sized):
        raise TypeError(
            f"the dataset must have a length (got {type(dataset).__name__}); subclass "
            "afnio.utils.data.IterableDataset for a stream of samples"
        )


# Merging samples into a batch.


def collate(samples: Sequence[Any]) -> Any:
    """Merge samples of the same structure into a batch of that structure.

    Tuples (named ones too) and dicts are merged field by field, at any depth. `Variable`s become one `Variable` with a
    lane for each sample, and with the role and `requires_grad` of the first. A sample whose data is itself a list stays
    one lane with that list as its data. Everything else becomes a plain list.

    Raises:
        TypeError: if some Variables have single values and others have lists.
        ValueError: if tuples differ in length, or dicts in keys.

    >>> from afnio import Variable
    >>> batch = collate([(Variable("a", role="text"), 1), (Variable("b", role="text"), 2)])
    >>> batch[0].data, batch[1]
    (['a', 'b'], [1, 2])
    """
    if _all(samples, Variable):
        return _merge(samples)
    if _all(samples, tuple):
        columns = [collate(column) for column in _columns(samples)]
        kind = type(samples[0])
        return kind(*columns) if hasattr(kind, "_fields") else tuple(columns)
    if _all(samples, Mapping):
        keys = _shared_keys(samples)
        return {key: collate([sample[key] for sample in samples]) for key in keys}
    return list(samples)


def _all(samples: Sequence[Any], kind: type) -> bool:
    return len(samples) > 0 and all(isinstance(sample, kind) for sample in samples)


def _merge(samples: Sequence[Variable]) -> Variable:
    first = samples[0]
    data = [sample.data for sample in samples]
    given = [value for value in data if value is not None]
    if len({isinstance(value, list) for value in given}) > 1:
        raise TypeError(
            f"samples must all have a single value or all have a list (got both for the role {first.role!r}); "
            "pass your own collate_fn to mix them"
        )
    return Variable(data=data, role=first.role, requires_grad=first.requires_grad)


def _columns(samples: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    lengths = sorted({len(sample) for sample in samples})
    if len(lengths) > 1:
        raise ValueError(
            f"samples must be tuples of one length (got {lengths}); change the dataset, or pass your own collate_fn"
        )
    return list(zip(*samples, strict=True))


def _shared_keys(samples: Sequence[Mapping[Any, Any]]) -> list[Any]:
    keys = list(samples[0])
    for sample in samples:
        if sample.keys() != samples[0].keys():
            raise ValueError(
                f"samples must be dicts with the same keys (got {keys} and {list(sample)}); change the dataset, or "
                "pass your own collate_fn"
            )
    return keys
