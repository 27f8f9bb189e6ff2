"""Accuracy: a count of right answers, and how far the truth may lie from it."""

from __future__ import annotations

from dataclasses import dataclass

from afnio.tellurio.interval import wilson


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers among those given.

    Attributes:
        failed: samples without a usable answer; a failure is not a wrong answer, so they are not in `total`.

    >>> str(Accuracy(25, 68))
    '25/68'
    """

    correct: int
    total: int
    failed: int = 0

    @property
    def share(self) -> float | None:
        return self.correct / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.total)

    def __add__(self, other: Accuracy) -> Accuracy:
        return Accuracy(self.correct + other.correct, self.total + other.total, self.failed + other.failed)

    def __str__(self) -> str:
        return f"{self.correct}/{self.total}"
