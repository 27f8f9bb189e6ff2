"""Tally: what a run's calls come to, counted once and then only what is new."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from afnio.tellurio.studio.run_rows import RunRow

POINTS: Final = 240
"""Points of a curve: about two pixels each."""

KEPT: Final = 64
"""Runs whose tallies are kept."""

SECONDS = """
SELECT CAST(ended AS INTEGER) AS second, purpose, count(*) AS calls, sum(status = 'failed') AS failed,
    sum(status = 'cancelled') AS cancelled,
    sum(status = 'replayed') AS replayed, sum(max(attempts - 1, 0)) AS retries, sum(prompt_tokens) AS prompt,
    sum(completion_tokens) AS completion, sum(cached_tokens) AS cached, sum(cost) AS cost,
    sum(cost IS NULL AND status = 'ok') AS unpriced, sum(seconds) AS seconds, min(started) AS first, max(id) AS last
FROM calls WHERE run_id = ? AND id > ? GROUP BY second, purpose"""


@dataclass(slots=True)
class Sums:
    """Calls added up; `cost` in dollars, None where no call had a price."""

    calls: int = 0
    failed: int = 0
    cancelled: int = 0
    replayed: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    unpriced: int = 0
    seconds: float = 0.0

    def add(self, row: sqlite3.Row) -> None:
        self.calls += row["calls"]
        self.failed += row["failed"]
        self.cancelled += row["cancelled"]
        self.replayed += row["replayed"]
        self.retries += row["retries"]
        self.prompt_tokens += row["prompt"]
        self.completion_tokens += row["completion"]
        self.cached_tokens += row["cached"]
        self.unpriced += row["unpriced"] or 0
        self.seconds += row["seconds"]
        if row["cost"] is not None:
            self.cost = (self.cost or 0.0) + row["cost"]


@dataclass(slots=True)
class Tally:
    """One run's calls so far.

    Attributes:
        seconds: for each second of the clock, calls that ended in it, those that failed, dollars and tokens.
        first: when the first call started.
    """

    last: int = 0
    total: Sums = field(default_factory=Sums)
    purposes: dict[str, Sums] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    first: float | None = None

    def update(self, db: sqlite3.Connection, run: str) -> None:
        """Count the calls that came since."""
        for row in db.execute(SECONDS, (run, self.last)).fetchall():
            self.total.add(row)
            self.purposes.setdefault(row["purpose"], Sums()).add(row)
            second = self.seconds.setdefault(row["second"], [0, 0, 0.0, 0])
            second[0] += row["calls"]
            second[1] += row["failed"]
            second[2] += row["cost"] or 0.0
            second[3] += row["prompt"] + row["completion"]
            self.first = row["first"] if self.first is None else min(self.first, row["first"])
            self.last = max(self.last, row["last"])

    def curves(self) -> dict[str, Any]:
        """Return calls a second, failures a second, and dollars and tokens so far, over seconds from the start."""
        if not self.seconds:
            return {"time": [], "rate": [], "failed": [], "cost": [], "tokens": []}
        begin, end = min(self.seconds), max(self.seconds)
        width = max(1, -(-(end - begin + 1) // POINTS))
        count = (end - begin) // width + 1
        bins = [[0.0, 0.0, 0.0, 0.0] for _ in range(count)]
        for second, values in self.seconds.items():
            for place, value in enumerate(values):
                bins[(second - begin) // width][place] += value
        dollars = tokens = 0.0
        cost, spent = [], []
        for one in bins:
            dollars, tokens = dollars + one[2], tokens + one[3]
            cost.append(round(dollars, 6))
            spent.append(tokens)
        return {
            "time": [index * width for index in range(count)],
            "rate": [round(one[0] / width, 3) for one in bins],
            "failed": [round(one[1] / width, 3) for one in bins],
            "cost": cost if self.total.cost is not None else [],
            "tokens": spent,
        }


class Reading(NamedTuple):
    """A tally at one moment, which later calls don't change."""

    total: Sums
    purposes: dict[str, Sums]
    curves: dict[str, Any]
    last: int


class Tallies:
    """The tallies of the runs looked at last; each is updated by whoever asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[threading.Lock, Tally]] = OrderedDict()

    def of(self, db: sqlite3.Connection, run: RunRow) -> Reading:
        """Return what a run's calls come to now.

        A run that is continued writes over calls that failed, so it is counted anew once it has ended.
        """
        key = str(run.shelf.path), run.id, run.status
        newest = db.execute("SELECT max(id) FROM calls WHERE run_id = ?", (run.id,)).fetchone()[0] or 0
        with self._lock:
            lock, tally = self._kept.get(key) or (threading.Lock(), Tally())
            if newest < tally.last:
                # The run was removed or started anew.
                lock, tally = threading.Lock(), Tally()
            self._kept[key] = lock, tally
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        with lock:
            if newest > tally.last:
                tally.update(db, run.id)
            purposes = {name: replace(sums) for name, sums in sorted(tally.purposes.items())}
            return Reading(replace(tally.total), purposes, tally.curves(), tally.last)
