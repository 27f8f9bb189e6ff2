"""Random numbers that depend on a request and its attempt, and not on the order of arrival.

Concurrent requests arrive in a different order in every run. A shared random generator would give each request another
number each time. A hash of the seed, the request and the attempt gives the same number always.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

_STEPS: Final = 2**52
"""Number of different draws. With more, the float closest to 1 would be rounded to 1."""


def request_digest(body: bytes) -> str:
    """Return the key of the request with this body in `stats()["attempts"]`.

    >>> request_digest(b"{}") == request_digest(b"{}")
    True
    """
    return blake2b(body, digest_size=8).hexdigest()


def draw(seed: int, purpose: str, request: str, attempt: int) -> float:
    """Return a number between 0 and 1, both excluded; always the same for the same arguments.

    Args:
        purpose: makes draws for different uses independent: a slow reply isn't always a faulty one too.
        request: the request's `request_digest`.
        attempt: the number of the attempt, from 1.

    >>> 0 < draw(7, "latency", request_digest(b"{}"), 1) < 1
    True
    """
    key = f"{seed}/{purpose}/{request}/{attempt}".encode()
    number = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 12
    return (number + 0.5) / _STEPS
