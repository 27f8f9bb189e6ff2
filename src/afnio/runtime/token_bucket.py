"""TokenBucket: tokens are reserved before a request goes and settled when it is known what it used."""

from __future__ import annotations

from collections import deque
from typing import Final, final

from afnio.runtime.pacer import BURST, MARGIN, START_UP, START_UP_PACE

_SLACK: Final = 1e-6
"""Tokens that count as nothing: the level is a float."""


@final
class Reservation:
    """Tokens that one request has reserved, then those that it used."""

    __slots__ = ("at", "logged", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at
        self.logged = True


@final
class TokenBucket:
    """A bucket of tokens that refills evenly, and a log that holds the limit in every window.

    The bucket is small, so that requests are paced; one that is larger than the bucket goes when it is
    full and leaves a debt. The log is what makes the guarantee: the requests of any window fit the limit.
    One that is larger than the limit goes alone. Who asks first must be served first: while the head of the
    queue waits, nobody else may reserve.

    Args:
        limit: tokens in one window.
        window: seconds.
        now: time of the loop.
        used: tokens of the window that are gone already.

    >>> bucket = TokenBucket(6000, now=0.0)
    >>> first = bucket.reserve(985, now=0.0)
    >>> round(bucket.wait(985, now=0.0), 3)
    10.0
    >>> bucket.settle(first, 197, now=0.0)
    >>> round(bucket.wait(985, now=0.0), 3)
    2.0
    """

    def __init__(self, limit: float, window: float = 60.0, *, now: float, used: float = 0.0) -> None:
        self._started: float | None = None
        self._full = self._size = 0.0
        self._level = -used
        self.retune(limit, window)
        self._at = now
        self._log: deque[Reservation] = deque()
        self._logged = 0.0

    def retune(self, limit: float, window: float) -> None:
        """Go on at another pace."""
        self.limit = limit
        self._window = window
        self._rate = MARGIN * limit / window

    def wait(self, tokens: float, now: float) -> float:
        """Return the seconds until a request of `tokens` may go, 0 if it may now."""
        missing = min(tokens, self._full) - self._refilled(now)
        wait = missing / self._rate if missing > _SLACK else 0.0
        self._forget(now)
        excess = self._logged + min(tokens, self.limit) - self.limit
        if excess > _SLACK:
            wait = max(wait, self._until_gone(excess, now))
        return wait

    def reserve(self, tokens: float, now: float) -> Reservation:
        """Take `tokens`, for which there is room."""
        self._level = self._refilled(now) - tokens
        self._at = now
        if self._started is None:
            self._started = now
        elif now >= self._started + START_UP:
            # The rest is for timers that come late, when the head has been waiting for a full bucket.
            self._size = BURST * self._rate
            self._full = self._size / 3
        made = Reservation(tokens, now)
        self._log.append(made)
        self._logged += tokens
        return made

    def settle(self, reservation: Reservation, used: float, now: float) -> None:
        """Correct a reservation to what was used: 0 for a request that was refused."""
        more = used - reservation.tokens
        reservation.tokens = used
        # A refund may lift the level above the bucket's size: capped, tokens would be lost for ever.
        self._level = self._refilled(now) - more
        self._at = now
        if reservation.logged:
            self._logged += more

    def _refilled(self, now: float) -> float:
        if self._level >= self._size:
            return self._level
        return min(self._size, self._level + self._paced(now) * self._rate)

    def _paced(self, now: float) -> float:
        """Return the seconds since the last change, those of the start-up at its slower pace."""
        since = now - self._at
        if self._started is None or self._at >= self._started + START_UP:
            return since
        return since - (1 - START_UP_PACE) * (min(now, self._started + START_UP) - self._at)

    def _forget(self, now: float) -> None:
        log = self._log
        while log and log[0].at + self._window <= now:
            gone = log.popleft()
            gone.logged = False
            self._logged -= gone.tokens
        if not log:
            self._logged = 0.0  # sums of floats drift

    def _until_gone(self, tokens: float, now: float) -> float:
        wait = 0.0
        for reservation in self._log:
            tokens -= reservation.tokens
            wait = reservation.at + self._window - now
            if tokens <= _SLACK:
                break
        return wait
