"""Limits: what an account may be asked for at once and within a minute."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

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
        secret: digest that tells keys apart; never the key.
    """

    url: str
    secret: str


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
