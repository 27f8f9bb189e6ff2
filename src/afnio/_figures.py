"""Figures: the score of some rows and the gain between two sets of prompts, each with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, NamedTuple, Self, final

from afnio.stats import mean_interval, paired_interval, power, share_interval, wilson

NOISE: Final = "No gain beyond noise"


@final
@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of right rows, with Wilson's 95 % interval.

    >>> print(Accuracy.of([True] * 26 + [False] * 40))
    39.4 % (26 of 66 right; 27.8 to 52.2)
    """

    right: int
    rows: int
    low: float
    high: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Self:
        right = int(sum(scores))
        return cls(right, len(scores), *wilson(right, len(scores)))

    @property
    def mean(self) -> float:
        return self.right / self.rows if self.rows else math.nan

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.mean:.1f} % ({self.right} of {self.rows} right; {low:.1f} to {high:.1f})"


@final
@dataclass(frozen=True, slots=True)
class MeanScore:
    """The mean of graded scores, with its 95 % interval; the bounds are None for fewer than two rows.

    >>> print(MeanScore.of([0.5, 0.7, 0.9]))
    0.7 (3 rows; 0.286 to 0.886)
    """

    mean: float
    rows: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, scores: Sequence[float], highest: float = 1.0) -> Self:
        mean = fmean(scores) if scores else math.nan
        low, high = mean_interval(scores, highest=highest) or (None, None)
        return cls(mean, len(scores), low, high)

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        interval = "" if self.low is None else f"; {self.low:.3g} to {self.high:.3g}"
        return f"{self.mean:.3g} ({self.rows} rows{interval})"


@final
@dataclass(frozen=True, slots=True)
class Share:
    """The share of right answers, several to each row, with its 95 % interval by row.

    >>> print(Share.of([1, 2 / 3, 0, 1], 12))
    66.7 % (4 rows, 12 answers; 17.2 to 96.7)
    """

    mean: float
    rows: int
    answers: int
    low: float
    high: float

    @classmethod
    def of(cls, shares: Sequence[float], answers: int) -> Self:
        return cls(
            fmean(shares) if shares else math.nan, len(shares), answers, *share_interval(shares, answers)
        )

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        rows = counted(self.rows, "row")
        return f"{100 * self.mean:.1f} % ({rows}, {self.answers:,} answers; {low:.1f} to {high:.1f})"


Measured = Accuracy | Share | MeanScore


def score_of(
    scores: Sequence[float], *, graded: bool, highest: float = 1.0, answers: int | None = None
) -> Measured:
    """Return the figure of rows' scores.

    Args:
        graded: True if some score of the run is neither 0 nor 1.
        answers: how many answers the scores are means of, if more than one each.
    """
    if graded:
        return MeanScore.of(scores, highest)
    return Accuracy.of(scores) if answers in (None, len(scores)) else Share.of(scores, answers or 0)


@final
@dataclass(frozen=True, slots=True)
class Gain:
    """The mean difference of the new prompts to the old ones on the same rows, with its interval.

    Attributes:
        difference, low, high: as shares (0.1 is ten points) or in units of the score; no bounds for a single row.
        rows: rows that have both scores.
        won, lost: rows that the new prompts do better and worse.
        graded: True if the scores are graded, not right or wrong.
        confidence: of the interval.
        trainings: whose prompts were compared, each on rows of its own.
    """

    difference: float
    low: float | None
    high: float | None
    rows: int
    won: int
    lost: int
    graded: bool
    confidence: float = 0.95
    trainings: int = 1

    @classmethod
    def of(
        cls,
        before: Sequence[float],
        after: Sequence[float],
        *,
        graded: bool,
        highest: float = 1.0,
        confidence: float = 0.95,
        trainings: int = 1,
    ) -> Self:
        """Compare scores of the same rows, in the same order.

        >>> print(Gain.of([0, 0, 1, 1] * 10, [1, 1, 1, 1] * 10, graded=False))
        +50.0 points (31.1 to 64.1; 20 rows better, 0 worse)
        """
        interval = paired_interval(before, after, highest=highest, confidence=confidence)
        return cls(
            interval.difference,
            interval.low,
            interval.high,
            interval.samples,
            interval.won,
            interval.lost,
            graded,
            confidence,
            trainings,
        )

    @property
    def is_clear(self) -> bool:
        """True if the interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_loss(self) -> bool:
        """True if the interval lies below 0."""
        return self.high is not None and self.high < 0

    @property
    def tone(self) -> str:
        """Whether it is good or bad news: "good", "bad", or "" if it may be chance."""
        return "good" if self.is_clear else "bad" if self.is_loss else ""

    def claim(self, on: str) -> str:
        """Return the sentence that says which is better, and never more than the interval does.

        Args:
            on: the rows, such as "60 test rows".

        >>> Gain.of([0, 1] * 4, [1, 0] * 4, graded=False).claim("8 test rows")
        'No gain beyond noise: +0.0 points (95 %: -62.0 to 62.0) on 8 test rows.'
        """
        word = "Better" if self.is_clear else "Worse" if self.is_loss else NOISE
        amount = self.amount if self.trainings == 1 else f"two trainings gained {self.amount} on average"
        return f"{word}: {amount} ({100 * self.confidence:g} %: {self.interval}) on {on}."

    def __float__(self) -> float:
        return self.difference

    def __str__(self) -> str:
        return f"{self.amount} ({self.interval}; {counted(self.won, 'row')} better, {self.lost} worse)"

    @property
    def amount(self) -> str:
        return f"{self.difference:+.3g}" if self.graded else f"{100 * self.difference:+.1f} points"

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return "no interval"
        if self.graded:
            return f"{self.low:.3g} to {self.high:.3g}"
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}"


class Compared(NamedTuple):
    """The figures of two sets of prompts, or of two agents, on the same rows."""

    before: Measured
    after: Measured
    gain: Gain


def compared(
    before: Sequence[float],
    after: Sequence[float],
    *,
    graded: bool,
    highest: float = 1.0,
    answers: tuple[int | None, int | None] = (None, None),
    **about: Any,
) -> Compared:
    """Return the figures of scores of the same rows, in the same order.

    Args:
        graded: True if some score of the run is neither 0 nor 1.
        answers: of the rows on either side, if more than one each.
        about: the confidence and the number of trainings, for `Gain.of`.
    """
    first, second = (
        score_of(scores, graded=graded, highest=highest, answers=number)
        for scores, number in zip((before, after), answers, strict=True)
    )
    return Compared(first, second, Gain.of(before, after, graded=graded, highest=highest, **about))


GAIN: Final = 0.15
ROWS: Final = 109
"""Rows on which such a gain is seen in nine runs of ten."""


def foreseen(rows: int) -> str:
    """Return how often a gain of 15 points is seen on right and wrong answers, if one row in 20 gets worse.

    >>> foreseen(48)
    'a true gain of 15 points is seen in 54 % of runs with 48 held-out rows; 109 make it 90 %'
    """
    more = f"; {ROWS} make it 90 %" if rows < ROWS else ""
    share = power(rows, GAIN) if rows else 0.0
    return f"a true gain of 15 points is seen in {100 * share:.0f} % of runs with {rows} held-out rows{more}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number} {noun}" if number == 1 else f"{number:,} {noun}s"
