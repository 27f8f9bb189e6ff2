"""Sparkline: a metric's course as the points of one small line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 96
HEIGHT: Final = 22
MARGIN: Final = 2
MOST: Final = 48
"""Points of one line; more of them would be closer than a pixel's half."""


def sparkline(values: Sequence[float]) -> str:
    """Return an SVG polyline's points; empty where there are fewer than two numbers to join.

    >>> sparkline([0, 1])
    '2.0,20.0 94.0,2.0'
    """
    numbers = thinned([value for value in values if math.isfinite(value)], MOST)
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    # A course that never moves is a line in the middle.
    floor = low if high > low else low - 0.5
    across = (WIDTH - 2 * MARGIN) / (len(numbers) - 1)
    down = HEIGHT - 2 * MARGIN
    return " ".join(
        f"{MARGIN + index * across:.1f},{MARGIN + down * (1 - (value - floor) / span):.1f}"
        for index, value in enumerate(numbers)
    )


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` of the values, evenly spread, the first and the last among them.

    >>> thinned(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(index * step)] for index in range(most)]
