"""What recording a run costs: calls/s of `calls` at full speed, and a step whose calls take a second.

Each run is a fresh process against one provider process; with and without take turns. Without a run there is
a journal too, as every run has one.
"""

from __future__ import annotations

from typing import Any

from afnio.testing import Provider
from benchmarks.child import run
from benchmarks.children.texts import REPLY
from benchmarks.report import Claim, median, show

CALLS = 5.0
"""Percent of the calls/s that recording may cost."""
STEP = 2.0
"""Percent of a step's time that it may cost at 1 s latency."""
COLUMNS = ["part", "recorded", "calls/s", "CPU ms/call", "seconds"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    rows: list[list[Any]] = []
    fast = _compare("256 in flight, 0.2 s", rows, 7 if full else 3, latency=0.2, calls=2000, in_flight=256)
    step = _compare(
        "step of 64, 1 s",
        rows,
        5 if full else 3,
        latency=1.0,
        calls=64,
        in_flight=64,
        rounds=3 if full else 1,
    )
    claims = [
        Claim("recording, % of calls/s at 256", fast, CALLS),
        Claim("recording, % of a step at 1 s", step, STEP),
    ]
    notes = ["medians of rounds in fresh processes; a journal both with and without"]
    show("tracking", COLUMNS, rows, notes, claims)
    return claims


def _compare(name: str, rows: list[list[Any]], repeats: int, *, latency: float, **options: Any) -> float:
    """Measure with and without, in turn; return how many percent of the throughput it takes."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    with Provider.process(latency=latency, reply=REPLY) as provider:
        for _ in range(repeats):
            for tracked, kept in found.items():
                kept.append(
                    run("benchmarks.children.tracked", base_url=provider.base_url, tracked=tracked, **options)
                )
    count = options["calls"] * options.get("rounds", 1)
    walls = {tracked: median([one["wall"] for one in kept]) for tracked, kept in found.items()}
    for tracked, kept in found.items():
        cpu = median([one["cpu"] for one in kept])
        rows.append(
            [name, "yes" if tracked else "no", count / walls[tracked], cpu / count * 1e3, walls[tracked]]
        )
    return 100 * (1 - walls[False] / walls[True])
