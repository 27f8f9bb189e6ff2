"""A fit of five epochs over 66 samples with validation: how near it comes to its critical path.

Every sample is wrong, so a step is three calls in a row: forward, backward, update. Validation goes on beside the step
that follows, so that only the last pass adds to the path: `3 * steps + 1` latencies.
"""

from __future__ import annotations

import argparse
from typing import Any

from afnio.testing import Provider
from benchmarks.child import run
from benchmarks.peers.environment import REPLY
from benchmarks.report import Claim, median, show

EPOCHS = 5
SAMPLES = 66
REACH = 1.10
EXTRA = 0.05
"""What progress, checkpoints and tracking may add to the wall time."""
COLUMNS = ["batch", "kept and shown", "wall s", "latencies", "of the path", "CPU s", "calls"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    if full:
        return compare(batch_sizes=[33, 66], latency=1.0, repeats=3)
    return compare(batch_sizes=[66], latency=0.5, repeats=1)


def compare(*, batch_sizes: list[int], latency: float, repeats: int) -> list[Claim]:
    """Measure with everything and with nothing in turns, for some batch sizes."""
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    for size in batch_sizes:
        path = (3 * EPOCHS * SAMPLES // size + 1) * latency
        found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for _ in range(repeats):
            for everything in (False, True):
                found[everything].append(_fit(latency, size, everything))
        walls = {everything: median([one["wall"] for one in runs]) for everything, runs in found.items()}
        for everything, runs in found.items():
            wall, cpu = walls[everything], median([one["cpu"] for one in runs])
            shown = "everything" if everything else "nothing"
            rows.append(
                [size, shown, wall, wall / latency, wall / path, cpu, max(one["calls"] for one in runs)]
            )
        extra = walls[True] / walls[False] - 1
        why = f"{walls[True] - path:.2g} s beyond {path / latency:g} latencies of {latency:g} s"
        claims += [
            Claim(f"fit in batches of {size}, wall / critical path", walls[True] / path, REACH, why=why),
            Claim(f"progress, checkpoints, tracking in batches of {size}, of the wall", extra, EXTRA),
        ]
    notes = [f"{EPOCHS} epochs of {SAMPLES} samples, all wrong, latency {latency:g} s, median of {repeats}"]
    show("trainer", COLUMNS, rows, notes, claims)
    return claims


def _fit(latency: float, batch_size: int, everything: bool) -> dict[str, Any]:
    with Provider.process(latency=latency, reply=REPLY) as provider:
        return run(
            "benchmarks.children.fit", base_url=provider.base_url, epochs=EPOCHS, samples=SAMPLES,
            batch_size=batch_size, everything=everything,
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[66])
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    compare(batch_sizes=given.batch_sizes, latency=given.latency, repeats=given.repeats)
