"""Refusals: when an account that refuses requests is tried again, and the pace that it turns out to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from afnio.runtime.pacer import Pacer

LOOKBACK: Final = 60.0
"""Seconds before a refusal whose requests are evidence of what the account takes."""
STRAY: Final = 5
STRAY_SHARE: Final = 0.3
"""Refusals that are taken for chance: so many, and so large a share of what was sent. Slowing down for random ones
would help nobody, and never end."""
PACED_SHARE: Final = 0.1
"""The same share while a learnt pace holds: then there is a limit."""
CONFIRMED: Final = 3
"""Refused probes, one after another, that are not."""
FIRST_PAUSE: Final = 0.25
"""Seconds after a refusal that doesn't say how long to wait; each refused probe doubles it."""
LAST_PAUSE: Final = 5.0
GROWTH: Final = 1.5
"""A learnt pace grows by this in each span of time that it was learnt from."""
FORGOTTEN: Final = 5
"""Spans after which it is forgotten."""
_LEAST: Final = 5
"""Requests that a span is taken to hold at least, as fewer say little."""


@final
class _Second:
    """What was sent within one second, and how much of it was refused."""

    __slots__ = ("first", "refused", "sent")

    def __init__(self, first: float) -> None:
        self.first = first
        self.sent = self.refused = 0


@final
class Refusals:
    """Probes an account that refuses requests, and learns its pace where nobody says what it is.

    After a refusal nothing is sent for a while, then one request, a probe. When it is answered, or isn't
    refused in twice the time that the last refusal took, the account is open again. A reply may take
    minutes, a refusal doesn't.

    A few refusals are chance. Where there are more, what the account let in between the first request and
    the probe that got through, divided by that time, is what it takes, whatever its window is: 300 requests
    in the first second and none in the next 59 are 300 a minute. That becomes the pace. As it may be too
    slow, because the limit has changed or others have gone, it grows until the account refuses again, and
    is forgotten if that doesn't happen.

    Requests are counted by the time at which they were sent. By the time of arrival refusals would look
    more than they are, since they overtake replies.

    Args:
        learnt: told what the account takes: requests, and in how many seconds.
    """

    def __init__(self, learnt: Callable[[int, float], None]) -> None:
        self.pacer: Pacer | None = None
        self._learnt = learnt
        self._seconds: dict[int, _Second] = {}
        self._last = -1
        self._paused_after = -1  # the last request that was sent before the refusal; later ones are probes
        self._refused_probes = 0
        self._refusing = False
        self._probed_at: float | None = None
        self._patience = 0.0
        self._rate = 0.0
        self._since = 0.0
        self._span = LOOKBACK
        self._grown = 0

    @property
    def shut(self) -> bool:
        """Whether the account refuses one probe after another."""
        return self._refused_probes >= CONFIRMED

    def wait(self, now: float) -> float:
        """Return the seconds until a request may go, 0 if it may now."""
        if self._probed_at is not None:
            wait = self._probed_at + self._patience - now
            if wait > 0:
                return wait
            self._open(now)
        if self.pacer is None:
            return 0.0
        spans = int((now - self._since) / self._span)
        if spans >= FORGOTTEN:
            self.pacer = None
            return 0.0
        if spans > self._grown:
            self._grown = spans
            self.pacer.retune(self._rate * GROWTH**spans, 60.0)
        return self.pacer.wait(now)

    def sent(self, number: int, now: float) -> None:
        """Count a request that goes out; numbers grow."""
        self._last = number
        if self._refusing and self._probed_at is None:
            self._probed_at = now
        if self.pacer is not None:
            self.pacer.take(now)
        second = self._seconds.get(int(now))
        if second is None:
            if not self._refusing:  # until it is open again, what came before the refusal is needed
                for old in [old for old in self._seconds if old < now - LOOKBACK]:
                    del self._seconds[old]
            second = self._seconds[int(now)] = _Second(now)
        second.sent += 1

    def answered(self, number: int, now: float) -> None:
        """Take in that a request was not refused."""
        if self._refusing and number > self._paused_after:
            self._open(now)

    def refused(self, number: int, sent_at: float, retry_after: float | None, now: float) -> float:
        """Count a refusal; returns the seconds for which nothing should be sent."""
        second = self._seconds.get(int(sent_at))
        if second is not None:
            second.refused += 1
        if number <= self._paused_after:
            return retry_after or 0.0  # the refusal that is known, once more
        self._paused_after = self._last
        self._refused_probes += self._refusing
        self._refusing = True
        self._probed_at = None
        self._patience = min(LAST_PAUSE, 0.1 + 2 * (now - sent_at))
        if retry_after is not None and not self._refused_probes:
            return retry_after
        return max(retry_after or 0.0, min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._refused_probes, 10)))

    def _open(self, now: float) -> None:
        sent = sum(second.sent for second in self._seconds.values())
        refused = sum(second.refused for second in self._seconds.values())
        share = STRAY_SHARE if self.pacer is None else PACED_SHARE
        confirmed = self.shut or refused > STRAY + share * sent
        self._refusing, self._refused_probes, self._probed_at = False, 0, None
        if not confirmed:
            return
        # A pause may have been of no length.
        span = max(0.1, now - min(second.first for second in self._seconds.values()))
        self._rate = max(_LEAST, sent - refused) * 60.0 / span
        self.pacer = Pacer(self._rate)
        self._since, self._span, self._grown = now, min(max(1.0, span), LOOKBACK), 0
        self._seconds.clear()
        self._learnt(sent - refused, span)
