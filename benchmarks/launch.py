"""What one launch costs the caller, and one launch with its read.

Reach: a launch at most 25 µs, a launch and a read of a trivial op at most 200 µs.
"""

from __future__ import annotations

import afnio
from benchmarks.report import median, show, timed

COUNT = 2_000
REPEATS = 7


def launches() -> None:
    x, y = afnio.Variable(1), afnio.Variable(2)
    for _ in range(COUNT):
        x + y


def reads() -> None:
    x, y = afnio.Variable(1), afnio.Variable(2)
    for _ in range(COUNT):
        (x + y).data  # noqa: B018 - the read is what is measured


def main() -> dict[str, float]:
    """Print the table and return the medians in µs."""
    launches()
    measured = {"launch": launches, "launch + read": reads}
    reach = {"launch": 25.0, "launch + read": 200.0}
    rows, medians = [], {}
    for name, function in measured.items():
        times = [timed(function) for _ in range(REPEATS)]
        wall = [seconds / COUNT * 1e6 for seconds, _ in times]
        cpu = [seconds / COUNT * 1e6 for _, seconds in times]
        medians[name] = median(wall)
        rows.append([name, median(wall), min(wall), median(cpu), reach[name]])
    show("launch", ["what", "wall µs", "best µs", "CPU µs (both threads)", "reach µs"], rows)
    return medians


if __name__ == "__main__":
    main()
