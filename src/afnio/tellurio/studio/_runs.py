"""The page of all runs."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from afnio.errors import StoreProblemError
from afnio.tellurio._queries import (
    Headline,
    RunRecord,
    StoreReader,
    headline,
    metric_points,
)
from afnio.tellurio.studio._text import query_number, score


def best_text(main: Headline | None) -> str:
    """Return what stands below the headline: its best value, and where it was.

    >>> best_text(Headline("val_loss", 0.8333, "max", 0.8485, 3, "epoch"))
    'best 0.849 at epoch 3'
    """
    if main is None or main.best is None:
        return ""
    return f"best {score(main.best)} at {main.unit} {main.step}"


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
            with StoreReader(shelf.path) as reader:
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
            with StoreReader(shelf.path) as reader, reader.moment() as db:
                listed |= {run.key: _one(db, run, tallies) for run in members}
        except StoreProblemError:
            listed |= {run.key: Listed(run, None, "", [], Sums()) for run in members}
    return [listed[run.key] for run in runs]


def _one(db: sqlite3.Connection, run: RunRow, tallies: Tallies) -> Listed:
    total = tallies.of(db, run).total
    main = headline(db, run.id)
    points = [] if main is None else metric_points(db, run.id, main.metric, SPARK)
    return Listed(run, main, best_text(main), [value for _, value in points], total)


# Rows of runs: what lists and heads of pages say of each.


SPARK: Final = 200
"""Values of a metric that a sparkline looks at."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as its store has it; dates in seconds since 1970 UTC."""

    shelf: Shelf
    id: str
    name: str
    description: str
    namespace: str
    project: str
    status: str
    config: dict[str, Any]
    created: float
    updated: float
    git_commit: str | None
    versions: dict[str, Any]
    platform: dict[str, Any]
    in_flight: int
    waiting: int
    dropped: int

    @property
    def url(self) -> str:
        parts = (self.shelf.namespace, self.shelf.project, self.id)
        return "/runs/" + "/".join(quote(part, safe="") for part in parts)

    @property
    def key(self) -> str:
        """What names the run in a query: its store and its id."""
        return f"{self.shelf.namespace}/{self.shelf.project}/{self.id}"

    @property
    def seconds(self) -> float:
        return max(0.0, self.updated - self.created)

    @property
    def is_running(self) -> bool:
        return self.status == "RUNNING"


def list_runs(reader: StoreReader, shelf: Shelf) -> list[RunRow]:
    """Return a store's runs, newest first."""
    return [row_of(shelf, run) for run in reader.runs()]


def find_run(reader: StoreReader, shelf: Shelf, wanted: str) -> RunRow | None:
    """Return the run of this id, or of this name."""
    run = reader.run(wanted)
    return None if run is None else row_of(shelf, run)


def loaded(text: str | bytes | None, default: Any = None) -> Any:
    """Return what JSON holds, `default` where it holds nothing readable."""
    if text is None:
        return default
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return default


def row_of(shelf: Shelf, run: RunRecord) -> RunRow:
    """Return a run as the studio's pages have it."""
    return RunRow(
        shelf=shelf,
        id=run.id,
        name=run.name,
        description=run.description or "",
        namespace=run.namespace,
        project=run.project,
        status=run.status,
        config=_mapping(run.config),
        created=run.date_created,
        updated=run.date_updated,
        git_commit=run.git_commit,
        versions=_mapping(run.versions),
        platform=_mapping(run.platform),
        in_flight=run.in_flight,
        waiting=run.waiting,
        dropped=run.dropped,
    )


def _mapping(value: Any) -> dict[str, Any]:
    # What a redaction left may be no JSON any more.
    return value if isinstance(value, dict) else {}


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings with their dotted names.

    >>> list(flattened({"model": {"name": "m", "n": 1}}))
    [('model.name', 'm'), ('model.n', '1')]
    """
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flattened(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Library: the stores under a folder, by the names of their namespace and project.


class Shelf(NamedTuple):
    """One project's file."""

    namespace: str
    project: str
    path: Path


def home_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder with the stores: `given`, else AFNIO_HOME, else `.afnio` of the working folder.

    >>> home_folder("runs").as_posix()
    'runs'
    """
    return Path(given or os.environ.get("AFNIO_HOME") or ".afnio")


def shelves(home: Path) -> list[Shelf]:
    """Return the stores under `home`, in order of their names; none where the folder isn't there.

    >>> shelves(Path("nowhere"))
    []
    """
    found = sorted(home.glob("*/*.db"))
    return [Shelf(path.parent.name, path.stem, path) for path in found if path.is_file()]


def find_shelf(home: Path, namespace: str, project: str) -> Shelf | None:
    """Return the store of these names; what isn't in the folder, such as `..`, isn't found.

    >>> find_shelf(Path("nowhere"), "..", "passwords") is None
    True
    """
    for shelf in shelves(home):
        if (shelf.namespace, shelf.project) == (namespace, project):
            return shelf
    return None


# Tally: what a run's calls come to, counted once and then only what is new.


POINTS: Final = 240
"""Points of a curve: about two pixels each."""

KEPT_TALLIES: Final = 64
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


class RunReading(NamedTuple):
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

    def of(self, db: sqlite3.Connection, run: RunRow) -> RunReading:
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
            while len(self._kept) > KEPT_TALLIES:
                self._kept.popitem(last=False)
        with lock:
            if newest > tally.last:
                tally.update(db, run.id)
            purposes = {name: replace(sums) for name, sums in sorted(tally.purposes.items())}
            return RunReading(replace(tally.total), purposes, tally.curves(), tally.last)
