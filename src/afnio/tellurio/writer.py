"""The one thread that writes to a project's file."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from afnio.tellurio.schema import StoreVersionError, connect

if TYPE_CHECKING:
    from pathlib import Path

Write: TypeAlias = Callable[[sqlite3.Connection], object]

# One transaction takes at most so many writes, so that other processes get their turn.
GROUP: Final = 5_000
LINGER: Final = 0.1
"""Seconds that the thread lets writes gather: each time it wakes, it takes turns from the program."""
BEAT: Final = 2.0
"""Seconds after which it wakes if nothing is written."""
ROOM: Final = 64 * 2**20
"""Bytes, about, that may wait: what `offer` is given beyond them is dropped."""


@final
@dataclass(frozen=True, slots=True)
class Slow:
    """A write that is worked out first, outside of the transaction, which would hold up other processes."""

    work: Callable[[], Write]


Offered: TypeAlias = tuple[Any, float, int]
Item: TypeAlias = "Write | Slow | Offered | Future[None] | None"


class Writer:
    """Runs writes in the order in which they came, all that are waiting in one transaction.

    A disk that refuses costs one warning; from then on writes are dropped. The connection lives in
    the thread only, where a forked child can't reach it.

    Args:
        beat: called in the thread every `BEAT` seconds or so; a write, or None.
        recorded: writes an event that was offered.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = Writer(pathlib.Path(folder) / "new" / "project.db")
    ...     writer.submit(lambda connection: connection.execute("DELETE FROM events"))
    ...     writer.flush()
    ...     writer.close()
    """

    def __init__(
        self,
        path: Path,
        beat: Callable[[], Write | None] = lambda: None,
        recorded: Callable[[sqlite3.Connection, Any, float], None] = lambda *_: None,
    ) -> None:
        self.path = path
        self.pid = os.getpid()
        self.dropped = 0
        self._beat = beat
        self._recorded = recorded
        # Its put never waits, so that logging doesn't hold up an event loop.
        self._queue: SimpleQueue[Item] = SimpleQueue()
        self._hurry = threading.Event()
        # One thread adds to each of the two, so they need no lock.
        self._offered = 0
        self._taken = 0
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

    def submit(self, write: Write | Slow) -> None:
        """Have `write` run soon; never waits and never raises."""
        if not (self._failed or self._closed):
            self._queue.put(write)

    def offer(self, event: Any, date: float, weight: int) -> None:
        """Have `recorded` write an event soon if there is room for about `weight` bytes more; from one thread only.

        A disk that can't follow must not fill the memory: what finds no room is dropped and counted.
        """
        if self._failed or self._closed:
            return
        if self._offered - self._taken > ROOM:
            self._drop()
            return
        self._offered += weight
        self._queue.put((event, date, weight))

    def flush(self) -> None:
        """Wait until everything submitted so far is committed, or dropped."""
        if self._closed:
            return
        reached: Future[None] = Future()
        self._queue.put(reached)
        self._hurry.set()
        while not reached.done() and self._thread.is_alive():
            # Another thread may have closed the writer since; then nobody answers.
            wait([reached], timeout=0.5)

    def close(self, timeout: float | None = None) -> None:
        """Write what is waiting, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._hurry.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        connection = self._connect()
        closing = False
        while not closing:
            group = self._next_group()
            closing = None in group
            if connection is not None and not self._failed:
                self._write(connection, group)
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

    def _next_group(self) -> list[Item]:
        try:
            group: list[Item] = [self._queue.get(timeout=BEAT)]
        except Empty:
            group = []
        if group and (callable(group[0]) or isinstance(group[0], tuple)) and self._queue.qsize() < GROUP:
            self._hurry.wait(LINGER)
        self._hurry.clear()
        try:
            while len(group) < GROUP and None not in group[-1:]:
                group.append(self._queue.get_nowait())
        except Empty:
            pass
        beat = self._beat()
        return group if beat is None else [beat, *group]

    def _write(self, connection: sqlite3.Connection, group: list[Item]) -> None:
        try:
            items = [item.work() if isinstance(item, Slow) else item for item in group]
            writes = [item for item in items if isinstance(item, tuple) or callable(item)]
            if writes:
                self._commit(connection, writes)
        except Exception as error:
            self._fail(error)
            if connection.in_transaction:
                connection.rollback()

    def _commit(self, connection: sqlite3.Connection, writes: list[Write | Offered]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for write in writes:
            if isinstance(write, tuple):
                event, date, weight = write
                self._taken += weight
                self._recorded(connection, event, date)
            else:
                write(connection)
        connection.execute("COMMIT")

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == 1:
            logging.getLogger("afnio").warning(
                "The run store [%s] is written more slowly than the run goes on, so events are left out; what "
                "the program logs itself is kept.",
                self.path,
            )

    def _fail(self, error: Exception) -> None:
        self._failed = True
        logging.getLogger("afnio").warning(
            "Nothing more is recorded, because the run store [%s] can't be written (%s: %s); "
            "free some space, or set AFNIO_HOME to a folder that you may write to.",
            self.path,
            type(error).__name__,
            error,
        )
