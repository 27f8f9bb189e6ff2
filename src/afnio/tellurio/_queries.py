"""Reader: a project's file, read only, whether or not it is being written, and whatever version it is of."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from afnio.errors import ChoiceError
from afnio.tellurio._recording import IN_PHASE, evaluation_of, of_phase, unpacked
from afnio.tellurio._store import live_status, open_to_read, problem_of

PAGE: Final = 100

SPENDING: Final = """
SELECT purpose, count(*), sum(status = 'failed'), sum(status = 'cancelled'), sum(replayed > 0), sum(attempts),
    sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(cost),
    sum(cost IS NULL AND status = 'ok'), sum(seconds)
FROM calls WHERE run_id = ? GROUP BY purpose ORDER BY purpose"""
LAST_METRICS: Final = """
SELECT name, step, value, time FROM metrics m WHERE run_id = ?1 AND id = (
    SELECT id FROM metrics WHERE run_id = ?1 AND name = m.name ORDER BY step DESC, id DESC LIMIT 1
) ORDER BY name"""


class StoreReader:
    """A project's file, opened for reading; a block closes it.

    Every answer is of one moment, and in a block of `moment` all of them are of the same. A file of an older
    version is read through a copy in memory that is brought to this version; it stays as it is.

    >>> import tempfile, afnio.tellurio as te
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with te.init("me", "emails", name="first", dir=folder) as run:
    ...         run.log("loss", 0.5)
    ...     with StoreReader(Path(folder) / "me" / "emails.db") as reader:
    ...         [(found.name, found.status, reader.last_metrics(found.id)[0].value) for found in reader.runs()]
    [('first', 'COMPLETED', 0.5)]

    Raises:
        StoreProblemError: here or later, where it is missing, damaged, locked or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = open_to_read(path)

    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        rows = self._all("SELECT * FROM runs ORDER BY date_created DESC, rowid DESC")
        return [self._run(row) for row in rows]

    def run(self, wanted: str) -> RunRecord | None:
        """The run of this id, else of this name; None where there is none."""
        query = "SELECT * FROM runs WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1"
        rows = self._all(query, wanted)
        return self._run(rows[0]) if rows else None

    def metric_names(self, run_id: str) -> list[str]:
        return [row[0] for row in self._all("SELECT DISTINCT name FROM metrics WHERE run_id = ?", run_id)]

    def metrics(self, run_id: str, name: str) -> list[MetricRecord]:
        """A metric's values in order of their steps."""
        where = "WHERE run_id = ? AND name = ? ORDER BY step, id"
        rows = self._all(f"SELECT name, step, value, time FROM metrics {where}", run_id, name)
        return [MetricRecord(row[0], row[1], loaded(row[2]), row[3]) for row in rows]

    def last_metrics(self, run_id: str) -> list[MetricRecord]:
        """The last value of each metric."""
        rows = self._all(LAST_METRICS, run_id)
        return [MetricRecord(row[0], row[1], loaded(row[2]), row[3]) for row in rows]

    def headline(self, run_id: str) -> Headline | None:
        """The metric that sums the run up; None where it has none."""
        try:
            return headline(self._db, run_id)
        except sqlite3.Error as error:
            raise problem_of(self.path, error) from error

    def spending(self, run_id: str) -> dict[str, Spending]:
        """The calls added up, for each purpose."""
        return {row[0]: Spending(*row[1:]) for row in map(tuple, self._all(SPENDING, run_id))}

    def calls(
        self,
        run_id: str,
        after: int = 0,
        limit: int = PAGE,
        *,
        purpose: str | None = None,
        status: str | None = None,
        node: str | None = None,
    ) -> list[CallRecord]:
        """A page of calls in the order in which they ended; the next one is `after` the last one's id.

        Args:
            node: only those of the launch with this address.
        """
        given: list[Any] = [run_id, after]
        where = ""
        if purpose is not None:
            where, given = f"{where} AND purpose = ?", [*given, purpose]
        if status is not None:
            where, given = f"{where} AND status = ?", [*given, status]
        if node is not None:
            where, given = f"{where} AND address >= ? AND address < ?", [*given, f"{node}/", f"{node}0"]
        columns = ", ".join(_names(CallRecord))
        rows = self._all(
            f"SELECT {columns} FROM calls WHERE run_id = ? AND id > ?{where} ORDER BY id LIMIT ?",
            *given,
            limit,
        )
        return [CallRecord(*row) for row in rows]

    def call_texts(self, call_id: int) -> CallTexts:
        """What a call asked and was answered."""
        rows = self._all("SELECT messages, params, reply FROM calls WHERE id = ?", call_id)
        if not rows:
            raise LookupError(f"There is no call [{call_id}] in [{self.path}].")
        messages, params, reply = rows[0]
        return CallTexts(
            [self._body(int(number)) for number in messages.split(",") if number],
            self._body(params),
            self._body(reply),
        )

    def phases(self, run_id: str) -> dict[str, int]:
        """How many samples each phase has, in the order in which they began."""
        rows = self._all(
            "SELECT phase, count(*) FROM samples WHERE run_id = ? GROUP BY phase ORDER BY min(id)", run_id
        )
        return {row[0]: row[1] for row in rows}

    def samples(
        self, run_id: str, after: int = 0, limit: int = PAGE, *, phase: str | None = None
    ) -> list[SampleRecord]:
        """A page of samples, as `calls`.

        Args:
            phase: only those of this phase, and of its batches ("val/batch 1", …) where it has some.
        """
        columns = ", ".join(_names(SampleRecord))
        given: list[Any] = [run_id, after]
        where = ""
        if phase is not None:
            where = f" AND {IN_PHASE}"
            given += of_phase(phase)
        rows = self._all(
            f"SELECT {columns} FROM samples WHERE run_id = ? AND id > ?{where} ORDER BY id LIMIT ?",
            *given,
            limit,
        )
        return [SampleRecord(*[*tuple(row)[:-1], bool(row["success"])]) for row in rows]

    def scores(self, run_id: str) -> Scores:
        """What the samples scored that have keys, for a comparison."""
        where = "WHERE run_id = ? AND key IS NOT NULL AND score IS NOT NULL ORDER BY id"
        return Scores(self._all(f"SELECT phase, key, score FROM samples {where}", run_id))

    def steps(self, run_id: str) -> list[StepRecord]:
        """The optimizer's steps with what each changed, and why."""
        columns = "id, number, address, optimizer, error, time"
        rows = self._all(f"SELECT {columns} FROM steps WHERE run_id = ? ORDER BY number", run_id)
        return [
            StepRecord(*[*row, self._changes(run_id, row[0]), self._candidates(run_id, row[0])])
            for row in rows
        ]

    def parameters(self, run_id: str) -> list[ParameterRecord]:
        """Each value that a parameter had, parameter by parameter."""
        columns = ", ".join(_names(ParameterRecord))
        where = "WHERE run_id = ? ORDER BY number, step, id"
        return [
            ParameterRecord(*row) for row in self._all(f"SELECT {columns} FROM parameters {where}", run_id)
        ]

    def rows(self, table: str, run_id: str) -> Iterator[dict[str, Any]]:
        """Every row of a table of the run's, as the file has it; a page at a time."""
        last = 0
        while page := self._all(
            f"SELECT * FROM {table} WHERE run_id = ? AND id > ? ORDER BY id LIMIT 1000", run_id, last
        ):
            yield from (dict(row) for row in page)
            last = page[-1]["id"]

    @contextmanager
    def moment(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries of one's own; all that the block reads is of one moment."""
        try:
            self._db.execute("BEGIN")
            yield self._db
        except sqlite3.DatabaseError as error:
            raise problem_of(self.path, error) from error
        finally:
            self._db.rollback()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _changes(self, run_id: str, step_id: int) -> list[ChangeRecord]:
        columns = "id, parameter, role, before, after, gradients, rejected"
        where = "WHERE run_id = ? AND step_id = ? ORDER BY id"
        rows = self._all(f"SELECT {columns} FROM changes {where}", run_id, step_id)
        return [ChangeRecord(*[*tuple(row)[1:], self._evidence(run_id, row[0])]) for row in rows]

    def _evidence(self, run_id: str, change_id: int) -> list[EvidenceRecord]:
        where = "WHERE run_id = ? AND change_id = ? ORDER BY number"
        rows = self._all(f"SELECT text, samples FROM evidence {where}", run_id, change_id)
        return [EvidenceRecord(row[0], loaded(row[1])) for row in rows]

    def _candidates(self, run_id: str, step_id: int) -> list[CandidateRecord]:
        columns = "number, parents, vals, scores, verdict"
        where = "WHERE run_id = ? AND step_id = ? ORDER BY id"
        rows = self._all(f"SELECT {columns} FROM candidates {where}", run_id, step_id)
        return [
            CandidateRecord(row[0], loaded(row[1]), loaded(row[2]), loaded(row[3]), row[4]) for row in rows
        ]

    def _body(self, number: int | None) -> Any:
        rows = [] if number is None else self._all("SELECT packed, body FROM bodies WHERE id = ?", number)
        return loaded(unpacked(*rows[0])) if rows else None

    def _run(self, row: sqlite3.Row) -> RunRecord:
        status = live_status(
            self.path, row["id"], row["status"], row["host"], row["pid"], leased=row["versions"] != "{}"
        )
        parsed = {name: loaded(row[name]) for name in ("config", "identity", "versions", "platform")}
        plain = {name: row[name] for name in _names(RunRecord) if name not in (*parsed, "store", "status")}
        return RunRecord(store=self.path, status=status, **parsed, **plain)

    def _all(self, sql: str, *values: Any) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise problem_of(self.path, error) from error


def loaded(text: str | None) -> Any:
    """What JSON holds; a text that isn't JSON, as one that was redacted may not be, as it is."""
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _names(record: type) -> list[str]:
    return [field.name for field in fields(record)]


# Records: what a reader of the store gets, as plain typed data. Times are seconds since 1970 UTC.


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run; `status` is as it is now, so a killed one has CRASHED."""

    store: Path
    id: str
    name: str
    description: str | None
    namespace: str
    project: str
    status: str
    config: Any
    identity: Any
    seed: int
    host: str
    pid: int
    date_created: float
    date_updated: float
    git_commit: str | None
    versions: Mapping[str, str]
    platform: Mapping[str, Any]
    in_flight: int
    waiting: int
    dropped: int

    @property
    def path(self) -> str:
        """What names it among all runs: namespace/project/name."""
        return f"{self.namespace}/{self.project}/{self.name}"


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """One value of a metric."""

    name: str
    step: int
    value: Any
    time: float


@dataclass(frozen=True, slots=True)
class Spending:
    """Calls added up; `cost` in dollars, None where nobody says what they cost, `unpriced` how many those are.

    `cancelled` calls were given up by the program, as when a candidate can't win any more; they didn't fail.
    """

    calls: int
    failed: int
    cancelled: int
    replayed: int
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: float | None
    unpriced: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call without its texts; `id` is what pages are keyed by."""

    id: int
    address: str
    node: str
    lane: int | None
    phase: str
    purpose: str
    account: str
    model: str
    status: str
    replayed: int
    attempts: int
    seconds: float
    waited: float
    started: float
    ended: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class CallTexts:
    """What a call asked and what it was answered, as JSON values."""

    messages: list[Any]
    params: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """What an evaluator said of one sample."""

    id: int
    node: str
    lane: int | None
    phase: str
    key: str | None
    prediction: str | None
    target: str | None
    score: float | None
    note: str | None
    explanation: str | None
    success: bool


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """One feedback that a proposer was shown, and the samples behind it."""

    text: str
    samples: list[Any]


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """What a step did to one parameter."""

    parameter: int
    role: str
    before: str
    after: str
    gradients: int
    rejected: str | None
    evidence: list[EvidenceRecord]


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """Values that a step weighed against others."""

    number: int
    parents: list[int]
    values: list[Any]
    scores: list[float | None]
    verdict: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of an optimizer."""

    id: int
    number: int
    address: str
    optimizer: str
    error: str | None
    time: float
    changes: list[ChangeRecord]
    candidates: list[CandidateRecord]


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """One value that a parameter had, from step `step` on; 0 is what it started from."""

    number: int
    step: int
    role: str
    value: str


def kept(changes: Iterable[tuple[str, str | None]]) -> list[tuple[list[str], str]]:
    """Why a step kept the values of parameters: each reason once, with the roles that it is about.

    >>> kept([("task", None), ("style", "it got longer"), ("tone", "it got longer")])
    [(['style', 'tone'], 'it got longer')]

    Args:
        changes: for each parameter its role, and why its proposal was not taken, None where it was.
    """
    reasons: dict[str, list[str]] = {}
    for role, reason in changes:
        if reason:
            reasons.setdefault(reason, []).append(role)
    return [(roles, reason) for reason, roles in reasons.items()]


# Scores: what a run's samples scored, phase by phase, so that those of another run can be held against them.


_NUMBER: Final = re.compile(r"(?:#| )\d+")

Sample = tuple[str, int]
"""A sample's key, and which of those with that key it is: equal samples are told apart by their order."""


class Scores:
    """The scores of one run.

    >>> found = Scores([("val", "a", 0.0), ("val#2/batch 1", "a", 1.0), ("val#2/batch 2", "b", 0.5)])
    >>> found.phases
    {'val': {('a', 0): 0.0}, 'val#2': {('a', 0): 1.0, ('b', 0): 0.5}}
    >>> found.last, found.kinds()
    ({('a', 0): 1.0, ('b', 0): 0.5}, {'val': 'val#2'})

    Args:
        rows: phase, key and score of each sample, in the order in which they were evaluated.

    Attributes:
        phases: the scores by phase, in the order in which those began; the batches of one evaluation are one phase.
        last: the last score of each sample, whatever the phase.
    """

    def __init__(self, rows: Iterable[tuple[str, str, float]]) -> None:
        self.phases: dict[str, dict[Sample, float]] = {}
        self.last: dict[Sample, float] = {}
        known: dict[str, tuple[dict[Sample, float], Counter[str]]] = {}
        for phase, key, score in rows:
            if phase not in known:
                name = evaluation_of(phase)
                scores = self.phases.setdefault(name, {})
                known[phase] = known.setdefault(name, (scores, Counter()))
            scores, seen = known[phase]
            sample = key, seen[key]
            seen[key] += 1
            scores[sample] = self.last[sample] = score

    def kinds(self) -> dict[str, str]:
        """For each kind of phase the one that began last."""
        return {kind_of(phase): phase for phase in self.phases}


def kind_of(phase: str) -> str:
    """A phase without the numbers of its epochs, steps and repetitions.

    >>> kind_of("epoch 3/val#2")
    'epoch/val'
    """
    return _NUMBER.sub("", phase)


# Metrics: which of a run's metrics matter, their values in order, and the one that sums the run up.


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


# Candidates: which of them the parameters held, and what a step that weighed some won and lost by its choice.


START: Final = ("start", "incumbent")
"""Verdicts of the candidate that a step found in the parameters."""

KEPT: Final = "(c.verdict IN ('start', 'incumbent') OR c.verdict LIKE 'accepted%')"

TRIALS: Final = (
    "SELECT address FROM steps WHERE run_id = ?1 AND id IN (SELECT step_id FROM candidates WHERE run_id = ?1)"
)
CANDIDATES: Final = f"""
SELECT c.number, c.vals, c.scores, c.verdict, s.number AS step FROM candidates c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.optimizer = ?2 AND s.number BETWEEN ?3 AND ?4 AND {KEPT} ORDER BY c.id"""
BEGINNING: Final = """
SELECT max(s.number) FROM candidates c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.optimizer = ?2 AND s.number <= ?3 AND c.verdict IN ('start', 'incumbent')"""
CHANGES: Final = """
SELECT c.before, c.after, s.number AS step FROM changes c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.optimizer = ?2 AND s.number BETWEEN ?3 AND ?4 AND c.before != c.after
ORDER BY c.id"""

Values = tuple[Any, ...]


class RecordedCandidate(NamedTuple):
    """A candidate and its scores, one for each held-out sample."""

    number: int
    values: Values
    scores: list[float | None]


class Choice(NamedTuple):
    """The candidates that the parameters held before and after a step; the same one where it kept its values."""

    before: RecordedCandidate
    after: RecordedCandidate

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """The scores of both on the samples that both have."""
        # Samples come in one order, so a candidate that was accepted early has the first of them.
        both = zip(self.before.scores, self.after.scores, strict=False)
        return [(one, other) for one, other in both if one is not None and other is not None]


def choice(db: sqlite3.Connection, run: str, step: int) -> Choice | None:
    """Return what a step chose; None where it weighed no candidates, or where that isn't known.

    A step records the candidate that it found in the parameters when it is the first or, with `Improves`,
    always. From there on the changes say what the parameters held.
    """
    optimizer = db.execute(
        "SELECT optimizer FROM steps WHERE run_id = ? AND number = ?", (run, step)
    ).fetchone()
    if optimizer is None:
        return None
    first = db.execute(BEGINNING, (run, optimizer["optimizer"], step)).fetchone()[0]
    if first is None:
        return None
    span = (run, optimizer["optimizer"], first, step)
    known: dict[Values, RecordedCandidate] = {}
    before: Values = ()
    for row in db.execute(CANDIDATES, span):
        found = RecordedCandidate(row["number"], _values(row["vals"]), _scores(row["scores"]))
        known[found.values] = found
        if row["verdict"] in START:
            before = found.values
    changes: dict[int, list[tuple[Any, Any]]] = {}
    for row in db.execute(CHANGES, span):
        changes.setdefault(row["step"], []).append((row["before"], row["after"]))
    for number in sorted(changes):
        if number < step:
            before = _changed(before, changes[number]) or before
    after = _changed(before, changes.get(step, []))
    if after is None or before not in known or after not in known:
        return None
    return Choice(known[before], known[after])


def trial_nodes(db: sqlite3.Connection, run: str) -> list[str]:
    """Return the addresses of the evaluations that a step made of its candidates, whose values nobody else saw."""
    steps = {row["address"] for row in db.execute(TRIALS, (run,))}
    if not steps:
        return []
    nodes = db.execute("SELECT address FROM nodes WHERE run_id = ? AND kind = 'evaluator'", (run,))
    return [row["address"] for row in nodes if _is_within(row["address"], steps)]


def _is_within(address: str, steps: set[str]) -> bool:
    while "/" in address:
        address = address.rpartition("/")[0]
        if address in steps:
            return True
    return False


def _changed(values: Values, changes: list[tuple[Any, Any]]) -> Values | None:
    """Return the values after a step's changes; None where these are about others."""
    found, left = list(values), set(range(len(values)))
    for before, after in changes:
        place = next((one for one in sorted(left) if found[one] == before), None)
        if place is None:
            return None
        found[place] = after
        left.remove(place)
    return tuple(found)


def _values(text: str) -> Values:
    return tuple(value if isinstance(value, str) else json.dumps(value) for value in _list(text))


def _scores(text: str) -> list[float | None]:
    return [score if isinstance(score, int | float) else None for score in _list(text)]


def _list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


# Run choice: which run a word means that a user writes.


NAMED: Final = 10
"""Runs that an error names, at most."""
PREFIX: Final = 4
"""Characters of an id that may stand for it, at least."""


MISSING: Final = (
    "there is no such folder; run this where your program runs, name the folder with --dir, or set "
    "AFNIO_HOME."
)
"""What a person is told whose folder of stores isn't there."""


def choose(word: str, runs: Sequence[RunRecord], home: Path, *, whole: bool = False) -> RunRecord:
    """Return the run of this id, this namespace/project/name or this name, else the one whose name or id begins so.

    Args:
        runs: all that there are.
        home: where they are, for the error.
        whole: a name has to be given in full, because the run of another name must not be taken for it.

    Raises:
        ChoiceError: if there is none, or if several are meant.
    """
    for meant in (
        [run for run in runs if word in (run.id, run.path, _key(run))],
        [run for run in runs if word == run.name],
        [run for run in runs if _begins(run, word, whole=whole)],
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            names = ", ".join(run.path for run in meant[:NAMED])
            raise ChoiceError(f"[{word}] means {len(meant)} runs ({names}); write namespace/project/name.")
    names = ", ".join(run.name for run in runs[:NAMED])
    if not names:
        raise ChoiceError(
            f"There is no run [{word}] in [{home}]: {'it has no runs.' if home.exists() else MISSING}"
        )
    raise ChoiceError(
        f"There is no run [{word}] in [{home}]; there are: {names} (`afnio runs list` shows all)."
    )


def _begins(run: RunRecord, word: str, *, whole: bool) -> bool:
    if len(word) >= PREFIX and run.id.startswith(word):
        return True
    return bool(word) and not whole and (run.name.startswith(word) or run.path.startswith(word))


def _key(run: RunRecord) -> str:
    """What names it in the studio's addresses."""
    return f"{run.store.parent.name}/{run.store.stem}/{run.id}"
