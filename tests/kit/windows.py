"""What a provider would see in its worst window."""

from __future__ import annotations

from collections.abc import Iterable


def worst_window(sent: Iterable[tuple[float, float]], window: float) -> float:
    """Return the most that (time, amount) pairs sum up to within any `window` seconds, open at one end."""
    pairs = sorted(sent)
    worst = current = 0.0
    first = 0
    for time, amount in pairs:
        current += amount
        # Times are sums of floats: what is a window apart may look a hair's breadth nearer.
        while pairs[first][0] <= time - window + 1e-6:
            current -= pairs[first][1]
            first += 1
        worst = max(worst, current)
    return worst
