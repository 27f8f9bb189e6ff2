"""OutputEstimate: how long replies get, learnt from those that came."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable
from typing import Final, final

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
