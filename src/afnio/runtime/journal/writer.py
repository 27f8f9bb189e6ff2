"""Writer: the one thread that appends to a journal, a group of records per transaction."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeAlias, final

from afnio.errors import JournalError
from afnio.runtime.journal import ledger, schema
from afnio.runtime.journal.record import COLUMNS, Record, storable, to_row

Done: TypeAlias = Callable[[BaseException | None], object]

GROUP: Final = 512
"""At most so many records per transaction: more don't make it faster, but the first one's wait longer."""

_COLUMNS: Final = ("session", "source", *COLUMNS)
_ROW: Final = f"({', '.join('?' * len(_COLUMNS))})"


class Entry(NamedTuple):
    """One record to append, and who waits for it.

    Attributes:
        payload: makes the record's payload, in the writer's thread.
        source: id of the record whose reply this address took, or None.
    """

    record: Record
    done: Done
    payload: Callable[[], bytes] | None = None
    source: int | None = None


@final
class Writer:
    """Appends in the order in which records come, all that wait in one transaction.

    The first transaction that fails breaks the writer for good: what comes then fails at once, with the
    same error. It doesn't try again when space returns, for by then replies are missing, and a program
    that stops at the error and is started again loses none that it was told of.

    `ended` is called when nothing is left to write and the file is closed; not if opening it failed.
    The thread is a daemon, since the interpreter waits for any other before it runs exit hooks.
    """

    def __init__(self, path: Path, session: int, ended: Callable[[], object]) -> None:
        self.path = path
        self.broken: JournalError | None = None
        self.spent: dict[ledger.Item, ledger.Spent] = {}
        self._session = session
        self._ended = ended
        self._pid = os.getpid()
        self._queue: SimpleQueue[Entry | Future[None] | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="afnio-journal", daemon=True)
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self._thread.join()
            raise

    def put(self, item: Entry | Future[None]) -> bool:
        """Queue a record, or a future to resolve once all before it is settled; False once closed."""
        with self._closing:
            if not self._closed:
                self._queue.put(item)
            return not self._closed

    def close(self) -> None:
        """Append what waits and end the thread; nothing in a forked child, which has no such thread."""
        if self._pid != os.getpid():
            return
        with self._closing:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self, opened: Future[None]) -> None:
        try:
            connection = schema.connect_writer(self.path)
        except Exception as error:
            opened.set_exception(schema.unreadable(self.path, error))
            return
        opened.set_result(None)
        del opened
        closing = False
        while not closing:
            group = self._next_group()
            closing = group[-1] is None
            self._append(connection, [item for item in group if isinstance(item, Entry)])
            for item in group:
                if isinstance(item, Future):
                    item.set_result(None)
        connection.close()
        self._ended()

    def _next_group(self) -> list[Entry | Future[None] | None]:
        group = [self._queue.get()]
        try:
            while group[-1] is not None and len(group) < GROUP:
                group.append(self._queue.get_nowait())
        except Empty:
            pass
        return group

    def _append(self, connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
        rows, kept = [], []
        for given in entries:
            entry = given
            try:
                entry = given._replace(record=storable(given.record))
                rows.append(self._row(entry))
                kept.append(entry)
            except Exception as error:
                _tell(entry, _unfit(entry.record, error))
        if kept and self.broken is None:
            self._commit(connection, rows, [entry.record for entry in kept if _is_paid(entry)])
        for entry in kept:
            _tell(entry, self.broken)

    def _row(self, entry: Entry) -> tuple[Any, ...]:
        record = entry.record
        payload = record.payload if entry.payload is None else entry.payload()
        kind = record.kind if entry.source is None else "reused"
        return (self._session, entry.source, *to_row(record, kind, payload))

    def _commit(
        self, connection: sqlite3.Connection, rows: list[tuple[Any, ...]], paid: list[Record]
    ) -> None:
        sums = ledger.total(paid)
        try:
            connection.execute("BEGIN IMMEDIATE")
            _insert(connection, rows)
            ledger.add(connection, sums)
            connection.execute("COMMIT")
        except Exception as error:
            self.broken = _refused(self.path, error)
            _undo(connection)
        else:
            for item, spent in sums.items():
                self.spent[item] = self.spent.get(item, ledger.Spent()) + spent


def _is_paid(entry: Entry) -> bool:
    return entry.source is None and entry.record.kind != "shared"


def _insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    # Each statement gives the interpreter's lock away, and a busy event loop keeps it for 5 ms: one
    # statement for as many rows as SQLite has room for values (999 until 3.32).
    size = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(_COLUMNS)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        places = ", ".join([_ROW] * len(chunk))
        statement = f"INSERT INTO records ({', '.join(_COLUMNS)}) VALUES {places}"  # noqa: S608 - constants
        connection.execute(statement, [value for row in chunk for value in row])


def _undo(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except Exception:  # SQLite rolls back on its own when the connection closes
        logging.getLogger("afnio").debug("the journal's transaction was not rolled back", exc_info=True)


def _tell(entry: Entry, error: BaseException | None) -> None:
    try:
        entry.done(error)
    except Exception:
        logging.getLogger("afnio").exception("whoever waits for [%s] failed", entry.record.address)


def _refused(path: Path, error: Exception) -> JournalError:
    reason = f"{type(error).__name__}: {error}"
    broken = JournalError(
        f"The folder [{path.parent}] takes no more of the journal [{path.name}] ({reason}); make room there "
        "and start again: every reply that was recorded so far is kept."
    )
    broken.__cause__ = error
    return broken


def _unfit(record: Record, error: Exception) -> JournalError:
    unfit = JournalError(
        f"The reply to [{record.address}] can't be recorded ({type(error).__name__}: {error}); "
        "nothing else is affected."
    )
    unfit.__cause__ = error
    return unfit
