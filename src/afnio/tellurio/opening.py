"""Opening a project's file to read it: whatever state and version it is in, with one sentence where it can't be."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from afnio.errors import AfnioError
from afnio.tellurio.schema import StoreVersionError, upgrade, version_of
from afnio.tellurio.tables import VERSION

PATIENCE: Final = 2.0
"""Seconds that a reader waits for a file that another program has locked; a run's writer locks nobody out."""


class StoreProblemError(AfnioError):
    """A store can't be read; the one sentence says why and what helps.

    Attributes:
        passing: whether the same may work in a moment.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a project's file; one of an older version as a copy in memory that is brought to this one.

    Raises:
        StoreProblemError: if it is missing, damaged, locked or of a newer version.
    """
    if not path.is_file():
        raise StoreProblemError(f"There is no run store at [{path}].")
    try:
        connection = _connect(path)
        try:
            return _of_this_version(connection, path)
        except BaseException:
            connection.close()
            raise
    except StoreVersionError as error:
        raise StoreProblemError(str(error)) from error
    except sqlite3.Error as error:
        raise problem_of(path, error) from error


def problem_of(path: Path, error: sqlite3.Error) -> StoreProblemError:
    """What to tell a user of an error of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreProblemError(
            f"The run store [{path}] has been locked by another program for {PATIENCE:g} s; try again.",
            passing=True,
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreProblemError(
            f"The run store [{path}] is damaged ({error}); `sqlite3 {path} .recover` may save what is whole."
        )
    return StoreProblemError(f"The run store [{path}] can't be read ({error}).")


def _connect(path: Path) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=PATIENCE, check_same_thread=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        # A folder in which SQLite may not put its side files; nobody can be writing there either.
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True, check_same_thread=False)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _of_this_version(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    version = version_of(connection, path)
    if version == 0:
        raise StoreProblemError(
            f"The file [{path}] is no run store, or one that is just being made.", passing=True
        )
    if version < VERSION:
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        connection.backup(copy)
        connection.close()
        upgrade(copy, version)
        copy.commit()
        connection = copy
    connection.row_factory = sqlite3.Row
    return connection
