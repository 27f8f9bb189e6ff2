"""Opening a project's file: made if it isn't there, brought to this version if it is older.

What the tables hold is in `tables`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from afnio.errors import AfnioError
from afnio.runtime._files import make_private_folder
from afnio.tellurio.tables import UPGRADES, VERSION

if TYPE_CHECKING:
    from pathlib import Path

BUSY_TIMEOUT: Final = 30.0
"""Seconds that one process waits for another one's transaction."""


class StoreVersionError(AfnioError, RuntimeError):
    """The file was written by a newer Afnio."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a project's file for writing, creating it and its folders for this user alone.

    A file of an older version is brought to this one in place, in one transaction.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     connection = connect(pathlib.Path(folder) / "new" / "project.db")
    ...     connection.execute("PRAGMA user_version").fetchone()
    ...     connection.close()
    (3,)
    """
    make_private_folder(path.parent)
    # SQLite gives its side files the mode of the database, so the file has to be private first.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        if version_of(connection, path) < VERSION:
            _upgrade(connection, path)
        _use_wal(connection)
        # A power cut may lose the last moments of a log but never breaks the file.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the file's version, 0 for a new one.

    Raises:
        StoreVersionError: if a newer Afnio wrote it.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise StoreVersionError(
            f"The run store [{path}] has the schema version [{version}], but this Afnio knows "
            f"only [{VERSION}]; install a newer one, or set AFNIO_HOME to another folder."
        )
    return version


def upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Bring a file of `version` to this one; within the caller's transaction."""
    for statements in UPGRADES[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        upgrade(connection, version_of(connection, path))  # another process may have been faster
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
