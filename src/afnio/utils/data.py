"""Datasets, the order in which they are visited, and batches of them.

A `Dataset` has samples by index, an `IterableDataset` a stream of them. A sampler yields the order in which a loader
visits a dataset. An order must be repeatable. A run that was killed in the middle of an epoch continues with the same
samples, and two runs with one seed see the same batches. So a sampler doesn't keep the state of a random generator. It
makes a new generator for each epoch, from its seed and the epoch's number (`_SeededSampler`), and a `Cursor` counts how
many of the epoch's samples were handed out. Seed, epoch and position are all that a checkpoint needs. `BatchSampler`
groups the indices of any sampler.

`DataLoader` asks a sampler for indices, looks the samples up, groups them, and merges each group (`collate`). It can be
resumed in the middle of an epoch. Its state is the epoch, the number of samples handed out, and the sampler's state at
the epoch's start. To resume, the sampler repeats its epoch and the loader skips the samples that were handed out.
"""

from __future__ import annotations

import heapq
import math
import numbers
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import accumulate, chain, islice, repeat
from typing import Any, Generic, TypeVar

from afnio.autodiff._variable import Variable
from afnio.runtime._settings import draw_seed

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


class Sampler(ABC):
    """Yields the indices of one epoch each time it is iterated.

    A subclass whose order changes from epoch to epoch must also override `state_dict` and `load_state_dict`, or a
    resumed run sees other samples.

    >>> class Backwards(Sampler):
    ...     def __iter__(self):
    ...         return iter([2, 1, 0])
    ...     def __len__(self):
    ...         return 3
    >>> list(Backwards())
    [2, 1, 0]
    """

    @abstractmethod
    def __iter__(self) -> Iterator[int]:
        """Return the indices of the next epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of indices in one epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` continues in the same order; empty by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (no state to load)
        """Continue where `state` was taken."""


class SequentialSampler(Sampler):
    """Visits every sample once, in the dataset's order.

    >>> list(SequentialSampler("abc"))
    [0, 1, 2]
    """

    def __init__(self, dataset: Sized) -> None:
        self.dataset = dataset
        self._cursor = Cursor()

    def __iter__(self) -> Iterator[int]:
        epoch, start = self._cursor.begin()
        return _counted(self._cursor, epoch, iter(range(start, len(self.dataset))))

    def __len__(self) -> int:
        return len(self.dataset)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the position in it."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self._cursor.load_state_dict(state)


class _SeededSampler(Sampler):
    """Draws each epoch with a new generator, seeded by the seed and the epoch's number.

    The order needs no saved generator state, and other random draws in the process don't change it.
    """

    def __init__(self, seed: int | None) -> None:
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"seed must be an int or None (got {seed!r})")
        self._seed = seed
        self._cursor = Cursor()

    @abstractmethod
    def _order(self, generator: random.Random) -> Iterator[int]:
        """Return the indices of one epoch."""

    def __iter__(self) -> Iterator[int]:
        epoch, start = self._cursor.begin()
        order = self._order(random.Random(f"{self._settled_seed()}/{epoch}"))
        return _counted(self._cursor, epoch, islice(order, start, None))

    def _settled_seed(self) -> int:
        if self._seed is None:
            self._seed = draw_seed()
        return self._seed

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the epoch and the position in it. Draws the seed now if none was given."""
        return {"seed": self._settled_seed(), **self._cursor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        seed = state.get("seed")
        if not isinstance(seed, int):
            raise ValueError(  # noqa: TRY004 (a saved state's content, not an argument's type)
                f"the state's 'seed' must be an int (got {seed!r}); pass the dict that state_dict() returned"
            )
        self._cursor.load_state_dict(state)
        self._seed = seed


class RandomSampler(_SeededSampler):
    """Visits the samples in a new random order every epoch.

    Without replacement, an epoch longer than the dataset visits every sample before it visits one again. The same seed
    gives the same epochs.

    Args:
        num_samples: length of an epoch; the dataset's by default.
        seed: seed of the draws; drawn from the run's seed by default.

    >>> sorted(RandomSampler("abc", seed=0))
    [0, 1, 2]
    """

    def __init__(
        self,
        dataset: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement must be True or False (got {replacement!r})")
        if num_samples is not None:
            _check_num_samples(num_samples)
        self.dataset = dataset
        self.replacement = replacement
        self.num_samples = num_samples

    def __len__(self) -> int:
        return len(self.dataset) if self.num_samples is None else self.num_samples

    def _order(self, generator: random.Random) -> Iterator[int]:
        size = len(self.dataset)
        if size == 0:
            if self.num_samples is not None:
                raise ValueError(
                    f"num_samples must be left out for an empty dataset (got {self.num_samples})"
                )
            return iter(())
        if self.replacement:
            return (generator.randrange(size) for _ in range(len(self)))
        passes = (generator.sample(range(size), size) for _ in repeat(None))
        return islice(chain.from_iterable(passes), len(self))


class WeightedRandomSampler(_SeededSampler):
    """Draws samples with probabilities in proportion to their weights.

    Without replacement each sample comes at most once, and every draw is in proportion to the weights of the remaining
    ones. A sample with weight 0 never comes.

    Source: without replacement, Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).

    >>> list(WeightedRandomSampler([0, 1, 0], num_samples=2, seed=0))
    [1, 1]
    """

    def __init__(
        self,
        weights: Iterable[float],
        num_samples: int,
        replacement: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        if not isinstance(replacement, bool):
            raise ValueError(  # noqa: TRY004 (callers know it as a ValueError)
                f"replacement must be True or False (got {replacement!r})"
            )
        _check_num_samples(num_samples)
        self.weights = _checked_weights(list(weights))
        available = sum(weight > 0 for weight in self.weights)
        if not replacement and num_samples > available:
            raise ValueError(
                f"num_samples must be at most {available}, the number of weights above 0 (got {num_samples}); "
                "lower it or set replacement=True"
            )
        self.num_samples = num_samples
        self.replacement = replacement

    def __len__(self) -> int:
        return self.num_samples

    def _order(self, generator: random.Random) -> Iterator[int]:
        if self.replacement:
            bounds = list(accumulate(self.weights))
            return iter(generator.choices(range(len(bounds)), cum_weights=bounds, k=self.num_samples))
        # Exponential waiting times with the weights as rates end in the order of successive weighted draws.
        arrivals = [
            (generator.expovariate(1.0) / weight, index)
            for index, weight in enumerate(self.weights)
            if weight > 0
        ]
        return (index for _, index in heapq.nsmallest(self.num_samples, arrivals))


class BatchSampler:
    """Groups the indices of `sampler` into batches of `batch_size`.

    The last batch may be smaller, unless `drop_last`. A `DataLoader` also takes any iterable of lists of indices, for
    example batches of one label or of similar lengths.

    >>> list(BatchSampler([3, 1, 2], batch_size=2))
    [[3, 1], [2]]
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool = False) -> None:
        check_batch_size(batch_size)
        check_flag("drop_last", drop_last)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return grouped(iter(self.sampler), self.batch_size, drop_last=self.drop_last)

    def __len__(self) -> int:
        """Return the number of batches in one epoch."""
        return batch_count(self.sampler, "sampler", self.batch_size, drop_last=self.drop_last)

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state."""
        return self.sampler.state_dict() if isinstance(self.sampler, Sampler) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        if isinstance(self.sampler, Sampler):
            self.sampler.load_state_dict(state)


# The position in an epoch.


class Cursor:
    """Counts epochs, and the samples handed out in the latest one.

    An epoch that is left early is over, and the next one begins at its first sample. Only an epoch from a loaded state
    continues in the middle.

    >>> cursor = Cursor()
    >>> cursor.load_state_dict({"epoch": 2, "position": 5})
    >>> cursor.begin(), cursor.begin()
    ((2, 5), (3, 0))
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.running = False

    def begin(self) -> tuple[int, int]:
        """Start an epoch, and return its number and how many of its samples were already handed out."""
        if self.running:
            self.epoch += 1
            self.position = 0
        self.running = True
        return self.epoch, self.position

    def advance(self, epoch: int, samples: int = 1) -> None:
        """Count samples handed out. Ignores an epoch that isn't the latest."""
        if epoch == self.epoch:
            self.position += samples

    def end(self, epoch: int) -> None:
        """Note that an epoch has handed out all its samples."""
        if self.running and epoch == self.epoch:
            self.epoch += 1
            self.position = 0
            self.running = False

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of `state`; the next `begin` continues there."""
        self.epoch = _natural_number(state, "epoch")
        self.position = _natural_number(state, "position")
        self.running = False


def _natural_number(state: Mapping[str, Any], key: str) -> int:
    """Return the number under `key` of a saved state; ValueError unless it is one from 0."""
    value = state.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= sys.maxsize:
        raise ValueError(
            f"the state's {key!r} must be an int from 0 (got {value!r}); pass the dict that state_dict() returned"
        )
    return value


def _counted(cursor: Cursor, epoch: int, indices: Iterator[int]) -> Iterator[int]:
    for index in indices:
        cursor.advance(epoch)
        yield index
    cursor.end(epoch)


# Batches of indices.


T = TypeVar("T")


def grouped(items: Iterator[T], size: int, *, drop_last: bool) -> Iterator[list[T]]:
    """Yield lists of `size` items; a smaller one at the end, unless `drop_last`.

    >>> list(grouped(iter("abc"), 2, drop_last=True))
    [['a', 'b']]
    """
    while group := list(islice(items, size)):
        if drop_last and len(group) < size:
            break
        yield group


def batch_count(source: object, name: str, batch_size: int, *, drop_last: bool) -> int:
    """Return the number of batches that `source` makes; TypeError if it has no length."""
    if not isinstance(source, Sized):
        raise TypeError(f"{name} must have a length (got {type(source).__name__}); give it a __len__")
    return len(source) // batch_size if drop_last else -(-len(source) // batch_size)


# Checks of arguments.


def _check_num_samples(num_samples: int) -> None:
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples must be an int from 1 (got {num_samples!r})")


def _checked_weights(weights: Sequence[Any]) -> list[float]:
    for index, weight in enumerate(weights):
        if not isinstance(weight, numbers.Real) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights[{index}] must be a finite number from 0 (got {weight!r})")
    total = sum(map(float, weights))
    if not 0 < total < math.inf:
        raise ValueError(
            f"weights must have a finite sum above 0 (got {total}); pass one weight for each sample"
        )
    return [float(weight) for weight in weights]


def check_batch_size(batch_size: int) -> None:
    """Raise TypeError or ValueError unless this is an int from 1."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise TypeError(f"batch_size must be an int (got {batch_size!r}); pass 1 for batches of one sample")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 (got {batch_size})")


def check_flag(name: str, value: bool) -> None:
    """Raise ValueError unless this is a bool."""
    if not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 (callers know it as a ValueError)
            f"{name} must be True or False (got {value!r})"
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
    options = {"batch_size": batch_size != 1, "shuffle": shuffle, "sampler": sampler is not None}
    options["drop_last"] = drop_last
    if batch_sampler is not None and any(options.values()):
        names = ", ".join(name for name, is_given in options.items() if is_given)
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
    values = [value for value in data if value is not None]
    if len({isinstance(value, list) for value in values}) > 1:
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
