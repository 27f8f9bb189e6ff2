"""What a run leaves on the disk: one SQLite file per project."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, final

from afnio.errors import LockHeldError, StoreProblemError, StoreVersionError
from afnio.runtime._admission import calls_on_wire
from afnio.runtime._files import LockFile, make_private_folder
from afnio.runtime._kernel import calls_under_way
from afnio.runtime.events import CallEnded, CallReplayed, NodeLaunched, SampleScored
from afnio.tellurio._recording import Recording, Redaction, encode, git_commit, platform_facts, versions
from afnio.tellurio._schema import OF_A_RUN, VERSION, connect, upgrade, version_of

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


INSERT_RUN = """
INSERT INTO runs (
    id, name, description, namespace, project, status, config, identity, seed, host, pid, date_created, date_updated
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
FIND_RUNS = """
SELECT id, name, description, namespace, project, status, config, identity, seed, date_created FROM runs
WHERE id = :id OR (identity = :identity AND status IN ('RUNNING', 'CRASHED'))
ORDER BY date_created DESC, rowid DESC"""
CONTINUE_RUN = "UPDATE runs SET status = 'RUNNING', host = ?, pid = ?, date_updated = ? WHERE id = ?"
UPDATE_RUN = """
UPDATE runs SET status = :status, date_updated = :date,
    in_flight = iif(:status = 'RUNNING', in_flight, 0), waiting = iif(:status = 'RUNNING', waiting, 0)
WHERE id = :id AND status = 'RUNNING'"""
DESCRIBE_RUN = "UPDATE runs SET git_commit = ?, versions = ?, platform = ? WHERE id = ?"
UPDATE_COUNTS = """
UPDATE runs SET in_flight = ?, waiting = ?, dropped = ?, date_updated = ? WHERE id = ? AND status = 'RUNNING'"""
# A step that isn't given is one past the name's largest, whichever process wrote that.
INSERT_LOGGED = """
INSERT INTO {table} (run_id, name, step, {columns}, time) VALUES (
    :run_id, :name,
    coalesce(
        :step,
        (SELECT max(step) + 1 FROM {table} WHERE run_id = :run_id AND name = :name),
        0
    ),
    {values}, :time
)"""
INSERT_EVENT = "INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, ?)"
KEPT_WHEN_CONTINUED = ("calls", "bodies", "retries")
"""What was paid stays; the rest is said again by the program, which runs from its start."""


class NewRun(NamedTuple):
    """A run as the table holds it; dates are seconds since 1970 UTC, the config is JSON."""

    id: str
    name: str
    description: str | None
    namespace: str
    project: str
    status: str
    config: str
    identity: str
    seed: int
    date: float


class Store:
    """Records one run in its project's file, through a thread that `open` starts.

    Nothing here raises when the disk refuses; the writer warns once. After a fork the child
    writes through a thread and a connection of its own.

    Args:
        redaction: applied to every text that is written.
    """

    def __init__(self, path: Path, redaction: Redaction | None = None) -> None:
        self.path = path
        self.redaction = redaction or Redaction(None)
        self._writer: StoreWriter | None = None
        self._recording: Recording | None = None
        self._run_id: str | None = None
        self._pid = os.getpid()
        self._counts = (0, 0, 0)

    def add_run(self, row: NewRun) -> str:
        """Open the file and add the run; returns its name, with a suffix if it was taken."""
        names = [row.name]
        row = row._replace(
            config=encode("config", self.redaction.value(json.loads(row.config))),
            description=None if row.description is None else self.redaction.text(row.description),
        )

        def insert(connection: sqlite3.Connection) -> None:
            names.append(_free_name(connection, row.name))
            values = (row.id, names[-1], *row[2:9], socket.gethostname(), os.getpid())
            connection.execute(INSERT_RUN, (*values, row.date, row.date))

        writer = self.open()
        writer.submit(insert)
        self._describe(row.id)
        writer.flush()
        return names[-1]

    def find_runs(self, identity: str, run_id: str | None = None) -> list[NewRun]:
        """Return the run of this id, or the unfinished runs of this identity, newest first."""
        found: list[NewRun] = []

        def select(connection: sqlite3.Connection) -> None:
            wanted = {"id": run_id, "identity": None if run_id else identity}
            found.extend(NewRun(*row) for row in connection.execute(FIND_RUNS, wanted))

        writer = self.open()
        writer.submit(select)
        writer.flush()
        return found

    def continue_run(self, run_id: str, date: float) -> None:
        """Set a run going again. What it recorded goes, as its program will say it again from the start."""

        def update(connection: sqlite3.Connection) -> None:
            for table in OF_A_RUN:
                if table not in KEPT_WHEN_CONTINUED:
                    connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            connection.execute(CONTINUE_RUN, (socket.gethostname(), os.getpid(), date, run_id))

        self.open().submit(update)
        self._describe(run_id)

    def update_run(self, run_id: str, status: str, date: float) -> None:
        """Set the status of a run that hasn't ended, and when it changed last."""
        self.open().submit(
            lambda db: db.execute(UPDATE_RUN, {"status": str(status), "date": date, "id": run_id})
        )

    def add_logged(
        self, table: str, run_id: str, name: str, step: int | None, values: dict[str, str], date: float
    ) -> None:
        """Add a row to `metrics`, `texts` or `tables`."""
        statement = INSERT_LOGGED.format(
            table=table, columns=", ".join(values), values=", ".join(f":{column}" for column in values)
        )
        row = {"run_id": run_id, "name": name, "step": step, **values, "time": date}
        self.open().submit(lambda db: db.execute(statement, row))

    def record(self, event: Any, date: float) -> None:
        """Add what the engine said; on the runtime's thread. Turning it into rows is the writer's work."""
        self.open().offer(event, date, weight_of(event))

    def add_event(self, run_id: str, kind: str, payload: str, date: float) -> None:
        """Add an event, given as JSON."""
        self.open().submit(lambda db: db.execute(INSERT_EVENT, (run_id, kind, payload, date)))

    def flush(self) -> None:
        """Wait until readers of the file see everything added so far."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.flush()

    def close(self, timeout: float | None = None) -> None:
        """Write what is waiting and end the thread."""
        if self._writer is not None and self._writer.pid == os.getpid():
            self._writer.close(timeout)

    def open(self) -> StoreWriter:
        """Start the writing thread of this process, if it isn't there.

        Raises:
            StoreVersionError: if a newer Afnio wrote the file.
        """
        # The queue and locks of an inherited writer may be in any state, so they aren't touched.
        if self._writer is None or self._writer.pid != os.getpid():
            self._writer = StoreWriter(self.path, self._beat, self._write_event)
            self._renew()
        return self._writer

    def begin(self, run_id: str) -> None:
        """From now on record what the engine says as this run's."""
        self._run_id = run_id
        self._renew()

    def _write_event(self, connection: sqlite3.Connection, event: Any, date: float) -> None:
        if self._recording is not None:
            self._recording.write(connection, event, date)

    def _renew(self) -> None:
        self._recording = None if self._run_id is None else Recording(self._run_id, self.redaction)

    def _describe(self, run_id: str) -> None:
        folder = Path.cwd()

        def work() -> Write:
            row = (git_commit(folder), versions(), platform_facts(), run_id)
            return lambda db: db.execute(DESCRIBE_RUN, row)

        self.open().submit(Slow(work))

    def _beat(self) -> Write | None:
        """Write how many calls are on the wire and how many wait, if that has changed; in the writing thread."""
        if self._run_id is None or self._writer is None or self._pid != os.getpid():
            return None
        sent = calls_on_wire()
        counts = (sent, max(0, calls_under_way() - sent), self._writer.dropped)
        if counts == self._counts:
            return None
        self._counts = counts
        row = (*counts, time.time(), self._run_id)
        return lambda db: db.execute(UPDATE_COUNTS, row)


def weight_of(event: Any) -> int:
    """About how many bytes an event holds on to."""
    if isinstance(event, CallEnded | CallReplayed):
        asked = 0 if event.request is None else len(event.request.encoded)
        return 1000 + asked + len(getattr(event.reply, "content", None) or "")
    if isinstance(event, SampleScored):
        return 500 + len(event.explanation)
    if isinstance(event, NodeLaunched):
        return 500 + sum(100 * len(entry.values) for entry in event.inputs if entry.values is not None)
    return 1000


def store_path(namespace: str, project: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """The project's file: in `folder`, else in AFNIO_HOME, else in `.afnio` of this folder.

    >>> store_path("My Team", "Mails/2025", folder="runs").as_posix()
    'runs/my-team/mails-2025.db'
    """
    home = Path(folder or os.environ.get("AFNIO_HOME") or ".afnio")
    return home / slug("namespace", namespace) / f"{slug('project', project)}.db"


def slug(kind: str, name: str) -> str:
    """A name that is safe as a file's on every system."""
    if not isinstance(name, str):
        raise TypeError(f"The {kind} is [{name!r}], but has to be a string.")
    text = unicodedata.normalize("NFKC", name).lower()
    safe = re.sub(r"[^\w.-]+", "-", text)[:60].strip("-._")
    if not safe:
        raise ValueError(f"The {kind} [{name}] has no letter or digit; give it one.")
    return safe


def _free_name(connection: sqlite3.Connection, name: str) -> str:
    # The writer's transaction holds the file, so a name that is free here stays free.
    candidate, suffix = name, 1
    while connection.execute("SELECT 1 FROM runs WHERE name = ?", (candidate,)).fetchone():
        suffix += 1
        candidate = f"{name}-{suffix}"
    return candidate


# The one thread that writes to a project's file.


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


class StoreWriter:
    """Runs writes in the order in which they came, all that are waiting in one transaction.

    A disk that refuses costs one warning; from then on writes are dropped. The connection lives in
    the thread only, where a forked child can't reach it.

    Args:
        beat: called in the thread every `BEAT` seconds or so; a write, or None.
        recorded: writes an event that was offered.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = StoreWriter(pathlib.Path(folder) / "new" / "project.db")
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


# Opening a project's file to read it: whatever state and version it is in, with one sentence where it can't be.


PATIENCE: Final = 2.0
"""Seconds that a reader waits for a file that another program has locked; a run's writer locks nobody out."""


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a project's file; one of an older version as a copy in memory that is brought to this one.

    Raises:
        StoreProblemError: if it is missing, damaged, locked or of a newer version.
    """
    if not path.is_file():
        raise StoreProblemError(f"There is no run store at [{path}].")
    try:
        connection = _connect(path)
        try:
            return _of_this_version(connection, path)
        except BaseException:
            connection.close()
            raise
    except StoreVersionError as error:
        raise StoreProblemError(str(error)) from error
    except sqlite3.Error as error:
        raise problem_of(path, error) from error


def problem_of(path: Path, error: sqlite3.Error) -> StoreProblemError:
    """What to tell a user of an error of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreProblemError(
            f"The run store [{path}] has been locked by another program for {PATIENCE:g} s; try again.",
            passing=True,
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreProblemError(
            f"The run store [{path}] is damaged ({error}); `sqlite3 {path} .recover` may save what is whole."
        )
    return StoreProblemError(f"The run store [{path}] can't be read ({error}).")


def _connect(path: Path) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=PATIENCE, check_same_thread=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        # A folder in which SQLite may not put its side files; nobody can be writing there either.
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True, check_same_thread=False)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _of_this_version(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    version = version_of(connection, path)
    if version == 0:
        raise StoreProblemError(
            f"The file [{path}] is no run store, or one that is just being made.", passing=True
        )
    if version < VERSION:
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        connection.backup(copy)
        connection.close()
        upgrade(copy, version)
        copy.commit()
        connection = copy
    connection.row_factory = sqlite3.Row
    return connection


# Liveness: whether a run that the store calls RUNNING still is.


def live_status(store: Path, run_id: str, status: str, host: str, pid: int, *, leased: bool = True) -> str:
    """The status of a run as it is now: one whose process was killed has CRASHED.

    A run of another machine is taken at its word, as nothing here can tell.

    Args:
        leased: whether its process took a lease, as those of older versions didn't; then, and where the
            file system knows no locks, its number has to do.
    """
    if status != "RUNNING" or host != socket.gethostname():
        return status
    held = is_held(lease_path(store, run_id)) if leased else None
    alive = _is_alive(pid) if held is None else held
    return "RUNNING" if alive else "CRASHED"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# Lease: what tells a run that goes on from one whose process was killed.


ATTEMPTS: Final = 20


@final
class Lease:
    """An OS lock on a file of the run's own; the system frees it when the process dies, however it dies.

    Readers try it; a process number alone would say that a dead run lives once another program has it.

    Raises:
        LockHeldError: another process has it, or another run of this one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: LockFile | None = None
        # A folder that can't be written, or knows no locks, has the store say so, or is seen by the number.
        with suppress(OSError):
            make_private_folder(path.parent)
            self._file = _locked(path)

    def release(self) -> None:
        """Give it back; in the process that took it."""
        if self._file is not None:
            self._file.release()


def lease_path(store: Path, run_id: str) -> Path:
    """Where a run's lease is, beside its journal."""
    return store.with_suffix("") / f"{run_id}.lease"


def is_held(path: Path) -> bool | None:
    """Whether some process has the lease; None where the file system can't tell.

    >>> is_held(Path("nowhere"))
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


def _locked(path: Path) -> LockFile:
    for _ in range(ATTEMPTS):
        try:
            return LockFile(path)
        except LockHeldError:
            if is_held(path):
                raise
        time.sleep(0.01)  # only a reader tries it just now
    return LockFile(path)


# Removal: take a run out of its project's file, with the journal beside it.


def remove_run(store: Path, run_id: str) -> None:
    """Delete a run's rows and its journal; the room in the file is used again by later runs.

    Raises:
        sqlite3.Error: if the file can't be written.
    """
    with closing(connect(store)) as connection:
        # What is deleted must not be found in the file: prompts may hold what their owner wants gone.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table in OF_A_RUN:
                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            connection.execute("DELETE FROM runs WHERE id = ?", (run_id,))
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.execute("ROLLBACK")
            raise
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = store.with_suffix("")
    for path in (*folder.glob(f"{run_id}.journal*"), lease_path(store, run_id)):
        path.unlink(missing_ok=True)
