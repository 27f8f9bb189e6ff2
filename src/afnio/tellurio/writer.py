"""The one thread that writes to a project's file."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias

from afnio.tellurio.schema import StoreVersionError, connect

if TYPE_CHECKING:
    from pathlib import Path

Write: TypeAlias = Callable[[sqlite3.Connection], object]

# One transaction takes at most so many writes, so that other processes get their turn.
GROUP: Final = 10_000


class Writer:
    """Runs writes in the order in which they came, all that are waiting in one transaction.

    A disk that refuses costs one warning; from then on writes are dropped. The connection lives in
    the thread only, where a forked child can't reach it.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = Writer(pathlib.Path(folder) / "new" / "project.db")
    ...     writer.submit(lambda connection: connection.execute("DELETE FROM events"))
    ...     writer.flush()
    ...     writer.close()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        # Its put never waits, so that logging doesn't hold up an event loop.
        self._queue: SimpleQueue[Write | Future[None] | None] = SimpleQueue()
        self._failed = False
        self._closed = False
        self._opened: Future[None] = Future()
        # A daemon, for the interpreter would wait for any other thread before it ran the exit
        # hook that ends this one.
        self._thread = threading.Thread(target=self._run, name="afnio-store", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._closed = True
            self._fail(error)
            return
        try:
            self._opened.result()
        except StoreVersionError:
            self._thread.join()
            raise

    def submit(self, write: Write) -> None:
        """Have `write` run soon; never waits and never raises."""
        if not (self._failed or self._closed):
            self._queue.put(write)

    def flush(self) -> None:
        """Wait until everything submitted so far is committed, or dropped."""
        if self._closed:
            return
        reached: Future[None] = Future()
        self._queue.put(reached)
        while not reached.done() and self._thread.is_alive():
            # Another thread may have closed the writer since; then nobody answers.
            wait([reached], timeout=0.5)

    def close(self, timeout: float | None = None) -> None:
        """Write what is waiting, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        connection = self._connect()
        closing = False
        while not closing:
            group = self._next_group()
            closing = group[-1] is None
            writes = [item for item in group if callable(item)]
            if connection is not None and writes and not self._failed:
                self._commit(connection, writes)
            for item in group:
                if isinstance(item, Future):
                    item.set_result(None)
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection | None:
        connection = None
        try:
            connection = connect(self.path)
        except StoreVersionError as error:
            self._failed = self._closed = True
            self._queue.put(None)
            self._opened.set_exception(error)
        except Exception as error:
            self._fail(error)
        if not self._opened.done():
            self._opened.set_result(None)
        return connection

    def _next_group(self) -> list[Write | Future[None] | None]:
        group = [self._queue.get()]
        try:
            while group[-1] is not None and len(group) < GROUP:
                group.append(self._queue.get_nowait())
        except Empty:
            pass
        return group

    def _commit(self, connection: sqlite3.Connection, writes: list[Write]) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in writes:
                write(connection)
            connection.execute("COMMIT")
        except Exception as error:
            self._fail(error)
            if connection.in_transaction:
                connection.rollback()

    def _fail(self, error: Exception) -> None:
        self._failed = True
        logging.getLogger("afnio").warning(
            "Nothing more is recorded, because the run store [%s] can't be written (%s: %s); "
            "free some space, or set AFNIO_HOME to a folder that you may write to.",
            self.path,
            type(error).__name__,
            error,
        )
