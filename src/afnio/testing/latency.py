"""Latency: how long the provider thinks before it replies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Self, final

from afnio.testing.draw import draw

_NUMBERS: Final = {"constant": 1, "lognormal": 2, "pareto": 3}
_NORMAL: Final = NormalDist()
_LONGEST: Final = 600.0
"""Seconds at which a Pareto tail ends that is given no end; without one it has no mean worth the name."""


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of seconds; make one with `constant`, `lognormal`, `pareto` or `parse`.

    Each attempt of each request has its own latency, whatever arrives before it.

    >>> Latency.parse("lognormal:0.2,1.0") == Latency.lognormal(0.2, 1.0)
    True
    """

    shape: str
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.shape not in _NUMBERS:
            raise ValueError(f"The latency [{self}] has an unknown shape; take one of {sorted(_NUMBERS)}.")
        if len(self.numbers) != _NUMBERS[self.shape]:
            raise ValueError(f"The latency [{self}] takes [{_NUMBERS[self.shape]}] numbers; give so many.")
        least = math.ulp(0.0) if self.shape == "pareto" else 0.0
        if not all(math.isfinite(number) and number >= least for number in self.numbers):
            raise ValueError(f"The latency [{self}] has a number that can't be; give positive ones.")

    @classmethod
    def constant(cls, seconds: float) -> Self:
        """Every reply takes `seconds`."""
        return cls("constant", (seconds,))

    @classmethod
    def lognormal(cls, median: float, sigma: float) -> Self:
        """Half take less than `median`; at `sigma` 1 one in 100 takes ten times as long."""
        return cls("lognormal", (median, sigma))

    @classmethod
    def pareto(cls, least: float, alpha: float, most: float = _LONGEST) -> Self:
        """None takes less than `least`; the smaller `alpha`, the heavier the tail, which ends at `most`."""
        return cls("pareto", (least, alpha, most))

    @classmethod
    def of(cls, given: float | str | Latency) -> Latency:
        """Return a latency that is given as seconds, as a text for `parse`, or as itself."""
        if isinstance(given, Latency):
            return given
        return cls.parse(given) if isinstance(given, str) else cls.constant(given)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the latency that a text such as `0.2`, `lognormal:0.2,1.0`, `pareto:0.1,1.5` names."""
        shape, colon, listed = text.rpartition(":")
        try:
            numbers = tuple(float(number) for number in listed.split(","))
        except ValueError:
            raise ValueError(
                f"The latency [{text}] has something that is no number; write 0.2 or lognormal:0.2,1.0."
            ) from None
        if shape == "pareto" and len(numbers) == 2:
            return cls.pareto(*numbers)
        return cls(shape if colon else "constant", numbers)

    def __str__(self) -> str:
        return f"{self.shape}:{','.join(map(repr, self.numbers))}"

    def seconds(self, seed: int, request: str, attempt: int) -> float:
        """Return the latency of one attempt of the request with that digest."""
        if self.shape == "constant":
            return self.numbers[0]
        share = draw(seed, "latency", request, attempt)
        if self.shape == "lognormal":
            median, sigma = self.numbers
            return median * _exp(sigma * _NORMAL.inv_cdf(share))
        least, alpha, most = self.numbers
        return min(least * _exp(-math.log(share) / alpha), most)


def _exp(power: float) -> float:
    """Return e to `power`; the largest powers count as one that a float can still hold."""
    return math.exp(min(power, 600.0))
