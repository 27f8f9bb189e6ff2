"""A gated step: what it takes beyond a plain one, what early cancelling saves, and whether it decides alike."""

from __future__ import annotations

import argparse
from typing import Any

from afnio.testing import Provider
from benchmarks.child import run
from benchmarks.peers.environment import REPLY
from benchmarks.race import mixes
from benchmarks.report import Claim, median, show

EXTRA = 2.5
"""Latencies that a gated step may take beyond a plain one."""
SAVED, ALIKE = 0.40, 0.95
MIXED = ("early", "middle", "late", "spread", "no better")
"""Mixes that have losers; where all candidates are good there is nothing to save, which the table shows."""


def main(*, full: bool = False) -> list[Claim]:
    """Print both tables and return the claims."""
    return gate(latency=1.0, repeats=5 if full else 1) + race(seeds=1000 if full else 200)


def gate(*, latency: float, repeats: int, in_flight: int = 256, samples: int = 64) -> list[Claim]:
    """Measure a plain and a gated step, against provider processes."""
    rows: list[list[Any]] = []
    walls: dict[bool, float] = {}
    for gated in (False, True):
        runs = [_measured(latency, gated, in_flight, samples) for _ in range(repeats)]
        walls[gated] = median([found["wall"] for found in runs])
        cpu, calls = median([found["cpu"] for found in runs]), max(found["calls"] for found in runs)
        rows.append(["gated" if gated else "plain", walls[gated], walls[gated] / latency, cpu, calls])
    extra = (walls[True] - walls[False]) / latency
    claims = [Claim(f"latencies of a gate at {in_flight} in flight", extra, EXTRA)]
    notes = [
        f"latency {latency:g} s, k=4, {samples} held-out samples, {in_flight} in flight, median of {repeats}",
        "every candidate survives its first block",
    ]
    show("accept-gate", ["step", "wall s", "latencies", "CPU s", "calls"], rows, notes, claims)
    return claims


def race(*, seeds: int) -> list[Claim]:
    """Simulate races of several mixes of candidates."""
    found = mixes(seeds)
    claims: list[Claim] = []
    for row in found:
        if row["mix"] in MIXED:
            claims.append(Claim(f"calls saved, {row['mix']}", row["saved"], SAVED, at_least=True))
        claims.append(Claim(f"decided as in full, {row['mix']}", row["decided alike"], ALIKE, at_least=True))
    notes = [
        f"simulated: {seeds} seeds, k=4, 64 samples in blocks of 16, 32 in flight; the mixes: benchmarks/race.py",
        "\"saved\" counts the candidates' calls (the incumbent's scores are known); the next column counts its 64 too",
    ]
    show("accept-race", list(found[0]), [list(row.values()) for row in found], notes, claims)
    return claims


def _measured(latency: float, gated: bool, in_flight: int, samples: int) -> dict[str, Any]:
    with Provider.process(latency=latency, reply=REPLY) as slow, Provider.process(reply=REPLY) as quick:
        return run(
            "benchmarks.children.gated_step",
            base_url=slow.base_url,
            quick_url=quick.base_url,
            gated=gated,
            in_flight=in_flight,
            samples=samples,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=200)
    given = parser.parse_args()
    gate(latency=given.latency, repeats=given.repeats)
    race(seeds=given.seeds)
