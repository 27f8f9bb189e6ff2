"""Journal: the replies that were paid for, on disk before anybody sees them."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, final

from afnio.errors import JournalError
from afnio.runtime.events import Usage
from afnio.runtime.journal import schema
from afnio.runtime.journal.errors import JournalClosedError, JournalForkedError
from afnio.runtime.journal.ledger import Item, Spent
from afnio.runtime.journal.lock import Lock
from afnio.runtime.journal.matching import Matching, ProgramChanged, Resume, Reuse
from afnio.runtime.journal.reader import Reader
from afnio.runtime.journal.record import Record
from afnio.runtime.journal.stat import JournalStat
from afnio.runtime.journal.writer import Done, Entry, Writer
from afnio.runtime.private_folder import make_private_folder

Mode = Literal["resume", "reuse"]


@final
class Journal:
    """An append-only file of calls, which answers calls from it; open it with `Journal.open`.

    `take`, `append` and `flush` belong to one thread, `close` to any. One journal object of one process
    has the file; `Journal.stat` may be called by everybody at any time. A forked child can't use an
    inherited journal, nor open that file while its parent has it.

    Attributes:
        path: the file, links resolved.
        changed: the first notice that the program has changed, or None.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "calls.journal"
    ...     reply = Record(
    ...         address="1/forward", scope="", key="c0ffee", model="m", purpose="forward", payload=b"Hi"
    ...     )
    ...     with Journal.open(path) as journal:
    ...         journal.append(reply, lambda error: None)
    ...     with Journal.open(path) as journal:
    ...         journal.take("1/forward", "c0ffee").payload
    b'Hi'
    """

    def __init__(
        self,
        path: Path,
        mode: Mode,
        lock: Lock,
        on_change: Callable[[ProgramChanged], object],
        version: int = schema.VERSION,
    ) -> None:
        self.path = path
        self._takes_plain_keys = version < schema.VERSION and mode == "resume"
        self.mode: Mode = mode
        self.changed: ProgramChanged | None = None
        self._on_change = on_change
        self._pid = os.getpid()
        self._reader = Reader(path)
        try:
            self._earlier = self._reader.spent()
            self._writer = Writer(path, self._reader.session, lock.release)
        except BaseException:
            self._reader.close()
            raise
        self._matching: Matching = (
            Reuse(self._reader)
            if mode == "reuse"
            else Resume(self._reader, self._note_change, self._note_move)
        )
        # Closes a journal that was dropped, and at the interpreter's exit one that was not closed.
        self._end = weakref.finalize(self, _end, self._pid, self._reader, self._writer)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: Mode = "resume",
        *,
        on_change: Callable[[ProgramChanged], object] | None = None,
    ) -> Self:
        """Open the journal at `path`, creating it, and its folder, for this user alone.

        Args:
            mode: "resume" to repeat a run, "reuse" for a cache across runs.
            on_change: told once, within `take`, that the program has changed; else a warning is logged.

        Raises:
            JournalLockedError: it is open elsewhere.
            JournalFormatError: the file is foreign, corrupt or of a newer Afnio; it is left as it is.
            JournalError: the folder or the file can't be read or written.
        """
        if mode not in ("resume", "reuse"):
            raise ValueError(f'the journal\'s mode must be "resume" or "reuse" (got {mode!r})')
        file = Path(os.path.realpath(path))
        try:
            make_private_folder(file.parent)
        except OSError as error:
            raise _unusable(file, error) from error
        lock = Lock(file)
        try:
            version = _prepare(file)
            return cls(file, mode, lock, on_change or _log_change, version)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def stat(path: str | os.PathLike[str]) -> JournalStat:
        """Summarize the journal at `path`, also while a process writes to it."""
        return JournalStat.of(path)

    @property
    def broken(self) -> JournalError | None:
        """The error since which nothing is recorded any more; then no new call should be sent.

        It stays until the journal is opened anew: replies are missing by then, so the program has to be
        started again anyway.
        """
        return self._writer.broken

    def take(self, address: str, key: str, scope: str = "", plain_key: str | None = None) -> Record | None:
        """Return the record that answers a call, or None if it has to be sent.

        Args:
            key: digest of the request, in hex.
            scope: what may take replies from one another's addresses where the program has changed.
            plain_key: the key as files of format 1 have it, where it differs. It is taken in resume mode
                alone: the same program at the same place adds the same to its requests, others may not.

        Raises:
            JournalFormatError: the record turns out to be damaged.
        """
        self._check()
        if self._takes_plain_keys and plain_key is not None and self._reader.has(address, plain_key):
            key = plain_key
        return self._matching.take(address, bytes.fromhex(key), scope)

    def append(self, record: Record, done: Done, *, payload: Callable[[], bytes] | None = None) -> None:
        """Have `record` written soon; never waits.

        Args:
            done: called once, in the writer's thread: with None when the record is on disk, with the error
                when it never will be.
            payload: makes the payload, in the writer's thread; instead of the record's own.
        """
        self._check()
        if not self._writer.put(Entry(record, done, payload)):
            raise self._closed()

    @property
    def spent_before(self) -> dict[Item, Spent]:
        """What was spent by the runs before this opening."""
        return dict(self._earlier)

    def spent(self) -> dict[Item, Spent]:
        """Return what the file says was spent: in earlier runs, and recorded in this one."""
        spent = dict(self._earlier)
        for item, more in dict(self._writer.spent).items():
            spent[item] = spent.get(item, Spent()) + more
        return spent

    def flush(self) -> None:
        """Wait until all that was appended is on disk.

        Raises:
            JournalError: some of it can't be written; the error of `broken`.
        """
        self._check()
        settled: Future[None] = Future()
        if not self._writer.put(settled):
            raise self._closed()
        wait([settled])
        if self.broken is not None:
            raise self.broken

    def close(self) -> None:
        """Write what waits, end the thread, let go of the file; more than once does no harm."""
        self._end()
        # The end runs once; where a waiter's callback ran it, this waits for the thread all the same.
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise JournalForkedError(
                f"The journal [{self.path}] belongs to the process [{self._pid}] that this one was forked from; "
                "open another file here."
            )
        if not self._end.alive:
            raise self._closed()

    def _closed(self) -> JournalClosedError:
        return JournalClosedError(f"The journal [{self.path}] is closed; open it again.")

    def _note_change(self, notice: ProgramChanged) -> None:
        if self.changed is None:
            self.changed = notice
            self._on_change(notice)

    def _note_move(self, address: str, scope: str, source: int, record: Record) -> None:
        # So that a later run finds the reply where this run had it.
        moved = replace(record, address=address, scope=scope, payload=b"", usage=Usage(), created=time.time())
        self._writer.put(Entry(moved, _nobody, source=source))


def _prepare(path: Path) -> int:
    """Create the file if it isn't there; return the version of its format."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        if not path.exists() or path.stat().st_size == 0:
            schema.create(path)
        elif not os.access(path, os.W_OK):
            raise PermissionError("no right to write")
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    return schema.check(path)


def _unusable(path: Path, error: Exception) -> JournalError:
    return JournalError(
        f"The journal [{path}] can't be opened ({error}); see to the rights and the space of its folder, "
        "or name another path."
    )


def _log_change(notice: ProgramChanged) -> None:
    logging.getLogger("afnio").warning("%s", notice)


def _nobody(error: BaseException | None) -> None:
    """Nobody waits for the record of a move."""


def _end(pid: int, reader: Reader, writer: Writer) -> None:
    if pid != os.getpid():
        return
    # The reader first: the last connection folds the log into the file, and the reader may not.
    reader.close()
    writer.close()
