"""The tables of a journal's file, how it is created, checked and connected to."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from afnio.errors import JournalError
from afnio.runtime.journal.errors import JournalFormatError

VERSION: Final = 2
"""What `user_version` says of the tables below. The tables of format 1 are the same, but its keys leave out
what a client adds to its requests, such as headers."""

OLDEST: Final = 1
"""The oldest format that can be used; such a file stays as it is."""

APPLICATION: Final = 0x41464E4A
"""What `application_id` says of every journal: "AFNJ"."""

BUSY_TIMEOUT: Final = 30.0
"""Seconds to wait for another program, such as a SQLite shell, that locks the file."""

CHECKED_BYTES: Final = 256 * 1024 * 1024
"""Up to this size every page is checked at opening, at about 1 s per GB; a larger file's damage is
found when it is read."""

# A reply's key is indexed, for changed programs and for reuse; so is the address of all that an address
# can be answered from. `source` of a "reused" row is the id of the row whose reply that address took.
# The ledger is kept beside the rows, in the same transactions, for adding up a million takes seconds.
TABLES: Final = (
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        kind TEXT NOT NULL,
        address TEXT NOT NULL,
        scope TEXT NOT NULL,
        key BLOB NOT NULL,
        model TEXT NOT NULL,
        purpose TEXT NOT NULL,
        account TEXT NOT NULL,
        reusable INTEGER NOT NULL,
        source INTEGER REFERENCES records (id),
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        seconds REAL NOT NULL,
        created REAL NOT NULL,
        payload BLOB NOT NULL
    )""",
    "CREATE INDEX records_by_address ON records (address) WHERE kind IN ('reply', 'shared', 'reused')",
    "CREATE INDEX records_by_key ON records (key) WHERE kind = 'reply'",
    """CREATE TABLE ledger (
        purpose TEXT NOT NULL,
        model TEXT NOT NULL,
        account TEXT NOT NULL,
        calls INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        unknown INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        reserved_prompt_tokens INTEGER NOT NULL,
        reserved_completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (purpose, model, account)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)


def create(path: Path) -> None:
    """Put an empty journal at `path`, whole or not at all, for this user alone."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect_reader(path: Path, *, still: bool = False) -> sqlite3.Connection:
    """Connect without the right to change the file, not even by tidying up when the connection closes.

    While nobody else is connected, `still` keeps SQLite from leaving its side files there: without a log
    beside it the file is complete, and is read as if it could not change.
    """
    immutable = still and not path.with_name(path.name + "-wal").exists()
    return sqlite3.connect(
        f"{path.as_uri()}?mode=ro{'&immutable=1' if immutable else ''}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def connect_writer(path: Path) -> sqlite3.Connection:
    """Connect for appending: what is committed survives a power cut."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
    )
    connection.execute("PRAGMA synchronous = FULL")
    # Key digests fall on random pages of their index; so much of it stays in memory (KiB).
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    return connection


def check(path: Path, *, pages: bool = True) -> int:
    """Return the schema version of the journal at `path`, having looked at its `pages` too if so asked.

    Raises:
        JournalFormatError: it is no journal, or one that this Afnio can't use.
        JournalError: it can't be read.
    """
    try:
        with closing(connect_reader(path, still=True)) as connection:
            application = _number(connection, "application_id")
            version = _number(connection, "user_version")
            pages = pages and path.stat().st_size <= CHECKED_BYTES
            sound = not pages or _is_sound(connection)
    except (sqlite3.Error, OSError) as error:
        raise unreadable(path, error) from error
    if application != APPLICATION:
        raise JournalFormatError(f"The file [{path}] is not a journal of Afnio; name another path.")
    if version > VERSION:
        raise JournalFormatError(
            f"The journal [{path}] has the schema version [{version}], but this Afnio knows only "
            f"[{VERSION}]; install a newer one, or name another path."
        )
    if version < OLDEST or not sound:
        raise corrupt(path, "its pages don't fit together")
    return version


def unreadable(path: Path, error: Exception) -> JournalError:
    """Say in one sentence why the file can't be read."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return JournalFormatError(f"The file [{path}] is not a journal of Afnio; name another path.")
    if code == sqlite3.SQLITE_CORRUPT:
        return corrupt(path, str(error))
    return JournalError(
        f"The journal [{path}] can't be read ({error}); see to the rights and the disk, or name another path."
    )


def corrupt(path: Path, reason: str) -> JournalFormatError:
    """Say in one sentence what is wrong with the file."""
    return JournalFormatError(
        f"The journal [{path}] is corrupt ({reason}) and was left as it is; "
        "restore a copy of it, or name another path."
    )


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchall()[0][0])


def _is_sound(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
