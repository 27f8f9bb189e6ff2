"""The page of one run: its figures and curves, its steps, and everything else that is recorded about it.

The figures and curves are also what a live run's page is updated with (`_app.live_events`), so they are made apart from
the rest, which is loaded again only if there is something new in it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from afnio.tellurio._compare import wilson
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._recording import evaluation_of
from afnio.tellurio._records import Headline, RunRecord, StepRecord
from afnio.tellurio.studio._runs import RunReading, Tallies, best_text, flattened, mapping
from afnio.tellurio.studio._text import plain, thinned, word_diff

CURVES: Final = 6
"""Metrics in one chart."""
CURVE_POINTS: Final = 500
"""Points of a parameter's curve."""
METRICS: Final = 40
"""Metrics in the table."""
PHASES: Final = 200
"""Evaluations in the table, the last ones."""
STEPS: Final = 50
"""Steps of one page."""
TABLE_ROWS: Final = 100
"""Rows of a logged table."""


def run_page(reader: StoreReader, run: RunRecord, tallies: Tallies, *, after: int = 0) -> dict[str, Any]:
    """Return a run's page, with its steps from the one after number `after` on."""
    steps = step_rows(reader, run.id, after)
    return {
        "run": run,
        **figures(reader, run, tallies),
        "steps": steps,
        "more_steps": steps[-1].number if len(steps) == STEPS else None,
        "metrics": metrics(reader, run.id),
        "phases": phases(reader, run.id),
        "settings": list(flattened(mapping(run.config))) if mapping(run.config) else [],
        "surroundings": surroundings(run),
        "logged": logged(reader, run.id),
        "events": reader.events(run.id),
    }


def figures(reader: StoreReader, run: RunRecord, tallies: Tallies) -> dict[str, Any]:
    """Return the figures and curves that change while a run is live."""
    reading = tallies.of(reader, run)
    curves = {**reading.curves, "lengths": lengths(reader, run.id), "metrics": metric_curves(reader, run.id)}
    main = reader.headline(run.id)
    steps = reader.step_count(run.id)
    newest = [reader.newest(table, run.id) for table in ("samples", "metrics", "events")]
    return {
        "reading": reading,
        "curves": curves,
        "step_count": steps,
        "headline": main,
        "about": [reading.last, *newest],
        "live": live_numbers(run, reading, curves, steps, main),
    }


def live_numbers(
    run: RunRecord, reading: RunReading, curves: dict[str, Any], steps: int, main: Headline | None
) -> dict[str, Any]:
    """Return the numbers at the head of the page, by the names of their places in it (`data-n`)."""
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
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "cost": total.cost,
        "unpriced": total.unpriced,
        "rate": rate,
        "steps": steps,
        "seconds": run.seconds,
    }


def metric_curves(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return the curves of the most telling metrics."""
    names = reader.metric_names(run)[: 2 * CURVES]
    lines = [{"name": plain(name), "points": reader.metric_points(run, name)} for name in names]
    lines = [line for line in lines if line["points"]]
    # One value makes no curve. Show such metrics only if there are no others.
    return ([line for line in lines if len(line["points"]) > 1] or lines)[:CURVES]


def lengths(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return the length of each parameter in characters, step by step."""
    found: dict[int, dict[str, Any]] = {}
    for one in reader.lengths(run):
        line = found.setdefault(one.number, {"name": legend(one.role), "points": []})
        line["points"].append((one.step, one.length))
    for line in found.values():
        kept = thinned(range(len(line["points"])), CURVE_POINTS)
        line["points"] = [line["points"][int(index)] for index in kept]
    return list(found.values())[:CURVES]


def legend(text: str) -> str:
    """Return a text short enough for a legend: the beginning of its first line."""
    line = text.strip().partition("\n")[0]
    return plain(line if len(line) <= 40 else line[:39] + "…")


def metrics(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return each metric's first and last values, and the last 95 % interval if the run logged one."""
    found = []
    for name in reader.metric_names(run)[:METRICS]:
        first, last = reader.metric_ends(run, name)
        low, high = (reader.metric_ends(run, f"{name}_{bound}")[1] for bound in ("low", "high"))
        interval = None if low is None or high is None else (low, high)
        found.append({"name": name, "first": first, "last": last, "interval": interval})
    return [one for one in found if one["first"] is not None or one["last"] is not None]


def phases(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return the mean score of each evaluation in order, with an interval if all its scores are 0 or 1.

    The batches of an evaluation are added together, as in a comparison.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in reader.phases(run):
        name = evaluation_of(one.phase)
        phase = found.setdefault(name, {"phase": name, "samples": 0, "binary": 0, "total": 0.0})
        phase["samples"] += one.scored
        phase["binary"] += one.binary
        phase["total"] += one.total
    rows = list(found.values())[-PHASES:]
    for row in rows:
        binary = row["samples"] > 0 and row["binary"] == row["samples"]
        row["score"] = row["total"] / row["samples"] if row["samples"] else None
        row["interval"] = wilson(int(row["total"]), row["samples"]) if binary else None
    return rows


def surroundings(run: RunRecord) -> list[tuple[str, str]]:
    """Return the versions and the platform that a run was recorded with."""
    versions, platform = mapping(run.versions), mapping(run.platform)
    return [*flattened(versions), *flattened(platform)] if versions else []


def logged(reader: StoreReader, run: str) -> dict[str, list[Any]]:
    """Return the texts and tables that the program logged, the last of each name."""
    tables = [
        {"name": one.name, "step": one.step, "columns": one.columns, "rows": one.rows[:TABLE_ROWS]}
        for one in reader.tables(run)
    ]
    return {"texts": reader.texts(run), "tables": tables}


class StepRow(NamedTuple):
    """A step in a list. `added` and `removed` count words, `length` the characters of all its parameters' values."""

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


def step_rows(reader: StoreReader, run: str, after: int) -> list[StepRow]:
    """Return the steps after number `after`, at most a page of them."""
    return [_row(step) for step in reader.steps(run, after, STEPS)]


def _row(step: StepRecord) -> StepRow:
    words = {"new": 0, "gone": 0, "same": 0}
    for change in step.changes:
        if change.before != change.after:
            for piece in word_diff(change.before, change.after):
                words[piece.kind] += len(piece.text.split())
    return StepRow(
        number=step.number,
        optimizer=step.optimizer,
        error=step.error,
        time=step.time,
        roles=[change.role for change in step.changes],
        gradients=sum(change.gradients for change in step.changes),
        added=words["new"],
        removed=words["gone"],
        length=sum(len(change.after) for change in step.changes),
        changed=bool(step.changed),
        kept=step.kept,
    )
