"""A provider's batch API: CPU and memory of calls that wait for a batch.

All calls are lanes of one launch, with 1 kB of text each, and go as one batch. The provider is another process.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.child import run
from benchmarks.report import Claim, median, show

CPU = 350.0
"""Microseconds a call."""
MEMORY = 6.0
"""Kilobytes a call, resident at the peak."""
WHY = "each call keeps its task, ten coroutines and its launch's lane while it waits, about 9 kB of Python objects"


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    return compare([1000, 10_000, 50_000], repeats=3) if full else compare([10_000], repeats=1)


def compare(sizes: Sequence[int], *, repeats: int) -> list[Claim]:
    """Measure each size; the claims are those of the last one."""
    rows, claims = [], []
    for calls in sizes:
        runs = [run("benchmarks.children.by_batch", calls=calls) for _ in range(repeats)]
        cpu, kilobytes = (median([run[name] for run in runs]) for name in ("cpu", "bytes"))
        rows.append([calls, cpu * 1e6, kilobytes / 1e3, median([run["wall"] for run in runs])])
        claims = [
            Claim(f"CPU µs/call by batch, {calls} calls", cpu * 1e6, CPU),
            Claim(f"kB/call by batch at the peak, {calls} calls", kilobytes / 1e3, MEMORY, why=WHY),
        ]
    notes = [f"medians of {repeats} processes; a batch takes a second at the provider"]
    show("batches", ["calls", "CPU µs/call", "kB/call at the peak", "wall s"], rows, notes, claims)
    return claims
