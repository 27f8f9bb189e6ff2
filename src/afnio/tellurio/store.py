"""What a run leaves on the disk: one SQLite file per project."""

from __future__ import annotations

import os
import re
import socket
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from afnio.tellurio.writer import Writer

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
UPDATE_RUN = "UPDATE runs SET status = ?, date_updated = ? WHERE id = ? AND status = 'RUNNING'"
# A step that isn't given is one past the metric's largest, whichever process wrote that.
INSERT_METRIC = """
INSERT INTO metrics (run_id, name, step, value, time) VALUES (
    :run_id, :name,
    coalesce(
        :step,
        (SELECT max(step) + 1 FROM metrics WHERE run_id = :run_id AND name = :name),
        0
    ),
    :value, :time
)"""
INSERT_EVENT = "INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, ?)"


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
    """Records one run in its project's file, through a thread that `add_run` starts.

    Nothing here raises when the disk refuses; the writer warns once. After a fork the child
    writes through a thread and a connection of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Writer | None = None

    def add_run(self, row: RunRow) -> str:
        """Open the file and add the run; returns its name, with a suffix if it was taken."""
        names = [row.name]

        def insert(connection: sqlite3.Connection) -> None:
            names.append(_free_name(connection, row.name))
            values = (row.id, names[-1], *row[2:9], socket.gethostname(), os.getpid())
            connection.execute(INSERT_RUN, (*values, row.date, row.date))

        writer = self._open()
        writer.submit(insert)
        writer.flush()
        return names[-1]

    def find_runs(self, identity: str, run_id: str | None = None) -> list[RunRow]:
        """Return the run of this id, or the unfinished runs of this identity, newest first."""
        found: list[RunRow] = []

        def select(connection: sqlite3.Connection) -> None:
            wanted = {"id": run_id, "identity": None if run_id else identity}
            found.extend(RunRow(*row) for row in connection.execute(FIND_RUNS, wanted))

        writer = self._open()
        writer.submit(select)
        writer.flush()
        return found

    def continue_run(self, run_id: str, date: float) -> None:
        """Set a run going again. What it recorded goes, as its program will say it again from the start."""

        def update(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM metrics WHERE run_id = ?", (run_id,))
            connection.execute("DELETE FROM events WHERE run_id = ?", (run_id,))
            connection.execute(CONTINUE_RUN, (socket.gethostname(), os.getpid(), date, run_id))

        self._open().submit(update)

    def update_run(self, run_id: str, status: str, date: float) -> None:
        """Set the status of a run that hasn't ended, and when it changed last."""
        self._open().submit(lambda db: db.execute(UPDATE_RUN, (status, date, run_id)))

    def add_metric(self, run_id: str, name: str, step: int | None, value: str, date: float) -> None:
        """Add a value, given as JSON."""
        row = {"run_id": run_id, "name": name, "step": step, "value": value, "time": date}
        self._open().submit(lambda db: db.execute(INSERT_METRIC, row))

    def add_event(self, run_id: str, kind: str, payload: str, date: float) -> None:
        """Add an event, given as JSON."""
        self._open().submit(lambda db: db.execute(INSERT_EVENT, (run_id, kind, payload, date)))

    def flush(self) -> None:
        """Wait until readers of the file see everything added so far."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.flush()

    def close(self, timeout: float | None = None) -> None:
        """Write what is waiting and end the thread."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.close(timeout)

    def _open(self) -> Writer:
        # The queue and locks of an inherited writer may be in any state, so they aren't touched.
        if self._writer is None or self._writer.pid != os.getpid():
            self._writer = Writer(self.path)
        return self._writer


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
