"""Pacer: requests spread evenly over a window, so that no window ever holds more than its limit."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final, final

from aiolimiter import AsyncLimiter

MARGIN: Final = 0.985
"""Share of a limit that is used: what is sent evenly arrives a little unevenly."""
BURST: Final = 0.01
"""Seconds of requests that may go at once, for timers that come late."""
START_UP: Final = 1.0
"""Seconds without bursts at the start, while connections are made and the loop is busy with new launches:
what goes then arrives late, just before what goes after it."""
START_UP_PACE: Final = 0.9
"""Share of the pace in that time: the first calls of a large launch were seen to arrive 70 ms late."""
_TICK: Final = 1e-4
"""Seconds to wait at least, where rounding says that it isn't quite time yet."""


@final
class Pacer:
    """Paces requests by a leaky bucket (aiolimiter) with a small burst.

    A leaky bucket as large as the limit would let twice the limit through in one window: a full burst and
    all that leaks while it lasts.

    Args:
        limit: requests in one window.
        window: seconds.
        now: time of the loop.
        used: requests of the window that are gone already; the next one goes when they had been paced, too.

    >>> async def main():
    ...     pacer = Pacer(60)
    ...     pacer.take(0.0)
    ...     return round(pacer.wait(0.0), 3)
    >>> import anyio; anyio.run(main)
    1.015
    """

    def __init__(self, limit: float, window: float = 60.0, *, now: float = 0.0, used: float = 0.0) -> None:
        self._since = now
        self._used = used
        self._last = -math.inf
        self._started: float | None = None
        self._set(limit, window)

    def _set(self, limit: float, window: float) -> None:
        rate = MARGIN * limit / window
        self.limit = limit
        # From about 34 requests/s on a timer that is 1 ms late would cost more than the margin.
        late = max(int(BURST * rate), int(rate >= 34))
        self._burst = 1 + min(late, int(0.02 * limit))
        self._starting = self._burst > 1
        self._steady = 1 / rate
        self._interval = self._steady / START_UP_PACE if self._starting else self._steady
        self._resume = self._since + self._used * self._steady if self._used else -math.inf
        self._limiter = AsyncLimiter(1, self._interval)

    def retune(self, limit: float, window: float) -> None:
        """Go on at another pace."""
        started = self._started
        self._set(limit, window)
        if started is not None:
            self._acquire()  # no room at once: there was a request just now

    def wait(self, now: float) -> float:
        """Return the seconds until one more may go, 0 if it may now."""
        if now < self._resume:
            return self._resume - now
        if self._limiter.has_capacity():
            return 0.0
        # One request leaks in an interval, so there is room by then; and what leaks earlier is not lost.
        return max(self._last + self._interval - now, _TICK)

    def take(self, now: float) -> None:
        """Send one request, for which there is room."""
        self._last = now
        self._acquire()
        if not self._starting:
            return
        if self._started is None:
            self._started = now
        if now >= self._started + START_UP:
            self._starting = False
            self._interval = self._steady
            self._limiter = AsyncLimiter(self._burst, self._burst * self._interval)
            self._acquire(self._burst)

    def _acquire(self, requests: int = 1) -> None:
        # Where there is room `acquire` doesn't suspend: nobody ever waits inside the limiter.
        with suppress(StopIteration):
            self._limiter.acquire(requests).send(None)
