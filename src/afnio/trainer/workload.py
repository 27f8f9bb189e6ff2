"""Workload: how much a training has to do, as far as its loaders and limits say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any, NamedTuple

from afnio.trainer.feed import length, limited, sample_count
from afnio.trainer.options import Options
from afnio.utils.data._dataloader import DataLoader


class Workload(NamedTuple):
    """What there is to do.

    Attributes:
        samples: that are trained on, over all epochs.
        val_samples: that are validated on, over all passes.
    """

    epochs: int
    samples: int
    steps: int
    val_samples: int
    val_passes: int

    @classmethod
    def of(cls, options: Options, train: Any, val: Any) -> Workload:
        """Return what a fit has to do; without a limit of epochs or steps, in one epoch.

        Raises:
            ValueError: for a loader that doesn't say how much it holds.
        """
        batches, samples = _extent("train", options, train)
        steps = math.ceil(batches / options.accumulate_grad_batches)
        epochs, total = options.epochs, options.max_steps
        if epochs is None:
            epochs = 1 if total is None else math.ceil(total / max(steps, 1))
        whole = epochs * steps
        taken = whole if total is None else min(total, whole)
        epochs = min(epochs, math.ceil(taken / max(steps, 1)))
        trained = math.ceil(samples * taken / max(steps, 1))
        if val is None:
            return cls(epochs, trained, taken, 0, 0)
        _, val_samples = _extent("val", options, val)
        passes = epochs * _passes(options.val_check_interval, batches) if val_samples else 0
        return cls(epochs, trained, taken, passes * val_samples, passes)


def _extent(phase: str, options: Options, loader: Any) -> tuple[int, int]:
    """Return the batches and samples of one go through a loader."""
    name = f"limit_{phase}_batches"
    batches = limited(length(loader), options.limit(phase), name)
    if batches is None:
        raise ValueError(
            f"the {phase} loader doesn't say how many batches it has; give it a __len__, or {name}=…"
        )
    samples = sample_count(loader, batches)
    return batches, batches if samples is None else samples


def _passes(interval: float, batches: int) -> int:
    """Return the validation passes of an epoch: one at its end, and those within it."""
    if isinstance(interval, float):
        if interval == 1.0:
            return 1
        interval = max(1, math.floor(batches * interval))
    return max(1, math.ceil(batches / interval))


def first_batch(loader: Any) -> Any:
    """Return a batch as the loader would give it, and leave the loader as it is.

    Raises:
        TypeError: for an iterator, of which what is looked at would be gone.
        ValueError: for a loader without a batch.
    """
    if isinstance(loader, Iterator):
        raise TypeError(
            f"an estimate looks at one batch, which {type(loader).__name__} can give only once; pass a loader "
            "that can be iterated again, such as a DataLoader"
        )
    if isinstance(loader, DataLoader):
        dataset: Any = loader.dataset
        if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__") and len(dataset):
            # From all over it: what comes first may be short or long.
            size = min(loader.batch_size or 1, len(dataset))
            return loader.collate_fn([dataset[number * len(dataset) // size] for number in range(size)])
    state = loader.state_dict() if hasattr(loader, "state_dict") else None
    for batch in loader:
        if state is not None:
            loader.load_state_dict(state)
        return batch
    raise ValueError("the loader gave no batch; an estimate needs one to look at")
