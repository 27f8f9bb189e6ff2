"""Run the benchmarks: `python -m benchmarks [--full] [part …]`; the small form takes about eight minutes."""

from __future__ import annotations

import argparse
import time

from rich.console import Console

from benchmarks import (
    batches,
    bridge,
    calls,
    executors,
    gateway,
    journal,
    launch,
    quota,
    reduce,
    replicas,
    scale,
    step,
    streams,
    tail,
    tracking,
    trainer,
)
from benchmarks.report import Claim, show_claims

DURABLE = 10_000.0
"""Appends/s of the journal with 100 calls in flight."""


def write(*, full: bool) -> list[Claim]:
    """Measure the journal alone; what it costs the calls is part of `calls`."""
    rows = journal.main() if full else journal.main(count=5000, in_flight=(1, 100), repeats=1)
    found = {row["in flight"]: float(row["appends/s"]) for row in rows}
    return [Claim("durable appends/s at 100 in flight", found.get(100), DURABLE, at_least=True)]


PARTS = {
    "launch": launch.main,
    "calls": calls.main,
    "bridge": bridge.main,
    "batches": batches.main,
    "step": step.main,
    "trainer": trainer.main,
    "reduce": reduce.main,
    "tail": tail.main,
    "quota": quota.main,
    "gateway": gateway.main,
    "executors": executors.main,
    "replicas": replicas.main,
    "streams": streams.main,
    "scale": scale.main,
    "journal": write,
    "tracking": tracking.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"some of {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--full", action="store_true", help="all sizes, more repeats; about 40 minutes")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; take some of {', '.join(PARTS)}")
    console = Console(width=max(100, Console().width))
    began, claims = time.monotonic(), []
    for part in given.parts or PARTS:
        since = time.monotonic()
        claims += PARTS[part](full=given.full)
        console.print(f"{part}: {time.monotonic() - since:.0f} s\n", style="dim", highlight=False)
    show_claims(console, f"All claims, measured in {time.monotonic() - began:.0f} s", claims)


if __name__ == "__main__":
    main()
