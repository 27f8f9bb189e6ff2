"""Meters: what is left of one limit, as a bucket that refills or as a window that slides."""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Protocol, final

_SLACK: Final = 1e-9
"""Share of a limit that counts as nothing: times are floats, and a wait promised must be enough."""


class Meter(Protocol):
    """One limit of one account; times are the seconds of any clock that only goes forward."""

    limit: int

    def wait(self, cost: int, now: float) -> float:
        """Return the seconds until `cost` fits: 0 if it does now, infinite if it exceeds the limit."""

    def take(self, cost: int, now: float) -> None:
        """Use `cost`, which fits."""

    def remaining(self, now: float) -> int:
        """Return what may be taken at once."""

    def reset(self, now: float) -> float:
        """Return the seconds until all of the limit is there again."""

    def resize(self, limit: int, now: float) -> None:
        """Change the limit; what has been used stays used."""


@final
class Bucket:
    """A token bucket: full at first, refilled evenly by `limit` in each `window` seconds.

    >>> bucket = Bucket(10, window=1.0)
    >>> bucket.take(10, now=0.0)
    >>> bucket.wait(5, now=0.25)
    0.25
    """

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self._window = window
        self._full_at = -math.inf  # one number says it all: when it would be full if nothing came

    def wait(self, cost: int, now: float) -> float:
        if cost > self.limit:
            return math.inf
        wait = self.reset(now) + (cost / self.limit - 1) * self._window
        return wait if wait > self._window * _SLACK else 0.0

    def take(self, cost: int, now: float) -> None:
        self._full_at = max(self._full_at, now) + cost * self._window / self.limit

    def remaining(self, now: float) -> int:
        share = 1 - self.reset(now) / self._window
        return max(0, math.floor(self.limit * (share + _SLACK)))

    def reset(self, now: float) -> float:
        return max(0.0, self._full_at - now)

    def resize(self, limit: int, now: float) -> None:
        left = min(limit, self.limit * (1 - self.reset(now) / self._window))
        self.limit = limit
        self._full_at = now + (1 - left / limit) * self._window


@final
class SlidingWindow:
    """A log of the last `window` seconds, in which never more than `limit` is used.

    >>> window = SlidingWindow(10, window=1.0)
    >>> window.take(10, now=0.0)
    >>> window.wait(5, now=0.25)
    0.75
    """

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self._window = window
        self._used = 0
        self._log: deque[tuple[float, int]] = deque()

    def wait(self, cost: int, now: float) -> float:
        if cost > self.limit:
            return math.inf
        self._forget(now)
        excess = self._used + cost - self.limit
        if excess <= 0:
            return 0.0
        for time, used in self._log:
            excess -= used
            if excess <= 0:
                return time + self._window - now
        raise AssertionError("the log holds all that is used")

    def take(self, cost: int, now: float) -> None:
        self._log.append((now, cost))
        self._used += cost

    def remaining(self, now: float) -> int:
        self._forget(now)
        return max(0, self.limit - self._used)

    def reset(self, now: float) -> float:
        self._forget(now)
        return self._log[-1][0] + self._window - now if self._log else 0.0

    def resize(self, limit: int, now: float) -> None:
        self.limit = limit

    def _forget(self, now: float) -> None:
        # Up to and with the edge, so that a request may come exactly one window after another.
        log, edge = self._log, now - self._window
        while log and log[0][0] <= edge:
            self._used -= log.popleft()[1]
