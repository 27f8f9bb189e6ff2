"""The journal: every paid reply is on disk before the program sees it.

A program that was killed is started again, runs from its beginning, and gets its old replies from the journal
instead of the network. There is no other state to restore, so nothing can be restored wrongly. `_call` asks
`Journal.take` before it sends a call, and after a reply it waits for `Journal.append` before it returns it.

**How a record is found.** Every call has an address (its place in the program, such as
"epoch 2/step 5/3/17/forward") and a key (a digest of everything that can change the reply). There are two modes:

* `resume` repeats a run. An address gets the reply that it got before, if it asks the same. At the first call
  of a scope that asks something else, the program must have changed; from there on, calls in that scope are
  matched by key, wherever in the scope the reply was recorded.
* `reuse` is a cache across runs. The n-th use of a key gets the n-th reply on record, so samples stay
  independent.

**Who may use the file.** One journal object of one process, which holds a lock file next to it. The caller
never waits for the disk: a `SQLiteWriter` appends in its own thread. When the disk is full, that writer breaks
permanently, and the program stops at the error with all earlier replies kept; see `_files`.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
import weakref
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, final

from afnio.errors import (
    JournalClosedError,
    JournalError,
    JournalForkedError,
    JournalLockedError,
    LockHeldError,
)
from afnio.runtime import _journal_file
from afnio.runtime._files import LockFile, SQLiteWriter, make_private_folder
from afnio.runtime._journal_file import Answering, Done, JournalReader, JournalStat, PendingRecord, Record
from afnio.runtime._spending import Ledger
from afnio.runtime.events import Usage

Mode = Literal["resume", "reuse"]


@final
class Journal:
    """An append-only file of calls that answers calls from it; open it with `Journal.open`.

    `take`, `append` and `flush` belong to one thread, `close` to any. `Journal.stat` may be called from any
    process at any time. A forked child can't use an inherited journal, nor open that file while its parent
    has it.

    Attributes:
        path: the file, links resolved.
        changed: the first notice that the program has changed, or None.
        on_change: called once with it, within `take`.
        before_close: functions that append the last records when it is closed.

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
        lock: LockFile,
        on_change: Callable[[ProgramChanged], object],
    ) -> None:
        self.path = path
        self.mode: Mode = mode
        self.changed: ProgramChanged | None = None
        self.on_change = on_change
        self.before_close: list[Callable[[], object]] = []
        self._pid = os.getpid()
        self._reader = JournalReader(path)
        try:
            self._earlier = self._reader.ledger()
            # The writer's thread releases the lock: if a callback closes the journal, `close` returns first.
            self._writer = _journal_file.open_writer(path, self._reader.session, lock.release)
        except BaseException:
            self._reader.close()
            raise
        self._matching: Matching = (
            Reuse(self._reader)
            if mode == "reuse"
            else Resume(self._reader, self._note_change, self._note_move)
        )
        # A function's version is raised on purpose: no notice. The calls that follow from it give theirs.
        self._results: Matching = (
            Reuse(self._reader, "result")
            if mode == "reuse"
            else Resume(self._reader, _no_notice, self._note_move, "result")
        )
        # Closes a journal that was dropped, or that is still open at the interpreter's exit.
        self._end = weakref.finalize(self, _end, self._pid, self._reader, self._writer)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: Mode = "resume",
        *,
        on_change: Callable[[ProgramChanged], object] | None = None,
    ) -> Self:
        """Open the journal at `path`. The file and its folder are created if missing, for this user only.

        Args:
            mode: "resume" to repeat a run, "reuse" for a cache across runs.
            on_change: called once, within `take`, if the program has changed. Default: log a warning.

        Raises:
            JournalLockedError: it is open elsewhere.
            JournalFormatError: the file is foreign, corrupt or of a newer Afnio; it is left unchanged.
            JournalError: the folder or the file can't be read or written.
        """
        if mode not in ("resume", "reuse"):
            raise ValueError(f'the journal\'s mode must be "resume" or "reuse" (got {mode!r})')
        file = Path(os.path.realpath(path))
        try:
            make_private_folder(file.parent)
        except OSError as error:
            raise _unusable(file, error) from error
        lock = _lock(file)
        try:
            _prepare(file)
            return cls(file, mode, lock, on_change or _log_change)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def stat(path: str | os.PathLike[str]) -> JournalStat:
        """Summarize the journal at `path`, also while a process writes to it."""
        return JournalStat.of(path)

    @property
    def broken(self) -> JournalError | None:
        """The error since which nothing is recorded, or None. After it, send no new call.

        It stays until the journal is opened again: by then replies are missing, so the program must be
        started again anyway.
        """
        broken = self._writer.broken
        assert broken is None or isinstance(broken, JournalError)
        return broken

    def take(self, address: str, key: str, scope: str = "") -> Record | None:
        """Return the record that answers a call, or None if the call must be sent.

        Args:
            key: digest of the request, in hex.
            scope: addresses of one scope may take each other's replies once the program has changed.

        Raises:
            JournalFormatError: the record is damaged.
        """
        self._check()
        return self._matching.take(address, bytes.fromhex(key), scope)

    def shared_reply(self, key: str, launch: str) -> Record | None:
        """Return the reply that an equal call of the same launch got in an earlier run, or None.

        A program that was killed may have recorded it for one of the lanes that share it, and not yet for the others.
        """
        self._check()
        return self._reader.reply_below(bytes.fromhex(key), launch)

    def take_result(self, address: str, key: str, scope: str = "") -> Record | None:
        """Return the record of what a durable function returned, or None if it must run.

        Args:
            key: digest of the function's name, its version and its arguments, in hex.
            scope: as for `take`.

        Raises:
            JournalFormatError: the record is damaged.
        """
        self._check()
        return self._results.take(address, bytes.fromhex(key), scope)

    def append(self, record: Record, done: Done, *, payload: Callable[[], bytes] | None = None) -> None:
        """Queue `record` to be written; never waits.

        Args:
            done: called once, in the writer's thread: with None when the record is on disk, or with the error
                that kept it out.
            payload: makes the payload, in the writer's thread, in place of the record's own.
        """
        self._check()
        if not self._writer.put(PendingRecord(record, done, payload)):
            raise self._closed()

    def parcels(self) -> list[dict[str, Any]]:
        """Return the parcels that earlier programs left, oldest first, each with everything that was noted of it."""
        noted: dict[str, dict[str, Any]] = {}
        for name, payload in self._reader.parcels():
            noted[name] = {**noted.get(name, {}), **json.loads(payload)}
        return [row for row in noted.values() if row["state"] != "closed"]

    def has_changed(self, scope: str) -> bool:
        """Return True if a scope's requests are matched by key, wherever in it they were recorded."""
        return self._matching.matches_keys(scope)

    @property
    def spent_before(self) -> Ledger:
        """The spending of earlier runs, when this journal was opened. The ledger has no prices."""
        return self._earlier

    def spent(self) -> Ledger:
        """Return what was spent according to the file: in earlier runs and in this one. It has no prices."""
        return JournalStat.of(self.path).spent

    def flush(self) -> None:
        """Wait until everything appended is on disk.

        Raises:
            JournalError: some of it can't be written; the error of `broken`.
        """
        self._check()
        if not self._writer.flush():
            raise self._closed()
        if self.broken is not None:
            raise self.broken

    def close(self) -> None:
        """Write what is queued, end the thread and release the file. Safe to call twice."""
        while self.before_close and self._end.alive:
            self.before_close.pop()()
        self._end()
        # The finalizer runs once. If another thread runs it, that one closes the reader before the writer.
        self._writer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise JournalForkedError(
                f"a journal must be used by the process that opened it (got {self.path}, opened by {self._pid}, which "
                "this process was forked from); open another file here"
            )
        if not self._end.alive:
            raise self._closed()

    def _closed(self) -> JournalClosedError:
        return JournalClosedError(f"the journal {self.path} is closed; open it again")

    def _note_change(self, notice: ProgramChanged) -> None:
        if self.changed is None:
            self.changed = notice
            self.on_change(notice)

    def _note_move(self, address: str, scope: str, source: int, record: Record) -> None:
        # A later run then finds the reply at the address where this run had it.
        moved = replace(record, address=address, scope=scope, payload=b"", usage=Usage(), created=time.time())
        self._writer.put(PendingRecord(moved, _ignore, source=source))


def _lock(journal: Path) -> LockFile:
    try:
        return LockFile(journal.with_name(journal.name + ".lock"))
    except LockHeldError as error:
        raise _in_use(journal, error.holder) from error
    except OSError as error:
        raise JournalError(
            f"the journal's folder must accept a lock file (got {journal.parent}: {error}); name a path in a local "
            "folder that you may write to"
        ) from error


def _prepare(path: Path) -> None:
    """Create the file if it is missing, and check its format."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it isn't a file")
        if not path.exists() or path.stat().st_size == 0:
            _journal_file.create_file(path)
        elif not os.access(path, os.W_OK):
            raise PermissionError("no right to write")
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    _journal_file.check_file(path)


def _end(pid: int, reader: JournalReader, writer: SQLiteWriter[PendingRecord, Any]) -> None:
    if pid != os.getpid():
        return
    # Close the reader first. The last connection folds the write-ahead log into the file, and the reader has
    # no right to.
    reader.close()
    writer.close()


def _log_change(notice: ProgramChanged) -> None:
    logging.getLogger("afnio").warning("%s", notice)


def _no_notice(notice: ProgramChanged) -> None:
    """Results are recomputed without a word."""


def _ignore(error: BaseException | None) -> None:
    """No one waits for the record of a move."""


def _in_use(journal: Path, holder: int | None) -> JournalLockedError:
    if holder == os.getpid():
        message = f"the journal {journal} is open in this process already; close it first"
    else:
        who = "another process" if holder is None else f"process {holder}"
        message = f"the journal {journal} is in use by {who}; wait for its end, or name another path"
    return JournalLockedError(message, holder)


def _unusable(path: Path, error: Exception) -> JournalError:
    return JournalError(
        f"the journal must be a file that can be opened (got {path}: {error}); check its folder's permissions and "
        "space, or name another path"
    )


# --- Matching: which record answers a call ---


@dataclass(frozen=True, slots=True)
class ProgramChanged:
    """An address makes another request than it did when the journal was written.

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
            f"The program has changed: at {self.address} it made the request {self.recorded[:12]}, and now makes "
            f"{self.asked[:12]}; from here on, equal requests of this scope are answered by recorded replies."
        )


class Matching(Protocol):
    """Chooses among the records that were in the file at opening; used from one thread."""

    def take(self, address: str, key: bytes, scope: str) -> Record | None: ...
    def matches_keys(self, scope: str) -> bool: ...


@final
class Resume:
    """Answers an address with its own record, each record once.

    If several records match, use the newest session's: the program may have changed since the first one.

    Args:
        changed: called at the first call of a scope that asks something else.
        moved: called with (address, scope, id, record) if an address takes another one's reply.
        kind: what is looked up.
    """

    def __init__(
        self,
        reader: JournalReader,
        changed: Callable[[ProgramChanged], object],
        moved: Callable[[str, str, int, Record], object],
        kind: Answering = "reply",
    ) -> None:
        self._reader = reader
        self._kind = kind
        self._used = bytearray(reader.last + 1)
        self._on_change = changed
        self._on_move = moved
        self._changed: set[str] = set()
        self._left: dict[tuple[str, bytes], array[int]] = {}

    def take(self, address: str, key: bytes, scope: str) -> Record | None:
        on_record = self._reader.at(address, self._kind)
        same = [candidate for candidate in on_record if candidate.key == key]
        for candidate in same:
            if not self._used[candidate.reply]:
                record = self._reader.record(candidate)
                self._used[candidate.reply] = True
                return record
        if on_record and not same and scope not in self._changed:
            self._changed.add(scope)
            self._on_change(ProgramChanged(address, scope, on_record[0].key.hex(), key.hex()))
        return self._take_moved(address, key, scope) if scope in self._changed else None

    def matches_keys(self, scope: str) -> bool:
        return scope in self._changed

    def _take_moved(self, address: str, key: bytes, scope: str) -> Record | None:
        left = self._left.get((scope, key))
        if left is None:
            left = self._left[scope, key] = _stack(self._reader.replies(key, scope, self._kind))
        while left:
            number = left.pop()
            if not self._used[number]:
                record = self._reader.by_id(number)
                self._used[number] = True
                self._on_move(address, scope, number, record)
                return record
        return None


@final
class Reuse:
    """Answers the n-th use of a key with the n-th reusable reply to it, from any run."""

    def __init__(self, reader: JournalReader, kind: Answering = "reply") -> None:
        self._reader = reader
        self._kind = kind
        self._left: dict[bytes, array[int]] = {}

    def take(self, address: str, key: bytes, scope: str) -> Record | None:
        left = self._left.get(key)
        if left is None:
            left = _stack(self._reader.replies(key, None, self._kind))
            if not left:
                return None
        record = self._reader.by_id(left.pop()) if left else None
        self._left[key] = left or _NONE_LEFT
        return record

    def matches_keys(self, scope: str) -> bool:
        return True


# Shared by all keys that are used up, to save memory.
_NONE_LEFT: Final = array("q")


def _stack(numbers: list[int]) -> array[int]:
    return array("q", reversed(numbers))
