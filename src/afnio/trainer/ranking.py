"""Ranking: which epochs' checkpoints are kept, and which is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final


class Ranked(NamedTuple):
    """An epoch and its monitored metric, None where it has none."""

    epoch: int
    score: float | None


@final
class Ranking:
    """Ranks epochs by a metric; of equal ones the earlier is better.

    Args:
        monitor: the metric's name; without one nothing is best, and the newest epochs are kept.
        mode: "max" where a larger value is better, else "min".
        top: how many epochs are kept; -1 for all.

    >>> ranking = Ranking("loss", "min", top=1)
    >>> ranking.add(1, 0.5), ranking.add(2, 0.7), ranking.add(3, 0.3)
    ([], [2], [1])
    >>> ranking.best
    0.3
    """

    def __init__(self, monitor: str | None, mode: str = "max", top: int = -1) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min" (got {mode!r}); "max" where larger is better')
        if isinstance(top, bool) or not isinstance(top, int) or top < -1:
            raise ValueError(f"save_top_k must be a number of files, or -1 for all (got {top!r})")
        self.monitor = monitor
        self.best: float | None = None
        self._sign: Final = 1 if mode == "max" else -1
        self._top = top
        self._kept: list[Ranked] = []

    def score(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the monitored one of `metrics`, None where it is missing or no number."""
        value = None if self.monitor is None else metrics.get(self.monitor)
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None

    def is_better(self, score: float | None) -> bool:
        """Whether it beats the best so far."""
        return score is not None and (self.best is None or self._worth(score) > self._worth(self.best))

    def add(self, epoch: int, score: float | None) -> list[int]:
        """Take in an epoch and return those that are to go, perhaps itself; one added before is replaced."""
        if self.is_better(score):
            self.best = score
        epochs = [ranked for ranked in self._kept if ranked.epoch != epoch] + [Ranked(epoch, score)]
        epochs.sort(key=self._place)
        top = len(epochs) if self._top < 0 else self._top
        self._kept = epochs[:top]
        return [ranked.epoch for ranked in epochs[top:]]

    def _place(self, ranked: Ranked) -> tuple[float, int]:
        if self.monitor is None:
            return 0.0, -ranked.epoch
        return -self._worth(ranked.score), ranked.epoch

    def _worth(self, score: float | None) -> float:
        return -math.inf if score is None else self._sign * score
