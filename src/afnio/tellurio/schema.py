"""The tables of a project's file, and which version of them this is."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from afnio.errors import AfnioError

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1

BUSY_TIMEOUT: Final = 30.0
"""Seconds that one process waits for another one's transaction."""

TABLES: Final = (
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        description TEXT,
        namespace TEXT NOT NULL,
        project TEXT NOT NULL,
        status TEXT NOT NULL,
        config TEXT NOT NULL,
        identity TEXT NOT NULL,
        seed INTEGER NOT NULL,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        date_created REAL NOT NULL,
        date_updated REAL NOT NULL
    )""",
    """CREATE TABLE metrics (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (id),
        name TEXT NOT NULL,
        step INTEGER NOT NULL,
        value TEXT NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX metrics_by_name ON metrics (run_id, name, step)",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (id),
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX events_by_kind ON events (run_id, kind)",
)


class StoreVersionError(AfnioError, RuntimeError):
    """The file was written by a newer Afnio."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a project's file for writing, creating it and its folders for this user alone.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     connection = connect(pathlib.Path(folder) / "new" / "project.db")
    ...     connection.execute("PRAGMA user_version").fetchone()
    ...     connection.close()
    (1,)
    """
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its side files the mode of the database, so the file has to be private first.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        if _version(connection, path) < VERSION:
            _create(connection, path)
        _use_wal(connection)
        # A power cut may lose the last moments of a log but never breaks the file.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise StoreVersionError(
            f"The run store [{path}] has the schema version [{version}], but this Afnio knows "
            f"only [{VERSION}]; install a newer one, or set AFNIO_HOME to another folder."
        )
    return version


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been faster.
        if _version(connection, path) < VERSION:
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite doesn't apply the busy timeout to this switch, so two processes that start together
    # would fail without these attempts.
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
