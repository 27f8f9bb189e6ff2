"""The order in which a loader visits a dataset."""

from __future__ import annotations

import heapq
import math
import numbers
import random
from abc import ABC, abstractmethod
from itertools import accumulate, chain, islice, repeat
from typing import TYPE_CHECKING, Any

from afnio.runtime._settings import draw_seed
from afnio.utils.data.cursor import Cursor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized


class Sampler(ABC):
    """Yields the indices of one epoch each time it is iterated.

    A subclass with an order of its own that changes from epoch to epoch overrides `state_dict` and
    `load_state_dict` too, so that a run can be resumed exactly.

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
        """The indices of the next epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of indices in one epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on in the same order; nothing by default."""
        return {}

    def since(self, begun: Mapping[str, Any]) -> dict[str, Any]:
        """The state that an epoch can be repeated from which began at `begun`, with what was learned since."""
        return dict(begun)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (no state to load)
        """Go on where `state` was taken."""


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
        """The epoch and the position in it."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._cursor.load_state_dict(state)


class _SeededSampler(Sampler):
    """Draws each epoch with a generator of its own, made from the seed and the epoch's number.

    So an epoch's order needs no generator state to be saved, and nobody else's draws change it.
    """

    def __init__(self, seed: int | None) -> None:
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"The seed is [{seed!r}], but has to be a whole number or None.")
        self._seed = seed
        self._cursor = Cursor()

    @abstractmethod
    def _order(self, generator: random.Random) -> Iterator[int]:
        """The indices of one epoch."""

    def __iter__(self) -> Iterator[int]:
        epoch, start = self._cursor.begin()
        order = self._order(random.Random(f"{self._settled_seed()}/{epoch}"))
        return _counted(self._cursor, epoch, islice(order, start, None))

    def _settled_seed(self) -> int:
        if self._seed is None:
            self._seed = draw_seed()
        return self._seed

    def state_dict(self) -> dict[str, Any]:
        """The seed, the epoch and the position in it; settles the seed if none was given."""
        return {"seed": self._settled_seed(), **self._cursor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        seed = state.get("seed")
        if not isinstance(seed, int):
            raise ValueError(  # noqa: TRY004 (a saved state's content, not an argument's type)
                f"The state's [seed] is [{seed!r}], but has to be a whole number; "
                "pass what state_dict() returned."
            )
        self._cursor.load_state_dict(state)
        self._seed = seed


class RandomSampler(_SeededSampler):
    """Visits the samples in a new random order every epoch.

    `num_samples` is the length of an epoch, by default the dataset's. Without replacement a longer
    epoch visits every sample before it visits one again. The same seed gives the same epochs.

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
            raise TypeError(f"replacement is [{replacement!r}], but has to be True or False.")
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
                    f"Cannot draw [{self.num_samples}] samples from an empty dataset; "
                    "leave num_samples out or add samples."
                )
            return iter(())
        if self.replacement:
            return (generator.randrange(size) for _ in range(len(self)))
        passes = (generator.sample(range(size), size) for _ in repeat(None))
        return islice(chain.from_iterable(passes), len(self))


class WeightedRandomSampler(_SeededSampler):
    """Draws samples with probabilities in proportion to their weights.

    Without replacement each sample comes at most once, and every draw is in proportion to the
    weights of those that are left. A sample of weight 0 never comes.

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
                f"replacement is [{replacement!r}], but has to be True or False."
            )
        _check_num_samples(num_samples)
        self.weights = _checked_weights(list(weights))
        available = sum(weight > 0 for weight in self.weights)
        if not replacement and num_samples > available:
            raise ValueError(
                f"Cannot draw [{num_samples}] samples without replacement from [{available}] with "
                "a weight above 0; lower num_samples or set replacement=True."
            )
        self.num_samples = num_samples
        self.replacement = replacement

    def __len__(self) -> int:
        return self.num_samples

    def _order(self, generator: random.Random) -> Iterator[int]:
        if self.replacement:
            bounds = list(accumulate(self.weights))
            return iter(generator.choices(range(len(bounds)), cum_weights=bounds, k=self.num_samples))
        # Efraimidis and Spirakis: waiting times with the weights as rates arrive in the order of
        # successive weighted draws.
        arrivals = [
            (generator.expovariate(1.0) / weight, index)
            for index, weight in enumerate(self.weights)
            if weight > 0
        ]
        return (index for _, index in heapq.nsmallest(self.num_samples, arrivals))


def _counted(cursor: Cursor, epoch: int, indices: Iterator[int]) -> Iterator[int]:
    for index in indices:
        cursor.advance(epoch)
        yield index
    cursor.end(epoch)


def _check_num_samples(num_samples: int) -> None:
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples is [{num_samples!r}], but has to be a whole number from 1 upwards.")


def _checked_weights(weights: Sequence[Any]) -> list[float]:
    for index, weight in enumerate(weights):
        if not isinstance(weight, numbers.Real) or not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"The weight at [{index}] is [{weight!r}], but has to be a finite number from 0."
            )
    total = sum(map(float, weights))
    if not 0 < total < math.inf:
        raise ValueError(
            f"The weights add up to [{total}], but at least one has to be above 0 and their sum "
            "finite; pass one weight per sample."
        )
    return [float(weight) for weight in weights]
