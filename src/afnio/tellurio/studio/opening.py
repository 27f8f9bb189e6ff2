"""Opening a store to look at it: read-only, whatever state it is in, with a sentence where it can't be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from afnio.errors import AfnioError
from afnio.tellurio.schema import StoreVersionError, upgrade, version_of
from afnio.tellurio.tables import VERSION

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE: Final = 2.0
"""Seconds that a page waits for a store that another process holds."""


class StoreProblemError(AfnioError):
    """A store can't be read now; the message says why and what to do.

    Attributes:
        passing: whether the same may work in a moment.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a store for the block. One of an older version is read as if it were of this one, and left alone.

    Raises:
        StoreProblemError: if it is damaged, locked, gone or of a newer version, here or later in the block.
    """
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE, check_same_thread=False
        )
    except sqlite3.OperationalError as error:
        raise problem_of(path, error) from error
    try:
        connection = _of_this_version(connection, path)
        connection.row_factory = sqlite3.Row
        # All that one page shows is of one moment, even while a run writes.
        connection.execute("BEGIN")
        yield connection
    except StoreVersionError as error:
        raise StoreProblemError(str(error)) from error
    except sqlite3.DatabaseError as error:
        raise problem_of(path, error) from error
    finally:
        connection.close()


def problem_of(path: Path, error: sqlite3.Error) -> StoreProblemError:
    """Return what to tell a user of an error of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreProblemError(
            f"This store is locked: another process has held [{path}] for {PATIENCE:g} s. Try again.",
            passing=True,
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreProblemError(
            f"This store is damaged: [{path}] can't be read ({error}). What is whole in it may come back with: "
            f"sqlite3 {path} .recover"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreProblemError(f"This store can't be opened: [{path}] ({error}).")
    return StoreProblemError(f"This store can't be read: [{path}] ({error}).")


def _of_this_version(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    version = version_of(connection, path)
    if version == VERSION:
        return connection
    if version == 0:
        connection.close()
        raise StoreProblemError(f"This store is empty: [{path}] holds no tables of a run yet.", passing=True)
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    with connection:
        connection.backup(copy)
    connection.close()
    upgrade(copy, version)
    copy.commit()
    return copy
