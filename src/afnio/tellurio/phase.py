"""Phase: which part of a program an address belongs to."""

from __future__ import annotations

from functools import lru_cache
from itertools import takewhile


@lru_cache(maxsize=1024)
def phase_of(address: str) -> str:
    """The scopes of an address, without the run's own.

    >>> phase_of("run/epoch 1/step 3/7/12/forward"), phase_of("run/4/chat"), phase_of("/4")
    ('epoch 1/step 3', '', '')
    """
    parts = list(takewhile(lambda part: not part.isdecimal(), address.split("/")))
    return "/".join(parts[1:] if parts[:1] in (["run"], [""]) else parts)
