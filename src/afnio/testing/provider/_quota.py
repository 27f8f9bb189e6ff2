"""Quotas as providers enforce them, and the ledger of what the provider saw.

A `Quota` limits the requests and tokens of an account in a window of time. Providers use two kinds of limit, with
different bursts, and a client has to cope with both: `Bucket` refills evenly, so a full window's worth may come in one
burst; `SlidingWindow` never allows more than the limit in any window. An `AccountBalance` has one of them for requests
and one for tokens, and reports the rest in `x-ratelimit-*` headers. All clocks are arguments, so tests need no waiting.

`ProviderLedger` counts what arrived, with the worst window of all. A test compares it with the quota to prove that a
client really kept to the limit.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol, final

Shape = Literal["bucket", "sliding"]


@final
@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one account, that is, one API key.

    An admitted request costs the tokens of its prompt, plus `max_completion_tokens` (or `max_tokens`) if it sets one.
    Nothing is refunded, even if the request then meets a fault. A request above the limit is never admitted. Refused
    requests cost nothing.

    Args:
        requests, tokens: the limits in one window; None for no limit.
        window: seconds of a window. Providers use 60; 1 or 2 make quick tests.
        shape: "bucket" refills evenly and allows a burst, as most providers do; "sliding" admits no more than the
            limit in any window.
        halve_after: halve both limits after this many requests of the account.
        per_model: each model has separate limits.
        headers: replies have `x-ratelimit-*` headers with the limits and the rest.
        retry_after: seconds that every refusal asks to wait, even if that is wrong; None for the true time.

    Raises:
        ValueError: for a number that isn't above 0, or an unknown shape.

    >>> Quota(requests=600, window=2.0).scaled(0.5).requests
    300
    """

    requests: int | None = None
    tokens: int | None = None
    window: float = 60.0
    shape: Shape = "bucket"
    halve_after: int | None = None
    per_model: bool = False
    headers: bool = True
    retry_after: float | None = None

    def __post_init__(self) -> None:
        for name in ("requests", "tokens", "window", "halve_after", "retry_after"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} of a quota must be above 0 (got {value})")
        if self.shape not in _SHAPES:
            raise ValueError(f"shape of a quota must be one of {[*_SHAPES]} (got {self.shape!r})")

    def scaled(self, factor: float) -> Quota:
        """Return the quota with both limits times `factor`, at least one."""
        return replace(self, requests=_scaled(self.requests, factor), tokens=_scaled(self.tokens, factor))


@final
class QuotaError(Exception):
    """A request exceeds a quota.

    Attributes:
        limit: the exceeded limit, "requests" or "tokens".
        wait: seconds that the refusal asks to wait; infinity if the request is above the limit.
    """

    def __init__(self, limit: str, size: int, cost: int, wait: float) -> None:
        super().__init__(
            f"Rate limit reached on {limit}: limit {size}, requested {cost}. "
            + ("Send a smaller request." if math.isinf(wait) else f"Please try again in {duration(wait)}.")
        )
        self.limit = limit
        self.wait = wait

    def headers(self) -> dict[str, str]:
        """Return the headers with the time to wait, in milliseconds and in whole seconds."""
        if math.isinf(self.wait):
            return {}
        milliseconds = math.ceil(self.wait * 1000)
        return {"retry-after-ms": str(milliseconds), "retry-after": str(-(-milliseconds // 1000))}


@final
class AccountBalance:
    """The rest of one account's quota."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._came = 0
        self._meters: dict[str, Meter] = {}
        self.change(quota, 0.0)

    def admit(self, tokens: int, now: float) -> None:
        """Take one request and `tokens` tokens from the limits.

        Raises:
            QuotaError: if that exceeds a limit; then nothing is taken.
        """
        self._came += 1
        if self._came - 1 == self.quota.halve_after:
            self.change(self.quota.scaled(0.5), now)
        costs = {"requests": 1, "tokens": tokens}
        waits = {name: meter.wait(costs[name], now) for name, meter in self._meters.items()}
        name = max(waits, key=waits.__getitem__, default="")
        if name and waits[name] > 0:
            wait = waits[name]
            if self.quota.retry_after is not None and not math.isinf(wait):
                wait = self.quota.retry_after
            raise QuotaError(name, self._meters[name].limit, costs[name], wait)
        for name, meter in self._meters.items():
            meter.take(costs[name], now)

    def headers(self, now: float) -> dict[str, str]:
        """Return the `x-ratelimit-*` headers: each limit, its rest, and the time until all of it is available."""
        sent: dict[str, str] = {}
        for name, meter in self._meters.items() if self.quota.headers else ():
            sent[f"x-ratelimit-limit-{name}"] = str(meter.limit)
            sent[f"x-ratelimit-remaining-{name}"] = str(meter.remaining(now))
            sent[f"x-ratelimit-reset-{name}"] = duration(meter.reset(now))
        return sent

    def change(self, quota: Quota, now: float) -> None:
        """Set other limits. The window and the shape don't change."""
        self.quota = quota
        for name, limit in (("requests", quota.requests), ("tokens", quota.tokens)):
            if limit is None:
                self._meters.pop(name, None)
            elif name in self._meters:
                self._meters[name].resize(limit, now)
            else:
                self._meters[name] = _SHAPES[quota.shape](limit, quota.window)


@final
class Accounts:
    """The balances of all accounts of a provider."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._balances: dict[tuple[str, str], AccountBalance] = {}

    def balance(self, key: str, model: str) -> AccountBalance:
        """Return the balance for requests with this API key and model."""
        account = (key, model if self.quota.per_model else "")
        kept = self._balances.get(account)
        if kept is None:
            kept = self._balances[account] = AccountBalance(self.quota)
        return kept

    def scale(self, factor: float, now: float) -> None:
        """Multiply the limits of all accounts, including future ones."""
        self.quota = self.quota.scaled(factor)
        for balance in self._balances.values():
            balance.change(balance.quota.scaled(factor), now)


def duration(seconds: float) -> str:
    """Format seconds as providers do in `x-ratelimit-reset-*`, rounded up to microseconds.

    >>> duration(0.25), duration(90.5), duration(7200)
    ('250ms', '1m30.5s', '2h0m0s')
    """
    micros = math.ceil(seconds * 1e6 - 1e-3)
    if micros < 1_000_000:
        return f"{_decimal(micros, 1_000)}ms" if micros else "0s"
    minutes, micros = divmod(micros, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    before = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{before}{_decimal(micros, 1_000_000)}s"


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    digits = str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)


def _scaled(limit: int | None, factor: float) -> int | None:
    return None if limit is None else max(1, int(limit * factor))


# The two kinds of limit.

# Share of a limit that counts as 0. Times are floats, and after a promised wait the request must be admitted.
_SLACK: Final = 1e-9


class Meter(Protocol):
    """One limit of one account. Times are seconds of any monotonic clock."""

    limit: int

    def wait(self, cost: int, now: float) -> float:
        """Return the seconds until `cost` fits: 0 if it fits now, infinity if it exceeds the limit."""

    def take(self, cost: int, now: float) -> None:
        """Use `cost`, which must fit."""

    def remaining(self, now: float) -> int:
        """Return how much fits now."""

    def reset(self, now: float) -> float:
        """Return the seconds until the whole limit is available again."""

    def resize(self, limit: int, now: float) -> None:
        """Change the limit. Use so far still counts."""


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
        self._full_at = -math.inf  # the whole state: the time at which the bucket will be full

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
    """A log of the last `window` seconds, so that no window ever has more than `limit`.

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
        # Including the edge: a request may come exactly one window after another.
        log, edge = self._log, now - self._window
        while log and log[0][0] <= edge:
            self._used -= log.popleft()[1]


_SHAPES: Final[Mapping[Shape, Callable[[int, float], Meter]]] = {"bucket": Bucket, "sliding": SlidingWindow}


# The ledger.


@final
class WorstWindow:
    """The most requests and the most tokens that arrived within any `seconds`.

    A request exactly `seconds` after another isn't in its window.

    >>> worst = WorstWindow(1.0)
    >>> for time in (0.0, 0.5, 1.0):
    ...     worst.add(time, tokens=10)
    >>> worst.requests, worst.tokens
    (2, 20)
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.requests = self.tokens = 0
        self._log: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def add(self, now: float, tokens: int) -> None:
        log, edge = self._log, now - self.seconds
        while log and log[0][0] <= edge:
            self._tokens -= log.popleft()[1]
        log.append((now, tokens))
        self._tokens += tokens
        if len(log) > self.requests:
            self.requests = len(log)
        if self._tokens > self.tokens:
            self.tokens = self._tokens


@final
class ProviderLedger:
    """Counts what the provider saw: requests by kind, faults, refusals, attempts, and the load in windows of time.

    Args:
        window: seconds of a window.
    """

    def __init__(self, window: float) -> None:
        self.requests = self.in_flight = self.peak = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.limited = 0
        self.kinds: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.attempts: dict[str, int] = {}
        self._worst = WorstWindow(window)
        self._start: float | None = None
        self._windows: dict[int, list[int]] = {}

    def enter(self) -> int:
        """Count an arrived request and return its index, from 0."""
        self.requests += 1
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        return self.requests - 1

    def leave(self) -> None:
        """Count a request as answered, or as given up by its client."""
        self.in_flight -= 1

    def read(self, request: str, tokens: int, now: float) -> int:
        """Count a valid request with the tokens that it may cost; return the number of its attempt, from 1."""
        self._worst.add(now, tokens)
        window = self._window(now)
        window[0] += 1
        window[1] += tokens
        attempt = self.attempts[request] = self.attempts.get(request, 0) + 1
        return attempt

    def refuse(self, limit: str, now: float) -> None:
        """Count a request that a quota refused."""
        self.refusals[limit] += 1
        self.limited += 1
        self._window(now)[2] += 1

    def stats(self) -> dict[str, Any]:
        """Return all counts, ready for JSON."""
        return {
            "requests": self.requests,
            "peak_in_flight": self.peak,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "by_kind": dict(self.kinds),
            "by_fault": dict(self.faults),
            "by_refusal": dict(self.refusals),
            "sent_429": self.limited,
            "worst_window": {
                "seconds": self._worst.seconds,
                "requests": self._worst.requests,
                "tokens": self._worst.tokens,
            },
            "windows": [
                {"window": index, "requests": requests, "tokens": tokens, "refused": refused}
                for index, (requests, tokens, refused) in self._windows.items()
            ],
            "attempts": dict(self.attempts),
        }

    def _window(self, now: float) -> list[int]:
        if self._start is None:
            self._start = now
        index = int((now - self._start) // self._worst.seconds)
        window = self._windows.get(index)
        if window is None:
            window = self._windows[index] = [0, 0, 0]
        return window
