"""Limits: what an account may be asked for at once and within a minute."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, final

NO_LIMIT: Final = 10**12
"""From here on a limit is none: people write such numbers for "unlimited"."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an account; those given on one client hold for every client of the account.

    What is not given is learnt from the headers of the provider's replies, where it sends such. A trillion or
    more a minute is no limit.

    Attributes:
        max_in_flight: requests on the wire at once, at most; used at once and never exceeded. Without
            it the engine starts at 64 and finds the level that the provider takes.
        requests_per_minute: requests sent within any 60 seconds, at most; attempts count, not calls.
        tokens_per_minute: tokens within any 60 seconds, at most, as providers count them when they admit
            a request: those of the prompt and, where it says, the most that the reply may have.

    >>> Limits(max_in_flight=256, requests_per_minute=500).requests_per_minute
    500
    """

    max_in_flight: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name, otherwise in (
            ("max_in_flight", "let it adapt"),
            ("requests_per_minute", "learn it from the provider"),
            ("tokens_per_minute", "learn it from the provider"),
        ):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"{name} must be at least 1 (got {value}); omit it to {otherwise}")


@dataclass(frozen=True, slots=True)
class Account:
    """Whose limits a call counts against: a base URL and a key.

    Attributes:
        url: base URL without credentials; shown in events and errors.
        key_digest: distinguishes keys without holding one.
    """

    url: str
    key_digest: str


_given: Final[dict[Account, Limits]] = {}
_warned: Final[set[Account]] = set()


def give_limits(account: Account, limits: Limits) -> None:
    """Have `limits` hold for all clients of the account, from its next call on; from any thread."""
    before = _given.get(account)
    _given[account] = limits
    if before is not None and before != limits and account not in _warned:
        _warned.add(account)
        logging.getLogger("afnio").warning(
            "two clients of %s give different limits; those given last hold for both: %s instead of %s",
            account.url,
            limits,
            before,
        )


def given_limits(account: Account) -> Limits | None:
    """Return the limits that a client gave last for the account."""
    return _given.get(account)


# Told: warnings about an account that are logged once.


_warned_of: Final[set[tuple[str, str]]] = set()


def warn_once(url: str, kind: str, text: str, *figures: object) -> None:
    """Log a warning about the account at `url`, the first time that one of its kind comes up.

    Args:
        text: begins with the URL's `%s`; `figures` fill in the rest.
    """
    if (url, kind) not in _warned_of:
        _warned_of.add((url, kind))
        logging.getLogger("afnio").warning(text, url, *figures)


# Pacer: requests spread evenly over a window, so that no window ever holds more than its limit.


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
    """Paces requests by a leaky bucket with a small burst.

    A leaky bucket as large as the limit would let twice the limit through in one window: a full burst and
    all that leaks while it lasts.

    It is a plain bucket and not aiolimiter's, which is only awaited: admission must know how long each of its
    limits would make a call wait before it chooses one, and can't suspend between the choice and the sending.

    Args:
        limit: requests in one window.
        window: seconds.
        now: time of the loop.
        used: requests of the window that are gone already. The next one waits as if they had been paced, too.

    >>> pacer = Pacer(60)
    >>> pacer.take(0.0)
    >>> round(pacer.wait(0.0), 3)
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
        self._size = 1 if self._starting else self._burst
        self._level = 0.0

    def retune(self, limit: float, window: float) -> None:
        """Continue at another pace."""
        self._set(limit, window)
        self._level = self._size  # full, so that a change of pace doesn't let one more through

    def wait(self, now: float) -> float:
        """Return the seconds until one more may go, 0 if it may now."""
        if now < self._resume:
            return self._resume - now
        if self._leaked(now) + 1 <= self._size:
            return 0.0
        # One request leaks in an interval, so one fits by then; and what leaks earlier isn't lost.
        return max(self._last + self._interval - now, _TICK)

    def take(self, now: float) -> None:
        """Send one request, for which `wait` was 0."""
        self._level = self._leaked(now) + 1
        self._last = now
        if not self._starting:
            return
        if self._started is None:
            self._started = now
        if now >= self._started + START_UP:
            self._starting = False
            self._interval = self._steady
            self._level = self._size = self._burst

    def _leaked(self, now: float) -> float:
        """Return what is left in the bucket; one request leaks in an interval."""
        return max(0.0, self._level - (now - self._last) / self._interval)


# TokenBucket: tokens are reserved before a request goes and settled when it is known what it used.


_SLACK: Final = 1e-6
"""Tokens that count as nothing: the level is a float."""


@final
class Booking:
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
        self._log: deque[Booking] = deque()
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

    def reserve(self, tokens: float, now: float) -> Booking:
        """Take `tokens`, for which there is room."""
        self._level = self._refilled(now) - tokens
        self._at = now
        if self._started is None:
            self._started = now
        elif now >= self._started + START_UP:
            # The rest is for timers that come late, when the head has been waiting for a full bucket.
            self._size = BURST * self._rate
            self._full = self._size / 3
        made = Booking(tokens, now)
        self._log.append(made)
        self._logged += tokens
        return made

    def settle(self, reservation: Booking, used: float, now: float) -> None:
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


# ServerLimit: what a provider's replies say about one of its limits, and what should be left of it by now.


MINUTE: Final = 60.0
_NOISE: Final = 1.2
"""How far apart two estimates of one window may be before it can't refill evenly."""
_SHARED: Final = 0.05
"""Share of a limit that must have gone to others within a window before they are believed in."""


_APART: Final = 3
"""How many times as much must be used in one reading as in another to tell a bucket from a fixed window."""
_SHORTEST: Final = 1e-3


@final
@dataclass(frozen=True, slots=True)
class LimitReading:
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
@dataclass(frozen=True, slots=True)
class RateLimits:
    """What one response reports about the limits of its account and model, None for what it leaves out.

    A client puts it into `ChatResponse.limits` or `ModelError.limits`. Without limits given by the user, the
    engine paces by it, and sends nothing that the provider would refuse.

    >>> RateLimits(requests=LimitReading(limit=500, remaining=499, reset=0.12))
    RateLimits(requests=LimitReading(limit=500, remaining=499, reset=0.12, precision=0.0), tokens=None)
    """

    requests: LimitReading | None = None
    tokens: LimitReading | None = None


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
    >>> window.update(LimitReading(limit=10_000, remaining=9_999, reset=8.64))
    >>> window.update(LimitReading(limit=10_000, remaining=9_997, reset=25.92))
    >>> round(window.seconds)  # requests per day
    86400
    """

    def __init__(self) -> None:
        self._least = 0.0
        self._most = math.inf
        self._longest = 0.0
        self._fewest_used = math.inf
        self._most_used = 0

    def update(self, reading: LimitReading) -> None:
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

    >>> limit = ServerLimit(LimitReading(limit=60, remaining=1, reset=59.0), sent_at=0.0, sent_since=0, now=0.0)
    >>> limit.take(1)
    >>> limit.wait(1, now=0.0)
    1.0
    """

    def __init__(self, reading: LimitReading, sent_at: float, sent_since: float, now: float) -> None:
        self.limit = reading.limit
        self.length = WindowLength()
        self.window = MINUTE
        self._level = self._alone = float(reading.limit)
        self._at = now
        self._others = 0.0
        self._others_since = now
        self._warned_of = 0.0
        self.used = 0.0
        self.update(reading, sent_at, sent_since, now)

    # `used`: what may be gone of the window, at most.

    @property
    def rate(self) -> float:
        """What flows back in a second."""
        return self.limit / self.window

    @property
    def shared(self) -> bool:
        """Whether somebody else draws on this limit."""
        return self._others > max(5, _SHARED * self.limit)

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

    def update(self, reading: LimitReading, sent_at: float, sent_since: float, now: float) -> bool:
        """Take in the reading of a reply; returns whether the limit or its window is another than before.

        Args:
            sent_at: when its request was sent; the provider counted at about that time.
            sent_since: what has been sent since then.
        """
        before = self.rate
        self._level, self._alone = self.level(now), min(self.limit, self._alone + (now - self._at) * before)
        self._at = now
        self.length.update(reading)
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
        changed = abs(self.rate - self._warned_of) > 0.005 * self._warned_of
        if changed:
            self._warned_of = self.rate
            self._others = 0.0
        return changed

    def _notice_others(self, most_left: float, now: float) -> None:
        """Compare what is left at most with what would be if nobody else sent anything."""
        if now - self._others_since > self.window:
            self._others, self._others_since = 0.0, now
        if self._alone > most_left:
            self._others += self._alone - most_left
            self._alone = most_left


# Allowance: what an account, or one model of it, may still send of requests and of tokens.


LONG: Final = 900.0
"""Seconds from which on a provider's window isn't paced. Who has a day's requests left wants them now, not evenly
over the day; what the provider says is left holds all the same."""


@final
class Grant:
    """What one request took of an allowance, and how much had been taken with it."""

    __slots__ = ("allowance", "at", "bucket", "requests", "reservation", "tokens", "tokens_before")

    def __init__(self, allowance: Allowance, tokens: float, at: float) -> None:
        self.allowance = allowance
        self.at = at
        self.tokens = tokens
        self.requests = allowance.requests_sent
        self.tokens_before = allowance.tokens_sent
        self.bucket: TokenBucket | None = allowance.bucket
        self.reservation: Booking | None = None if self.bucket is None else self.bucket.reserve(tokens, at)


@final
class Allowance:
    """Requests and tokens under limits that were given, or that the provider's replies tell.

    Given limits set the pace. What a reply says is left holds in any case: a request that the provider
    has no room for would only be refused.
    """

    def __init__(self) -> None:
        self.pacer: Pacer | None = None
        self.bucket: TokenBucket | None = None
        self.requests: ServerLimit | None = None
        self.tokens: ServerLimit | None = None
        self.requests_sent = 0
        self.tokens_sent = 0.0

    @classmethod
    def given(cls, limits: Limits, now: float) -> Allowance:
        """Return an allowance under explicit limits, nothing of them used."""
        made = cls()
        if limits.requests_per_minute is not None and limits.requests_per_minute < NO_LIMIT:
            made.pacer = Pacer(limits.requests_per_minute)
        if limits.tokens_per_minute is not None and limits.tokens_per_minute < NO_LIMIT:
            made.bucket = TokenBucket(limits.tokens_per_minute, now=now)
        return made

    @property
    def paced(self) -> bool:
        return self.pacer is not None or self.bucket is not None

    def wait(self, tokens: float, now: float) -> float:
        """Return the seconds until a request of `tokens` may go, 0 if it may now."""
        wait = 0.0
        if self.pacer is not None:
            wait = self.pacer.wait(now)
        if self.bucket is not None:
            wait = max(wait, self.bucket.wait(tokens, now))
        if self.requests is not None:
            wait = max(wait, self.requests.wait(1, now))
        if self.tokens is not None:
            wait = max(wait, self.tokens.wait(tokens, now))
        return wait

    def take(self, tokens: float, now: float) -> Grant:
        """Take a request of `tokens`, which fits."""
        self.requests_sent += 1
        self.tokens_sent += tokens
        if self.pacer is not None:
            self.pacer.take(now)
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)
        return Grant(self, tokens, now)

    def settle(self, grant: Grant, tokens: float, now: float) -> None:
        """Correct the tokens of a request to those that it used."""
        if self.tokens is not None:
            self.tokens.take(tokens - grant.tokens)
        self._correct(grant, tokens, now)

    def refund(self, grant: Grant, now: float, *, counted: bool) -> None:
        """Give back the tokens of a request that failed; and the request, if the provider didn't count it.

        What the provider has left is as its reply says, not as we would have it.
        """
        self.requests_sent -= not counted
        self._correct(grant, 0.0, now)

    def _correct(self, grant: Grant, tokens: float, now: float) -> None:
        if grant.bucket is not None and grant.reservation is not None:
            grant.bucket.settle(grant.reservation, tokens, now)
        self.tokens_sent += tokens - grant.tokens
        grant.tokens = tokens

    def update(
        self,
        grant: Grant,
        reported: RateLimits,
        now: float,
        limits: Limits | None,
    ) -> bool:
        """Take in what a reply says is left; returns whether the pace is another than before.

        Args:
            grant: what its request took.
            limits: explicit limits; they set the pace, whatever the replies say.
        """
        changed = False
        if reported.requests is not None:
            since = self.requests_sent - grant.requests
            self.requests, new = _updated(self.requests, reported.requests, grant.at, since, now)
            if new and (limits is None or limits.requests_per_minute is None):
                self._pace_requests(self.requests, now)
                changed = True
        if reported.tokens is not None:
            used = self.tokens_sent - grant.tokens_before
            self.tokens, new = _updated(self.tokens, reported.tokens, grant.at, used, now)
            if new and (limits is None or limits.tokens_per_minute is None):
                self._pace_tokens(self.tokens, now)
                changed = True
        return changed

    def _pace_requests(self, server: ServerLimit, now: float) -> None:
        if server.window > LONG:
            self.pacer = None
        elif self.pacer is not None and self.pacer.limit == server.limit:
            self.pacer.retune(server.limit, server.window)
        else:
            # As if what is used of the window had been paced, too: so no window holds more than the limit.
            self.pacer = Pacer(server.limit, server.window, now=now, used=server.used)

    def _pace_tokens(self, server: ServerLimit, now: float) -> None:
        if server.window > LONG:
            self.bucket = None
        elif self.bucket is not None and self.bucket.limit == server.limit:
            self.bucket.retune(server.limit, server.window)
        else:
            self.bucket = TokenBucket(server.limit, server.window, now=now, used=server.used)

    def absorb(self, other: Allowance, now: float, limits: Limits | None) -> None:
        """Take over what `other` has sent, where the provider counts the two together."""
        mine, theirs = self.requests, other.requests
        if mine is not None and theirs is not None:
            mine.take(max(0.0, mine.level(now) - theirs.level(now)))
            if limits is None or limits.requests_per_minute is None:
                self._pace_requests(mine, now)
        mine, theirs = self.tokens, other.tokens
        if mine is not None and theirs is not None:
            mine.take(max(0.0, mine.level(now) - theirs.level(now)))
            if limits is None or limits.tokens_per_minute is None:
                self._pace_tokens(mine, now)

    def yield_to(self, limits: Limits) -> None:
        """Leave the pace to explicit limits."""
        if limits.requests_per_minute is not None:
            self.pacer = None
        if limits.tokens_per_minute is not None:
            self.bucket = None


def _updated(
    server: ServerLimit | None, reading: LimitReading, sent_at: float, sent_since: float, now: float
) -> tuple[ServerLimit, bool]:
    if server is None:
        return ServerLimit(reading, sent_at, sent_since, now), True
    return server, server.update(reading, sent_at, sent_since, now)


# OutputEstimate: how long replies get, learnt from those that came.


DEFAULT_OUTPUT: Final = 512
"""Tokens expected of a reply before one like it has come."""
KEPT: Final = 256
"""Newest replies that the estimate is made from."""


@final
class OutputEstimate:
    """A running percentile of the output tokens of each purpose and model, and of each node of a program.

    A node that has had no reply yet is taken for a usual one of its purpose.

    A mean would be too little for every second reply; the most ever seen would hold back tokens that
    nobody uses.

    >>> estimate = OutputEstimate()
    >>> estimate.tokens("forward", "m")
    512
    >>> for tokens in range(1, 101):
    ...     estimate.observe("forward", "m", tokens)
    >>> estimate.tokens("forward", "m")
    90
    >>> estimate.observe("forward", "m", 7, site="draft")
    >>> estimate.tokens("forward", "m", site="draft"), estimate.tokens("forward", "m", site="polish")
    (7, 90)
    """

    def __init__(self, share: float = 0.9) -> None:
        self._share = share
        self._seen: dict[tuple[str, str, Hashable], tuple[deque[int], list[int]]] = {}

    def observe(self, purpose: str, model: str, tokens: int, site: Hashable = None) -> None:
        """Learn from one reply.

        Args:
            site: what tells the program's nodes apart and is the same from step to step.
        """
        for known in (None,) if site is None else (None, site):
            newest, ordered = self._seen.setdefault((purpose, model, known), (deque(), []))
            newest.append(tokens)
            insort(ordered, tokens)
            if len(newest) > KEPT:
                del ordered[bisect_left(ordered, newest.popleft())]

    def tokens(self, purpose: str, model: str, site: Hashable = None) -> int:
        """Return the output to reserve for one call."""
        seen = self._seen.get((purpose, model, site)) or self._seen.get((purpose, model, None))
        if seen is None:
            return DEFAULT_OUTPUT
        return seen[1][math.ceil(self._share * len(seen[1])) - 1]

    async def aclose(self) -> None:
        return
