"""Files that outlive a killed process: SQLite by group commit, lock files, private folders.

A commit that survives a power cut waits for the disk: 0.1 to 10 ms, whether it holds one row or five
hundred. So a program must not commit each row by itself, and an event loop must not commit at all. With
`SQLiteWriter` any thread puts items into a queue without waiting. One thread owns the connection, takes
everything that has gathered meanwhile, and writes it in one transaction. The slower the disk, the larger
the groups: throughput adapts by itself. Databases do the same under this name (MySQL's binary log,
PostgreSQL's `commit_delay`).

Two files are written this way, and they differ only in the arguments:

* **The journal** promises that a reply is on disk before the program sees it. Someone waits for every record,
  so it doesn't linger, and `settled` wakes the waiter.
* **The run store** promises nothing until `flush`. No one waits, so the thread lingers 0.1 s for more items
  and takes ten turns a second from the program at most, not thousands.

The rules both rely on:

* Items are written in the order in which they were put. Each is settled once: with None after its commit, or
  with the error that kept it out of the file.
* **An unfit item fails alone.** `prepare` encodes an item before the transaction begins, where an error
  concerns this item only and a slow computation locks no other process out of the file.
* **The first transaction that fails breaks the writer permanently.** All later items are settled with the same
  error. If the writer tried again once the disk has space, the file would have a gap that no reader can see.
* **After a fork the child must not touch an inherited writer**: it has no such thread, and the parent may have
  held a lock at that moment. `close` does nothing there; a child opens its own writer.
* The thread is a daemon. The interpreter joins all other threads before it runs exit hooks, so it would wait
  forever for a thread that only an exit hook ends.

A lock file answers two questions: is someone else using this journal, run or folder of checkpoints, and is
the process that recorded this run still alive? A PID alone can't answer either. The process may be dead and
its number taken by another program. `LockFile` therefore holds an OS lock on a file (`flock`), which the
system releases when the process dies, even by SIGKILL. The PID in the file only serves the error message.
`is_locked` looks at such a file without taking it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar, final

from afnio.errors import LockHeldError

T = TypeVar("T")
P = TypeVar("P")


@final
class SQLiteWriter(Generic[T, P]):
    """Writes items to a SQLite file in one thread, a group of them per transaction.

    All functions given here run in that thread. `settled` may raise: the error is logged. The others, except
    where noted, must not.

    Args:
        name: of the thread.
        connect: opens the file in autocommit mode; its error is raised here.
        prepare: encodes an item, outside the transaction; if it raises, the item is settled with that error.
        write: writes prepared items, inside the transaction; if it raises, the writer is broken.
        settled: called once for each item, with None after its commit or with an error.
        broke: called once with the error of the transaction that failed; returns the error to keep in `broken`.
        group: the most items in a transaction.
        linger: seconds to wait for more items before a transaction, unless someone flushes or closes.
        beat: returns an item to write first, or None; called with the connection, which it may read, before each group
            and after `every` idle seconds.
        ended: called after the connection has been closed; not if it couldn't be opened.

    Raises:
        RuntimeError: no thread can be started, as at the interpreter's exit.

    Attributes:
        broken: the error since which nothing is written, or None.

    >>> done = []
    >>> writer = SQLiteWriter(
    ...     "example",
    ...     lambda: sqlite3.connect(":memory:", isolation_level=None),
    ...     prepare=str.encode,
    ...     write=lambda connection, rows: connection.execute("SELECT ?", (rows[0],)),
    ...     settled=lambda item, error: done.append((item, error)),
    ... )
    >>> writer.put("first"), writer.flush(), done
    (True, True, [('first', None)])
    >>> writer.close()
    >>> writer.put("late")
    False
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], sqlite3.Connection],
        *,
        prepare: Callable[[T], P],
        write: Callable[[sqlite3.Connection, list[P]], object],
        settled: Callable[[T, Exception | None], object],
        broke: Callable[[Exception], Exception] = lambda error: error,
        group: int = 512,
        linger: float = 0.0,
        beat: Callable[[sqlite3.Connection], T | None] = lambda connection: None,
        every: float | None = None,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        self.broken: Exception | None = None
        self._connect = connect
        self._prepare = prepare
        self._write = write
        self._settled = settled
        self._broke = broke
        self._group = group
        self._linger = linger
        self._beat = beat
        self._every = every
        self._ended = ended
        self._pid = os.getpid()
        # Its put never blocks: a full disk must not hold up the event loop.
        self._queue: SimpleQueue[T | Future[None] | None] = SimpleQueue()
        # Reentrant, because a signal handler or a finalizer may interrupt `put` and call it again.
        self._lock = threading.RLock()
        self._hurry = threading.Event()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name=name, daemon=True)
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self._thread.join()
            raise

    def put(self, item: T) -> bool:
        """Queue an item; never waits. Return False if the writer is closed."""
        return self._put(item)

    def flush(self) -> bool:
        """Wait until everything put so far is settled. Return False if the writer is closed."""
        reached: Future[None] = Future()
        if not self._put(reached):
            return False
        self._hurry.set()
        # If a callback kills the thread with SystemExit, no one resolves the future any more.
        while not reached.done() and self._thread.is_alive():
            wait([reached], timeout=0.5)
        return True

    def close(self, timeout: float | None = None) -> None:
        """Write what is queued and end the thread; wait for that up to `timeout` seconds. Safe to call twice."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._hurry.set()
        self.join(timeout)

    def join(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for the end of a writer that someone closes."""
        # A callback may close the writer from its own thread, which can't wait for itself.
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _put(self, item: T | Future[None]) -> bool:
        # Under the lock nothing gets in behind the None that ends the thread, so every item is settled.
        with self._lock:
            if not self._closed:
                self._queue.put(item)
            return not self._closed

    def _run(self, opened: Future[None]) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        del opened
        try:
            closing = False
            while not closing:
                group = self._next_group()
                closing = group[-1:] == [None]
                self._append(
                    connection, [item for item in group if item is not None and not isinstance(item, Future)]
                )
                for item in group:
                    if isinstance(item, Future):
                        item.set_result(None)
        finally:
            connection.close()
            self._ended()

    def _next_group(self) -> list[T | Future[None] | None]:
        try:
            group = [self._queue.get(timeout=self._every)]
        except Empty:
            return []
        waited_for = group[0] is None or isinstance(group[0], Future)
        if self._linger and not waited_for and self._queue.qsize() < self._group:
            self._hurry.wait(self._linger)
        self._hurry.clear()
        try:
            while group[-1] is not None and len(group) < self._group:
                group.append(self._queue.get_nowait())
        except Empty:
            pass
        return group

    def _append(self, connection: sqlite3.Connection, items: list[T]) -> None:
        beat = self._beat(connection) if self.broken is None else None
        if beat is not None:
            items = [beat, *items]
        fit: list[T] = []
        prepared: list[P] = []
        for item in items:
            try:
                if self.broken is None:
                    prepared.append(self._prepare(item))
            except Exception as error:
                self._settle(item, error)
            else:
                fit.append(item)
        if prepared:
            self._commit(connection, prepared)
        for item in fit:
            self._settle(item, self.broken)

    def _commit(self, connection: sqlite3.Connection, prepared: list[P]) -> None:
        try:
            # IMMEDIATE takes the write lock now. A transaction that begins as a reader and then writes
            # fails without waiting if another process has written in between.
            connection.execute("BEGIN IMMEDIATE")
            self._write(connection, prepared)
            connection.execute("COMMIT")
        except Exception as error:
            self.broken = self._broke(error)
            _roll_back(connection)

    def _settle(self, item: T, error: Exception | None) -> None:
        try:
            self._settled(item, error)
        except Exception:
            logging.getLogger("afnio").exception("a callback of a record failed; the writer continues")


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except Exception:  # closing the connection rolls back as well
        logging.getLogger("afnio").debug("a transaction was not rolled back", exc_info=True)


# Lock files and private folders.


_ATTEMPTS: Final = 20


@final
class LockFile:
    """An OS lock on a file, with the PID of its holder as the content.

    The database or folder that it protects must be another file: closing any descriptor of a SQLite database
    drops the locks that SQLite holds on it in the same process.

    Raises:
        LockHeldError: the lock is held by another process, or by another object of this one.
        OSError: the file can't be created, or its file system has no locks.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = LockFile(pathlib.Path(folder) / "name.lock")
    ...     lock.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._descriptor: int | None = None
        # Register this before opening the file. A child forked in between would inherit the descriptor and
        # keep the lock until it exits, even if we die first.
        os.register_at_fork(after_in_child=_forgetter(self))
        self._descriptor = _locked(path)

    def release(self) -> None:
        """Release the lock and remove the file. Safe to call twice; does nothing in a forked child."""
        if self._descriptor is not None and self._pid == os.getpid():
            descriptor, self._descriptor = self._descriptor, None
            # Unlink before closing. Afterwards the path may be another process's lock.
            self.path.unlink(missing_ok=True)
            os.close(descriptor)

    def forget(self) -> None:
        """Close the descriptor that a fork inherited. The parent keeps the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_alive(pid: int) -> bool:
    """Return True if a process of this machine has this number, whoever started it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def is_locked(path: Path) -> bool | None:
    """Return True if some process holds this lock file, or None if the file system can't tell.

    >>> is_locked(Path("nowhere"))
    False
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _locked(path: Path) -> int:
    import fcntl

    attempt = 0
    while True:
        attempt += 1
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            # A process in `is_locked` has a shared lock for a moment. That isn't a holder.
            if attempt >= _ATTEMPTS or is_locked(path):
                raise LockHeldError(path, holder) from error
            time.sleep(0.01)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        # The previous holder unlinked the file after we opened it, so we locked nothing. Try again.
        os.close(descriptor)


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> int | None:
    # Empty for a moment, between the lock and the write.
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else None


def _forgetter(lock: LockFile) -> Callable[[], None]:
    # A fork hook can't be unregistered, so don't let it keep the lock alive.
    reference = weakref.ref(lock)

    def forget() -> None:
        held = reference()
        if held is not None:
            held.forget()

    return forget


def make_private_folder(path: Path) -> None:
    """Make a folder, and missing ones above it, for this user only (mode 0700).

    Afnio's files contain prompts and replies. `mkdir(parents=True)` would give the parents the umask's mode.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make_private_folder(Path(folder) / "one" / "two")
    ...     oct(Path(folder, "one").stat().st_mode)[-3:]
    '700'
    """
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
