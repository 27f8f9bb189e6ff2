"""JournalStat: what is in a journal, without opening it for use."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from afnio.runtime.journal import ledger, schema

ENDS = "SELECT id, created FROM records WHERE id = 1 OR id = (SELECT max(id) FROM records) ORDER BY id"


@dataclass(frozen=True, slots=True)
class JournalStat:
    """A summary of a journal.

    Attributes:
        version: of the file's schema.
        records: rows of all kinds, those included that only say which reply an address took.
        spent: per purpose, model and account.
        size: bytes of the file and its log.
        first: when the oldest record was made, in seconds since 1970 UTC; None without records.
        last: the same of the newest one.
    """

    path: Path
    version: int
    records: int
    spent: Mapping[ledger.Item, ledger.Spent]
    size: int
    first: float | None
    last: float | None

    @property
    def total(self) -> ledger.Spent:
        return sum(self.spent.values(), ledger.Spent())

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """Read the summary, also while a process writes.

        Raises:
            JournalFormatError: it is no journal, or one that this Afnio can't use.
            JournalError: it can't be read.
        """
        file = Path(os.path.realpath(path))
        version = schema.check(file, pages=False)
        try:
            with closing(schema.connect_reader(file, still=True)) as connection:
                connection.execute("BEGIN")  # one state of the file for all that follows
                spent = ledger.read(connection)
                ends = connection.execute(ENDS).fetchall()
                connection.execute("COMMIT")
            size = sum(part.stat().st_size for part in _parts(file))
        except (sqlite3.Error, OSError) as error:
            raise schema.unreadable(file, error) from error
        first, last = (ends[0][1], ends[-1][1]) if ends else (None, None)
        return cls(file, version, ends[-1][0] if ends else 0, spent, size, first, last)


def _parts(path: Path) -> list[Path]:
    log = path.with_name(path.name + "-wal")
    return [path, log] if log.exists() else [path]
