"""What one launch costs the caller, and one launch with its read.

Reach: a launch at most 25 µs, a launch and a read of a trivial op at most 200 µs.
"""

from __future__ import annotations

import afnio
from benchmarks.report import Claim, median, show, timed

COUNT = 2_000
REPEATS = 7
REACH = {"launch": 25.0, "launch + read": 200.0}


def launches() -> None:
    x, y = afnio.Variable(1), afnio.Variable(2)
    for _ in range(COUNT):
        x + y


def reads() -> None:
    x, y = afnio.Variable(1), afnio.Variable(2)
    for _ in range(COUNT):
        (x + y).data  # noqa: B018 - the read is what is measured


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    launches()
    measured = {"launch": launches, "launch + read": reads}
    rows, claims = [], []
    for name, function in measured.items():
        times = [timed(function) for _ in range(REPEATS * 3 if full else REPEATS)]
        wall = [seconds / COUNT * 1e6 for seconds, _ in times]
        cpu = [seconds / COUNT * 1e6 for _, seconds in times]
        rows.append([name, median(wall), min(wall), median(cpu), REACH[name]])
        claims.append(Claim(f"{name}, µs", median(wall), REACH[name], why=f"{min(wall):.3g} µs at best"))
    columns = ["what", "wall µs", "best µs", "CPU µs (both threads)", "reach µs"]
    show("launch", columns, rows, claims=claims)
    return claims


if __name__ == "__main__":
    main()
