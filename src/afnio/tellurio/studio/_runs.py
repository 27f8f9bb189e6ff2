"""The page of all runs, and the totals of their calls that every page shows.

A list of runs shows the calls and the cost of each. Adding up 100,000 calls takes SQLite a third of a second, and a
live run is looked at twice a second. So `Tallies` keeps what it has added up and only reads the calls that ended
since.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from afnio.errors import StoreProblemError
from afnio.tellurio._queries import StoreReader, stores
from afnio.tellurio._records import Headline, RunRecord, Spending
from afnio.tellurio.studio._text import query_number, score

PAGE: Final = 100
"""Runs of one page."""
SPARK: Final = 200
"""Values of a metric that a sparkline is drawn from."""


class Listed(NamedTuple):
    """A run as the list shows it; `values` are those of its headline, for the sparkline."""

    run: RunRecord
    headline: Headline | None
    best: str
    values: list[float]
    total: Spending


class Problem(NamedTuple):
    """A store that can't be read, by its project, and the reason."""

    project: str
    reason: str


def runs_page(home: Path, tallies: Tallies, asked: dict[str, str]) -> dict[str, Any]:
    """Return the page of all runs that match the filters."""
    found: list[RunRecord] = []
    problems: list[Problem] = []
    everything = stores(home)
    for store in everything:
        try:
            with StoreReader(store) as reader:
                found += reader.runs()
        except StoreProblemError as error:
            problems.append(Problem(project_of(store), str(error)))
    wanted = [run for run in found if _matches(run, asked)]
    wanted.sort(key=lambda run: -run.date_created)
    start = query_number(asked, "from")
    return {
        "home": str(home),
        "missing": not home.exists(),
        "listed": _listed(wanted[start : start + PAGE], tallies),
        "all": len(found),
        "count": len(wanted),
        "next": start + PAGE if start + PAGE < len(wanted) else None,
        "problems": problems,
        "projects": sorted(map(project_of, everything)),
        "statuses": sorted({run.status for run in found}),
        "asked": {name: asked.get(name, "") for name in ("q", "status", "project")},
    }


def project_of(store: Path) -> str:
    """Return a store's project as namespace/project."""
    return f"{store.parent.name}/{store.stem}"


def _matches(run: RunRecord, asked: dict[str, str]) -> bool:
    words = asked.get("q", "").lower().split()
    about = f"{run.name} {run.description or ''} {run.namespace}/{run.project} {run.id} {mapping(run.config)}".lower()
    return (
        all(word in about for word in words)
        and asked.get("status", "") in ("", run.status)
        and asked.get("project", "") in ("", project_of(run.store))
    )


def _listed(runs: Sequence[RunRecord], tallies: Tallies) -> list[Listed]:
    by_store: dict[Path, list[RunRecord]] = {}
    for run in runs:
        by_store.setdefault(run.store, []).append(run)
    listed: dict[str, Listed] = {}
    for store, members in by_store.items():
        try:
            with StoreReader(store) as reader, reader.moment():
                listed |= {run.key: _one(reader, run, tallies) for run in members}
        except StoreProblemError:
            listed |= {run.key: Listed(run, None, "", [], Spending()) for run in members}
    return [listed[run.key] for run in runs]


def _one(reader: StoreReader, run: RunRecord, tallies: Tallies) -> Listed:
    total = tallies.of(reader, run).total
    main = reader.headline(run.id)
    points = [] if main is None else reader.metric_points(run.id, main.metric, SPARK)
    return Listed(run, main, best_text(main), [value for _, value in points], total)


# What several pages show of a run.


def best_text(main: Headline | None) -> str:
    """Return the line below a headline: its best value and the step of that.

    >>> best_text(Headline("val_loss", 0.8333, "max", 0.8485, 3, "epoch"))
    'best 0.849 at epoch 3'
    """
    if main is None or main.best is None:
        return ""
    return f"best {score(main.best)} at {main.unit} {main.step}"


def mapping(value: Any) -> dict[str, Any]:
    """Return a run's settings; none if they aren't an object, because redaction may have broken their JSON."""
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


# Tallies: the totals of runs' calls, kept between requests.

POINTS: Final = 240
"""Points of a curve, one for about two pixels."""

KEPT_TALLIES: Final = 64
"""Runs whose totals are kept, those looked at last."""


class RunReading(NamedTuple):
    """A run's totals at one moment; `last` is the id of the last call in them."""

    total: Spending
    purposes: dict[str, Spending]
    curves: dict[str, Any]
    last: int


class Tallies:
    """The totals of the runs looked at last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[threading.Lock, Tally]] = OrderedDict()

    def of(self, reader: StoreReader, run: RunRecord) -> RunReading:
        """Return the totals of a run's calls, updated by the calls that ended since the last request."""
        # A continued run overwrites the rows of calls that failed before. The status is part of the key so that a run
        # is counted from the start once it has ended.
        key = str(run.store), run.id, run.status
        newest = reader.newest("calls", run.id)
        with self._lock:
            lock, tally = self._kept.get(key) or (threading.Lock(), Tally())
            if newest < tally.last:
                # The run was removed, or started again under the same name.
                lock, tally = threading.Lock(), Tally()
            self._kept[key] = lock, tally
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_TALLIES:
                self._kept.popitem(last=False)
        with lock:
            if newest > tally.last:
                tally.update(reader, run.id)
            return RunReading(tally.total, dict(sorted(tally.purposes.items())), tally.curves(), tally.last)


@dataclass(slots=True)
class Tally:
    """One run's totals so far.

    Attributes:
        last: the id of the last call in them.
        seconds: for each second of the clock, the calls that ended in it, those that failed, dollars and tokens.
    """

    last: int = 0
    total: Spending = field(default_factory=Spending)
    purposes: dict[str, Spending] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def update(self, reader: StoreReader, run: str) -> None:
        """Add the calls that ended since the last update."""
        for one in reader.spending_by_second(run, self.last):
            spent = one.spent
            self.total += spent
            self.purposes[one.purpose] = self.purposes.get(one.purpose, Spending()) + spent
            second = self.seconds.setdefault(one.second, [0, 0, 0.0, 0])
            second[0] += spent.calls
            second[1] += spent.failed
            second[2] += spent.cost or 0.0
            second[3] += spent.prompt_tokens + spent.completion_tokens
            self.last = max(self.last, one.last)

    def curves(self) -> dict[str, Any]:
        """Return curves over the seconds since the start: calls and failures a second, dollars and tokens so far."""
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
