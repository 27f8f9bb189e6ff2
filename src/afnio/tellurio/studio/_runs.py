"""The pages of runs: all of them, one, and several compared; and the totals of their calls that every page shows.

A list of runs shows the calls and the cost of each. Adding up 100,000 calls takes SQLite a third of a second, and a
live run is looked at twice a second. So `Tallies` keeps what it has added up and only reads the calls that ended
since.

The figures and curves of one run are also what a live run's page is updated with (`_app.live_events`), so they are made
apart from the rest, which is loaded again only if there is something new in it.
"""

from __future__ import annotations

import json
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from afnio.errors import StoreProblemError
from afnio.stats import wilson
from afnio.tellurio._card import Card, card_of
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import Headline, RunRecord, Spending, StepRecord
from afnio.tellurio._schema import evaluation_of
from afnio.tellurio._store import stores
from afnio.tellurio.studio._card import card_view, pulse_of
from afnio.tellurio.studio._orders import control_view
from afnio.tellurio.studio._text import plain, query_number, score, thinned, word_diff
from afnio.tellurio.studio._times import time_shares

# Runs of one page.
PAGE: Final = 100
# Values of a metric that a sparkline is drawn from.
SPARK: Final = 200


class Listed(NamedTuple):
    """A run as the list shows it; `values` are those of its headline, for the sparkline.

    Attributes:
        card: what it found, without rows; None if it has measured nothing.
        before: the run of the same project that was started before it, or None.
    """

    run: RunRecord
    card: Card | None
    headline: Headline | None
    best: str
    values: list[float]
    total: Spending
    before: RunRecord | None = None


class Problem(NamedTuple):
    """A store that can't be read, by its project, and the reason."""

    project: str
    reason: str


def runs_page(home: Path, tallies: Tallies, asked: dict[str, str]) -> dict[str, Any]:
    """Return the page of all runs that match the filters."""
    records: list[RunRecord] = []
    problems: list[Problem] = []
    everything = stores(home)
    for store in everything:
        try:
            with StoreReader(store) as reader:
                records += reader.runs()
        except StoreProblemError as error:
            problems.append(Problem(project_of(store), str(error)))
    wanted = [run for run in records if _matches(run, asked)]
    wanted.sort(key=lambda run: -run.date_created)
    start = query_number(asked, "from")
    by_store: dict[Path, RunRecord] = {}
    earlier: dict[str, RunRecord | None] = {}
    for run in sorted(records, key=lambda run: run.date_created):
        earlier[run.key], by_store[run.store] = by_store.get(run.store), run
    return {
        "home": str(home),
        "missing": not home.exists(),
        "listed": [
            one._replace(before=earlier.get(one.run.key))
            for one in _listed(wanted[start : start + PAGE], tallies)
        ],
        "all": len(records),
        "count": len(wanted),
        "next": start + PAGE if start + PAGE < len(wanted) else None,
        "problems": problems,
        "projects": sorted(map(project_of, everything)),
        "statuses": sorted({run.status for run in records}),
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
            listed |= {run.key: Listed(run, None, None, "", [], Spending()) for run in members}
    return [listed[run.key] for run in runs]


def _one(reader: StoreReader, run: RunRecord, tallies: Tallies) -> Listed:
    total = tallies.of(reader, run).total
    main = reader.headline(run.id)
    points = [] if main is None else reader.metric_points(run.id, main.metric, SPARK)
    return Listed(
        run, tallies.card(reader, run), main, best_text(main), [value for _, value in points], total
    )


# Parts of a run that several pages show.


def best_text(main: Headline | None) -> str:
    """Return the line below a headline: its best value and the step of that.

    >>> best_text(Headline("val_score", 0.8333, "max", 0.8485, 3, "epoch"))
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

# Points of a curve, one for about two pixels.
POINTS: Final = 240

KEPT_CARDS: Final = 1_000
# Runs whose totals are kept, those looked at last.
KEPT_TALLIES: Final = 64


class RunReading(NamedTuple):
    """A run's totals at one moment; `last` is the id of the last call in them.

    Attributes:
        models, times: by purpose and model; the times are milliseconds on the wire.
    """

    total: Spending
    accounts: dict[str, Spending]
    models: dict[tuple[str, str], Spending]
    times: dict[tuple[str, str], array[int]]
    curves: dict[str, Any]
    last: int


class Tallies:
    """The totals of the runs looked at last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[threading.Lock, Tally]] = OrderedDict()
        self._cards: dict[tuple[str, ...], Card | None] = {}

    def card(self, reader: StoreReader, run: RunRecord) -> Card | None:
        """Return a run's card without rows. Nothing changes in that of a run that has ended."""
        key = str(run.store), run.id, run.status
        with self._lock:
            if key in self._cards and not run.is_running:
                return self._cards[key]
        found = card_of(reader, run.id, rows=False)
        with self._lock:
            if len(self._cards) >= KEPT_CARDS:
                self._cards.clear()
            self._cards[key] = None if found is None else replace(found, rows=(), prompts={}, start={})
            return self._cards[key]

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
            accounts, models = dict(tally.accounts), dict(tally.models)
            times = {key: some[:] for key, some in tally.times.items()}
            return RunReading(tally.total, accounts, models, times, tally.curves(), tally.last)


@dataclass(slots=True)
class Tally:
    """One run's totals so far.

    Attributes:
        last: the id of the last call in them.
        seconds: for each second of the clock, the calls that ended in it, those that failed, dollars and tokens.
    """

    last: int = 0
    total: Spending = field(default_factory=Spending)
    accounts: dict[str, Spending] = field(default_factory=dict)
    models: dict[tuple[str, str], Spending] = field(default_factory=dict)
    times: dict[tuple[str, str], array[int]] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def update(self, reader: StoreReader, run: str) -> None:
        """Add the calls that ended since the last update."""
        for one in reader.spending_by_second(run, self.last):
            spent = one.spent
            self.total += spent
            self.accounts[one.account] = self.accounts.get(one.account, Spending()) + spent
            named = one.purpose, one.model
            self.models[named] = self.models.get(named, Spending()) + spent
            self.times.setdefault(named, array("Q")).extend(map(int, one.times.split(",")))
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


# The page of one run.


# Metrics in one chart.
CURVES: Final = 6
# Points of a parameter's curve.
CURVE_POINTS: Final = 500
# Metrics in the table.
METRICS: Final = 40
# Evaluations in the table, the last ones.
PHASES: Final = 200
# Steps of one page.
STEPS: Final = 50
# Rows of a logged table.
TABLE_ROWS: Final = 100


def run_page(reader: StoreReader, run: RunRecord, tallies: Tallies, *, after: int = 0) -> dict[str, Any]:
    """Return a run's page, with its steps from the one after number `after` on."""
    steps = step_rows(reader, run.id, after)
    numbers = figures(reader, run, tallies)
    reading = numbers["reading"]
    return {
        "run": run,
        **numbers,
        "result": card_view(reader, run, reading.total, reading.models),
        "control": control_view(reader, run),
        **where(run, reading),
        "times": time_shares(reading.models, reading.times),
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
    shown = {
        name: one for name, one in mapping(run.places).items() if name in ("replicas", "executors", "batches")
    }
    return {
        "reading": reading,
        "curves": curves,
        "step_count": steps,
        "headline": main,
        "about": [reading.last, *newest, *([json.dumps(shown)] if shown else [])],
        "live": {
            **live_numbers(run, reading, curves, steps, main),
            "pulse": pulse_of(reader, run, time.time()),
        },
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


class ReplicaRow(NamedTuple):
    """One of several replicas. `spent` is that of the run's calls which it answered or was the last to fail.

    Attributes:
        state: "in", "out", "failing" or "refusing"; "" if the run has ended.
        failed: attempts that failed there. The calls may have gone to another replica.
    """

    group: str
    url: str
    state: str
    in_flight: int
    failed: int
    outages: int
    spent: Spending


class BatchRow(NamedTuple):
    """The calls of a model that wait for a batch API.

    Attributes:
        oldest: seconds since the oldest batch was made.
    """

    model: str
    url: str
    waiting: int
    batches: int
    calls: int
    done: int
    oldest: float


class ExecutorRow(NamedTuple):
    """One executor; `running` and `waiting` are None if the run has ended."""

    name: str
    workers: int
    running: int | None
    waiting: int | None
    lost: int


def where(run: RunRecord, reading: RunReading) -> dict[str, Any]:
    """Return what the run does on each replica, in each executor and by batch; nothing where all runs in one place."""
    places, live = mapping(run.places), run.is_running
    replicas = [
        ReplicaRow(
            group=one["group"] or "replicas",
            url=one["url"],
            state=(one["trouble"] or "in") if live else "",
            in_flight=one["in_flight"] if live else 0,
            failed=one["failed"],
            outages=one["outages"],
            spent=reading.accounts.get(one["url"], Spending()),
        )
        for one in places.get("replicas", ())
    ]
    executors = [
        ExecutorRow(
            name=f"{one['name']} ({one['engine']})" if one["engine"] else one["name"],
            workers=one["workers"],
            running=one["running"] if live else None,
            waiting=one["waiting"] if live else None,
            lost=one["lost"],
        )
        for one in places.get("executors", ())
    ]
    batches = [
        BatchRow(*(one[name] for name in BatchRow._fields)) for one in places.get("batches", ()) if live
    ]
    return {"replicas": replicas, "executors": executors, "batches": batches}


def metric_curves(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return the curves of the most telling metrics."""
    names = reader.metric_names(run)[: 2 * CURVES]
    lines = [{"name": plain(name), "points": reader.metric_points(run, name)} for name in names]
    lines = [line for line in lines if line["points"]]
    # One value makes no curve. Show such metrics only if there are no others.
    return ([line for line in lines if len(line["points"]) > 1] or lines)[:CURVES]


def lengths(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return the length of each parameter in characters, step by step."""
    by_parameter: dict[int, dict[str, Any]] = {}
    for one in reader.lengths(run):
        line = by_parameter.setdefault(one.number, {"name": legend(one.role), "points": []})
        line["points"].append((one.step, one.length))
    for line in by_parameter.values():
        kept = thinned(range(len(line["points"])), CURVE_POINTS)
        line["points"] = [line["points"][int(index)] for index in kept]
    return list(by_parameter.values())[:CURVES]


def legend(text: str) -> str:
    """Return a text short enough for a legend: the beginning of its first line."""
    line = text.strip().partition("\n")[0]
    return plain(line if len(line) <= 40 else line[:39] + "…")


def metrics(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return each metric's first and last values, and the last 95 % interval if the run logged one."""
    rows = []
    for name in reader.metric_names(run)[:METRICS]:
        first, last = reader.metric_ends(run, name)
        low, high = (reader.metric_ends(run, f"{name}_{bound}")[1] for bound in ("low", "high"))
        interval = None if low is None or high is None else (low, high)
        rows.append({"name": name, "first": first, "last": last, "interval": interval})
    return [one for one in rows if one["first"] is not None or one["last"] is not None]


def phases(reader: StoreReader, run: str) -> list[dict[str, Any]]:
    """Return the mean score of each evaluation in order, with an interval if all its scores are 0 or 1.

    The batches of an evaluation are added together, as in a comparison.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for one in reader.phases(run):
        name = evaluation_of(one.phase)
        phase = by_name.setdefault(name, {"phase": name, "samples": 0, "binary": 0, "total": 0.0})
        phase["samples"] += one.scored
        phase["binary"] += one.binary
        phase["total"] += one.total
    rows = list(by_name.values())[-PHASES:]
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
