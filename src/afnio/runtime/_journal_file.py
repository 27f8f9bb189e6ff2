"""What goes wrong with a journal, apart from the disk (a plain `JournalError`)."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, final

from afnio.errors import JournalError, JournalFormatError
from afnio.runtime.events import Usage

# The tables of a journal's file, how it is created, checked and connected to.


VERSION: Final = 2
"""What `user_version` says of the tables below. The tables of format 1 are the same, but its keys leave out
what a client adds to its requests, such as headers."""

OLDEST: Final = 1
"""The oldest format that can be used; such a file stays as it is."""

APPLICATION: Final = 0x41464E4A
"""What `application_id` says of every journal: "AFNJ"."""

BUSY_TIMEOUT: Final = 30.0
"""Seconds to wait for another program, such as a SQLite shell, that locks the file."""

CHECKED_BYTES: Final = 256 * 1024 * 1024
"""Up to this size every page is checked at opening, at about 1 s per GB; a larger file's damage is
found when it is read."""

# A reply's key is indexed, for changed programs and for reuse; so is the address of all that an address
# can be answered from. `source` of a "reused" row is the id of the row whose reply that address took.
# The ledger is kept beside the rows, in the same transactions, for adding up a million takes seconds.
TABLES: Final = (
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        session INTEGER NOT NULL,
        kind TEXT NOT NULL,
        address TEXT NOT NULL,
        scope TEXT NOT NULL,
        key BLOB NOT NULL,
        model TEXT NOT NULL,
        purpose TEXT NOT NULL,
        account TEXT NOT NULL,
        reusable INTEGER NOT NULL,
        source INTEGER REFERENCES records (id),
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        seconds REAL NOT NULL,
        created REAL NOT NULL,
        payload BLOB NOT NULL
    )""",
    "CREATE INDEX records_by_address ON records (address) WHERE kind IN ('reply', 'shared', 'reused')",
    "CREATE INDEX records_by_key ON records (key) WHERE kind = 'reply'",
    """CREATE TABLE ledger (
        purpose TEXT NOT NULL,
        model TEXT NOT NULL,
        account TEXT NOT NULL,
        calls INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        unknown INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        reserved_prompt_tokens INTEGER NOT NULL,
        reserved_completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (purpose, model, account)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)


def create_file(path: Path) -> None:
    """Put an empty journal at `path`, whole or not at all, for this user alone."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for statement in TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect_reader(path: Path, *, still: bool = False) -> sqlite3.Connection:
    """Connect without the right to change the file, not even by tidying up when the connection closes.

    While nobody else is connected, `still` keeps SQLite from leaving its side files there: without a log
    beside it the file is complete, and is read as if it could not change.
    """
    immutable = still and not path.with_name(path.name + "-wal").exists()
    return sqlite3.connect(
        f"{path.as_uri()}?mode=ro{'&immutable=1' if immutable else ''}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def connect_writer(path: Path) -> sqlite3.Connection:
    """Connect for appending: what is committed survives a power cut."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
    )
    connection.execute("PRAGMA synchronous = FULL")
    # Key digests fall on random pages of their index; so much of it stays in memory (KiB).
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    return connection


def check_file(path: Path, *, pages: bool = True) -> int:
    """Return the schema version of the journal at `path`, having looked at its `pages` too if so asked.

    Raises:
        JournalFormatError: it is no journal, or one that this Afnio can't use.
        JournalError: it can't be read.
    """
    try:
        with closing(connect_reader(path, still=True)) as connection:
            application = _pragma(connection, "application_id")
            version = _pragma(connection, "user_version")
            pages = pages and path.stat().st_size <= CHECKED_BYTES
            sound = not pages or _is_sound(connection)
    except (sqlite3.Error, OSError) as error:
        raise unreadable(path, error) from error
    if application != APPLICATION:
        raise JournalFormatError(f"The file [{path}] is not a journal of Afnio; name another path.")
    if version > VERSION:
        raise JournalFormatError(
            f"The journal [{path}] has the schema version [{version}], but this Afnio knows only "
            f"[{VERSION}]; install a newer one, or name another path."
        )
    if version < OLDEST or not sound:
        raise corrupt(path, "its pages don't fit together")
    return version


def unreadable(path: Path, error: Exception) -> JournalError:
    """Say in one sentence why the file can't be read."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return JournalFormatError(f"The file [{path}] is not a journal of Afnio; name another path.")
    if code == sqlite3.SQLITE_CORRUPT:
        return corrupt(path, str(error))
    return JournalError(
        f"The journal [{path}] can't be read ({error}); see to the rights and the disk, or name another path."
    )


def corrupt(path: Path, reason: str) -> JournalFormatError:
    """Say in one sentence what is wrong with the file."""
    return JournalFormatError(
        f"The journal [{path}] is corrupt ({reason}) and was left as it is; "
        "restore a copy of it, or name another path."
    )


def _pragma(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchall()[0][0])


def _is_sound(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]


# Record: what a journal keeps of one call; and its row in the file.


Kind = Literal["reply", "shared", "failed", "unknown"]

COMPRESSION: Final = 1
"""zlib's level; level 6 takes twice the time for a tenth less, on replies of a few kB."""

_NO_TOKENS: Final = Usage()
_MOST: Final = 10**12
"""Of one count; the file's integers end at 2^63."""

COLUMNS: Final = (
    "kind", "address", "scope", "key", "model", "purpose", "account", "reusable", "prompt_tokens",
    "completion_tokens", "cached_tokens", "reasoning_tokens", "attempts", "seconds", "created", "payload",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One call's reply, or an attempt that cost something and gave none.

    Attributes:
        address: where in the program the call was made, such as "epoch 2/step 5/3/17/forward".
        scope: the part of the address that names the scope, here "epoch 2/step 5".
        key: digest, in hex, of everything that can change the reply.
        account: base URL without credentials.
        payload: the encoded reply, opaque here; empty where there was none.
        usage: tokens as the provider counted them; of an "unknown" attempt, as they were reserved.
        attempts: how often the call was sent.
        seconds: what it took, from admission on.
        created: seconds since 1970 UTC.
        kind: "reply"; "shared" for a reply that another record of this journal counts; "failed" for an attempt
            that was paid and gave nothing; "unknown" for one that timed out on the wire and may have been
            paid. The first two answer a call, all but "shared" count as spent.
        reusable: whether another address may be answered with it: not a refusal, not a truncation.

    >>> Record(address="1/forward", scope="", key="c0ffee", model="m", purpose="forward").kind
    'reply'
    """

    address: str
    scope: str
    key: str
    model: str
    purpose: str
    account: str = ""
    payload: bytes = b""
    usage: Usage = _NO_TOKENS
    attempts: int = 1
    seconds: float = 0.0
    created: float = field(default_factory=time.time)
    kind: Kind = "reply"
    reusable: bool = True


def storable(record: Record) -> Record:
    """Return the record with counts that the file can hold, and sums of them too."""
    usage = record.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    if all(0 <= count <= _MOST for count in counts):
        return record
    return replace(record, usage=Usage(*(min(max(count, 0), _MOST) for count in counts)))


def to_row(record: Record, kind: str, payload: bytes) -> tuple[Any, ...]:
    """Return the values of COLUMNS.

    Raises:
        ValueError: a text that is no Unicode, a key that is no hex number.
    """
    texts = (record.address, record.scope, record.model, record.purpose, record.account)
    "".join(texts).encode()  # raises here, where it concerns one record, and not in the transaction
    usage = record.usage
    return (
        kind, texts[0], texts[1], bytes.fromhex(record.key), *texts[2:], record.reusable, usage.prompt_tokens,
        usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens, record.attempts, record.seconds,
        record.created, zlib.compress(payload, COMPRESSION),
    )  # fmt: skip


def from_row(row: Sequence[Any]) -> Record:
    """Return the record of a reply's row.

    Raises:
        zlib.error: the payload is damaged.
    """
    return Record(
        kind=row[0],
        address=row[1],
        scope=row[2],
        key=row[3].hex(),
        model=row[4],
        purpose=row[5],
        account=row[6],
        reusable=bool(row[7]),
        usage=Usage(*row[8:12]),
        attempts=row[12],
        seconds=row[13],
        created=row[14],
        payload=zlib.decompress(row[15]),
    )


# Ledger: what was spent, per purpose, model and account.


NUMBERS: Final = (
    "calls", "failed", "unknown", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens",
    "reserved_prompt_tokens", "reserved_completion_tokens",
)  # fmt: skip

_PLACES: Final = ", ".join("?" * (3 + len(NUMBERS)))
_SUMS: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in NUMBERS)

ADD_SUMS: Final = f"INSERT INTO ledger VALUES ({_PLACES}) ON CONFLICT DO UPDATE SET {_SUMS}"  # noqa: S608 - constants
READ_SUMS: Final = f"SELECT purpose, model, account, {', '.join(NUMBERS)} FROM ledger"  # noqa: S608 - constants


class JournalItem(NamedTuple):
    """What the ledger tells apart."""

    purpose: str
    model: str
    account: str


@dataclass(frozen=True, slots=True)
class JournalSpent:
    """A sum over calls.

    Attributes:
        calls: those that got a reply.
        failed: attempts that were paid and gave nothing.
        unknown: attempts that timed out on the wire, paid or not.
        usage: tokens of the calls and the failed attempts, as the provider counted them.
        reserved: tokens that the unknown attempts may have used at most.
    """

    calls: int = 0
    failed: int = 0
    unknown: int = 0
    usage: Usage = _NO_TOKENS
    reserved: Usage = _NO_TOKENS

    def __add__(self, other: JournalSpent) -> JournalSpent:
        return JournalSpent(
            self.calls + other.calls,
            self.failed + other.failed,
            self.unknown + other.unknown,
            self.usage + other.usage,
            self.reserved + other.reserved,
        )


def of(record: Record) -> JournalSpent:
    """Return what one record adds."""
    if record.kind == "unknown":
        return JournalSpent(unknown=1, reserved=record.usage)
    return JournalSpent(calls=record.kind == "reply", failed=record.kind == "failed", usage=record.usage)


def sums_of(records: Iterable[Record]) -> dict[JournalItem, JournalSpent]:
    """Add records up."""
    sums: dict[JournalItem, JournalSpent] = {}
    for record in records:
        item = JournalItem(record.purpose, record.model, record.account)
        sums[item] = sums.get(item, JournalSpent()) + of(record)
    return sums


def read_sums(connection: sqlite3.Connection) -> dict[JournalItem, JournalSpent]:
    """Return what the file says was spent so far."""
    return {
        JournalItem(*row[:3]): JournalSpent(row[3], row[4], row[5], Usage(*row[6:10]), Usage(*row[10:12]))
        for row in connection.execute(READ_SUMS).fetchall()
    }


def add_sums(connection: sqlite3.Connection, sums: Mapping[JournalItem, JournalSpent]) -> None:
    """Add sums to the file's, in the caller's transaction."""
    for item, spent in sums.items():
        usage, reserved = spent.usage, spent.reserved
        connection.execute(
            ADD_SUMS,
            (
                *item, spent.calls, spent.failed, spent.unknown, usage.prompt_tokens, usage.completion_tokens,
                usage.cached_tokens, usage.reasoning_tokens, reserved.prompt_tokens,
                reserved.completion_tokens,
            ),
        )  # fmt: skip


# Reader: the records that were there when the journal was opened, by address and by key.
#
# Indexed look-ups, not a copy in memory: at a million records one takes 20 to 30 µs, opening 2 ms. Every
# statement is fetched to its end, for an open one would keep the log from being folded into the file.


_SELECTED = ", ".join(COLUMNS)
BY_ADDRESS = f"""
    SELECT id, source, key, {_SELECTED} FROM records
    WHERE address = ? AND kind IN ('reply', 'shared', 'reused') AND id <= ? ORDER BY session DESC, id
"""  # noqa: S608 - constants
BY_ID = f"SELECT {_SELECTED} FROM records WHERE id = ?"  # noqa: S608 - constants
BY_KEY = """
    SELECT id, session, scope, address FROM records
    WHERE key = ? AND kind = 'reply' AND reusable AND id <= ?
"""


class Found(NamedTuple):
    """A row that an address can be answered from: itself, or the one whose reply the address took."""

    reply: int
    key: bytes
    row: tuple[Any, ...] | None


@final
class JournalReader:
    """A connection that can't change the file.

    Attributes:
        last: the id of the newest record at opening, 0 if there was none.
        session: the number of this opening among those that wrote something.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = connect_reader(path)
        try:
            newest = self._fetch("SELECT id, session FROM records ORDER BY id DESC LIMIT 1")
        except BaseException:
            self.close()
            raise
        self.last: int = newest[0][0] if newest else 0
        self.session: int = newest[0][1] + 1 if newest else 1

    def at(self, address: str) -> list[Found]:
        """Return what the address was answered with: the newest session's first, in order of record."""
        return [
            Found(row[0] if row[1] is None else row[1], row[2], row[3:] if row[1] is None else None)
            for row in self._fetch(BY_ADDRESS, address, self.last)
        ]

    def has(self, address: str, key: str) -> bool:
        """Whether the address was answered to a request with this key, in hex."""
        return any(found.key.hex() == key for found in self.at(address))

    def record(self, found: Found) -> Record:
        """Return the record behind a found row."""
        return self._decoded(found.row) if found.row is not None else self.by_id(found.reply)

    def by_id(self, number: int) -> Record:
        return self._decoded(self._fetch(BY_ID, number)[0])

    def replies(self, key: bytes, scope: str | None = None) -> list[int]:
        """Return the reusable replies to a request, of one scope or all: oldest session first, by address."""
        rows = self._fetch(BY_KEY, key, self.last)
        if scope is not None:
            rows = [row for row in rows if row[2] == scope]
        rows.sort(key=lambda row: (row[1], natural(row[3]), row[0]))
        return [row[0] for row in rows]

    def spent(self) -> dict[JournalItem, JournalSpent]:
        try:
            return read_sums(self._connection)
        except sqlite3.Error as error:
            raise unreadable(self.path, error) from error

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, statement: str, *values: object) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise unreadable(self.path, error) from error

    def _decoded(self, row: tuple[Any, ...]) -> Record:
        try:
            return from_row(row)
        except zlib.error as error:
            raise corrupt(self.path, f"the reply at [{row[1]}]: {error}") from error


def natural(address: str) -> list[str | int]:
    """Return a sort key that puts "step 10" behind "step 9".

    >>> sorted(["step 10/1", "step 9/2", "step 9/10"], key=natural)
    ['step 9/2', 'step 9/10', 'step 10/1']
    """
    # Splitting by a group yields text and digits in turn, so that like meets like.
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", address))]


# JournalStat: what is in a journal, without opening it for use.


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
    spent: Mapping[JournalItem, JournalSpent]
    size: int
    first: float | None
    last: float | None

    @property
    def total(self) -> JournalSpent:
        return sum(self.spent.values(), JournalSpent())

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """Read the summary, also while a process writes.

        Raises:
            JournalFormatError: it is no journal, or one that this Afnio can't use.
            JournalError: it can't be read.
        """
        file = Path(os.path.realpath(path))
        version = check_file(file, pages=False)
        try:
            with closing(connect_reader(file, still=True)) as connection:
                connection.execute("BEGIN")  # one state of the file for all that follows
                spent = read_sums(connection)
                ends = connection.execute(ENDS).fetchall()
                connection.execute("COMMIT")
            size = sum(part.stat().st_size for part in _parts(file))
        except (sqlite3.Error, OSError) as error:
            raise unreadable(file, error) from error
        first, last = (ends[0][1], ends[-1][1]) if ends else (None, None)
        return cls(file, version, ends[-1][0] if ends else 0, spent, size, first, last)


def _parts(path: Path) -> list[Path]:
    log = path.with_name(path.name + "-wal")
    return [path, log] if log.exists() else [path]


# Writer: the one thread that appends to a journal, a group of records per transaction.


Done: TypeAlias = Callable[[BaseException | None], object]

GROUP: Final = 512
"""At most so many records per transaction: more don't make it faster, but the first one's wait longer."""

_WRITTEN: Final = ("session", "source", *COLUMNS)
_PLACEHOLDERS: Final = f"({', '.join('?' * len(_WRITTEN))})"


class PendingRecord(NamedTuple):
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
class JournalWriter:
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
        self.spent: dict[JournalItem, JournalSpent] = {}
        self._session = session
        self._ended = ended
        self._pid = os.getpid()
        self._queue: SimpleQueue[PendingRecord | Future[None] | None] = SimpleQueue()
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

    def put(self, item: PendingRecord | Future[None]) -> bool:
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
            connection = connect_writer(self.path)
        except Exception as error:
            opened.set_exception(unreadable(self.path, error))
            return
        opened.set_result(None)
        del opened
        closing = False
        while not closing:
            group = self._next_group()
            closing = group[-1] is None
            self._append(connection, [item for item in group if isinstance(item, PendingRecord)])
            for item in group:
                if isinstance(item, Future):
                    item.set_result(None)
        connection.close()
        self._ended()

    def _next_group(self) -> list[PendingRecord | Future[None] | None]:
        group = [self._queue.get()]
        try:
            while group[-1] is not None and len(group) < GROUP:
                group.append(self._queue.get_nowait())
        except Empty:
            pass
        return group

    def _append(self, connection: sqlite3.Connection, entries: Sequence[PendingRecord]) -> None:
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

    def _row(self, entry: PendingRecord) -> tuple[Any, ...]:
        record = entry.record
        payload = record.payload if entry.payload is None else entry.payload()
        kind = record.kind if entry.source is None else "reused"
        return (self._session, entry.source, *to_row(record, kind, payload))

    def _commit(
        self, connection: sqlite3.Connection, rows: list[tuple[Any, ...]], paid: list[Record]
    ) -> None:
        sums = sums_of(paid)
        try:
            connection.execute("BEGIN IMMEDIATE")
            _insert(connection, rows)
            add_sums(connection, sums)
            connection.execute("COMMIT")
        except Exception as error:
            self.broken = _refused(self.path, error)
            _undo(connection)
        else:
            for item, spent in sums.items():
                self.spent[item] = self.spent.get(item, JournalSpent()) + spent


def _is_paid(entry: PendingRecord) -> bool:
    return entry.source is None and entry.record.kind != "shared"


def _insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    # Each statement gives the interpreter's lock away, and a busy event loop keeps it for 5 ms: one
    # statement for as many rows as SQLite has room for values (999 until 3.32).
    size = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(_WRITTEN)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        places = ", ".join([_PLACEHOLDERS] * len(chunk))
        statement = f"INSERT INTO records ({', '.join(_WRITTEN)}) VALUES {places}"  # noqa: S608 - constants
        connection.execute(statement, [value for row in chunk for value in row])


def _undo(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except Exception:  # SQLite rolls back on its own when the connection closes
        logging.getLogger("afnio").debug("the journal's transaction was not rolled back", exc_info=True)


def _tell(entry: PendingRecord, error: BaseException | None) -> None:
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
