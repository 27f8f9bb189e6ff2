"""Reader: a project's file, read only, whether or not it is being written, and whatever version it is of."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from afnio.tellurio.bodies import unpacked
from afnio.tellurio.liveness import live_status
from afnio.tellurio.metrics import Headline, headline
from afnio.tellurio.opening import open_to_read, problem_of
from afnio.tellurio.phase import IN_PHASE, of_phase
from afnio.tellurio.records import (
    CallRecord,
    CallTexts,
    CandidateRecord,
    ChangeRecord,
    EvidenceRecord,
    MetricRecord,
    ParameterRecord,
    RunRecord,
    SampleRecord,
    Spending,
    StepRecord,
)
from afnio.tellurio.scores import Scores

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


class Reader:
    """A project's file, opened for reading; a block closes it.

    Every answer is of one moment, and in a block of `moment` all of them are of the same. A file of an older
    version is read through a copy in memory that is brought to this version; it stays as it is.

    >>> import tempfile, afnio.tellurio as te
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with te.init("me", "emails", name="first", dir=folder) as run:
    ...         run.log("loss", 0.5)
    ...     with Reader(Path(folder) / "me" / "emails.db") as reader:
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
