"""The order in which a loader visits a dataset."""

from __future__ import annotations

import heapq
import math
import numbers
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Sized
from itertools import accumulate, chain, islice, repeat
from typing import TYPE_CHECKING, Any, TypeVar

from afnio.runtime._settings import draw_seed

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


# How far an epoch has got, so that it can be taken up again at that sample.


class Cursor:
    """Counts epochs, and the samples handed out in the one that was begun last.

    An epoch that is left early is over: the next one begins at its first sample. Only a loaded
    state is taken up where it stands.

    >>> cursor = Cursor()
    >>> cursor.load_state_dict({"epoch": 2, "position": 5})
    >>> cursor.begin(), cursor.begin()
    ((2, 5), (3, 0))
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.under_way = False

    def begin(self) -> tuple[int, int]:
        """Start an epoch: its number, and how many of its samples were handed out before."""
        if self.under_way:
            self.epoch += 1
            self.position = 0
        self.under_way = True
        return self.epoch, self.position

    def advance(self, epoch: int, samples: int = 1) -> None:
        """Count samples handed out; those of an epoch begun earlier no longer matter."""
        if epoch == self.epoch:
            self.position += samples

    def end(self, epoch: int) -> None:
        """Note that an epoch has handed out all its samples."""
        if self.under_way and epoch == self.epoch:
            self.epoch += 1
            self.position = 0
            self.under_way = False

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; the next `begin` goes on from there."""
        self.epoch = natural_number(state, "epoch")
        self.position = natural_number(state, "position")
        self.under_way = False


def natural_number(state: Mapping[str, Any], key: str) -> int:
    """The number under `key` of a saved state."""
    value = state.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= sys.maxsize:
        raise ValueError(
            f"The state's [{key}] is [{value!r}], but has to be a whole number from 0; "
            "pass what state_dict() returned."
        )
    return value


# Which samples make up each batch.


T = TypeVar("T")


class BatchSampler:
    """Yields the indices of one batch after the other, in the order of `sampler`.

    Any iterable of lists of indices can stand in its place, for batches of another kind: of one label,
    of similar lengths. The last batch may be smaller, unless `drop_last`.

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
        """The number of batches in one epoch."""
        return batch_count(self.sampler, "sampler", self.batch_size, drop_last=self.drop_last)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on in the same order: the sampler's state."""
        return self.sampler.state_dict() if isinstance(self.sampler, Sampler) else {}

    def since(self, begun: Mapping[str, Any]) -> dict[str, Any]:
        """The sampler's state that an epoch can be repeated from which began at `begun`, with what it learned since."""
        return self.sampler.since(begun) if isinstance(self.sampler, Sampler) else dict(begun)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        if isinstance(self.sampler, Sampler):
            self.sampler.load_state_dict(state)


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
    """The number of batches that `source` makes; TypeError where it has no length."""
    if not isinstance(source, Sized):
        raise TypeError(f"The {name} [{type(source).__name__}] has no length; give it a __len__.")
    return len(source) // batch_size if drop_last else -(-len(source) // batch_size)


def check_batch_size(batch_size: int) -> None:
    """Raise for what is no size of a batch."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise TypeError(
            f"batch_size is [{batch_size!r}], but has to be a whole number; pass 1 for batches of one sample."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is [{batch_size}], but has to be at least 1.")


def check_flag(name: str, value: bool) -> None:
    """Raise for what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 (callers know it as a ValueError)
            f"{name} is [{value!r}], but has to be True or False."
        )


# PrioritizedSampler: samples that went wrong come again sooner.


class PrioritizedSampler(_SeededSampler):
    """Draws samples by how badly they did, with replacement: prioritized replay.

    A sample of score s, from 0 to 1, is drawn in proportion to (1 - s + floor)^alpha; one without a score counts as
    wrong, so that it is seen. Tell it the scores after each batch, `sampler.update(score.samples)`: they belong to the
    samples in the order in which it handed them out. An epoch is drawn at its start, by the scores known
    then, so that it doesn't depend on who is quick and can be resumed in its middle, as the loader's state has the
    scores learned since.

    Source: Schaul et al., "Prioritized Experience Replay", arXiv:1511.05952, its proportional variant, with
    1 - score for the error. Its correction by importance weights is left out: feedback in words has no weight.

    Args:
        dataset: what is drawn from.
        num_samples: length of an epoch, by default the dataset's.
        alpha: 0 draws evenly, 1 in proportion to the errors.
        floor: what a sample that is right keeps, so that it is seen from time to time.
        seed: of the draws; from the run by default.

    >>> sampler = PrioritizedSampler("abcd", floor=0.0, seed=0)
    >>> sampler.update([1.0, 1.0, 0.0, 1.0], indices=[0, 1, 2, 3])
    >>> list(sampler)
    [2, 2, 2, 2]
    """

    def __init__(
        self,
        dataset: Sized,
        num_samples: int | None = None,
        *,
        alpha: float = 0.6,
        floor: float = 0.1,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        if num_samples is not None:
            _check_num_samples(num_samples)
        _check_fraction("alpha", alpha)
        _check_fraction("floor", floor)
        self.dataset = dataset
        self.num_samples = num_samples
        self.alpha = alpha
        self.floor = floor
        self.scores: list[float] = [0.0] * len(dataset)
        self._drawn_by: list[float] | None = None
        self._begun_by: list[float] = []
        self._order_now: list[int] = []
        self._scored = 0

    def __len__(self) -> int:
        return len(self.dataset) if self.num_samples is None else self.num_samples

    def __iter__(self) -> Iterator[int]:
        epoch, start = self._cursor.begin()
        if self._drawn_by is None:
            self._drawn_by, self._scored = list(self.scores), 0
        self._order_now = list(self._order(random.Random(f"{self._settled_seed()}/{epoch}")))
        drawn_by, self._drawn_by = self._drawn_by, None
        self._begun_by = drawn_by
        return _counted(self._cursor, epoch, islice(self._order_now, start, None))

    def _order(self, generator: random.Random) -> Iterator[int]:
        scores = self.scores if self._drawn_by is None else self._drawn_by
        weights = [(1 - score + self.floor) ** self.alpha for score in scores]
        if not scores:
            return iter(())
        if not any(weights):  # all is right, and nothing is kept for what is
            weights = [1.0] * len(weights)
        return iter(
            generator.choices(range(len(weights)), cum_weights=list(accumulate(weights)), k=len(self))
        )

    def update(self, scores: Sequence[float | None], indices: Sequence[int] | None = None) -> None:
        """Learn how samples did: None, which failed or is missing, changes nothing.

        Args:
            scores: from 0 to 1; what is beyond counts as 0 or 1.
            indices: which samples; by default the next ones of those that this epoch handed out.
        """
        if indices is None:
            indices = self._order_now[self._scored : self._scored + len(scores)]
        if len(indices) != len(scores):
            raise ValueError(
                f"There are [{len(scores)}] scores for [{len(indices)}] samples that are handed out and have "
                "none; pass the scores of each batch once, or indices."
            )
        for score in scores:
            _check_score(score)
        for index, score in zip(indices, scores, strict=True):
            if score is not None:
                self.scores[index] = min(max(float(score), 0.0), 1.0)
        self._scored += len(scores)

    def state_dict(self) -> dict[str, Any]:
        """The seed, the epoch, the position in it, the scores, and those that a begun epoch was drawn by."""
        begun = list(self._begun_by) if self._cursor.under_way else self._drawn_by
        return {
            **super().state_dict(),
            "scores": list(self.scores),
            "drawn_by": begun,
            "scored": self._scored,
        }

    def since(self, begun: Mapping[str, Any]) -> dict[str, Any]:
        return {**begun, "scores": list(self.scores), "scored": self._scored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        scores, drawn_by = state.get("scores"), state.get("drawn_by")
        for given in (scores, drawn_by or scores):
            if not isinstance(given, list) or len(given) != len(self.dataset):
                raise ValueError(
                    f"The state has [{len(given) if isinstance(given, list) else given!r}] scores, and the dataset "
                    f"[{len(self.dataset)}] samples; pass what state_dict() returned for this dataset."
                )
        for score in (*(scores or ()), *(drawn_by or ())):
            _check_score(score)
            _check_fraction("score", score)
        scored = natural_number({"scored": 0, **state}, "scored")
        super().load_state_dict(state)
        assert isinstance(scores, list)
        self.scores = list(scores)
        self._drawn_by = None if drawn_by is None else list(drawn_by)
        self._scored = scored


def _check_score(score: Any) -> None:
    if score is not None and (not isinstance(score, numbers.Real) or not math.isfinite(score)):
        raise ValueError(f"A score is [{score!r}], but has to be a finite number or None.")


def _check_fraction(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is [{value!r}], but has to be a number from 0 to 1.")
