"""Time to quality: how long it takes a method to hold the accuracy that TextGrad ends with.

The prompts of each step were remembered during the run and tested afterwards on the same items, so looking took no
time. A run's accuracy at a moment is that of the prompts that it would have returned then. It is looked at once every
latency; a method *holds* an accuracy once the mean of its last three looks is at least that. Curves are means over
seeds. A stricter figure is shown beside it: the same after a method's last three steps, so that a lucky prompt isn't
enough. Waits are also counted in latencies: how many calls had to wait for one another. That doesn't depend on how busy
the machine was.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from statistics import mean

from benchmarks.learning.outcome import Outcome

LOOKS = 3
REFERENCE = "TextGrad"
DRAWS = 1000
COLUMNS = (
    "method",
    "seeds",
    "ends with",
    "holds it after",
    "95 % interval",
    "in latencies",
    "after three steps",
    "whole run",
    "in latencies",
)

Curve = Sequence[tuple[float, float]]
"""(time, accuracy) after each step, the start first."""


def rows(runs: Sequence[Outcome], latency: float, wanted: float | None = None) -> Iterator[list[str]]:
    """Yield a row for each method on one task, at one latency; `wanted` is the accuracy to hold."""
    methods: dict[str, dict[int, Outcome]] = {}
    for run in runs:
        if run.path:
            methods.setdefault(run.method, {})[run.seed] = run
    if wanted is None:
        if REFERENCE not in methods:
            return
        # Shares in paths are rounded.
        wanted = mean(run.share for run in methods[REFERENCE].values()) - 5e-4
    for name, by_seed in methods.items():
        found = list(by_seed.values())
        by_time = [[(seconds, share) for seconds, _, _, share in run.path] for run in found]
        by_round = [[(float(rounds), share) for _, _, rounds, share in run.path] for run in found]
        low, high = interval(by_time, wanted, latency)
        waits = held(by_round, wanted, 1.0)
        yield [
            name,
            str(len(found)),
            f"{mean(run.share for run in found):.1%}",
            shown(held(by_time, wanted, latency)),
            f"{shown(low)} to {shown(high)}",
            "never" if math.isinf(waits) else f"{waits:.0f}",
            shown(held_by_steps(by_time, wanted)),
            shown(mean(run.seconds for run in found)),
            f"{mean(run.rounds for run in found):.0f}",
        ]


def held(curves: Sequence[Curve], wanted: float, every: float) -> float:
    """Return the time after which the mean of these curves holds an accuracy; infinity if it never does.

    >>> held([[(0.0, 0.3), (4.0, 0.7)]], wanted=0.6, every=1.0)
    6.0
    """
    times = [[time for time, _ in curve] for curve in curves]
    until = max(curve[-1] for curve in times)
    looks: list[float] = []
    for number in range(1, math.ceil(until / every) + LOOKS + 1):
        at = [bisect_right(some, number * every) - 1 for some in times]
        looks.append(mean(curve[max(place, 0)][1] for curve, place in zip(curves, at, strict=True)))
        if len(looks) >= LOOKS and mean(looks[-LOOKS:]) >= wanted:
            return number * every
    return math.inf


def held_by_steps(curves: Sequence[Curve], wanted: float) -> float:
    """Return the mean time of the first step after which the last three steps, averaged over curves, hold it."""
    # The first entry of a curve is the start, before any step.
    for step in range(LOOKS, min(map(len, curves))):
        last = [mean(share for _, share in curve[step - LOOKS + 1 : step + 1]) for curve in curves]
        if mean(last) >= wanted:
            return mean(curve[step][0] for curve in curves)
    return math.inf


def interval(curves: Sequence[Curve], wanted: float, every: float, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of `held`: curves are drawn anew with replacement."""
    rng = random.Random(seed)
    draws = sorted(held(rng.choices(curves, k=len(curves)), wanted, every) for _ in range(DRAWS))
    return draws[round(0.025 * (DRAWS - 1))], draws[round(0.975 * (DRAWS - 1))]


def shown(seconds: float) -> str:
    """Return seconds as people say them.

    >>> shown(8.04), shown(150), shown(float("inf"))
    ('8.0 s', '2.5 min', 'never')
    """
    if math.isinf(seconds):
        return "never"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
