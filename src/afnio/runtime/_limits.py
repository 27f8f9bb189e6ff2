"""Limits: how much an account may be asked for within a window, given by the user or learnt from the provider.

An account has up to two limits, on requests and on tokens. Each may be known in two ways:

* The user gives it (`Limits`). Then it sets the pace.
* The provider's responses report it (`RateLimits`), for each model. Then it sets the pace unless the user gave one, and
  in any case nothing is sent that the provider has no capacity for: it would be refused.

`Allowance` combines them for an account or a model. It is a calculator without tasks or timers: `wait` returns the
seconds until a request may go, `take` books it, and `settle` or `refund` corrects the booking when it is known what the
request used. The caller (`Admitter`) passes the time and does the waiting.

The promise of `Pacer` and `TokenBucket` is about *every* window, wherever it begins. A plain bucket as large as the
limit breaks it: a full burst, and all that flows in meanwhile, are twice the limit in one window.
"""

from __future__ import annotations

import logging
import math
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable
from dataclasses import astuple, dataclass
from typing import Any, Final, NamedTuple, final

# Limits from this number on are ignored: people write such numbers for "unlimited".
NO_LIMIT: Final = 10**12


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an account. Given on one client, they hold for every client of the account.

    Without a limit, the engine learns it from the provider's responses. A trillion or more a minute counts as no limit.

    Attributes:
        max_in_flight: the most requests in flight at the same time. Without it, the engine starts at 64 and finds
            the number that the provider takes.
        requests_per_minute: the most requests within any 60 seconds. Attempts count, not calls.
        tokens_per_minute: the most tokens within any 60 seconds, as providers count them when they admit a request:
            the prompt, and the maximum of the reply if the request has one.

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


def tightest(first: Limits | None, second: Limits | None) -> Limits | None:
    """Return the limits that hold where both do.

    >>> tightest(Limits(max_in_flight=4), Limits(max_in_flight=8, requests_per_minute=60))
    Limits(max_in_flight=4, requests_per_minute=60, tokens_per_minute=None)
    """
    if first is None or second is None:
        return second if first is None else first
    figures = zip(astuple(first), astuple(second), strict=True)
    return Limits(*(min((one for one in pair if one is not None), default=None) for pair in figures))


class Account(NamedTuple):
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
    """Set the limits for all clients of the account, from its next call on; from any thread."""
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


def forget_limits(account: Account) -> None:
    """Take back the limits of an account that is no longer used."""
    _given.pop(account, None)
    _warned.discard(account)


def given_limits(account: Account) -> Limits | None:
    """Return the limits that were given last for the account, or None."""
    return _given.get(account)


@dataclass(slots=True)
class _Group:
    members: tuple[Account, ...]
    owners: weakref.WeakSet[Any]


_groups: Final[dict[Account, _Group]] = {}


def give_replicas(group: Account, members: tuple[Account, ...], owner: object) -> None:
    """Let the calls of `group` go to any of `members`. Each of these has its own limits.

    Args:
        owner: the client. A group may get other members once no client of it is left.

    Raises:
        ValueError: if another client has other members for the group.
    """
    entry = _groups.get(group)
    if entry is None or (entry.members != members and not entry.owners):
        entry = _groups[group] = _Group(members, weakref.WeakSet())
    if entry.members != members:
        urls, others = ([account.url for account in accounts] for accounts in (members, entry.members))
        raise ValueError(
            f"replicas must have a name of their own (got {group.url} for {urls}, and before for {others}); pass "
            "name=…"
        )
    entry.owners.add(owner)


def replicas_of(account: Account) -> tuple[Account, ...]:
    """Return the members of a group, () for an account."""
    group = _groups.get(account)
    return () if group is None else group.members


_total: Limits | None = None


def give_total_limits(limits: Limits | None) -> None:
    """Set limits for all accounts of the process together, on top of those of each; None lifts them. From any thread.

    For a gateway, which sends for the keys of others. `max_in_flight` isn't used.
    """
    global _total
    _total = limits


def total_limits() -> Limits | None:
    return _total


def most_in_flight() -> int:
    """Return the largest `max_in_flight` that was given for any account; 0 without one."""
    return max((limits.max_in_flight or 0 for limits in list(_given.values())), default=0)


_warned_of: Final[set[tuple[str, str]]] = set()


def warn_once(url: str, kind: str, text: str, *figures: object) -> None:
    """Log a warning about the account at `url`, once for each kind of warning.

    Args:
        text: begins with `%s` for the URL; `figures` fill in the rest.
    """
    if (url, kind) not in _warned_of:
        _warned_of.add((url, kind))
        logging.getLogger("afnio").warning(text, url, *figures)


# Pacing.


# Windows of this many seconds or more aren't paced. A user with a day's requests left wants them now, not
# evenly over the day. What the provider reports as left holds all the same.
LONG: Final = 900.0


@final
class Allowance:
    """The requests and tokens that an account, or one of its models, may still send.

    Attributes:
        pacer, bucket: set the pace, of requests and of tokens; None without a known limit.
        requests, tokens: the limits that the provider reported last, or None.
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
        """Return an unused allowance under limits that the user gave."""
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

    def holds(self, now: float) -> list[Hold]:
        """Return how each of the limits slows calls down; from any thread."""
        paced = [one.hold(now) for one in (self.pacer, self.bucket) if one is not None]
        reported = (("requests", self.requests), ("tokens", self.tokens))
        return paced + [
            Hold(unit, one.limit - one.level(now), one.limit, one.window, one.wait(1, now), None)
            for unit, one in reported
            if one is not None
        ]

    def take(self, tokens: float, now: float) -> Grant:
        """Take a request of `tokens`, after `wait` returned 0."""
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
        """Give back the tokens of a request that failed, and the request if the provider didn't count it.

        The model of the provider's bucket isn't corrected: only its next response can tell what it counted.
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
        """Learn from the limits that a response reported. Return True if the pace has changed.

        Args:
            grant: what its request took.
            limits: given by the user; they set the pace, regardless of the responses.
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
            # As if the used part of the window had been paced, so that no window holds more than the limit.
            self.pacer = Pacer(server.limit, server.window, now=now, used=server.used)

    def _pace_tokens(self, server: ServerLimit, now: float) -> None:
        if server.window > LONG:
            self.bucket = None
        elif self.bucket is not None and self.bucket.limit == server.limit:
            self.bucket.retune(server.limit, server.window)
        else:
            self.bucket = TokenBucket(server.limit, server.window, now=now, used=server.used)

    def absorb(self, other: Allowance, now: float, limits: Limits | None) -> None:
        """Merge `other` into this one, because the provider counts their models together."""
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
        """Leave the pace to limits that the user gave."""
        if limits.requests_per_minute is not None:
            self.pacer = None
        if limits.tokens_per_minute is not None:
            self.bucket = None


@final
class Grant:
    """The share of an allowance that one request took, and the totals up to and including it."""

    __slots__ = ("allowance", "at", "bucket", "requests", "reservation", "tokens", "tokens_before")

    def __init__(self, allowance: Allowance, tokens: float, at: float) -> None:
        self.allowance = allowance
        self.at = at
        self.tokens = tokens
        self.requests = allowance.requests_sent
        self.tokens_before = allowance.tokens_sent
        self.bucket: TokenBucket | None = allowance.bucket
        self.reservation: Booking | None = None if self.bucket is None else self.bucket.reserve(tokens, at)


def _updated(
    server: ServerLimit | None, reading: LimitReading, sent_at: float, sent_since: float, now: float
) -> tuple[ServerLimit, bool]:
    if server is None:
        return ServerLimit(reading, sent_at, sent_since, now), True
    return server, server.update(reading, sent_at, sent_since, now)


# Pacing.


class Hold(NamedTuple):
    """How a limit slows calls down at one moment.

    Attributes:
        unit: "requests" or "tokens".
        used: of the `limit`, in the last `window` seconds.
        wait: seconds until the next request may go, 0 if it may now.
        pace: requests a second that it lets through, or None if unknown.

    >>> print(Hold("requests", 118, 120, 60.0, 0.5, 2.0))
    118 of 120 requests a minute used
    """

    unit: str
    used: float
    limit: float
    window: float
    wait: float
    pace: float | None

    def __str__(self) -> str:
        window = "a minute" if self.window == MINUTE else f"in {self.window:,.0f} s"
        return f"{self.used:,.0f} of {self.limit:,.0f} {self.unit} {window} used"


# Share of a limit that is used: what is sent evenly arrives a little unevenly.
MARGIN: Final = 0.985
# Seconds' worth of requests that may go together, because timers come late.
BURST: Final = 0.01
# Seconds without bursts at the start, while connections are made and the loop is busy with new launches: what
# goes then arrives late, just before what goes after it.
START_UP: Final = 1.0
# Share of the pace in that time: the first calls of a large launch were seen to arrive 70 ms late.
START_UP_PACE: Final = 0.9
# The shortest wait, for times that rounding puts just before the due time.
_TICK: Final = 1e-4


@final
class Pacer:
    """Spreads requests evenly over the window, by a leaky bucket with a small burst.

    The bucket isn't aiolimiter's, which can only be awaited: admission must know how long each limit would make each
    head of its queue wait *before* it chooses one, and can't suspend between choosing and sending.

    Args:
        limit: requests in one window.
        window: seconds.
        now: time of the loop.
        used: requests of the window that are used up already. The next one waits as if they had been paced.

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
        self._window = window
        self._log: deque[float] = deque()
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
        self._window = window
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
        self._log.append(now)
        while self._log[0] <= now - self._window:
            self._log.popleft()
        if not self._starting:
            return
        if self._started is None:
            self._started = now
        if now >= self._started + START_UP:
            self._starting = False
            self._interval = self._steady
            self._level = self._size = self._burst

    def hold(self, now: float) -> Hold:
        """Return how this limit slows calls down; from any thread."""
        used = sum(at > now - self._window for at in list(self._log))
        return Hold("requests", used, self.limit, self._window, self.wait(now), self.limit / self._window)

    def _leaked(self, now: float) -> float:
        """Return what is left in the bucket; one request leaks in an interval."""
        return max(0.0, self._level - (now - self._last) / self._interval)


# Tokens that count as nothing: the level is a float.
_SLACK: Final = 1e-6


@final
class TokenBucket:
    """A bucket of tokens that refills evenly, and a log of the last window.

    The bucket is small, so that requests are paced. A request that is larger than the bucket goes when it is full, and
    leaves a debt. The log makes the guarantee: the requests of any window fit the limit. A request that is larger than
    the limit goes alone. The caller must serve requests in order: while one waits, no other may reserve.

    Args:
        limit: tokens in one window.
        window: seconds.
        now: time of the loop.
        used: tokens of the window that are used up already.

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
        """Take `tokens`, after `wait` returned 0."""
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
        # Don't cap it: a refund may lift the level above the bucket's size, and those tokens would be lost.
        self._level = self._refilled(now) - more
        self._at = now
        if reservation.logged:
            self._logged += more

    def hold(self, now: float) -> Hold:
        """Return how this limit slows down a request as large as the last ones; from any thread."""
        # `wait` forgets what is old, which only the loop's thread may do.
        log = [one for one in list(self._log) if one.at + self._window > now]
        used = sum(one.tokens for one in log)
        next_one = min(used / len(log) if log else 0.0, self.limit)
        wait = max(0.0, min(next_one, self._full) - self._refilled(now)) / self._rate
        if used + next_one > self.limit:
            wait = max(wait, log[0].at + self._window - now)
        pace = self.limit / self._window / next_one if next_one else None
        return Hold("tokens", used, self.limit, self._window, wait, pace)

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


@final
class Booking:
    """Tokens that one request has reserved, then those that it used."""

    __slots__ = ("at", "logged", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at
        self.logged = True


# Limits that a provider reports.


MINUTE: Final = 60.0
# The ratio of two estimates of a window from which on it can't be one that refills evenly.
_NOISE: Final = 1.2
# Share of a limit that others must have used within a window to count as proof of them.
_SHARED: Final = 0.05
# Ratio of the used amounts of two readings that can tell a bucket from a fixed window.
_APART: Final = 3
_SHORTEST: Final = 1e-3


@final
@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits that one response reports for its account and model; None for those it doesn't report.

    A client puts them into `ChatResponse.limits` or `ModelError.limits`. The engine paces later calls by them unless
    the user gave limits, and sends nothing that the provider would refuse.

    >>> RateLimits(requests=LimitReading(limit=500, remaining=499, reset=0.12))
    RateLimits(requests=LimitReading(limit=500, remaining=499, reset=0.12, precision=0.0), tokens=None)
    """

    requests: LimitReading | None = None
    tokens: LimitReading | None = None


@final
@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit as one response reports it.

    Attributes:
        limit: the most requests, or tokens, in one window.
        remaining: how many are left, after this request.
        reset: seconds until all of them are back, or None if unknown.
        precision: seconds by which `reset` may be off because it is rounded.
    """

    limit: int
    remaining: int
    reset: float | None = None
    precision: float = 0.0


@final
class ServerLimit:
    """A model of the provider's bucket: the last reading, less what was sent since then, plus the refill.

    Attributes:
        used: the most that may be used up of the current window.

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

    @property
    def rate(self) -> float:
        """Requests, or tokens, that flow back in a second."""
        return self.limit / self.window

    @property
    def shared(self) -> bool:
        """True if other processes draw on this limit, too."""
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
        """Learn from a reading. Return True if the limit or its window has changed.

        Args:
            sent_at: the time at which its request was sent. The provider counted it at about that time.
            sent_since: requests, or tokens, sent since then.
        """
        before = self.rate
        self._level, self._alone = self.level(now), min(self.limit, self._alone + (now - self._at) * before)
        self._at = now
        self.length.update(reading)
        self.limit, self.window = reading.limit, self.length.seconds
        refilled = (now - sent_at) * self.rate
        # Only correct downwards: a reading is old when it arrives.
        left = min(reading.limit, max(0.0, reading.remaining + refilled - sent_since))
        self._level = min(self._level, left)
        self._notice_others(reading.remaining + refilled, now)
        used: float = reading.limit - reading.remaining
        if reading.reset is not None:
            # If a fixed window ends soon, no more than that time is lost.
            used = min(used, (reading.reset + reading.precision) * self.rate)
        self.used = min(reading.limit, used + sent_since)
        changed = abs(self.rate - self._warned_of) > 0.005 * self._warned_of
        if changed:
            self._warned_of = self.rate
            self._others = 0.0
        return changed

    def _notice_others(self, most_left: float, now: float) -> None:
        """Compare what is left with what would be left if this process were the only one."""
        if now - self._others_since > self.window:
            self._others, self._others_since = 0.0, now
        if self._alone > most_left:
            self._others += self._alone - most_left
            self._alone = most_left


@final
class WindowLength:
    """Estimates the length of a provider's window. No header reports it.

    A bucket that refills evenly needs `used / limit` of a window until it is full. `remaining` is rounded down, so each
    reading bounds the window from both sides. If the bounds allow a minute, it is a minute. If they contradict one
    another, nothing refills evenly: it is a fixed window, as long as the longest reset.

    Only readings that differ can tell the two apart. After one request of 1,000, "full in a minute" may be a bucket of
    17 hours. Until then the window is assumed to be as short as it can be: a minute, or the longest reset.

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


# The length of replies.


# Tokens expected of a reply before there was one like it.
DEFAULT_OUTPUT: Final = 512
# Number of newest replies that the estimate is made from.
KEPT: Final = 256


@final
class OutputEstimate:
    """A running percentile of the output tokens of each purpose and model, and of each node of a program.

    A node without replies is assumed to be like the others of its purpose.

    A mean would be too little for every second reply. The maximum would hold back tokens that are hardly ever used.

    Args:
        share: of the replies that the estimate covers. Admission uses 0.9; budgets use more, because money is at stake.

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
            site: identifies the node in the program; the same from step to step.
        """
        for place in (None,) if site is None else (None, site):
            newest, ordered = self._seen.setdefault((purpose, model, place), (deque(), []))
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
