"""Metrics: which of a run's metrics matter, their values in order, and the one that sums the run up."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

MONITOR: Final = "monitor"
"""Kind of the event that names the monitored metric: {"metric": name, "mode": "max" or "min", "unit": "epoch"}."""

FAVOURITES: Final = ("validation", "val_", "test", "accuracy", "score", "final", "reward", "loss")
"""Parts of the names of metrics that come first where nothing is monitored."""

MOST: Final = 100_000
"""Values among which the best one is looked for."""

_COMPANION: Final = re.compile(r"(?:^|_)(?:failed|sum|low|high)(?:_step)?$")


@dataclass(frozen=True, slots=True)
class Headline:
    """The metric that sums a run up.

    Attributes:
        value: the last one.
        mode: "max" or "min"; None where nobody says which is better, and then there is no best.
        best: the best value, the first of equals.
        step: the step of the best value.
        unit: what the metric's steps count, "step" or "epoch".
    """

    metric: str
    value: float
    mode: str | None = None
    best: float | None = None
    step: int | None = None
    unit: str = "step"


def is_companion(name: str) -> bool:
    """Whether a metric only accompanies another: a count of failures, a sum, or a bound of an interval.

    >>> [name for name in ("val_loss", "val_loss_low", "train_failed_step", "loss_sum") if is_companion(name)]
    ['val_loss_low', 'train_failed_step', 'loss_sum']
    """
    return _COMPANION.search(name) is not None


def ranked(names: Iterable[str], monitored: str | None = None) -> list[str]:
    """Return the metrics worth showing: the monitored one, then those that say how well a run does.

    >>> ranked(["val_failed", "train_loss", "val_loss", "val_loss_sum"])
    ['val_loss', 'train_loss']
    """

    def rank(name: str) -> tuple[bool, int, str]:
        places = [place for place, part in enumerate(FAVOURITES) if part in name.lower()]
        return name != monitored, min(places, default=len(FAVOURITES)), name

    return sorted((name for name in names if name == monitored or not is_companion(name)), key=rank)


def metric_names(db: sqlite3.Connection, run: str) -> list[str]:
    """Return the names of a run's metrics in the order of `ranked`."""
    names = [row["name"] for row in db.execute("SELECT DISTINCT name FROM metrics WHERE run_id = ?", (run,))]
    return ranked(names, _monitor(db, run).get("metric"))


def metric_points(db: sqlite3.Connection, run: str, name: str, most: int = 2000) -> list[tuple[int, float]]:
    """Return the steps and values of a metric in order of steps, its last `most` values; only numbers count."""
    rows = db.execute(
        "SELECT step, value FROM metrics WHERE run_id = ? AND name = ? ORDER BY step DESC, id DESC LIMIT ?",
        (run, name, most),
    ).fetchall()
    points = ((row["step"], as_number(row["value"])) for row in reversed(rows))
    return [(step, value) for step, value in points if value is not None]


def metric_ends(db: sqlite3.Connection, run: str, name: str) -> tuple[float | None, float | None]:
    """Return the first and the last value of a metric; of one value alone there is no first."""
    first = db.execute(
        "SELECT id, value FROM metrics WHERE run_id = ? AND name = ? ORDER BY step, id LIMIT 1", (run, name)
    ).fetchone()
    last = db.execute(
        "SELECT id, value FROM metrics WHERE run_id = ? AND name = ? ORDER BY step DESC, id DESC LIMIT 1",
        (run, name),
    ).fetchone()
    if last is None:
        return None, None
    return (None if first["id"] == last["id"] else as_number(first["value"])), as_number(last["value"])


def headline(db: sqlite3.Connection, run: str) -> Headline | None:
    """Return the metric that sums a run up; None where it has no metric with a number."""
    monitor = _monitor(db, run)
    for name in metric_names(db, run):
        mode = monitor.get("mode") if name == monitor.get("metric") else None
        known = mode in ("max", "min")
        points = metric_points(db, run, name, MOST) if known else metric_points(db, run, name)
        if not points:
            continue
        last = points[-1][1]
        if not known:
            return Headline(name, last)
        sign = 1 if mode == "max" else -1
        step, best = max(points, key=lambda point: sign * point[1])
        return Headline(name, last, mode, best, step, str(monitor.get("unit", "step")))
    return None


def as_number(text: str) -> float | None:
    """Return the number that a JSON text holds, None where it is something else.

    >>> as_number("0.5"), as_number('"good"'), as_number("NaN")
    (0.5, None, None)
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def _monitor(db: sqlite3.Connection, run: str) -> dict[str, Any]:
    # A run with several fits has several of these; the last one counts.
    row = db.execute(
        "SELECT payload FROM events WHERE run_id = ? AND kind = ? ORDER BY id DESC LIMIT 1", (run, MONITOR)
    ).fetchone()
    try:
        found = json.loads(row["payload"]) if row is not None else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
