"""The page of one run: its figures, its curves, its steps."""

from __future__ import annotations

import sqlite3
from typing import Any, Final, NamedTuple

from afnio.tellurio._compare import wilson
from afnio.tellurio._queries import (
    MONITOR,
    Headline,
    headline,
    kept,
    metric_ends,
    metric_names,
    metric_points,
)
from afnio.tellurio._recording import evaluation_of
from afnio.tellurio.studio._runs import RunReading, RunRow, Tallies, best_text, flattened, loaded
from afnio.tellurio.studio._text import plain, thinned, word_diff

CURVES: Final = 6
"""Metrics that one chart shows."""
METRICS: Final = 40
"""Metrics that the table shows."""
PHASES: Final = 200
"""Evaluations that a page shows, the last."""
STEPS: Final = 50
"""Steps of one page."""

STEPS_OF_A_RUN: Final = """
SELECT id, number, optimizer, address, error, time FROM steps WHERE run_id = ? AND number > ? ORDER BY number LIMIT ?"""
CHANGES_OF_STEPS: Final = """
SELECT c.step_id, c.role, c.before, c.after, c.gradients, c.rejected FROM changes c
JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.number BETWEEN ?2 AND ?3 ORDER BY c.id"""
PHASES_OF_A_RUN: Final = """
SELECT phase, count(score) AS samples, sum(score = 0 OR score = 1) AS binary, sum(score) AS right,
    min(id) AS first FROM samples WHERE run_id = ? GROUP BY phase ORDER BY first"""


class StepRow(NamedTuple):
    """A step in a list: what it did to the texts, in numbers."""

    number: int
    optimizer: str
    error: str | None
    time: float
    roles: list[str]
    gradients: int
    added: int
    removed: int
    length: int
    changed: bool
    kept: list[tuple[list[str], str]]


def run_page(db: sqlite3.Connection, run: RunRow, tallies: Tallies, *, after: int = 0) -> dict[str, Any]:
    """Return what a run's page shows; of its steps those after number `after`."""
    steps = step_rows(db, run.id, after)
    return {
        "run": run,
        **figures(db, run, tallies),
        "steps": steps,
        "more_steps": steps[-1].number if len(steps) == STEPS else None,
        "metrics": metrics(db, run.id),
        "phases": phases(db, run.id),
        "settings": list(flattened(run.config)) if run.config else [],
        "surroundings": [*flattened(run.versions), *flattened(run.platform)] if run.versions else [],
        "logged": logged(db, run.id),
        "events": events(db, run.id),
        "has_candidates": _any(db, "candidates", run.id),
        "has_samples": _any(db, "samples", run.id),
    }


def figures(db: sqlite3.Connection, run: RunRow, tallies: Tallies) -> dict[str, Any]:
    """Return the figures and curves that change while a run is live."""
    reading = tallies.of(db, run)
    names = metric_names(db, run.id)
    curves = {**reading.curves, "lengths": lengths(db, run.id)}
    lines = [{"name": plain(name), "points": metric_points(db, run.id, name)} for name in names[: 2 * CURVES]]
    lines = [line for line in lines if line["points"]]
    # A value that was logged once makes no curve; it is shown if there is nothing else.
    curves["metrics"] = ([line for line in lines if len(line["points"]) > 1] or lines)[:CURVES]
    main = headline(db, run.id)
    steps = db.execute("SELECT count(*) FROM steps WHERE run_id = ?", (run.id,)).fetchone()[0]
    return {
        "reading": reading,
        "curves": curves,
        "step_count": steps,
        "headline": main,
        "about": [reading.last, *(_newest(db, table, run.id) for table in ("samples", "metrics", "events"))],
        "live": live_numbers(run, reading, curves, steps, main),
    }


def live_numbers(
    run: RunRow, reading: RunReading, curves: dict[str, Any], steps: int, main: Headline | None
) -> dict[str, Any]:
    """Return the numbers at the head of the page, by the names that the page has for them."""
    total = reading.total
    rate = curves["rate"][-1] if curves["rate"] and run.is_running else None
    return {
        "status": run.status,
        "metric": main.value if main else None,
        "metric_name": plain(main.metric) if main else None,
        "best": best_text(main),
        "calls": total.calls,
        "in_flight": run.in_flight if run.is_running else 0,
        "waiting": f"{run.waiting:,} waiting" if run.is_running and run.waiting else "",
        "retries": total.retries,
        "failed": total.failed,
        "cancelled": f"{total.cancelled:,} cancelled" if total.cancelled else "",
        "replayed": total.replayed,
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "cost": total.cost,
        "unpriced": total.unpriced,
        "rate": rate,
        "steps": steps,
        "seconds": run.seconds,
    }


def metrics(db: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    """Return the metrics of a run with their first and last values, and the last interval where one was logged."""
    found = []
    for name in metric_names(db, run)[:METRICS]:
        first, last = metric_ends(db, run, name)
        low, high = (metric_ends(db, run, f"{name}_{bound}")[1] for bound in ("low", "high"))
        interval = None if low is None or high is None else (low, high)
        found.append({"name": name, "first": first, "last": last, "interval": interval})
    return [one for one in found if one["first"] is not None or one["last"] is not None]


def lengths(db: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    """Return the length in characters of each parameter after each step."""
    rows = db.execute(
        "SELECT number, role, step, length(value) AS length FROM parameters WHERE run_id = ? ORDER BY number, step",
        (run,),
    ).fetchall()
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        line = found.setdefault(row["number"], {"name": loaded_text(row["role"]), "points": []})
        line["points"].append((row["step"], row["length"]))
    for line in found.values():
        kept = thinned(range(len(line["points"])), 500)
        line["points"] = [line["points"][int(index)] for index in kept]
    return list(found.values())[:CURVES]


def step_rows(db: sqlite3.Connection, run: str, after: int, most: int = STEPS) -> list[StepRow]:
    """Return steps after number `after`, in order."""
    steps = db.execute(STEPS_OF_A_RUN, (run, after, most)).fetchall()
    if not steps:
        return []
    changes: dict[int, list[sqlite3.Row]] = {}
    for row in db.execute(CHANGES_OF_STEPS, (run, steps[0]["number"], steps[-1]["number"])):
        changes.setdefault(row["step_id"], []).append(row)
    return [_step(step, changes.get(step["id"], [])) for step in steps]


def _step(step: sqlite3.Row, changes: list[sqlite3.Row]) -> StepRow:
    added = removed = 0
    for change in changes:
        if change["before"] != change["after"]:
            for piece in word_diff(change["before"], change["after"]):
                words = len(piece.text.split())
                added += words if piece.kind == "new" else 0
                removed += words if piece.kind == "gone" else 0
    return StepRow(
        number=step["number"],
        optimizer=step["optimizer"],
        error=step["error"],
        time=step["time"],
        roles=[change["role"] for change in changes],
        gradients=sum(change["gradients"] for change in changes),
        added=added,
        removed=removed,
        length=sum(len(change["after"]) for change in changes),
        changed=any(change["before"] != change["after"] for change in changes),
        kept=kept((change["role"], change["rejected"]) for change in changes),
    )


def phases(db: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    """Return what evaluators said in each phase, in order; an interval where all scores are right or wrong.

    The batches of one evaluation are one phase, as in a comparison.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in db.execute(PHASES_OF_A_RUN, (run,)):
        name = evaluation_of(row["phase"])
        phase = found.setdefault(name, {"phase": name, "samples": 0, "binary": 0, "right": 0.0})
        for sums in ("samples", "binary", "right"):
            phase[sums] += row[sums] or 0
    rows = list(found.values())[-PHASES:]
    for row in rows:
        binary = row["samples"] > 0 and row["binary"] == row["samples"]
        row["score"] = row["right"] / row["samples"] if row["samples"] else None
        row["interval"] = wilson(int(row["right"]), row["samples"]) if binary else None
    return rows


def logged(db: sqlite3.Connection, run: str) -> dict[str, list[dict[str, Any]]]:
    """Return the texts and tables that the program logged, the last of each name."""
    texts = db.execute(
        "SELECT id, name, max(step) AS step, text FROM texts WHERE run_id = ? GROUP BY name LIMIT 20", (run,)
    ).fetchall()
    tables = db.execute(
        "SELECT name, max(step) AS step, columns, rows FROM tables WHERE run_id = ? GROUP BY name LIMIT 10",
        (run,),
    ).fetchall()
    return {
        "texts": [dict(row) for row in texts],
        "tables": [
            {
                "name": row["name"],
                "step": row["step"],
                "columns": loaded(row["columns"], []),
                "rows": loaded(row["rows"], [])[:100],
            }
            for row in tables
        ],
    }


def events(db: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    """Return the last events that aren't calls or steps, or are told elsewhere."""
    rows = db.execute(
        "SELECT kind, payload, time FROM events WHERE run_id = ? AND kind != ? ORDER BY id DESC LIMIT 20",
        (run, MONITOR),
    ).fetchall()
    return [dict(row) for row in rows]


def loaded_text(text: str) -> str:
    """Return a text for a legend: its first line, short."""
    line = text.strip().partition("\n")[0]
    return plain(line if len(line) <= 40 else line[:39] + "…")


def _newest(db: sqlite3.Connection, table: str, run: str) -> int:
    # The table's name is one of this file's own.
    found = db.execute(f"SELECT max(id) FROM {table} WHERE run_id = ?", (run,)).fetchone()
    return int(found[0] or 0)


def _any(db: sqlite3.Connection, table: str, run: str) -> bool:
    # The table's name is one of this file's own.
    found = db.execute(f"SELECT 1 FROM {table} WHERE run_id = ? LIMIT 1", (run,)).fetchone()
    return found is not None
