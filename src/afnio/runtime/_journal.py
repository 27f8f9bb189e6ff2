"""Lock: one process, and one journal object of it, holds a journal at a time."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import weakref
from array import array
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self, final

from afnio.errors import (
    JournalClosedError,
    JournalError,
    JournalForkedError,
    JournalLockedError,
    LockHeldError,
)
from afnio.runtime import _journal_file
from afnio.runtime._files import LockFile, make_private_folder
from afnio.runtime._journal_file import (
    Done,
    JournalItem,
    JournalReader,
    JournalSpent,
    JournalStat,
    JournalWriter,
    PendingRecord,
    Record,
)
from afnio.runtime.events import Usage


@final
class Lock:
    """A lock file beside a journal.

    The database itself can't carry the lock: closing a descriptor of a file drops the locks that SQLite holds
    on that file in the same process.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = Lock(pathlib.Path(folder) / "calls.journal")
    ...     lock.release()

    Raises:
        JournalLockedError: somebody else holds it.
        JournalError: the folder can't be written, or its file system knows no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            self._file = LockFile(self.path)
        except LockHeldError as error:
            raise _refusal(path, error.holder) from error
        except OSError as error:
            raise JournalError(
                f"The folder [{path.parent}] takes no lock file for the journal ({error}); "
                "name a path in a local folder that you may write to."
            ) from error

    def release(self) -> None:
        """Let go of the journal, in the process that took it; more than once does no harm."""
        self._file.release()


def _refusal(journal: Path, holder: int | None) -> JournalLockedError:
    if holder == os.getpid():
        message = f"The journal [{journal}] is open in this process already; close it first."
    else:
        who = "another process" if holder is None else f"the process [{holder}]"
        message = f"The journal [{journal}] is in use by {who}; wait for its end, or name another path."
    return JournalLockedError(message, holder)


# Matching: which record answers a call.
#
# *Resume* repeats a run: a call gets the reply that its own address got, if it asks the same. Where the
# program has changed, the rest of the scope takes what it asked before, wherever in the scope that was.
# *Reuse* is a cache across runs: the n-th use of a request in a run gets the n-th reply on record.


_NONE_LEFT: Final = array("q")


@dataclass(frozen=True, slots=True)
class ProgramChanged:
    """An address asks for something else than it did when the journal was written.

    Attributes:
        recorded: key of the request on record.
        asked: key of the request made now.
    """

    address: str
    scope: str
    recorded: str
    asked: str

    def __str__(self) -> str:
        return (
            f"The program has changed: at [{self.address}] it made the request [{self.recorded[:12]}], and now "
            f"makes [{self.asked[:12]}]; from here on this scope takes recorded replies to equal requests."
        )


class Matching(Protocol):
    """Chooses among the records that were there when the journal was opened; from one thread."""

    def take(self, address: str, key: bytes, scope: str) -> Record | None: ...


@final
class Resume:
    """Answers an address with its own record, each record once.

    Of several records of one address and key the newest session's goes first: a changed program left its
    own behind, and is resumed from them. `moved(address, scope, id, record)` is called for a reply that
    another address gave up, to record that this address had it.
    """

    def __init__(
        self,
        reader: JournalReader,
        changed: Callable[[ProgramChanged], object],
        moved: Callable[[str, str, int, Record], object],
    ) -> None:
        self._reader = reader
        self._used = bytearray(reader.last + 1)
        self._tell_changed = changed
        self._tell_moved = moved
        self._changed: set[str] = set()
        self._left: dict[tuple[str, bytes], array[int]] = {}

    def take(self, address: str, key: bytes, scope: str) -> Record | None:
        on_record = self._reader.at(address)
        same = [found for found in on_record if found.key == key]
        for found in same:
            if not self._used[found.reply]:
                record = self._reader.record(found)
                self._used[found.reply] = True
                return record
        if on_record and not same and scope not in self._changed:
            self._changed.add(scope)
            self._tell_changed(ProgramChanged(address, scope, on_record[0].key.hex(), key.hex()))
        return self._take_moved(address, key, scope) if scope in self._changed else None

    def _take_moved(self, address: str, key: bytes, scope: str) -> Record | None:
        left = self._left.get((scope, key))
        if left is None:
            left = self._left[scope, key] = _stack(self._reader.replies(key, scope))
        while left:
            number = left.pop()
            if not self._used[number]:
                record = self._reader.by_id(number)
                self._used[number] = True
                self._tell_moved(address, scope, number, record)
                return record
        return None


@final
class Reuse:
    """Answers the n-th use of a key with the n-th reusable reply to it, whatever run that is of."""

    def __init__(self, reader: JournalReader) -> None:
        self._reader = reader
        self._left: dict[bytes, array[int]] = {}

    def take(self, address: str, key: bytes, scope: str) -> Record | None:
        left = self._left.get(key)
        if left is None:
            left = _stack(self._reader.replies(key))
            if not left:
                return None
        record = self._reader.by_id(left.pop()) if left else None
        self._left[key] = left or _NONE_LEFT
        return record


def _stack(numbers: list[int]) -> array[int]:
    return array("q", reversed(numbers))


# Journal: the replies that were paid for, on disk before anybody sees them.


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
        version: int = _journal_file.VERSION,
    ) -> None:
        self.path = path
        self._takes_plain_keys = version < _journal_file.VERSION and mode == "resume"
        self.mode: Mode = mode
        self.changed: ProgramChanged | None = None
        self._on_change = on_change
        self._pid = os.getpid()
        self._reader = JournalReader(path)
        try:
            self._earlier = self._reader.spent()
            self._writer = JournalWriter(path, self._reader.session, lock.release)
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
        if not self._writer.put(PendingRecord(record, done, payload)):
            raise self._closed()

    @property
    def spent_before(self) -> dict[JournalItem, JournalSpent]:
        """What was spent by the runs before this opening."""
        return dict(self._earlier)

    def spent(self) -> dict[JournalItem, JournalSpent]:
        """Return what the file says was spent: in earlier runs, and recorded in this one."""
        spent = dict(self._earlier)
        for item, more in dict(self._writer.spent).items():
            spent[item] = spent.get(item, JournalSpent()) + more
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
        self._writer.put(PendingRecord(moved, _nobody, source=source))


def _prepare(path: Path) -> int:
    """Create the file if it isn't there; return the version of its format."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        if not path.exists() or path.stat().st_size == 0:
            _journal_file.create_file(path)
        elif not os.access(path, os.W_OK):
            raise PermissionError("no right to write")
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    return _journal_file.check_file(path)


def _unusable(path: Path, error: Exception) -> JournalError:
    return JournalError(
        f"The journal [{path}] can't be opened ({error}); see to the rights and the space of its folder, "
        "or name another path."
    )


def _log_change(notice: ProgramChanged) -> None:
    logging.getLogger("afnio").warning("%s", notice)


def _nobody(error: BaseException | None) -> None:
    """Nobody waits for the record of a move."""


def _end(pid: int, reader: JournalReader, writer: JournalWriter) -> None:
    if pid != os.getpid():
        return
    # The reader first: the last connection folds the log into the file, and the reader may not.
    reader.close()
    writer.close()
