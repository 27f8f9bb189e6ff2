"""Growing batches: CPU per sample of a training step, and the memory of a lane that waits in the queue.

Each size in a fresh process, with a scripted model in it: what is measured is the engine alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.child import run
from benchmarks.report import Claim, median, show

BASE = 100
GROWTH = 1.15
"""CPU per sample of the largest batch, as a multiple of that of a batch of 100."""
QUEUED = 20.0
"""Kilobytes that a lane may take which is queued and not on the wire."""
SAMPLES = 2000
"""At least so many samples a run, so that small batches are measured as well as large ones."""
COLUMNS = ["samples", "CPU ms/sample", f"x that at {BASE}", "of it GC", "step s"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    sizes = [10, 100, 1000, 10_000] if full else [100, 10_000]
    return compare(sizes, queued=10_000 if full else 2000, repeats=9 if full else 3)


def compare(sizes: Sequence[int], *, queued: int, repeats: int, samples: int = SAMPLES) -> list[Claim]:
    """Measure each size in turns, and one batch of `queued` lanes behind a gate."""
    module = "benchmarks.children.lanes"
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    lanes: list[float] = []
    for _ in range(repeats):
        for size in sizes:
            found[size].append(run(module, samples=size, steps=max(1, samples // size)))
        lanes.append(run(module, samples=queued)["bytes"] / 1000)
    cpu = {size: median([run["cpu"] / size * 1e3 for run in runs]) for size, runs in found.items()}
    gc = {size: median([run["gc"] / size * 1e3 for run in runs]) for size, runs in found.items()}
    walls = {size: median([run["wall"] for run in runs]) for size, runs in found.items()}
    base, largest = cpu.get(BASE, cpu[sizes[0]]), max(sizes)
    rows = [[size, cpu[size], cpu[size] / base, gc[size], walls[size]] for size in sizes]
    notes = [
        f"a step is forward, loss, backward, update with a scripted model; medians of {repeats} processes",
        f"{queued} lanes, 8 on the wire: {median(lanes):.3g} kB resident for each that waits",
    ]
    why = f"garbage collection takes {gc[largest]:.2g} of {cpu[largest]:.2g} ms at {largest} samples"
    claims = [
        Claim(f"CPU/sample at {largest} / at {BASE}", cpu[largest] / base, GROWTH, why=why),
        Claim("kB resident per queued lane", median(lanes), QUEUED),
    ]
    show("scale", COLUMNS, rows, notes, claims)
    return claims


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--queued", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    compare(given.samples, queued=given.queued, repeats=given.repeats)
