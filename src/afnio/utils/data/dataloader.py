"""Batches of a dataset, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any

from afnio.utils.data.collate import collate
from afnio.utils.data.cursor import Cursor
from afnio.utils.data.sampler import RandomSampler, Sampler, SequentialSampler

if TYPE_CHECKING:
    from afnio.utils.data.dataset import Dataset


class DataLoader:
    """Yields the dataset in batches; each `for` over it is a new epoch.

    The order comes from `sampler` (a `Sampler`, or any iterable of indices), else it is the
    dataset's own or, with `shuffle=True`, a new one every epoch that `seed` makes repeatable. The
    last batch may be smaller, unless `drop_last`. `collate_fn` takes the list of samples of a
    batch. `state_dict()` tells which batch comes next; when several loops run over one loader,
    it speaks of the one that began last.

    >>> list(DataLoader(["a", "b", "c"], batch_size=2))
    [['a', 'b'], ['c']]
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        _check_batch_size(batch_size)
        _check_flag("shuffle", shuffle)
        _check_flag("drop_last", drop_last)
        if sampler is not None and shuffle:
            raise ValueError(
                f"shuffle=[True] and sampler=[{type(sampler).__name__}] both set the order; "
                "leave one of them out."
            )
        if sampler is None:
            sampler = RandomSampler(dataset, seed=seed) if shuffle else SequentialSampler(dataset)
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.collate_fn = collate if collate_fn is None else collate_fn
        self._cursor = Cursor()
        self._epoch_state: dict[str, Any] = {}

    def __len__(self) -> int:
        """The number of batches in one epoch."""
        if not isinstance(self.sampler, Sized):
            raise TypeError(f"The sampler [{type(self.sampler).__name__}] has no length; give it a __len__.")
        samples = len(self.sampler)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, start = self._cursor.begin()
        indices = iter(self.sampler)
        # The sampler's state at the epoch's start: skipping `start` indices from there is right
        # for every sampler, also for one that doesn't count its own position.
        self._epoch_state = self._sampler_state()
        return self._batches(epoch, islice(indices, start, None))

    def _batches(self, epoch: int, indices: Iterator[int]) -> Iterator[Any]:
        while batch := list(islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                break
            samples = [self.dataset[index] for index in batch]
            self._cursor.advance(epoch, len(batch))
            yield self.collate_fn(samples)
        self._cursor.end(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the samples of it already handed out, and the sampler's state at its start."""
        under_way = self._cursor.under_way
        sampler = self._epoch_state if under_way else self._sampler_state()
        return {**self._cursor.state_dict(), "sampler": dict(sampler)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch that came next when `state` was taken.

        If that was the last batch of its epoch, the next loop over the loader is empty: it is the
        rest of that epoch.
        """
        sampler = state.get("sampler")
        if not isinstance(sampler, Mapping):
            raise ValueError(  # noqa: TRY004 (a saved state's content, not an argument's type)
                f"The state's [sampler] is [{sampler!r}], but has to be the sampler's state; "
                "pass what state_dict() returned."
            )
        self._cursor.load_state_dict(state)
        if isinstance(self.sampler, Sampler):
            self.sampler.load_state_dict(sampler)

    def _sampler_state(self) -> dict[str, Any]:
        return self.sampler.state_dict() if isinstance(self.sampler, Sampler) else {}


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise TypeError(
            f"batch_size is [{batch_size!r}], but has to be a whole number; pass 1 for batches of one sample."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is [{batch_size}], but has to be at least 1.")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 (callers know it as a ValueError)
            f"{name} is [{value!r}], but has to be True or False."
        )
