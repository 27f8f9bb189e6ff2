"""ServerLimit: what a provider's replies say about one of its limits, and what should be left of it by now."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

MINUTE: Final = 60.0
_NOISE: Final = 1.2
"""How far apart two estimates of one window may be before it can't refill evenly."""
_CROWDED: Final = 0.05
"""Share of a limit that must have gone to others within a window before they are believed in."""


_APART: Final = 3
"""How many times as much must be used in one reading as in another to tell a bucket from a fixed window."""
_SHORTEST: Final = 1e-3


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """One limit as the headers of one reply have it.

    Attributes:
        limit: the most that one window takes.
        remaining: what is left of it, with the request itself counted.
        reset: seconds until all of it is back; None where the reply doesn't say.
        precision: seconds that `reset` may be off, as it is rounded.
    """

    limit: int
    remaining: int
    reset: float | None = None
    precision: float = 0.0


@final
class WindowLength:
    """How long a provider's window is, which no header says.

    A bucket that refills evenly needs `used / limit` of a window until it is full; so each reading bounds
    the window from both sides, as `remaining` is rounded down. A minute is believed where the bounds allow
    it. Where readings contradict one another nothing refills evenly: then a window is as long as the
    longest reset.

    It takes readings that differ to tell the two: after one request of 1,000, "full in a minute" may be a
    bucket of 17 hours. Until then the window is as short as it can be: a minute, or the longest reset.

    >>> window = WindowLength()
    >>> window.hear(Reading(limit=10_000, remaining=9_999, reset=8.64))
    >>> window.hear(Reading(limit=10_000, remaining=9_997, reset=25.92))
    >>> round(window.seconds)  # requests per day
    86400
    """

    def __init__(self) -> None:
        self._least = 0.0
        self._most = math.inf
        self._longest = 0.0
        self._fewest_used = math.inf
        self._most_used = 0

    def hear(self, reading: Reading) -> None:
        used = reading.limit - reading.remaining
        if not reading.reset or used <= 0:
            return
        self._longest = max(self._longest, reading.reset)
        self._least = max(self._least, (reading.reset - reading.precision) * reading.limit / used)
        most = (reading.reset + reading.precision) * reading.limit / max(1, used - 1)
        self._most = min(self._most, most)
        self._fewest_used = min(self._fewest_used, used)
        self._most_used = max(self._most_used, used)

    @property
    def seconds(self) -> float:
        if self._least > _NOISE * self._most:
            return max(self._longest, _SHORTEST)
        told_apart = self._most_used >= _APART * self._fewest_used
        least = self._least if told_apart else self._longest
        return min(max(MINUTE, least), max(self._most, _SHORTEST))


@final
class ServerLimit:
    """A model of the provider's own bucket: what it said last, less what was sent since, plus the refill.

    >>> limit = ServerLimit(Reading(limit=60, remaining=1, reset=59.0), sent_at=0.0, sent_since=0, now=0.0)
    >>> limit.take(1)
    >>> limit.wait(1, now=0.0)
    1.0
    """

    def __init__(self, reading: Reading, sent_at: float, sent_since: float, now: float) -> None:
        self.limit = reading.limit
        self.length = WindowLength()
        self.window = MINUTE
        self._level = self._alone = float(reading.limit)
        self._at = now
        self._others = 0.0
        self._others_since = now
        self._told = 0.0
        self.used = 0.0
        self.hear(reading, sent_at, sent_since, now)

    # `used`: what may be gone of the window, at most.

    @property
    def rate(self) -> float:
        """What flows back in a second."""
        return self.limit / self.window

    @property
    def crowded(self) -> bool:
        """Whether somebody else draws on this limit."""
        return self._others > max(5, _CROWDED * self.limit)

    def level(self, now: float) -> float:
        """Return what should be left."""
        return min(self.limit, self._level + (now - self._at) * self.rate)

    def wait(self, cost: float, now: float) -> float:
        """Return the seconds until the provider should admit `cost`."""
        missing = min(cost, self.limit) - self.level(now)
        return missing / self.rate if missing > 1e-6 else 0.0

    def take(self, cost: float) -> None:
        self._level -= cost
        self._alone -= cost

    def hear(self, reading: Reading, sent_at: float, sent_since: float, now: float) -> bool:
        """Take in the reading of a reply; returns whether the limit or its window is another than before.

        Args:
            sent_at: when its request was sent; the provider counted at about that time.
            sent_since: what has been sent since then.
        """
        before = self.rate
        self._level, self._alone = self.level(now), min(self.limit, self._alone + (now - self._at) * before)
        self._at = now
        self.length.hear(reading)
        self.limit, self.window = reading.limit, self.length.seconds
        refilled = (now - sent_at) * self.rate
        # Downwards only: a reading is old when it comes.
        left = min(reading.limit, max(0.0, reading.remaining + refilled - sent_since))
        self._level = min(self._level, left)
        self._notice_others(reading.remaining + refilled, now)
        used: float = reading.limit - reading.remaining
        if reading.reset is not None:
            # Of a fixed window that ends soon only that time is lost.
            used = min(used, (reading.reset + reading.precision) * self.rate)
        self.used = min(reading.limit, used + sent_since)
        changed = abs(self.rate - self._told) > 0.005 * self._told
        if changed:
            self._told = self.rate
            self._others = 0.0
        return changed

    def _notice_others(self, most_left: float, now: float) -> None:
        """Compare what is left at most with what would be if nobody else sent anything."""
        if now - self._others_since > self.window:
            self._others, self._others_since = 0.0, now
        if self._alone > most_left:
            self._others += self._alone - most_left
            self._alone = most_left
