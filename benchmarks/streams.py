"""Streams: rows/s of scripted rows, with and without a journal, and the memory at the end by that at 10,000 rows.

Each runs in a fresh process. The model answers at once, so that all of the time is the engine's; the CPU time of a row
is the figure to trust on a busy machine.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.child import run
from benchmarks.report import Claim, show

RATE, JOURNALED = 3_000.0, 1_500.0
"""Rows/s without and with a journal."""
GROWTH = 1.10


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    return compare(rows=1_000_000 if full else 60_000)


def compare(*, rows: int) -> list[Claim]:
    """Measure both."""
    table: list[list[Any]] = []
    claims: list[Claim] = []
    for journal, goal in ((False, RATE), (True, JOURNALED)):
        one = run("benchmarks.children.stream_rows", rows=rows, journal=journal)
        table.append(
            [
                "yes" if journal else "no",
                rows,
                one["rate"],
                one["cpu"],
                one["early"],
                one["late"],
                one["bytes"],
            ]
        )
        kind = "with a journal" if journal else "without a journal"
        claims.append(Claim(f"a stream {kind}: rows/s", one["rate"], goal, at_least=True))
        if not journal:
            claims.append(
                Claim(
                    "a stream: memory at the end by that at 10,000 rows", one["late"] / one["early"], GROWTH
                )
            )
    show(
        "streams",
        ["journal", "rows", "rows/s", "CPU µs/row", "MB at 10,000", "MB at the end", "bytes/row"],
        table,
        ["1,000 rows pending; the whole process's CPU time; the most memory so far"],
        claims,
    )
    return claims


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    main(full=parser.parse_args().full)
