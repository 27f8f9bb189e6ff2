"""The journal alone: durable appends and what they cost the caller; look-ups; memory.

Reach: at least 10,000 durable appends/s at 100 in flight, at most 15 µs of the appending thread per
append, at most 50 µs per look-up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from afnio.runtime._journal import Journal
from afnio.runtime._journal_file import Record
from afnio.runtime.events import Usage
from benchmarks.report import median, show, timed

LATENCIES = 0.5, 0.99


def replies(count: int) -> list[Record]:
    """Make records of a training run, with replies of 1.6 kB that compress to half their size."""
    chance = random.Random(0)
    words = [f"w{chance.randrange(10**6)}" for _ in range(3000)]
    bodies = [json.dumps({"content": " ".join(chance.choices(words, k=200))}).encode() for _ in range(200)]
    return [
        Record(
            address=f"{scope(number)}/3/{number % 100}/forward",
            scope=scope(number),
            key=hashlib.sha256(b"%d" % number).hexdigest(),
            model="gpt-4o-mini",
            purpose="forward",
            account="https://api.openai.com/v1",
            payload=bodies[number % len(bodies)],
            usage=Usage(500, 200),
        )
        for number in range(count)
    ]


def scope(number: int) -> str:
    return f"epoch {number // 10_000}/step {number // 100 % 100}"


def append(path: Path, records: list[Record], in_flight: int) -> tuple[float, float, list[float]]:
    """Append; returns the seconds in all, the caller's µs per append, and the sorted waits in ms."""
    free = threading.Semaphore(in_flight)
    waits: list[float] = []
    spent = 0.0

    def acknowledge(since: float, error: BaseException | None) -> None:
        assert error is None
        waits.append((time.perf_counter() - since) * 1e3)
        free.release()

    def run() -> None:
        nonlocal spent
        with Journal.open(path) as journal:
            for record in records:
                free.acquire()
                since = time.perf_counter()
                journal.append(record, partial(acknowledge, since))
                spent += time.perf_counter() - since
            journal.flush()

    wall, _ = timed(run)
    return wall, spent / len(records) * 1e6, sorted(waits)


def look_up(path: Path, records: list[Record]) -> list[float]:
    """Take every record in a random order; returns the sorted µs."""
    order = random.Random(0).sample(records, len(records))
    times = []
    with Journal.open(path) as journal:
        for record in order:
            since = time.perf_counter()
            found = journal.take(record.address, record.key, record.scope)
            times.append((time.perf_counter() - since) * 1e6)
            assert found is not None
    return sorted(times)


def main(
    count: int = 20_000, in_flight: tuple[int, ...] = (1, 8, 100, 1000), repeats: int = 3
) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    columns = [
        "in flight",
        "appends/s",
        "best",
        "ack p50 ms",
        "ack p99 ms",
        "caller µs",
        "take p50 µs",
        "take p99 µs",
    ]
    records = replies(count)
    rows: list[list[Any]] = []
    for width in in_flight:
        runs, takes = [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
                path = Path(folder) / "calls.journal"
                runs.append(append(path, records, width))
                takes.append(look_up(path, records))
        rates = [count / wall for wall, _, _ in runs]
        row: list[Any] = [width, int(median(rates)), int(max(rates))]
        row += [median([at(waits, share) for _, _, waits in runs]) for share in LATENCIES]
        row.append(median([caller for _, caller, _ in runs]))
        row += [median([at(times, share) for times in takes]) for share in LATENCIES]
        rows.append(row)
    notes = [
        f"{count} records, {len(records[0].payload)} bytes each, medians of {repeats}; opening reads none of them"
    ]
    show("journal", columns, rows, notes)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def at(values: list[float], share: float) -> float:
    return values[int(len(values) * share)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.count, tuple(arguments.in_flight), arguments.repeats)
