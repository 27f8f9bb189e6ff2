"""Pace: how fast something gets on, from its last readings."""

from __future__ import annotations

from collections import deque
from typing import Final, final

READINGS: Final = 20


@final
class Pace:
    """The rate of a count, over its last readings: a run that slows down is seen to.

    >>> pace = Pace()
    >>> pace.read(0.0, 0), pace.read(2.0, 10), pace.read(4.0, 30)
    (None, None, None)
    >>> pace.rate
    7.5
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=READINGS)

    def read(self, seconds: float, count: float) -> None:
        """Note that at `seconds` the count was `count`; one that has fallen starts anew."""
        if self._readings and count < self._readings[-1][1]:
            self._readings.clear()
        self._readings.append((seconds, count))

    @property
    def rate(self) -> float | None:
        """Per second; None before anything has got on."""
        if len(self._readings) < 2:
            return None
        (first, before), (last, after) = self._readings[0], self._readings[-1]
        return (after - before) / (last - first) if last > first and after > before else None
