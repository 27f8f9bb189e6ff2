"""The page of all runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from afnio.tellurio.metrics import Headline, headline, metric_points
from afnio.tellurio.opening import StoreProblemError
from afnio.tellurio.reader import Reader
from afnio.tellurio.studio.library import Shelf, shelves
from afnio.tellurio.studio.query_number import query_number
from afnio.tellurio.studio.run_page import best_text
from afnio.tellurio.studio.run_rows import SPARK, RunRow, list_runs
from afnio.tellurio.studio.tally import Sums, Tallies

PAGE = 100
"""Runs of one page."""


class Listed(NamedTuple):
    """A run as the list shows it, with the course of its headline."""

    run: RunRow
    headline: Headline | None
    best: str
    values: list[float]
    total: Sums


class Problem(NamedTuple):
    """A store that can't be read, and why."""

    shelf: Shelf
    reason: str


def runs_page(home: Path, tallies: Tallies, asked: dict[str, str]) -> dict[str, Any]:
    """Return what the page of all runs shows, for the filters that were asked for."""
    found: list[RunRow] = []
    problems: list[Problem] = []
    everything = shelves(home)
    for shelf in everything:
        try:
            with Reader(shelf.path) as reader:
                found += list_runs(reader, shelf)
        except StoreProblemError as error:
            problems.append(Problem(shelf, str(error)))
    wanted = [run for run in found if _matches(run, asked)]
    wanted.sort(key=lambda run: -run.created)
    start = query_number(asked, "from")
    shown = wanted[start : start + PAGE]
    return {
        "home": str(home),
        "missing": not home.exists(),
        "listed": _listed(shown, tallies),
        "all": len(found),
        "count": len(wanted),
        "next": start + PAGE if start + PAGE < len(wanted) else None,
        "problems": problems,
        "projects": sorted({f"{shelf.namespace}/{shelf.project}" for shelf in everything}),
        "statuses": sorted({run.status for run in found}),
        "asked": {name: asked.get(name, "") for name in ("q", "status", "project")},
    }


def _matches(run: RunRow, asked: dict[str, str]) -> bool:
    words = asked.get("q", "").lower().split()
    text = f"{run.name} {run.description} {run.namespace}/{run.project} {run.id} {run.config}".lower()
    project = f"{run.shelf.namespace}/{run.shelf.project}"
    return (
        all(word in text for word in words)
        and asked.get("status", "") in ("", run.status)
        and asked.get("project", "") in ("", project)
    )


def _listed(runs: Sequence[RunRow], tallies: Tallies) -> list[Listed]:
    by_shelf: dict[Shelf, list[RunRow]] = {}
    for run in runs:
        by_shelf.setdefault(run.shelf, []).append(run)
    listed: dict[str, Listed] = {}
    for shelf, members in by_shelf.items():
        try:
            with Reader(shelf.path) as reader, reader.moment() as db:
                listed |= {run.key: _one(db, run, tallies) for run in members}
        except StoreProblemError:
            listed |= {run.key: Listed(run, None, "", [], Sums()) for run in members}
    return [listed[run.key] for run in runs]


def _one(db: sqlite3.Connection, run: RunRow, tallies: Tallies) -> Listed:
    total = tallies.of(db, run).total
    main = headline(db, run.id)
    points = [] if main is None else metric_points(db, run.id, main.metric, SPARK)
    return Listed(run, main, best_text(main), [value for _, value in points], total)
