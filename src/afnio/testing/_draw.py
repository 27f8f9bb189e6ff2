"""Draws: random numbers that belong to a request and its attempt, not to the order of arrival."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

_STEPS: Final = 2**52
"""How many different numbers a draw has: as many as keep both 0 and 1 out of a float's reach."""


def digest(body: bytes) -> str:
    """Return what tells the request with this body from others.

    >>> digest(b"{}") == digest(b"{}")
    True
    """
    return blake2b(body, digest_size=8).hexdigest()


def draw(seed: int, purpose: str, request: str, attempt: int) -> float:
    """Return a number between 0 and 1, both excluded, the same for the same arguments always.

    Args:
        purpose: what it is drawn for, so that a slow reply is not always a faulty one too.
        request: the request's `digest`.
        attempt: how many times that request has been sent, this time included.

    >>> 0 < draw(7, "latency", digest(b"{}"), 1) < 1
    True
    """
    key = f"{seed}/{purpose}/{request}/{attempt}".encode()
    number = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 12
    return (number + 0.5) / _STEPS
