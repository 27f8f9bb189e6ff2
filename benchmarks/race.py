"""Race: the statistics and the racing core alone, on a simulated account: what early cancelling saves and costs.

The model of a step: one incumbent and k candidates; a candidate's effect is drawn from a mix; each held-out sample
is won (+1), lost (-1) or even (0) against the incumbent, with P(win) - P(loss) = effect and P(win) + P(loss) =
0.2 + |effect| / 2: two prompts disagree on a fifth of the samples by chance alone. Calls take 0.5 to 1.5 latencies,
32 are in flight, so calls queue and each block waits for the one before, as `Improves` has it; what is on the wire
when its candidate is dropped, or the race is over, counts as sent. The mixes are made up, and none was fitted to
the outcome; but `racing.FUTILE`, the chance of 10 % below which a candidate is out, was tuned on earlier mixes of
this kind, so these are no independent test of it. "early" is a prompt that is easy to improve, "late" one that hardly
is, "spread" draws effects from a normal distribution around -0.03.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from afnio.optim.search import Race, each_alpha, p_value
from afnio.runtime._admission import CONGESTED

CONFIDENCE = 0.8
Effect = Callable[[random.Random], float]


def _among(**weights: float) -> Effect:
    effects = {"good": 0.2, "fair": 0.1, "neutral": 0.0, "poor": -0.1, "bad": -0.2}
    return lambda draw: effects[draw.choices(list(weights), list(weights.values()))[0]]


MIXES: Mapping[str, tuple[str, Effect]] = {
    "early": ("good 30 %, neutral 40 %, bad 30 %", _among(good=0.3, neutral=0.4, bad=0.3)),
    "middle": ("fair 30 %, neutral 40 %, poor 30 %", _among(fair=0.3, neutral=0.4, poor=0.3)),
    "late": ("fair 5 %, neutral 65 %, poor 30 %", _among(fair=0.05, neutral=0.65, poor=0.3)),
    "spread": ("normal, mean -0.03, deviation 0.1", lambda draw: draw.gauss(-0.03, 0.1)),
    "no better": ("neutral 100 %", _among(neutral=1.0)),
    "all good": ("good 100 %", _among(good=1.0)),
}
"""Effects of candidates on the mean score: +0.2, +0.1, 0, -0.1, -0.2."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated step: calls sent, calls of the full evaluation, and who won in both."""

    sent: int
    full: int
    raced: int | None
    evaluated: int | None


def simulate(
    effect: Effect, seed: int, *, k: int = 4, samples: int = 64, block: int = 16, in_flight: int = 32
) -> Outcome:
    """Race one step's candidates on the simulated account, and decide it on all samples too."""
    draw = random.Random(seed)
    table = [_differences(effect(draw), samples, draw) for _ in range(k)]
    sizes = [min(block, samples - start) for start in range(0, samples, block)]
    sent, winner = _Account(table, sizes, in_flight, draw).run()
    alpha = each_alpha(CONFIDENCE, k)
    accepted = [c for c in range(k) if p_value(table[c]) <= alpha]
    best = max(accepted, key=lambda c: (sum(table[c]), -c)) if accepted else None
    return Outcome(sent, k * samples, winner, best)


def _differences(effect: float, samples: int, draw: random.Random) -> list[float]:
    odd = max(0.2 + abs(effect) / 2, abs(effect))
    return draw.choices([1.0, -1.0, 0.0], [(odd + effect) / 2, (odd - effect) / 2, 1 - odd], k=samples)


class _Account:
    """A queue of calls, so many of which are on the wire."""

    def __init__(
        self, table: list[list[float]], sizes: list[int], in_flight: int, draw: random.Random
    ) -> None:
        self._table, self._sizes, self._in_flight, self._draw = table, sizes, in_flight, draw
        self._race = Race(sizes, candidates=len(table), confidence=CONFIDENCE, quorum=0.9)
        for number, size in enumerate(sizes):
            self._race.add_incumbent(number, [0.0] * size)
        self._queue: deque[tuple[int, int]] = deque()
        self._wire: list[tuple[float, int, int, int]] = []
        self._orders, self._missing, self._sent = itertools.count(), dict[tuple[int, int], int](), 0
        self._begun = [1] * len(table)
        self._launched = self._waited = 0

    def run(self) -> tuple[int, int | None]:
        """Return how many calls were sent, and who won."""
        now = 0.0
        for candidate in range(len(self._table)):
            self._launch(candidate, 0)
        while not self._race.over:
            self._send(now)
            now, _, candidate, block = heapq.heappop(self._wire)
            self._missing[candidate, block] -= 1
            if self._missing[candidate, block] == 0:
                start = sum(self._sizes[:block])
                self._race.add(candidate, block, self._table[candidate][start : start + self._sizes[block]])
                self._settle()
        return self._sent, self._race.winner

    def _launch(self, candidate: int, block: int) -> None:
        self._missing[candidate, block] = self._sizes[block]
        for _ in range(self._sizes[block]):
            self._launched += 1
            self._waited += len(self._queue) + len(self._wire) >= self._in_flight
            self._queue.append((candidate, block))

    def _send(self, now: float) -> None:
        while self._queue and len(self._wire) < self._in_flight:
            call = (now + 0.5 + self._draw.random(), next(self._orders), *self._queue.popleft())
            heapq.heappush(self._wire, call)
            self._sent += 1

    def _settle(self) -> None:
        for candidate in range(len(self._table)):
            while self._begun[candidate] <= self._race.survived(candidate) and self._race.running(candidate):
                self._launch(candidate, self._begun[candidate])
                self._begun[candidate] += 1
                if self._waited >= CONGESTED * self._launched:
                    break
                # There is room: whoever survived its first block gets all of the others at once.
                while self._begun[candidate] < len(self._sizes):
                    self._launch(candidate, self._begun[candidate])
                    self._begun[candidate] += 1
        self._queue = deque(call for call in self._queue if self._race.running(call[0]))
        self._wire = [call for call in self._wire if self._race.running(call[2])]
        heapq.heapify(self._wire)


def mixes(seeds: int) -> list[dict[str, Any]]:
    """Return for each mix what racing saved and how often it decided as the full evaluation did."""
    rows = []
    for name, (words, effect) in MIXES.items():
        found = [simulate(effect, seed) for seed in range(seeds)]
        saved = 1 - sum(f.sent for f in found) / sum(f.full for f in found)
        with_incumbent = 1 - sum(f.sent + 64 for f in found) / sum(f.full + 64 for f in found)
        alike = sum(f.raced == f.evaluated for f in found) / seeds
        accepted = sum(f.evaluated is not None for f in found) / seeds
        rows.append({"mix": name, "candidates": words, "saved": saved, "with the incumbent's": with_incumbent,
                     "decided alike": alike, "accepted": accepted})  # fmt: skip
    return rows
