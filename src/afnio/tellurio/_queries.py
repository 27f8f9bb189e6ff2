"""Reading runs: every query of the command line, the studio and the report.

A project's runs are in one SQLite file, and a folder of stores has one file for each project
(`.afnio/<namespace>/<project>.db`). `StoreReader` opens such a file for reading. Its methods return the records of
`_records`, one method for each question ("the calls of this run, newest first, that failed"), and no other module
reads a store by SQL. So a figure can't differ between a page, a report and `--json`.

Reading never disturbs a run that is being recorded: the file is in WAL mode, where readers and the writer don't block
each other. A page asks many questions while the run continues. `moment` makes all of them see the file as it was at one
time. Otherwise a page could count the samples before a step and then list the step.

Lists are paged by row id, not by OFFSET: the next page starts after the last id of this one, so it is as fast at the
end of a million calls as at the start, and rows added in between shift nothing.

The methods are in the order of their subjects: runs, metrics, calls, samples and graphs, steps and parameters,
candidates, and what the program logged.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from afnio.tellurio._control import CONTROL, Order
from afnio.tellurio._recording import unpacked
from afnio.tellurio._records import (
    BlockRecord,
    CallRecord,
    CallTexts,
    CandidateRecord,
    ChangeRecord,
    Choice,
    EventRecord,
    EvidenceRecord,
    FeedbackUse,
    Headline,
    MetricRecord,
    NodeRecord,
    ParameterLength,
    ParameterRecord,
    PastScore,
    PhaseRecord,
    RetryRecord,
    RunPulse,
    RunRecord,
    SampleHistory,
    SampleRecord,
    ScoredSample,
    SecondOfCalls,
    Spending,
    StepCalls,
    StepRecord,
    TableRecord,
    TextRecord,
    as_number,
    columns_of,
    loaded,
    loaded_list,
    ranked,
)
from afnio.tellurio._schema import IN_PHASE, of_phase
from afnio.tellurio._store import live_status, open_to_read, problem_of

# Rows of one page of calls or samples.
PAGE: Final = 100

# Kind of the event that names the monitored metric: {"metric": name, "mode": "max" or "min", "unit":
# "epoch"}.
MONITOR: Final = "monitor"

# The most values of a metric among which the best one is searched.
MOST_VALUES: Final = 100_000

# The largest whole number of SQLite.
LARGEST: Final = 2**63 - 1

# The most messages of one call that are read; SQLite allows 32,766 values in one statement.
MOST_BODIES: Final = 32_000


# SQL that several methods share, or that is too long to read inside one.

# The fields of `Spending`, in order. Every total of calls in Afnio is added up by this and by
# `Spending.__add__`.
TOTALS: Final = """
    count(*), sum(status = 'failed'), sum(status = 'cancelled'), sum(replayed > 0), sum(attempts),
    sum(max(attempts - 1, 0)), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(cost),
    sum(cost IS NULL AND status IN ('ok', 'replayed')), sum(seconds), sum(waited)"""

BY_PURPOSE: Final = f"SELECT purpose, {TOTALS} FROM calls WHERE run_id = ? GROUP BY purpose ORDER BY purpose"
BY_SECOND: Final = f"""
SELECT CAST(ended AS INTEGER) AS second, purpose, account, model, max(id),
    group_concat(max(0, CAST(1000 * seconds AS INTEGER))), {TOTALS}
FROM calls WHERE run_id = ? AND id > ? GROUP BY second, purpose, account, model"""

LAST_METRICS: Final = """
SELECT name, step, value, time FROM metrics m WHERE run_id = ?1 AND id = (
    SELECT id FROM metrics WHERE run_id = ?1 AND name = m.name ORDER BY step DESC, id DESC LIMIT 1
) ORDER BY name"""

# The column of a sample's inputs, which are kept once for all evaluations of the sample.
INPUTS: Final = (
    "(SELECT text FROM inputs i WHERE i.run_id = samples.run_id AND i.key = samples.key) AS inputs"
)

# The order and the outcome of an evaluation in one number, which the index on keys has for all evaluations of a sample.
# A gate scores the start and the result side by side: the result comes last, whichever was written first.
RESULT_LAST: Final = 2**40
HISTORIES: Final = f"""
WITH placed AS (
    SELECT key, (id + {RESULT_LAST} * (phase GLOB '*held/result*')) * 2 + success AS place, success
    FROM samples WHERE run_id = ? AND key IS NOT NULL AND {{phase}}),
seen AS (
    SELECT key, min(place) AS first, max(place) AS last, count(*) AS times, sum(success) AS hits
    FROM placed GROUP BY key)"""
LAST_ID: Final = f"last / 2 % {RESULT_LAST}"
# How samples did over a run: wrong now, won and lost since the first time, never right, or there and back.
FATES: Final = {
    "wrong": "last % 2 = 0",
    "gained": "first % 2 = 0 AND last % 2 = 1",
    "lost": "first % 2 = 1 AND last % 2 = 0",
    "never": "hits = 0",
    "unstable": "first % 2 = last % 2 AND hits > 0 AND hits < times",
}
# Different targets up to which answers are counted by target.
LABELS: Final = 8

PHASES: Final = """
SELECT phase, count(*), count(score), coalesce(sum(score = 0 OR score = 1), 0), coalesce(sum(score), 0)
FROM samples WHERE run_id = ? GROUP BY phase ORDER BY min(id)"""

SAMPLE_OF_CALL: Final = """
SELECT id FROM samples WHERE run_id = ?1 AND phase = ?2 AND lane IS ?3 AND node IN (
    SELECT address FROM nodes WHERE run_id = ?1 AND (address = ?4 OR instr(parents, ?5) > 0) LIMIT 20) LIMIT 1"""

FEEDBACK_BEHIND: Final = """
SELECT s.number, e.text FROM changes c JOIN steps s ON s.id = c.step_id JOIN evidence e ON e.change_id = c.id
WHERE c.run_id = ? AND c.after = ? AND c.before <> c.after ORDER BY c.id DESC, e.number LIMIT 3"""
FEEDBACK_USES: Final = """
SELECT s.number, e.text, e.samples FROM evidence e JOIN changes c ON c.id = e.change_id JOIN steps s ON s.id = c.step_id
WHERE e.run_id = ? AND instr(e.samples, ?) > 0 ORDER BY e.id LIMIT 200"""

# A launch reads the prompt when it is made, so the evaluator's launch time tells which prompt a sample saw. The
# evaluations that a step makes of its candidates are left out: they used the candidates' values, not the parameters'.
# In an aggregate query with one max() or min(), SQLite takes the other columns from that row.
EVALUATIONS: Final = """
SELECT s.key, s.id, s.score, {extreme}(n.time)
FROM nodes n CROSS JOIN samples s ON s.run_id = n.run_id AND s.node = n.address
WHERE n.run_id = :run AND n.kind = 'evaluator' AND n.time {side} :at AND s.key IS NOT NULL AND s.score IS NOT NULL
    AND n.address NOT IN (SELECT value FROM json_each(:trials))
GROUP BY s.key"""
LAST_BEFORE: Final = EVALUATIONS.format(extreme="max", side="<=")
FIRST_AFTER: Final = EVALUATIONS.format(extreme="min", side=">")
STEPS_WITH_CANDIDATES: Final = """
SELECT address FROM steps WHERE run_id = ?1 AND id IN (SELECT step_id FROM candidates WHERE run_id = ?1)"""

CHANGES: Final = f"""
SELECT {", ".join(f"c.{name}" for name in columns_of(ChangeRecord))} FROM changes c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.number BETWEEN ?2 AND ?3 ORDER BY c.id"""

LAST_PARAMETERS: Final = """
AND step = (SELECT max(step) FROM parameters WHERE run_id = p.run_id AND number = p.number)"""

CANDIDATES: Final = """
SELECT s.number, c.number, c.parents, c.vals, c.scores, c.verdict, c.name, c.samples
FROM candidates c JOIN steps s ON s.id = c.step_id WHERE c.run_id = ?1"""
# For each kind of text that can be asked for by address: its table and columns.
LONG_TEXTS: Final = {
    "change": ("changes", ("before", "after")),
    "sample": ("samples", ("prediction", "target", "explanation")),
    "logged": ("texts", ("text",)),
}


class StoreReader:
    """A project's file, opened for reading. Use it as a context manager, or close it.

    Methods return dataclasses and named tuples; `dataclasses.asdict` makes rows of them. Reading never disturbs a
    program that is writing the file.

    >>> import tempfile, afnio.tellurio as te
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with te.init("me", "emails", name="first", dir=folder) as run:
    ...         run.log("accuracy", 0.5)
    ...     with te.StoreReader(f"{folder}/me/emails.db") as reader:
    ...         [(run.name, run.status, reader.last_metrics(run.id)[0].value) for run in reader.runs()]
    [('first', 'COMPLETED', 0.5)]

    Raises:
        StoreProblemError: by the constructor or any method, if the file is missing, damaged, locked or of another
            version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._db = open_to_read(self.path)

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

    @contextmanager
    def moment(self) -> Iterator[None]:
        """Make everything that the block reads come from one snapshot of the file."""
        self._all("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    # Runs.

    def runs(self) -> list[RunRecord]:
        """All runs, newest first."""
        return [
            self._run(row) for row in self._all("SELECT * FROM runs ORDER BY date_created DESC, rowid DESC")
        ]

    def run(self, wanted: str) -> RunRecord | None:
        """The run with this id, or else with this name; None if there is none."""
        query = "SELECT * FROM runs WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1"
        row = self._first(query, wanted)
        return None if row is None else self._run(row)

    def newest(self, table: str, run_id: str) -> int:
        """The highest row id that a run has in a table, or 0. A cheap way to see that there is something new."""
        return self._value(f"SELECT max(id) FROM {table} WHERE run_id = ?", run_id) or 0

    def rows(self, table: str, run_id: str) -> Iterator[dict[str, Any]]:
        """Every row that a run has in a table, unparsed. Reads 1,000 rows at a time, so memory stays small."""
        last = 0
        query = f"SELECT * FROM {table} WHERE run_id = ? AND id > ? ORDER BY id LIMIT 1000"
        while page := self._all(query, run_id, last):
            yield from (dict(row) for row in page)
            last = page[-1]["id"]

    def _run(self, row: sqlite3.Row) -> RunRecord:
        status = live_status(self.path, row["id"], row["status"], row["host"], row["pid"])
        parsed = {
            name: loaded(row[name]) for name in ("config", "identity", "versions", "platform", "places")
        }
        others = set(columns_of(RunRecord)) - {*parsed, "store", "status", "namespace", "project"}
        # "My Project" and "my-project" are one project with one file, so it has the file's name everywhere.
        place: dict[str, Any] = {"namespace": self.path.parent.name, "project": self.path.stem}
        return RunRecord(
            store=self.path, status=status, **place, **parsed, **{name: row[name] for name in others}
        )

    # Metrics.

    def metric_names(self, run_id: str) -> list[str]:
        """The metrics worth showing, most telling first (see `ranked`)."""
        return self._ranked(run_id, self._monitor(run_id))

    def last_metrics(self, run_id: str) -> list[MetricRecord]:
        """The last value of each metric."""
        rows = self._all(LAST_METRICS, run_id)
        return [MetricRecord(row[0], row[1], loaded(row[2]), row[3]) for row in rows]

    def metric_points(self, run_id: str, name: str, most: int = 2000) -> list[tuple[int, float]]:
        """The last `most` steps and values of a metric in order of steps, without values that aren't numbers."""
        rows = self._all(
            "SELECT step, value FROM metrics WHERE run_id = ? AND name = ? ORDER BY step DESC, id DESC LIMIT ?",
            run_id, name, most,
        )  # fmt: skip
        points = ((step, as_number(text)) for step, text in reversed(rows))
        return [(step, value) for step, value in points if value is not None]

    def metric_ends(self, run_id: str, name: str) -> tuple[float | None, float | None]:
        """The first and the last value of a metric. If there is only one value, it's the last."""
        where = "FROM metrics WHERE run_id = ? AND name = ?"
        first = self._first(f"SELECT id, value {where} ORDER BY step, id LIMIT 1", run_id, name)
        last = self._first(f"SELECT id, value {where} ORDER BY step DESC, id DESC LIMIT 1", run_id, name)
        if first is None or last is None:
            return None, None
        return None if first["id"] == last["id"] else as_number(first["value"]), as_number(last["value"])

    def headline(self, run_id: str) -> Headline | None:
        """The metric that sums the run up; None if no metric has a number."""
        monitor = self._monitor(run_id)
        for name in self._ranked(run_id, monitor):
            mode = monitor.get("mode") if name == monitor.get("metric") else None
            if mode not in ("max", "min"):
                if points := self.metric_points(run_id, name):
                    return Headline(name, points[-1][1])
                continue
            points = self.metric_points(run_id, name, MOST_VALUES)
            if points:
                sign = 1 if mode == "max" else -1
                step, best = max(points, key=lambda point: sign * point[1])
                return Headline(name, points[-1][1], mode, best, step, str(monitor.get("unit", "step")))
        return None

    def _ranked(self, run_id: str, monitor: dict[str, Any]) -> list[str]:
        rows = self._all("SELECT DISTINCT name FROM metrics WHERE run_id = ?", run_id)
        return ranked([row[0] for row in rows], monitor.get("metric"))

    def _monitor(self, run_id: str) -> dict[str, Any]:
        event = self.last_event(run_id, MONITOR)  # each fit of a run writes one
        return event if isinstance(event, dict) else {}

    # Calls.

    def spending(self, run_id: str) -> dict[str, Spending]:
        """The totals of a run's calls, by purpose."""
        return {row[0]: Spending(*row[1:]) for row in map(tuple, self._all(BY_PURPOSE, run_id))}

    def spending_by_second(self, run_id: str, after: int = 0) -> list[SecondOfCalls]:
        """The totals of the calls with ids above `after`, by the second of their ends, purpose, account and model."""
        rows = map(tuple, self._all(BY_SECOND, run_id, after))
        return [SecondOfCalls(*[*row[:6], Spending(*row[6:])]) for row in rows]

    def calls_of_step(self, run_id: str, number: int, most: int) -> tuple[list[StepCalls], list[CallRecord]]:
        """The calls that ended between the step before and this one: in groups, and `most` of them, evenly chosen."""
        ends = "SELECT coalesce(max(time), 0) FROM steps WHERE run_id = ? AND number = ?"
        span = [self._value(ends, run_id, one) for one in (number - 1, number)]
        where = "run_id = ? AND ended > ? AND ended <= ?"
        columns = "phase, purpose, model, count(*), min(started), max(ended)"
        rows = self._all(f"SELECT {columns} FROM calls WHERE {where} GROUP BY 1, 2, 3", run_id, *span)
        groups = [StepCalls(*row) for row in rows]
        every = -(-sum(one.calls for one in groups) // most)
        chosen = [("ended > ? AND ended <= ?", span), ("id % ? = 0", [max(1, every)])]
        return groups, [
            CallRecord(*row) for row in self._page("calls", CallRecord, run_id, chosen, limit=most)
        ]

    def is_simulated(self, run_id: str) -> bool:
        """Return True if the first calls with a reply were answered by `afnio provider`, which plays a model."""
        rows = self._all(
            "SELECT DISTINCT reply FROM calls WHERE run_id = ? AND reply IS NOT NULL LIMIT 5", run_id
        )
        return any(
            isinstance(one, dict) and "simulated" in one
            for one in self._bodies([r[0] for r in rows]).values()
        )

    def calls(
        self,
        run_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE,
        newest: bool = False,
        purpose: str | None = None,
        status: str | None = None,
        phase: str | None = None,
        node: str | None = None,
        words: Sequence[str] = (),
    ) -> list[CallRecord]:
        """A page of calls in the order in which they ended.

        Args:
            after, before: only calls with ids above or below these.
            newest: start with the last one.
            status: "ok", "failed", "cancelled" or "replayed"; or "retried", for more than one attempt.
            phase: only calls of this phase and of its batches.
            node: only calls of the launch with this address.
            words: each must be in the address, the model, the account or the error.
        """
        conditions = [_is("purpose", purpose), _in_phase(phase), _of_node(node)]
        conditions += [("attempts > 1", []) if status == "retried" else _is("status", status)]
        conditions += _with_words(words, "address", "model", "account", "error")
        rows = self._page("calls", CallRecord, run_id, conditions, after, before, limit, newest=newest)
        return [CallRecord(*row) for row in rows]

    def calls_of_sample(self, run_id: str, node: NodeRecord, lane: int | None) -> list[CallRecord]:
        """The first 50 calls of a launch for one sample, with those that it made for all samples together."""
        conditions = [_of_node(node.address)]
        if node.lanes is None:
            conditions.append(("(lane IS ? OR lane IS NULL)", [lane]))
        elif lane is not None and node.lanes > 1:
            # What a lane's function launches has the lane's address, but lanes of its own.
            start, end = f"{node.address}/{lane}/", f"{node.address}/{lane}0"
            own = "((node = ? AND (lane = ? OR lane IS NULL)) OR (address >= ? AND address < ?))"
            conditions.append((own, [node.address, lane, start, end]))
        return [CallRecord(*row) for row in self._page("calls", CallRecord, run_id, conditions, limit=50)]

    def call(self, run_id: str, number: int) -> CallRecord | None:
        """The call with this id; None if the run has no such call."""
        rows = self._page("calls", CallRecord, run_id, [("id = ?", [number])])
        return CallRecord(*rows[0]) if rows else None

    def purposes(self, run_id: str) -> list[str]:
        """The purposes of a run's calls, in order of their names; at most 30."""
        return sorted(
            row[0]
            for row in self._all("SELECT DISTINCT purpose FROM calls WHERE run_id = ? LIMIT 30", run_id)
        )

    def call_texts(self, call_id: int) -> CallTexts:
        """The messages, parameters and reply of a call."""
        row = self._first("SELECT messages, params, reply FROM calls WHERE id = ?", call_id)
        if row is None:
            raise LookupError(f"there is no call {call_id} in {self.path}")
        messages = [int(number) for number in row["messages"].split(",") if number.strip().isdecimal()]
        bodies = self._bodies([*messages, row["params"], row["reply"]])
        return CallTexts(
            [bodies.get(number) for number in messages], bodies.get(row["params"]), bodies.get(row["reply"])
        )

    def retries(self, run_id: str, address: str) -> list[RetryRecord]:
        """The first 50 failed attempts of a call."""
        where = "WHERE run_id = ? AND address = ? ORDER BY id LIMIT 50"
        return [
            RetryRecord(*row)
            for row in self._all(f"SELECT attempt, error, wait FROM retries {where}", run_id, address)
        ]

    def sample_of_call(self, run_id: str, call: CallRecord) -> int | None:
        """The id of the sample that a call was made for; None if it isn't known."""
        if call.lane is None:
            return None
        number: int | None = self._value(
            SAMPLE_OF_CALL, run_id, call.phase, call.lane, call.node, json.dumps(call.node)
        )
        return number

    def _bodies(self, numbers: Sequence[int | None]) -> dict[int | None, Any]:
        wanted = list(dict.fromkeys(number for number in numbers if number is not None))[:MOST_BODIES]
        marks = ",".join("?" * len(wanted))
        rows = self._all(f"SELECT id, packed, body FROM bodies WHERE id IN ({marks})", *wanted)
        return {row["id"]: _body(row["packed"], row["body"]) for row in rows}

    # Samples, and the graphs that they went through.

    def phases(self, run_id: str) -> list[PhaseRecord]:
        """The phases of a run with their samples added up, in the order in which they began."""
        return [PhaseRecord(*row) for row in self._all(PHASES, run_id)]

    def phases_like(self, run_id: str, start: str) -> list[str]:
        """The phases of a run's samples whose names begin like this, in the order in which they began."""
        where = "WHERE run_id = ? AND phase >= ? AND phase < ? GROUP BY phase ORDER BY min(id)"
        rows = self._all(f"SELECT phase FROM samples {where}", run_id, start, f"{start}\U0010ffff")
        return [row[0] for row in rows]

    def pulse(self, run_id: str, since: float) -> RunPulse:
        """How a live run does: its last reply, and what fails, since a time and now."""
        query = "SELECT ended FROM calls WHERE run_id = ? AND status = 'ok' ORDER BY id DESC LIMIT 1"
        retry = "SELECT count(*), max(error) FROM retries WHERE run_id = ? AND time > ?"
        kinds = "('CircuitOpened', 'CircuitClosed')"
        where = f"WHERE run_id = ? AND kind IN {kinds} ORDER BY id DESC LIMIT 50"
        events = self._all(f"SELECT kind, payload FROM events {where}", run_id)
        circuits: dict[str, dict[str, Any]] = {}
        for kind, text in reversed(events):
            event = loaded(text)
            if isinstance(event, dict) and isinstance(event.get("account"), str):
                circuits[event["account"]] = event | {"kind": kind}
        retried, error = self._first(retry, run_id, since)
        return RunPulse(
            self._value(query, run_id),
            {url: str(one.get("error")) for url, one in circuits.items() if one["kind"] == "CircuitOpened"},
            retried, error,
        )  # fmt: skip

    def last_phase(self, run_id: str) -> str:
        """The phase of the call that ended last; "" if none has."""
        query = "SELECT phase FROM calls WHERE run_id = ? ORDER BY id DESC LIMIT 1"
        return str(self._value(query, run_id) or "")

    def samples(
        self,
        run_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE,
        newest: bool = False,
        phase: str | None = None,
        success: bool | None = None,
        key: str | None = None,
        words: Sequence[str] = (),
    ) -> list[SampleRecord]:
        """A page of samples in the order in which they were evaluated; for the arguments see `calls`.

        Args:
            success: only samples that were right (True) or that send feedback (False).
            key: only evaluations of this sample.
            words: each must be in the inputs, the prediction, the target or the explanation.
        """
        conditions = [_is("key", key), _is("success", success), _in_phase(phase)]
        conditions += _with_words(words, "prediction", "target", "explanation", "inputs")
        rows = self._page("samples", SampleRecord, run_id, conditions, after, before, limit, newest=newest)
        return [_sample(row) for row in rows]

    def histories(
        self,
        run_id: str,
        *,
        fate: str | None = None,
        phase: str | None = None,
        words: Sequence[str] = (),
        before: int | None = None,
        limit: int = PAGE,
        past: int = 0,
    ) -> list[SampleHistory]:
        """A page of samples, each once, the last evaluated first.

        Args:
            fate: only samples that did so; one of `FATES`.
            phase: count only evaluations in this phase.
            words: each must be in the inputs, the prediction, the target or the explanation.
            before: only samples whose place in this order is below this one.
            past: outcomes of earlier evaluations that are read for each.
        """
        seen, values = self._seen(phase)
        end = None if before is None else min(2 * before, LARGEST)
        given = [("1", []) if fate is None else (FATES[fate], []), _is("last", end, "<")]
        given += _with_words(words, "prediction", "target", "explanation", "text")
        conditions = [one for one in given if one is not None]
        texts = (
            f"JOIN samples s ON s.id = {LAST_ID} LEFT JOIN inputs i ON i.run_id = s.run_id AND i.key = s.key"
        )
        columns = ", ".join(
            INPUTS if name == "inputs" else f"samples.{name}" for name in columns_of(SampleRecord)
        )
        rows = self._all(
            f"{seen}, page AS (SELECT last, first, times, hits FROM seen {texts if words else ''} "
            f"WHERE {' AND '.join(sql for sql, _ in conditions)} ORDER BY last DESC LIMIT ?) "
            f"SELECT {columns}, times, hits, last / 2 FROM page JOIN samples ON samples.id = {LAST_ID} "
            "ORDER BY last DESC",
            run_id, *values, *[value for _, parts in conditions for value in parts], limit,
        )  # fmt: skip
        found = []
        for row in rows:
            last, (times, hits, place) = _sample(row[:-3]), row[-3:]
            found.append(SampleHistory(last, times, hits, self._past(run_id, last.key, phase, past), place))
        return found

    def _seen(self, phase: str | None) -> tuple[str, list[Any]]:
        condition, values = _in_phase(phase) or ("1", [])
        return HISTORIES.format(phase=condition), values

    def _past(self, run_id: str, key: str | None, phase: str | None, most: int) -> tuple[PastScore, ...]:
        if not most:
            return ()
        condition, values = _in_phase(phase) or ("1", [])
        order = f"id + {RESULT_LAST} * (phase GLOB '*held/result*')"
        where = f"WHERE run_id = ? AND key = ? AND {condition} ORDER BY {order} DESC LIMIT ?"
        rows = self._all(
            f"SELECT phase, success, score, {order} FROM samples INDEXED BY samples_by_key {where}",
            run_id, key, *values, most,
        )  # fmt: skip
        return tuple(PastScore(row[0], bool(row[1]), row[2], row[3]) for row in reversed(rows))

    def fates(self, run_id: str, phase: str | None = None) -> dict[str, int]:
        """How many samples a run has ("all"), and how many did each of `FATES`."""
        seen, values = self._seen(phase)
        sums = ", ".join(f"coalesce(sum({condition}), 0)" for condition in FATES.values())
        row = self._first(f"{seen} SELECT count(*), {sums} FROM seen", run_id, *values)
        return dict(zip(("all", *FATES), row, strict=True))

    def confusion(self, run_id: str, phase: str | None = None) -> dict[tuple[str, str], int]:
        """How often each target got each prediction the last time, if there are at most 8 targets; else nothing."""
        seen, values = self._seen(phase)
        rows = self._all(
            f"{seen} SELECT substr(target, 1, 40), substr(prediction, 1, 40), count(*) FROM seen "
            f"JOIN samples ON samples.id = {LAST_ID} WHERE target IS NOT NULL AND prediction IS NOT NULL "
            f"GROUP BY 1, 2 ORDER BY 1, 2 LIMIT {LABELS * LABELS + 1}",
            run_id, *values,
        )  # fmt: skip
        targets, said = {row[0] for row in rows}, {row[1] for row in rows}
        few = len(rows) <= LABELS * LABELS and 1 < len(targets) <= LABELS and len(said) <= LABELS + 1
        return {(row[0], row[1]): row[2] for row in rows} if few else {}

    def sample(self, run_id: str, number: int) -> SampleRecord | None:
        """The sample with this id; None if the run has no such sample."""
        rows = self._page("samples", SampleRecord, run_id, [("id = ?", [number])])
        return _sample(rows[0]) if rows else None

    def sample_at(self, run_id: str, node: Any, lane: Any) -> SampleRecord | None:
        """The sample that an evaluator's launch saw in a lane; None if there is none."""
        conditions = [("node = ?", [node]), ("lane IS ?", [lane])]
        rows = self._page("samples", SampleRecord, run_id, conditions, limit=1)
        return _sample(rows[0]) if rows else None

    def scores(self, run_id: str, phase: str | None = None) -> list[tuple[str, str, float]]:
        """Phase, key and score of each sample that has a key and a score, in the order of evaluation."""
        where, values = _in_phase(phase) or ("1", [])
        where = f"WHERE run_id = ? AND key IS NOT NULL AND score IS NOT NULL AND {where} ORDER BY id"
        return self._all(f"SELECT phase, key, score FROM samples {where}", run_id, *values)

    def scores_around(self, run_id: str, time: float) -> tuple[dict[str, ScoredSample], list[ScoredSample]]:
        """For each sample its last evaluation up to a time, by key, and its first evaluation after it."""
        asked = {"run": run_id, "at": time, "trials": json.dumps(self._trials(run_id))}
        before = [ScoredSample(*row) for row in self._all(LAST_BEFORE, named=asked)]
        return {one.key: one for one in before}, [
            ScoredSample(*row) for row in self._all(FIRST_AFTER, named=asked)
        ]

    def node(self, run_id: str, address: str) -> NodeRecord | None:
        """The launch with this address; None if it isn't part of a recorded graph."""
        rows = self._page("nodes", NodeRecord, run_id, [("address = ?", [address])], limit=1)
        return _node(rows[0]) if rows else None

    def backward_passes(self, run_id: str, node: NodeRecord) -> list[NodeRecord]:
        """The first 10 backward passes that went through a node."""
        conditions = [("kind = 'backward'", []), ("instr(parents, ?) > 0", [node.address])]
        rows = self._page("nodes", NodeRecord, run_id, conditions, node.id, limit=10)
        return [backward for row in rows if node.address in (backward := _node(row)).parents]

    def _trials(self, run_id: str) -> list[str]:
        """The addresses of the evaluations that steps made of their candidates."""
        steps = {row[0] for row in self._all(STEPS_WITH_CANDIDATES, run_id)}
        if not steps:
            return []
        nodes = self._all("SELECT address FROM nodes WHERE run_id = ? AND kind = 'evaluator'", run_id)
        return [row[0] for row in nodes if _is_within(row[0], steps)]

    # Steps and parameters.

    def step_count(self, run_id: str) -> int:
        """How many steps a run has. Steps are numbered from 1, so this is also the last one's number."""
        return self._value("SELECT count(*) FROM steps WHERE run_id = ?", run_id) or 0

    def step_times(self, run_id: str) -> list[float]:
        """When the steps ended, in ascending order."""
        return [row[0] for row in self._all("SELECT time FROM steps WHERE run_id = ? ORDER BY time", run_id)]

    def steps(self, run_id: str, after: int = 0, limit: int = -1) -> list[StepRecord]:
        """The steps with numbers above `after`, with their changes; -1 returns all of them."""
        rows = self._all(
            "SELECT id, number, address, optimizer, error, time FROM steps WHERE run_id = ? AND number > ? "
            "ORDER BY number LIMIT ?",
            run_id, after, limit,
        )  # fmt: skip
        if not rows:
            return []
        changes: dict[int, list[ChangeRecord]] = {row["id"]: [] for row in rows}
        for row in self._all(CHANGES, run_id, rows[0]["number"], rows[-1]["number"]):
            changes[row["step_id"]].append(_change(row))
        return [StepRecord(*[*row, changes[row["id"]]]) for row in rows]

    def step(self, run_id: str, number: int) -> StepRecord | None:
        """The step with this number; None if the run has no such step."""
        steps = self.steps(run_id, number - 1, 1)
        return steps[0] if steps and steps[0].number == number else None

    def evidence(self, run_id: str, change: ChangeRecord, limit: int = PAGE) -> list[EvidenceRecord]:
        """The feedback that a change was proposed from."""
        where = "WHERE run_id = ? AND change_id = ? ORDER BY number LIMIT ?"
        rows = self._all(f"SELECT number, text, samples FROM evidence {where}", run_id, change.id, limit)
        return [EvidenceRecord(row[0], row[1], loaded_list(row[2])) for row in rows]

    def blocks(self, run_id: str, change: ChangeRecord) -> list[BlockRecord]:
        """The blocks of the text after a change, in order; none from optimizers that don't edit by block."""
        return self._blocks(run_id, change.id)

    def _blocks(self, run_id: str, change: int | None) -> list[BlockRecord]:
        columns = ", ".join(columns_of(BlockRecord))
        where = "WHERE run_id = ? AND change_id = ? ORDER BY number"
        rows = self._all(f"SELECT {columns} FROM blocks {where}", run_id, change)
        return [BlockRecord(**{**dict(row), "samples": loaded_list(row["samples"])}) for row in rows]

    def blocks_of_text(self, run_id: str, text: str) -> list[BlockRecord]:
        """The blocks of a text that a change made, as they were recorded last; none if no change has them."""
        query = (
            "SELECT max(c.id) FROM changes c WHERE c.run_id = ?1 AND c.after = ?2 "
            "AND EXISTS (SELECT 1 FROM blocks b WHERE b.run_id = ?1 AND b.change_id = c.id)"
        )
        return self._blocks(run_id, self._value(query, run_id, text))

    def feedback_behind(self, run_id: str, text: str) -> list[tuple[int, str]]:
        """The step that made a text last, with the first 3 pieces of feedback that it was proposed from."""
        return list(dict.fromkeys(map(tuple, self._all(FEEDBACK_BEHIND, run_id, text))))

    def evidence_counts(self, run_id: str) -> dict[int, int]:
        """How much feedback each change was proposed from, by the change's id."""
        return dict(
            self._all("SELECT change_id, count(*) FROM evidence WHERE run_id = ? GROUP BY change_id", run_id)
        )

    def feedback_uses(self, run_id: str, sample: SampleRecord) -> list[FeedbackUse]:
        """The first 20 pieces of feedback on a sample that a proposer was shown."""

        def is_about_it(one: Any) -> bool:
            return (
                isinstance(one, dict) and one.get("node") == sample.node and one.get("sample") == sample.lane
            )

        rows = self._all(FEEDBACK_USES, run_id, f'"{sample.node}"')
        return [
            FeedbackUse(row["number"], row["text"])
            for row in rows
            if any(map(is_about_it, loaded_list(row["samples"])))
        ][:20]

    def parameters(self, run_id: str, *, last: bool = False, limit: int = -1) -> list[ParameterRecord]:
        """Every value of every parameter, parameter by parameter; with `last` only the final values."""
        columns = ", ".join(columns_of(ParameterRecord))
        where = f"WHERE run_id = ? {LAST_PARAMETERS if last else ''} ORDER BY number, step, id LIMIT ?"
        rows = self._all(f"SELECT {columns} FROM parameters p {where}", run_id, limit)
        return [ParameterRecord(*row) for row in rows]

    def lengths(self, run_id: str) -> list[ParameterLength]:
        """The lengths of every value of every parameter, without reading the values."""
        columns = "number, role, step, length(value)"
        rows = self._all(f"SELECT {columns} FROM parameters WHERE run_id = ? ORDER BY number, step", run_id)
        return [ParameterLength(*row) for row in rows]

    # Candidates.

    def candidates(self, run_id: str, limit: int) -> list[CandidateRecord]:
        """The last `limit` candidates that steps weighed, oldest first. One that was weighed again comes again."""
        rows = self._all(f"{CANDIDATES} ORDER BY c.id DESC LIMIT ?2", run_id, limit)
        return [_candidate(row) for row in reversed(rows)]

    def candidate_counts(self, run_id: str) -> dict[int, int]:
        """How many candidates each step weighed, by the step's id."""
        return dict(
            self._all("SELECT step_id, count(*) FROM candidates WHERE run_id = ? GROUP BY step_id", run_id)
        )

    def race(self, run_id: str, step: int) -> list[CandidateRecord]:
        """The candidates that one step weighed, in its order."""
        return [
            _candidate(row)
            for row in self._all(f"{CANDIDATES} AND s.number = ?2 ORDER BY c.id", run_id, step)
        ]

    def last_choice(self, run_id: str) -> Choice | None:
        """The choice of the last step that raced candidates against the current text; None without one."""
        query = (
            "SELECT max(s.number) FROM candidates c JOIN steps s ON s.id = c.step_id "
            "WHERE c.run_id = ? AND c.name = 'incumbent'"
        )
        last = self._value(query, run_id)
        return None if last is None else self.choice(run_id, last)

    def choice(self, run_id: str, step: int) -> Choice | None:
        """The choice of the last race of a step: the candidate that it began with, and the one that went on.

        None if the step raced no candidates.
        """
        candidates = self.race(run_id, step)
        before = next((one for one in reversed(candidates) if one.name == "incumbent"), None)
        if before is None:
            return None
        raced = candidates[candidates.index(before) :]
        return Choice(before, next((one for one in raced if one.accepted), before))

    # Values that the program logged, and all that has no table of its own.

    def texts(self, run_id: str) -> list[TextRecord]:
        """The last text of each name; at most 20."""
        query = "SELECT id, name, max(step), text FROM texts WHERE run_id = ? GROUP BY name LIMIT 20"
        return [TextRecord(*row) for row in self._all(query, run_id)]

    def tables(self, run_id: str) -> list[TableRecord]:
        """The last table of each name; at most 10."""
        query = "SELECT name, max(step), columns, rows FROM tables WHERE run_id = ? GROUP BY name LIMIT 10"
        rows = self._all(query, run_id)
        return [TableRecord(row[0], row[1], loaded_list(row[2]), loaded_list(row[3])) for row in rows]

    def events(self, run_id: str) -> list[EventRecord]:
        """The last 20 events, newest first, without orders and the one that names the monitored metric."""
        where = "WHERE run_id = ? AND kind NOT IN (?, ?) ORDER BY id DESC LIMIT 20"
        return [
            EventRecord(*row)
            for row in self._all(f"SELECT kind, payload, time FROM events {where}", run_id, MONITOR, CONTROL)
        ]

    def orders(self, run_id: str) -> list[tuple[Order, float]]:
        """The orders that a run got, and when."""
        query = "SELECT payload, time FROM events WHERE run_id = ? AND kind = ? ORDER BY id"
        rows = self._all(query, run_id, CONTROL)
        return [(order, time) for text, time in rows if (order := Order.read(text)) is not None]

    def last_event(self, run_id: str, kind: str) -> Any:
        """The payload of a run's last event of this kind; None without one."""
        query = "SELECT payload FROM events WHERE run_id = ? AND kind = ? ORDER BY id DESC LIMIT 1"
        return loaded(self._value(query, run_id, kind))

    def long_text(self, run_id: str, kind: str, number: int, part: str) -> str | None:
        """A text of a change, a sample or a logged text, by its row's id and its column; None if there is none."""
        table, columns = LONG_TEXTS.get(kind, ("", ()))
        if part not in columns:
            return None
        text = self._value(f"SELECT {part} FROM {table} WHERE run_id = ? AND id = ?", run_id, number)
        return None if text is None else str(text)

    # Running a query.

    def _page(
        self,
        table: str,
        record: type,
        run_id: str,
        conditions: Sequence[Condition | None],
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE,
        *,
        newest: bool = False,
    ) -> list[Any]:
        """Rows of a run that meet all conditions. Names are this module's; everything asked for is bound."""
        bounds = [("id > ?", [after]) if after else None, _is("id", before, "<")]
        all_of = [one for one in (("run_id = ?", [run_id]), *bounds, *conditions) if one is not None]
        where = " AND ".join(sql for sql, _ in all_of)
        order = "DESC" if newest else "ASC"
        columns = [INPUTS if name == "inputs" else name for name in columns_of(record)]
        query = f"SELECT {', '.join(columns)} FROM {table} WHERE {where} ORDER BY id {order} LIMIT ?"
        return self._all(query, *[value for _, values in all_of for value in values], limit)

    def _value(self, sql: str, *values: Any) -> Any:
        row = self._first(sql, *values)
        return None if row is None else row[0]

    def _first(self, sql: str, *values: Any) -> Any:
        rows = self._all(sql, *values)
        return rows[0] if rows else None

    def _all(self, sql: str, *values: Any, named: dict[str, Any] | None = None) -> list[Any]:
        try:
            return self._db.execute(sql, named or values).fetchall()
        except sqlite3.Error as error:
            raise problem_of(self.path, error) from error


# SQL and the values that it takes.
Condition = tuple[str, list[Any]]


def _is(column: str, value: Any, sign: str = "=") -> Condition | None:
    return None if value is None else (f"{column} {sign} ?", [value])


def _in_phase(phase: str | None) -> Condition | None:
    return None if phase is None else (IN_PHASE, [*of_phase(phase)])


def _of_node(node: str | None) -> Condition | None:
    # A call's address continues its node's after a slash, and "0" is the character after "/". A LIKE would take the
    # wildcards in user-chosen names.
    return None if node is None else ("address >= ? AND address < ?", [f"{node}/", f"{node}0"])


def _with_words(words: Sequence[str], *columns: str) -> list[Condition | None]:
    # LIKE ignores the case of ASCII letters, as lower() would, but makes no copies of long texts.
    anywhere = " OR ".join(f"{column} LIKE ? ESCAPE '!'" for column in columns)
    escaped = [re.sub(r"([!%_])", r"!\1", word) for word in words]
    return [(f"({anywhere})", [f"%{word}%"] * len(columns)) for word in escaped]


def _sample(row: sqlite3.Row) -> SampleRecord:
    *values, success, inputs = row
    return SampleRecord(*[*values, bool(success), inputs])


def _node(row: sqlite3.Row) -> NodeRecord:
    *values, parents, phase = row
    return NodeRecord(*[*values, loaded_list(parents), phase])


def _change(row: sqlite3.Row) -> ChangeRecord:
    *values, dropped = row
    return ChangeRecord(*[*values, [str(one) for one in loaded_list(dropped)]])


def _candidate(row: sqlite3.Row) -> CandidateRecord:
    step, number, parents, values, scores, verdict, name, samples = row
    numbers = [score if isinstance(score, int | float) else None for score in loaded_list(scores)]
    return CandidateRecord(
        step, number, loaded_list(parents), loaded_list(values), numbers, verdict, name, loaded_list(samples)
    )


def _body(packed: int, body: bytes) -> Any:
    try:
        return loaded(unpacked(packed, body))
    except (zlib.error, UnicodeDecodeError):
        return "(this text is damaged in the store)"


def _is_within(address: str, steps: set[str]) -> bool:
    while "/" in address:
        address = address.rpartition("/")[0]
        if address in steps:
            return True
    return False
