"""Quota: what an account may send in a window of time, and what its replies say about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from afnio.testing.meter import Bucket, Meter, SlidingWindow

Shape = Literal["bucket", "sliding"]

_SHAPES: Final[Mapping[Shape, Callable[[int, float], Meter]]] = {"bucket": Bucket, "sliding": SlidingWindow}


@final
@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one account, which is one API key.

    A request costs its prompt's tokens and, where it says, the most that it may generate
    (`max_completion_tokens` or `max_tokens`) when it is admitted, and nothing of it comes back, also
    if it then meets a fault; one that costs more than the limit is never admitted. Refused requests
    cost nothing.

    Args:
        requests, tokens: the limits in one window; None sets none.
        window: seconds; providers have 60, tests like 1 or 2.
        shape: `bucket` refills evenly and takes a burst, as most providers do; `sliding` admits
            no more than the limit in any window.
        halve_after: both limits halve once so many requests of the account have come.
        per_model: each model has limits of its own.
        headers: replies say what the limits are and what is left of them.
        retry_after: seconds that a refusal asks to wait, however long it would take; None has it say the truth.

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
                raise ValueError(f"{name} [{value}] of a quota must be above 0; raise it or leave it out.")
        if self.shape not in _SHAPES:
            raise ValueError(f"The shape [{self.shape}] of a quota is unknown; take one of {[*_SHAPES]}.")

    def scaled(self, factor: float) -> Quota:
        """Return the quota with both limits times `factor`, at least one."""
        return replace(self, requests=_scaled(self.requests, factor), tokens=_scaled(self.tokens, factor))


@final
class QuotaError(Exception):
    """A request exceeds a quota.

    Attributes:
        limit: which limit is in the way, `requests` or `tokens`.
        wait: seconds that it asks to wait; infinite for one that never will.
    """

    def __init__(self, limit: str, size: int, cost: int, wait: float) -> None:
        super().__init__(
            f"Rate limit reached on {limit}: limit {size}, requested {cost}. "
            + ("Send a smaller request." if math.isinf(wait) else f"Please try again in {duration(wait)}.")
        )
        self.limit = limit
        self.wait = wait

    def headers(self) -> dict[str, str]:
        """Return how long to wait, exactly and in whole seconds."""
        if math.isinf(self.wait):
            return {}
        milliseconds = math.ceil(self.wait * 1000)
        return {"retry-after-ms": str(milliseconds), "retry-after": str(-(-milliseconds // 1000))}


@final
class Balance:
    """What one account has left of its quota."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._came = 0
        self._meters: dict[str, Meter] = {}
        self.change(quota, 0.0)

    def admit(self, tokens: int, now: float) -> None:
        """Take a request with so many tokens.

        Raises:
            QuotaError: if it exceeds a limit; nothing is taken then.
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
        """Return the `x-ratelimit-*` headers, if any: the limit, what remains, the time until it is all back."""
        found: dict[str, str] = {}
        for name, meter in self._meters.items() if self.quota.headers else ():
            found[f"x-ratelimit-limit-{name}"] = str(meter.limit)
            found[f"x-ratelimit-remaining-{name}"] = str(meter.remaining(now))
            found[f"x-ratelimit-reset-{name}"] = duration(meter.reset(now))
        return found

    def change(self, quota: Quota, now: float) -> None:
        """Set other limits; the window and the shape stay as they are."""
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
    """The balances of all accounts that a provider serves."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._balances: dict[tuple[str, str], Balance] = {}

    def balance(self, key: str, model: str) -> Balance:
        """Return the balance that a request with this API key for this model draws on."""
        account = (key, model if self.quota.per_model else "")
        found = self._balances.get(account)
        if found is None:
            found = self._balances[account] = Balance(self.quota)
        return found

    def scale(self, factor: float, now: float) -> None:
        """Multiply the limits of all accounts, also of those to come."""
        self.quota = self.quota.scaled(factor)
        for balance in self._balances.values():
            balance.change(balance.quota.scaled(factor), now)


def duration(seconds: float) -> str:
    """Return seconds as providers write them in `x-ratelimit-reset-*`, rounded up to microseconds.

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
