"""Reader: how much of what it is sent an LM takes in, and how often it is beside the point.

The rules and what they follow from are in docs/simulated-lm.md; the figures below were fixed before
anything was measured with them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final, Self, final

from afnio.testing.draw import digest, draw

LIMITED: Final = "simulated-limited"
"""How the name of a model starts that reads as real models do; every other name reads everything."""
WALL: Final = 50
"""Feedback texts in one prompt from which on more of them teach less, not more."""
DENSITY: Final = 250.0
"""Instructions in one prompt at which 1/e of them is followed."""
BESIDE_THE_POINT: Final = 0.25
"""Share of critics' comments that name something that has nothing to do with the mistake."""


@final
@dataclass(frozen=True, slots=True)
class Reader:
    """What one request's reader notices; a perfect one notices everything.

    Its chances are drawn for the request and the attempt, so the same request gets the same reply at
    temperature 0, and each attempt its own at any other.
    """

    limited: bool = False
    request: str = ""
    attempt: int = 1
    seed: int = 0

    @classmethod
    def of(cls, request: dict[str, Any], attempt: int = 1, seed: int = 0) -> Self:
        """Return the reader that the request's model name stands for."""
        if not str(request.get("model", "")).startswith(LIMITED):
            return cls()
        asked = json.dumps(request, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        greedy = request.get("temperature", 1.0) == 0
        return cls(True, digest(asked), 1 if greedy else attempt, seed)

    def uses(self, what: str, among: float) -> bool:
        """Return whether a proposer or reducer makes use of one feedback among `among` of them."""
        return not self.limited or self._chance(f"use {what}") < 1 / (1 + (among / WALL) ** 2)

    def follows(self, what: str, among: float) -> bool:
        """Return whether a student follows one instruction among `among` of them."""
        return not self.limited or self._chance(f"follow {what}") < math.exp(-among / DENSITY)

    def strays(self, what: str) -> bool:
        """Return whether a critic's comment on `what` is beside the point."""
        return self.limited and self._chance(f"stray {what}") < BESIDE_THE_POINT

    def repeats(self, what: str) -> bool:
        """Return whether a proposer says again what a rejected value said: every other time."""
        return not self.limited or self._chance(f"repeat {what}") < 0.5

    def pick(self, what: str, options: int) -> int:
        """Return one of `options` numbers from 0; a perfect reader takes the first."""
        return int(self._chance(f"pick {what}") * options) if self.limited else 0

    def _chance(self, purpose: str) -> float:
        return draw(self.seed, purpose, self.request, self.attempt)


PERFECT: Final = Reader()
