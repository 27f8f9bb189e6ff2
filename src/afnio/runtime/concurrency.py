"""Concurrency: how many requests an account takes at once, found by trying.

Additive increase, multiplicative decrease (Chiu and Jain, 1989) with the slow start of TCP: double per
clean round until the first rate limit, then grow by a twentieth; one cut to 0.8 of it for each episode of
rate limits. It grows only where the limit was really used, as unused headroom proves nothing. (The
saturation gate is inspect_ai's; latency isn't used: a busy client alone can double it.)
"""

from __future__ import annotations

from typing import Final, final

START: Final = 64
CEILING: Final = 1024
CUT: Final = 0.8
GROWTH: Final = 1.05
SATURATION: Final = 0.8
COOLDOWN: Final = 15.0
"""Seconds after a cut in which further rate limits belong to the same episode."""


@final
class Concurrency:
    """The number of requests that may be on the wire.

    >>> fixed = Concurrency(8)
    >>> fixed.limit
    8
    """

    def __init__(self, ceiling: int | None = None) -> None:
        self.ceiling = CEILING if ceiling is None else ceiling
        self.limit = START if ceiling is None else ceiling
        self._slow_start = True
        self._clean = 0
        self._peak = 0
        self._quiet_until = 0.0

    def set_ceiling(self, ceiling: int) -> None:
        """Use `ceiling` at once."""
        self.ceiling = self.limit = ceiling

    def sent(self, in_flight: int) -> None:
        self._peak = max(self._peak, in_flight)

    def succeeded(self, now: float) -> None:
        """Count a reply to a first attempt; a clean round of a limit's worth of them makes it grow."""
        if now < self._quiet_until:
            return
        self._clean += 1
        if self._clean < max(self.limit, 4):
            return
        if self._peak >= SATURATION * self.limit:
            grown = self.limit * 2 if self._slow_start else max(self.limit + 1, int(self.limit * GROWTH))
            self.limit = min(grown, self.ceiling)
        self._clean = self._peak = 0

    def limited(self, now: float, retry_after: float | None) -> None:
        """Cut, once for each episode of rate limits."""
        self._clean = self._peak = 0
        if now < self._quiet_until:
            return
        self._slow_start = False
        self.limit = max(1, int(self.limit * CUT))
        self._quiet_until = now + max(COOLDOWN, retry_after or 0.0)
