"""What a run leaves on the disk: one SQLite file per project."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from afnio.runtime._admission import calls_on_wire
from afnio.runtime._kernel import calls_under_way
from afnio.runtime.events import CallEnded, CallReplayed, NodeLaunched, SampleScored
from afnio.tellurio.json_value import encode
from afnio.tellurio.provenance import git_commit, platform_facts, versions
from afnio.tellurio.recording import Recording
from afnio.tellurio.redaction import Redaction
from afnio.tellurio.tables import OF_A_RUN
from afnio.tellurio.writer import Slow, Write, Writer

if TYPE_CHECKING:
    import sqlite3

INSERT_RUN = """
INSERT INTO runs (
    id, name, description, namespace, project, status, config, identity, seed, host, pid, date_created, date_updated
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
FIND_RUNS = """
SELECT id, name, description, namespace, project, status, config, identity, seed, date_created FROM runs
WHERE id = :id OR (identity = :identity AND status IN ('RUNNING', 'CRASHED'))
ORDER BY date_created DESC, rowid DESC"""
CONTINUE_RUN = "UPDATE runs SET status = 'RUNNING', host = ?, pid = ?, date_updated = ? WHERE id = ?"
UPDATE_RUN = """
UPDATE runs SET status = :status, date_updated = :date,
    in_flight = iif(:status = 'RUNNING', in_flight, 0), waiting = iif(:status = 'RUNNING', waiting, 0)
WHERE id = :id AND status = 'RUNNING'"""
DESCRIBE_RUN = "UPDATE runs SET git_commit = ?, versions = ?, platform = ? WHERE id = ?"
UPDATE_COUNTS = """
UPDATE runs SET in_flight = ?, waiting = ?, dropped = ?, date_updated = ? WHERE id = ? AND status = 'RUNNING'"""
# A step that isn't given is one past the name's largest, whichever process wrote that.
INSERT_LOGGED = """
INSERT INTO {table} (run_id, name, step, {columns}, time) VALUES (
    :run_id, :name,
    coalesce(
        :step,
        (SELECT max(step) + 1 FROM {table} WHERE run_id = :run_id AND name = :name),
        0
    ),
    {values}, :time
)"""
INSERT_EVENT = "INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, ?)"
KEPT_WHEN_CONTINUED = ("calls", "bodies", "retries")
"""What was paid stays; the rest is said again by the program, which runs from its start."""


class RunRow(NamedTuple):
    """A run as the table holds it; dates are seconds since 1970 UTC, the config is JSON."""

    id: str
    name: str
    description: str | None
    namespace: str
    project: str
    status: str
    config: str
    identity: str
    seed: int
    date: float


class Store:
    """Records one run in its project's file, through a thread that `open` starts.

    Nothing here raises when the disk refuses; the writer warns once. After a fork the child
    writes through a thread and a connection of its own.

    Args:
        redaction: applied to every text that is written.
    """

    def __init__(self, path: Path, redaction: Redaction | None = None) -> None:
        self.path = path
        self.redaction = redaction or Redaction(None)
        self._writer: Writer | None = None
        self._recording: Recording | None = None
        self._run_id: str | None = None
        self._pid = os.getpid()
        self._counts = (0, 0, 0)

    def add_run(self, row: RunRow) -> str:
        """Open the file and add the run; returns its name, with a suffix if it was taken."""
        names = [row.name]
        row = row._replace(
            config=encode("config", self.redaction.value(json.loads(row.config))),
            description=None if row.description is None else self.redaction.text(row.description),
        )

        def insert(connection: sqlite3.Connection) -> None:
            names.append(_free_name(connection, row.name))
            values = (row.id, names[-1], *row[2:9], socket.gethostname(), os.getpid())
            connection.execute(INSERT_RUN, (*values, row.date, row.date))

        writer = self.open()
        writer.submit(insert)
        self._describe(row.id)
        writer.flush()
        return names[-1]

    def find_runs(self, identity: str, run_id: str | None = None) -> list[RunRow]:
        """Return the run of this id, or the unfinished runs of this identity, newest first."""
        found: list[RunRow] = []

        def select(connection: sqlite3.Connection) -> None:
            wanted = {"id": run_id, "identity": None if run_id else identity}
            found.extend(RunRow(*row) for row in connection.execute(FIND_RUNS, wanted))

        writer = self.open()
        writer.submit(select)
        writer.flush()
        return found

    def continue_run(self, run_id: str, date: float) -> None:
        """Set a run going again. What it recorded goes, as its program will say it again from the start."""

        def update(connection: sqlite3.Connection) -> None:
            for table in OF_A_RUN:
                if table not in KEPT_WHEN_CONTINUED:
                    connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            connection.execute(CONTINUE_RUN, (socket.gethostname(), os.getpid(), date, run_id))

        self.open().submit(update)
        self._describe(run_id)

    def update_run(self, run_id: str, status: str, date: float) -> None:
        """Set the status of a run that hasn't ended, and when it changed last."""
        self.open().submit(
            lambda db: db.execute(UPDATE_RUN, {"status": str(status), "date": date, "id": run_id})
        )

    def add_logged(
        self, table: str, run_id: str, name: str, step: int | None, values: dict[str, str], date: float
    ) -> None:
        """Add a row to `metrics`, `texts` or `tables`."""
        statement = INSERT_LOGGED.format(
            table=table, columns=", ".join(values), values=", ".join(f":{column}" for column in values)
        )
        row = {"run_id": run_id, "name": name, "step": step, **values, "time": date}
        self.open().submit(lambda db: db.execute(statement, row))

    def record(self, event: Any, date: float) -> None:
        """Add what the engine said; on the runtime's thread. Turning it into rows is the writer's work."""
        self.open().offer(event, date, weight_of(event))

    def add_event(self, run_id: str, kind: str, payload: str, date: float) -> None:
        """Add an event, given as JSON."""
        self.open().submit(lambda db: db.execute(INSERT_EVENT, (run_id, kind, payload, date)))

    def flush(self) -> None:
        """Wait until readers of the file see everything added so far."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.flush()

    def close(self, timeout: float | None = None) -> None:
        """Write what is waiting and end the thread."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.close(timeout)

    def open(self) -> Writer:
        """Start the writing thread of this process, if it isn't there.

        Raises:
            StoreVersionError: if a newer Afnio wrote the file.
        """
        # The queue and locks of an inherited writer may be in any state, so they aren't touched.
        if self._writer is None or self._writer.pid != os.getpid():
            self._writer = Writer(self.path, self._beat, self._write_event)
            self._renew()
        return self._writer

    def begin(self, run_id: str) -> None:
        """From now on record what the engine says as this run's."""
        self._run_id = run_id
        self._renew()

    def _write_event(self, connection: sqlite3.Connection, event: Any, date: float) -> None:
        if self._recording is not None:
            self._recording.write(connection, event, date)

    def _renew(self) -> None:
        self._recording = None if self._run_id is None else Recording(self._run_id, self.redaction)

    def _describe(self, run_id: str) -> None:
        folder = Path.cwd()

        def work() -> Write:
            row = (git_commit(folder), versions(), platform_facts(), run_id)
            return lambda db: db.execute(DESCRIBE_RUN, row)

        self.open().submit(Slow(work))

    def _beat(self) -> Write | None:
        """Write how many calls are on the wire and how many wait, if that has changed; in the writing thread."""
        if self._run_id is None or self._writer is None or self._pid != os.getpid():
            return None
        sent = calls_on_wire()
        counts = (sent, max(0, calls_under_way() - sent), self._writer.dropped)
        if counts == self._counts:
            return None
        self._counts = counts
        row = (*counts, time.time(), self._run_id)
        return lambda db: db.execute(UPDATE_COUNTS, row)


def weight_of(event: Any) -> int:
    """About how many bytes an event holds on to."""
    if isinstance(event, CallEnded | CallReplayed):
        asked = 0 if event.request is None else len(event.request.encoded)
        return 1000 + asked + len(getattr(event.reply, "content", None) or "")
    if isinstance(event, SampleScored):
        return 500 + len(event.explanation)
    if isinstance(event, NodeLaunched):
        return 500 + sum(100 * len(entry.values) for entry in event.inputs if entry.values is not None)
    return 1000


def store_path(namespace: str, project: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """The project's file: in `folder`, else in AFNIO_HOME, else in `.afnio` of this folder.

    >>> store_path("My Team", "Mails/2025", folder="runs").as_posix()
    'runs/my-team/mails-2025.db'
    """
    home = Path(folder or os.environ.get("AFNIO_HOME") or ".afnio")
    return home / slug("namespace", namespace) / f"{slug('project', project)}.db"


def slug(kind: str, name: str) -> str:
    """A name that is safe as a file's on every system."""
    if not isinstance(name, str):
        raise TypeError(f"The {kind} is [{name!r}], but has to be a string.")
    text = unicodedata.normalize("NFKC", name).lower()
    safe = re.sub(r"[^\w.-]+", "-", text)[:60].strip("-._")
    if not safe:
        raise ValueError(f"The {kind} [{name}] has no letter or digit; give it one.")
    return safe


def _free_name(connection: sqlite3.Connection, name: str) -> str:
    # The writer's transaction holds the file, so a name that is free here stays free.
    candidate, suffix = name, 1
    while connection.execute("SELECT 1 FROM runs WHERE name = ?", (candidate,)).fetchone():
        suffix += 1
        candidate = f"{name}-{suffix}"
    return candidate
