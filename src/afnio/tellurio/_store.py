"""The store: one SQLite file per project, with everything that its runs recorded.

`Store` writes one run. Every method but `flush`, `close`, `add_run` and `find_runs` only puts a function into
the queue of a `SQLiteWriter`, so recording never makes the program wait for the disk. Recording is a side
effect, and a training run that has cost money must not end because of it: a disk that refuses costs one
warning, and from then on nothing is recorded. Only a file of another version is refused with an error,
when the run starts.

Events of the engine come faster than a slow disk can take them. About 64 MB of them may wait; more are dropped
and counted in `runs.dropped`. Values that the program logs itself are never dropped.

**Is a run still alive?** A killed process can't write that it was killed: its row reads RUNNING forever. So
each run also holds a lock file, its *lease*, which the system releases with the process. `live_status` reports
a RUNNING run without a held lease as CRASHED.

The tables are in `_schema`; `_recording` turns events into rows; `_queries` reads them. At the end of this file are the
folder of stores, and which run a word on the command line means.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from afnio.errors import ChoiceError, StoreProblemError, StoreVersionError
from afnio.runtime._files import LockFile, SQLiteWriter, is_alive, is_locked, make_private_folder
from afnio.runtime._kernel import calls_under_way
from afnio.runtime._places import Places, places, progress
from afnio.runtime._replicas import calls_on_wire
from afnio.runtime.events import CallEnded, CallReplayed, NodeLaunched, SampleScored
from afnio.tellurio._control import CONTROL, Order, orders_of
from afnio.tellurio._program import git_commit, platform_facts, versions
from afnio.tellurio._recording import Recording
from afnio.tellurio._records import RunRecord
from afnio.tellurio._redaction import Redaction, encode
from afnio.tellurio._schema import OF_A_RUN, connect, version_of

# Bytes of events, roughly, that may wait for the disk.
ROOM: Final = 64 * 2**20

# Writes per transaction, so that other processes get their turn.
_GROUP: Final = 5_000

# Seconds that the writer lets writes gather. Each time it wakes, it takes a turn from the program.
_LINGER: Final = 0.1

# Seconds after which the writer updates the counts of calls if nothing else is written.
_BEAT: Final = 2.0

Write: TypeAlias = Callable[[sqlite3.Connection], object]


@dataclass(frozen=True, slots=True)
class _Slow:
    """A write that is worked out before the transaction, which would lock out other processes meanwhile."""

    work: Callable[[], Write]


class _Offered(NamedTuple):
    """An event of the engine, with the bytes that it keeps in memory."""

    event: Any
    date: float
    weight: int


class NewRun(NamedTuple):
    """A row of `runs`. The date is in seconds since 1970 UTC, the config is JSON."""

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

    No method raises because of the disk; there is one warning. A forked child starts a thread and a connection
    for itself.

    Args:
        redaction: applied to every text that is written.
    """

    def __init__(self, path: Path, redaction: Redaction | None = None) -> None:
        self.path = path
        self.redaction = redaction or Redaction(None)
        self.dropped = 0
        self._writer: SQLiteWriter[Write | _Slow | _Offered, Write | _Offered] | None = None
        self._writer_pid: int | None = None
        self._recording: Recording | None = None
        self._run_id: str | None = None
        self._pid = os.getpid()
        self._counts: tuple[Any, ...] = (0, 0, 0, "{}")
        self._obey: Callable[[Order], object] = lambda order: None
        self._last_order = 0
        self._own_orders: set[int] = set()
        self._places = Places()
        # The runtime's thread adds to the first, the writer's thread to the second, so they need no lock.
        self._offered = 0
        self._taken = 0

    def open(self) -> None:
        """Start the writing thread of this process, unless it is there.

        Raises:
            StoreVersionError: another version of Afnio wrote the file.
        """
        # An inherited writer's queue and locks may be in any state, so they aren't touched.
        if self._writer_pid == os.getpid():
            return
        self._writer = None
        self._offered = self._taken = self.dropped = 0
        self._renew()
        try:
            self._writer = SQLiteWriter(
                "afnio-store",
                lambda: connect(self.path),
                prepare=lambda item: item.work() if isinstance(item, _Slow) else item,
                write=self._write,
                settled=self._settle,
                broke=self._warn,
                group=_GROUP,
                linger=_LINGER,
                beat=self._beat,
                every=_BEAT,
            )
        except StoreVersionError:
            raise
        except Exception as error:  # also a thread that can't start, as at the interpreter's exit
            self._warn(error)
        self._writer_pid = os.getpid()

    def flush(self) -> None:
        """Wait until readers of the file see everything added so far."""
        if self._writer is not None and self._writer_pid == os.getpid():
            self._writer.flush()

    def close(self, timeout: float | None = None) -> None:
        """Write everything that waits and end the thread; wait for that up to `timeout` seconds."""
        if self._writer is not None:
            self._writer.close(timeout)

    def add_run(self, row: NewRun) -> str:
        """Add the run and return its name, with a suffix if it was taken."""
        names = [row.name]
        row = row._replace(
            config=encode("config", self.redaction.value(json.loads(row.config))),
            description=None if row.description is None else self.redaction.text(row.description),
        )

        def insert(connection: sqlite3.Connection) -> None:
            names.append(_free_name(connection, row.name))
            values = (row.id, names[-1], *row[2:9], socket.gethostname(), os.getpid())
            connection.execute(_INSERT_RUN, (*values, row.date, row.date))

        self._submit(insert)
        self._describe(row.id)
        self.flush()
        return names[-1]

    def find_runs(self, identity: str, run_id: str | None = None) -> list[NewRun]:
        """Return the run with this id, or the unfinished runs of this identity, newest first."""
        runs: list[NewRun] = []

        def select(connection: sqlite3.Connection) -> None:
            wanted = {"id": run_id, "identity": None if run_id else identity}
            runs.extend(NewRun(*row) for row in connection.execute(_FIND_RUNS, wanted))

        self._submit(select)
        self.flush()
        return runs

    def continue_run(self, run_id: str, date: float) -> None:
        """Set a run to RUNNING again, and delete what its program will record again from its start."""

        def update(connection: sqlite3.Connection) -> None:
            for table in OF_A_RUN:
                if table not in _KEPT_WHEN_CONTINUED:
                    orders = f" AND kind != '{CONTROL}'" if table == "events" else ""
                    connection.execute(f"DELETE FROM {table} WHERE run_id = ?{orders}", (run_id,))
            row = {"host": socket.gethostname(), "pid": os.getpid(), "date": date, "id": run_id}
            connection.execute(_CONTINUE_RUN, row)

        self._submit(update)
        self._describe(run_id)

    def begin(self, run_id: str, obey: Callable[[Order], object]) -> None:
        """From now on record the engine's events as this run's.

        Args:
            obey: gets new orders of other processes, in the writer's thread.
        """
        self._obey = obey
        self._run_id = run_id
        self._places = places()
        self._renew()

    def update_run(self, run_id: str, status: str, date: float) -> None:
        """Set the status and the date of the last change, unless the run has ended."""
        row = {"status": str(status), "date": date, "id": run_id, "places": self._where()}
        self._submit(lambda db: db.execute(_UPDATE_RUN, row))

    def add_logged(
        self, table: str, run_id: str, name: str, step: int | None, values: dict[str, str], date: float
    ) -> None:
        """Add a row to `metrics`, `texts` or `tables`."""
        statement = _INSERT_LOGGED.format(
            table=table, columns=", ".join(values), values=", ".join(f":{column}" for column in values)
        )
        row = {"run_id": run_id, "name": name, "step": step, **values, "time": date}
        self._submit(lambda db: db.execute(statement, row))

    def add_event(self, run_id: str, kind: str, payload: str, date: float) -> None:
        """Add an event, given as JSON."""
        self._submit(lambda db: db.execute(_INSERT_EVENT, (run_id, kind, payload, date)))

    def add_order(self, run_id: str, order: Order, date: float) -> None:
        """Add an order that this process obeys already."""
        text = json.dumps(order.to_json())

        def insert(connection: sqlite3.Connection) -> None:
            row = connection.execute(_INSERT_EVENT, (run_id, CONTROL, text, date)).lastrowid
            self._own_orders.add(row or 0)

        self._submit(insert)

    def earlier(self, run_id: str) -> tuple[list[Order], tuple[int, int, int, float]]:
        """Return the orders to a run so far, and the attempts, tokens in and out, and dollars that it has spent."""
        orders: dict[int, Order] = {}
        sums = [(0, 0, 0, 0.0)]

        def select(connection: sqlite3.Connection) -> None:
            orders.update(orders_of(connection, run_id))
            sums.append(connection.execute(_SPENT, (run_id,)).fetchone())
            self._last_order = max(orders, default=0)

        self._submit(select)
        self.flush()
        return list(orders.values()), sums[-1]

    def record(self, event: Any, date: float) -> None:
        """Queue an event of the engine; call it from the runtime's thread only.

        The writer's thread turns it into rows. If too much is waiting, the event is dropped and counted.
        """
        self.open()
        if self._writer is None:
            return
        if self._offered - self._taken > ROOM:
            self._drop()
            return
        offered = _Offered(event, date, _weight_of(event))
        if self._writer.put(offered):
            self._offered += offered.weight

    def _submit(self, write: Write | _Slow) -> None:
        self.open()
        if self._writer is not None:
            self._writer.put(write)

    def _describe(self, run_id: str) -> None:
        folder = Path.cwd()

        def work() -> Write:
            row = (git_commit(folder), versions(), platform_facts(), run_id)
            return lambda db: db.execute(_DESCRIBE_RUN, row)

        self._submit(_Slow(work))

    def _where(self) -> str:
        """Return the executors, replicas, batches and queues of the run, and how far it is, as JSON."""
        changed = places().since(self._places)
        lists = {name: [asdict(one) for one in getattr(changed, name)] for name in _PLACES}
        return json.dumps({name: some for name, some in (lists | {"progress": progress()}).items() if some})

    def _renew(self) -> None:
        self._recording = None if self._run_id is None else Recording(self._run_id, self.redaction)

    # The methods below run in the writer's thread.

    def _write(self, connection: sqlite3.Connection, items: list[Write | _Offered]) -> None:
        for item in items:
            if not isinstance(item, _Offered):
                item(connection)
            elif self._recording is not None:
                self._recording.write(connection, item.event, item.date)

    def _settle(self, item: Write | _Slow | _Offered, error: Exception | None) -> None:
        if isinstance(item, _Offered):
            self._taken += item.weight
        elif isinstance(item, _Slow) and error is not None and self._writer and self._writer.broken is None:
            logging.getLogger("afnio").warning(
                "the run's commit and versions are not recorded (%s: %s)", type(error).__name__, error
            )

    def _beat(self, connection: sqlite3.Connection) -> Write | None:
        """Obey new orders. Return a write of how many calls are on the wire and wait, and where, if this has changed.

        Orders are read outside of a transaction, so a run that does nothing locks no other process out.
        """
        if self._run_id is None or self._pid != os.getpid():
            return None
        with suppress(sqlite3.Error):  # the next write reports it
            for number, order in orders_of(connection, self._run_id, self._last_order).items():
                self._last_order = number
                if number not in self._own_orders:
                    self._obey(order)
        sent = calls_on_wire()
        counts = (sent, max(0, calls_under_way() - sent), self.dropped, self._where())
        if counts == self._counts:
            return None
        self._counts = counts
        row = (*counts, time.time(), self._run_id)
        return lambda db: db.execute(_UPDATE_COUNTS, row)

    def _warn(self, error: Exception) -> Exception:
        logging.getLogger("afnio").warning(
            "nothing more is recorded, because the run store %s can't be written (%s: %s); free some space, or set "
            "AFNIO_HOME to a folder that you may write to",
            self.path,
            type(error).__name__,
            error,
        )
        return error

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == 1:
            logging.getLogger("afnio").warning(
                "the run store %s is written more slowly than events arrive, so some events are left out; values that "
                "the program logs are kept",
                self.path,
            )


def _weight_of(event: Any) -> int:
    """Return about how many bytes an event keeps in memory."""
    if isinstance(event, CallEnded | CallReplayed):
        asked = 0 if event.request is None else len(event.request.encoded)
        return 1000 + asked + len(getattr(event.reply, "content", None) or "")
    if isinstance(event, SampleScored):
        return 500 + len(event.explanation)
    if isinstance(event, NodeLaunched):
        return 500 + sum(100 * len(entry.values) for entry in event.inputs if entry.values is not None)
    return 1000


def _free_name(connection: sqlite3.Connection, name: str) -> str:
    # No other process can take the name before the commit: the transaction has locked the file.
    candidate, suffix = name, 1
    while connection.execute("SELECT 1 FROM runs WHERE name = ?", (candidate,)).fetchone():
        suffix += 1
        candidate = f"{name}-{suffix}"
    return candidate


_INSERT_RUN: Final = """
INSERT INTO runs (
    id, name, description, namespace, project, status, config, identity, seed, host, pid, date_created, date_updated
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_FIND_RUNS: Final = """
SELECT id, name, description, namespace, project, status, config, identity, seed, date_created FROM runs
WHERE id = :id OR (identity = :identity AND status IN ('RUNNING', 'CRASHED'))
ORDER BY date_created DESC, rowid DESC"""
_CONTINUE_RUN: Final = """
UPDATE runs SET status = 'RUNNING', host = :host, pid = :pid, date_updated = :date,
    seconds_dead = seconds_dead + max(0, :date - date_updated)
WHERE id = :id"""
_UPDATE_RUN: Final = """
UPDATE runs SET status = :status, date_updated = :date, places = :places,
    in_flight = iif(:status = 'RUNNING', in_flight, 0), waiting = iif(:status = 'RUNNING', waiting, 0)
WHERE id = :id AND status = 'RUNNING'"""
_DESCRIBE_RUN: Final = "UPDATE runs SET git_commit = ?, versions = ?, platform = ? WHERE id = ?"
_UPDATE_COUNTS: Final = """
UPDATE runs SET in_flight = ?, waiting = ?, dropped = ?, places = ?, date_updated = ?
WHERE id = ? AND status = 'RUNNING'"""
_PLACES: Final = ("executors", "replicas", "batches", "queues")
# Without a step, the row gets one more than the name's largest, whichever process wrote that.
_INSERT_LOGGED: Final = """
INSERT INTO {table} (run_id, name, step, {columns}, time) VALUES (
    :run_id, :name,
    coalesce(
        :step,
        (SELECT max(step) + 1 FROM {table} WHERE run_id = :run_id AND name = :name),
        0
    ),
    {values}, :time
)"""
_SPENT: Final = """
SELECT coalesce(sum(attempts), 0), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
    coalesce(sum(cost), 0.0)
FROM calls WHERE run_id = ?"""
_INSERT_EVENT: Final = "INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, ?)"

# Tables about money that was spent. The program runs from its start and records the rest again.
_KEPT_WHEN_CONTINUED: Final = ("calls", "bodies", "retries")


# --- The folder of stores ---

# The most runs that an error lists.
NAMED: Final = 10
# The fewest characters of an id that may stand for the whole id.
PREFIX: Final = 4

MISSING: Final = "the folder doesn't exist; run this where your program runs, pass --dir, or set AFNIO_HOME"


def home_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of stores: `folder`, else AFNIO_HOME, else `.afnio` in the working directory.

    >>> home_folder("runs").as_posix()
    'runs'
    """
    return Path(folder or os.environ.get("AFNIO_HOME") or ".afnio")


def stores(home: Path) -> list[Path]:
    """Return the files of the stores under `home`, by namespace and project; none if there is no such folder.

    >>> stores(Path("nowhere"))
    []
    """
    return [path for path in sorted(home.glob("*/*.db")) if path.is_file()]


def find_store(home: Path, namespace: str, project: str) -> Path | None:
    """Return the file of a project, or None. The names are compared, never joined to a path, so `..` finds nothing.

    >>> find_store(Path("nowhere"), "..", "passwords") is None
    True
    """
    return next(
        (path for path in stores(home) if (path.parent.name, path.stem) == (namespace, project)), None
    )


def choose(word: str, runs: Sequence[RunRecord], home: Path, *, whole: bool = False) -> RunRecord:
    """Return the run that a user means by a word.

    Tried in this order: its id or namespace/project/name, its name, the beginning of either.

    Args:
        runs: all runs under `home`.
        whole: don't accept the beginning of a name. Used for deleting, where a mistaken match can't be undone.

    Raises:
        ChoiceError: if the word means no run, or several.
    """
    word = as_stored(word)
    for meant in (
        [run for run in runs if word in (run.id, run.path, run.key)],
        [run for run in runs if word == run.name],
        [run for run in runs if _begins(run, word, whole=whole)],
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            names = ", ".join(run.path for run in meant[:NAMED])
            raise ChoiceError(
                f"{word!r} must mean one run (got {len(meant)}: {names}); write namespace/project/name"
            )
    names = ", ".join(run.name for run in runs[:NAMED])
    if not names:
        reason = "it has no runs" if home.exists() else MISSING
        raise ChoiceError(f"there is no run {word!r} in {home}: {reason}")
    raise ChoiceError(f"there is no run {word!r} in {home}; it has {names} (`afnio runs list` shows all)")


def as_stored(word: str) -> str:
    """Return namespace/project, or namespace/project/name, with the first two as the store's file has them.

    >>> as_stored("me/My Project/calm-heron"), as_stored("calm-heron")
    ('me/my-project/calm-heron', 'calm-heron')
    """
    namespace, *rest = word.split("/")
    try:
        return "/".join([slug("namespace", namespace), slug("project", rest[0]), *rest[1:]]) if rest else word
    except ValueError:
        return word


def _begins(run: RunRecord, word: str, *, whole: bool) -> bool:
    if len(word) >= PREFIX and run.id.startswith(word):
        return True
    return bool(word) and not whole and (run.name.startswith(word) or run.path.startswith(word))


def store_path(namespace: str, project: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the project's file: in `folder`, else in AFNIO_HOME, else in `.afnio` of the working folder.

    >>> store_path("My Team", "Mails/2025", folder="runs").as_posix()
    'runs/my-team/mails-2025.db'
    """
    return home_folder(folder) / slug("namespace", namespace) / f"{slug('project', project)}.db"


def slug(kind: str, name: str) -> str:
    """Return the name in a form that is safe as a file's on every system."""
    if not isinstance(name, str):
        raise TypeError(f"the {kind} must be a string (got {name!r})")
    text = unicodedata.normalize("NFKC", name).lower()
    safe = re.sub(r"[^\w.-]+", "-", text)[:60].strip("-._")
    if not safe:
        raise ValueError(f"the {kind} must have a letter or a digit (got {name!r})")
    return safe


def lease_path(store: Path, run_id: str) -> Path:
    """Return the path of a run's lease, in the folder of its journal."""
    return store.with_suffix("") / f"{run_id}.lease"


# --- Is a run alive? ---


def take_lease(path: Path) -> LockFile | None:
    """Lock the file by which others see that a run's process is alive; None if the folder takes no locks.

    If the folder is read-only, the store already warns. If the file system has no locks, readers fall back to
    the PID.

    Raises:
        LockHeldError: another process has it, or another run of this one.
    """
    try:
        make_private_folder(path.parent)
        return LockFile(path)
    except OSError:
        return None


def live_status(store: Path, run_id: str, status: str, host: str, pid: int) -> str:
    """Return the status of a run now: CRASHED if the row reads RUNNING, but its process was killed.

    The status of a run on another machine is returned unchanged, because it can't be checked from here.
    """
    if status != "RUNNING" or host != socket.gethostname():
        return status
    held = is_locked(lease_path(store, run_id))
    alive = is_alive(pid) if held is None else held
    return "RUNNING" if alive else "CRASHED"


# --- Opening a file to read it ---

# Seconds that a reader waits for a file that another program has locked. A run's writer locks no reader out.
PATIENCE: Final = 2.0


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open a project's file for reading.

    Raises:
        StoreProblemError: the file is missing, damaged, locked or of another version.
    """
    if not path.is_file():
        raise StoreProblemError(f"there is no run store at {path}")
    try:
        connection = _connect_reader(path)
        try:
            if version_of(connection, path) == 0:
                raise StoreProblemError(
                    f"{path} must be a run store (got a file without tables); if it was just created, try again",
                    passing=True,
                )
        except BaseException:
            connection.close()
            raise
        connection.row_factory = sqlite3.Row
    except StoreVersionError as error:
        raise StoreProblemError(str(error)) from error
    except sqlite3.Error as error:
        raise problem_of(path, error) from error
    return connection


def problem_of(path: Path, error: sqlite3.Error) -> StoreProblemError:
    """Return an error of SQLite's as a sentence for users."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreProblemError(
            f"the run store {path} has been locked by another program for {PATIENCE:g} s; try again",
            passing=True,
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreProblemError(
            f"the run store {path} is damaged ({error}); `sqlite3 {path} .recover` may save parts of it"
        )
    return StoreProblemError(f"the run store {path} can't be read ({error})")


def _connect_reader(path: Path) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=PATIENCE, check_same_thread=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        # SQLite can't create its side files in this folder. No one can be writing there either, so read the
        # file as one that never changes.
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True, check_same_thread=False)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


# --- Removal ---


def remove_run(store: Path, run_id: str) -> None:
    """Delete a run's rows, its journal and its lease. Later runs use the file's free pages again.

    Raises:
        sqlite3.Error: the file can't be written.
    """
    with closing(connect(store)) as connection:
        # Overwrite what is deleted. A prompt may hold a secret, and free pages keep their content otherwise.
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
