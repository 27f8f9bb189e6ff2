"""Limits: what an account may be asked for at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an account; those given on one client hold for every client of the account.

    Attributes:
        max_in_flight: requests on the wire at once, at most; used at once and never exceeded. Without
            it the engine starts at 64 and finds the level that the provider takes.

    >>> Limits(max_in_flight=256).max_in_flight
    256
    """

    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(
                f"max_in_flight must be at least 1 (got {self.max_in_flight}); omit it to let it adapt"
            )


@dataclass(frozen=True, slots=True)
class Account:
    """Whose limits a call counts against: a base URL and a key.

    Attributes:
        url: base URL without credentials; shown in events and errors.
        secret: digest that tells keys apart; never the key.
    """

    url: str
    secret: str
