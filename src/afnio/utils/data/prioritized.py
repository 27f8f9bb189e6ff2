"""PrioritizedSampler: samples that went wrong come again sooner."""

from __future__ import annotations

import math
import numbers
import random
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from afnio.utils.data.cursor import natural_number
from afnio.utils.data.sampler import _check_num_samples, _counted, _SeededSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Sized


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
