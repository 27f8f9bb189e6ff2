"""The file of a journal: a SQLite database with one row for each call, and the sums of what they cost.

This module holds the format and everything that touches SQLite; `_journal` decides what to do with the
records. A file is opened twice: by a `JournalReader`, which looks up the records of earlier sessions and can't
change the file, and by `open_writer`, whose thread appends new ones. `JournalStat` summarizes a file, also one
that another process is writing.

**Rows are only ever added.** `records.kind` is one of

* `reply`: a call and its reply;
* `shared`: a call whose reply another lane of its launch had asked for; it cost nothing;
* `failed`: an attempt that was paid for and gave no reply;
* `unknown`: an attempt that timed out on the wire and may have been paid for;
* `reused`: an address that was answered with the reply of another row, named by `source`. A later run then
  finds the reply at the address where this run had it;
* `result`: what a durable function returned in a worker. It is no call: no ledger counts it, and no call is
  answered with it;
* `parcel`: a new state of a parcel of calls at a provider's batch API (`_parcels`). Its tokens are those of lines that
  were paid for and that no call has asked for.

**The `ledger` table** holds the sums per purpose, model and account. It is updated in the transaction that
inserts the rows, so it always matches them. Adding up a million rows would take seconds at each opening.

**Versions.** `user_version` is 2. Any other format is refused with an error. The indexes of results and of
parcels are made with the first of them, because most journals have none.

**Durability.** The file is in WAL mode with `synchronous = FULL`: a committed record survives a power cut. A
new file is made under another name and moved into place, so a half-made one never has the journal's name.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, final

from afnio.errors import JournalError, JournalFormatError
from afnio.runtime._files import SQLiteWriter
from afnio.runtime._spending import Item, Ledger, Spent
from afnio.runtime.events import Usage

Kind = Literal["reply", "shared", "failed", "unknown", "result", "parcel"]
# The two kinds of lookups: replies to calls, and results of functions.
Answering = Literal["reply", "result"]

_NO_TOKENS: Final = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One call's reply, or an attempt that cost something and gave none.

    Attributes:
        address: where in the program the call was made, such as "epoch 2/step 5/3/17/forward".
        scope: the part of the address that names the scope, here "epoch 2/step 5".
        key: digest, in hex, of everything that can change the reply.
        account: base URL without credentials.
        payload: the encoded reply, opaque here; empty if there was none.
        usage: tokens that the provider counted, or for an "unknown" attempt the tokens reserved for it.
        attempts: how often the call was sent.
        seconds: on the wire, over all attempts.
        created: seconds since 1970 UTC.
        kind: "reply"; "shared" for a reply that another record of this journal counts; "failed" for an attempt
            that was paid for and gave nothing; "unknown" for one that timed out on the wire and may have been
            paid for; "result" for what a durable function returned; "parcel" for a parcel's state. The first two
            answer a call. All but "shared" and "result" count as spent, a "parcel" only if it has tokens.
        reusable: False for a refusal or a truncated reply; then it answers its own address only.

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


# --- The format ---

# `user_version` of the tables below.
VERSION: Final = 2

# `application_id` of every journal: "AFNJ".
APPLICATION: Final = 0x41464E4A

# Replies are indexed by key, to find them in a changed program and for reuse. All rows that can answer an
# address are indexed by address.
_RESULT_INDEXES: Final = (
    "CREATE INDEX IF NOT EXISTS results_by_address ON records (address) WHERE kind = 'result'",
    "CREATE INDEX IF NOT EXISTS results_by_key ON records (key) WHERE kind = 'result'",
)

_PARCEL_INDEX: Final = "CREATE INDEX IF NOT EXISTS parcels ON records (id) WHERE kind = 'parcel'"

_TABLES: Final = (
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
    *_RESULT_INDEXES,
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

_COLUMNS: Final = (
    "kind", "address", "scope", "key", "model", "purpose", "account", "reusable", "prompt_tokens",
    "completion_tokens", "cached_tokens", "reasoning_tokens", "attempts", "seconds", "created", "payload",
)  # fmt: skip

# zlib's level. Level 6 takes twice the time and saves another tenth, on replies of a few kB.
_COMPRESSION: Final = 1

# Tokens in one record. SQLite's integers end at 2^63, and sums must fit too.
_LARGEST_COUNT: Final = 10**12


def _to_row(record: Record, kind: str, payload: bytes) -> tuple[Any, ...]:
    """Return the values of _COLUMNS.

    Raises:
        ValueError: a text isn't valid Unicode, or the key isn't hex.
    """
    texts = (record.address, record.scope, record.model, record.purpose, record.account)
    # Fail here, for this record alone. In the transaction SQLite would reject the whole group.
    "".join(texts).encode()
    usage = record.usage
    return (
        kind, texts[0], texts[1], bytes.fromhex(record.key), *texts[2:], record.reusable, usage.prompt_tokens,
        usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens, record.attempts, record.seconds,
        record.created, zlib.compress(payload, _COMPRESSION),
    )  # fmt: skip


def _from_row(row: Sequence[Any]) -> Record:
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


# --- Sums ---

_READ_SUMS: Final = """\
SELECT purpose, account, model, calls, failed, unknown, prompt_tokens, completion_tokens, cached_tokens,
    reasoning_tokens, reserved_prompt_tokens, reserved_completion_tokens
FROM ledger"""
_ADD_SUMS: Final = """\
INSERT INTO ledger (
    purpose, account, model, calls, failed, unknown, prompt_tokens, completion_tokens, cached_tokens,
    reasoning_tokens, reserved_prompt_tokens, reserved_completion_tokens
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    calls = calls + excluded.calls,
    failed = failed + excluded.failed,
    unknown = unknown + excluded.unknown,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
    reserved_prompt_tokens = reserved_prompt_tokens + excluded.reserved_prompt_tokens,
    reserved_completion_tokens = reserved_completion_tokens + excluded.reserved_completion_tokens"""


def _sums_of(records: Iterable[Record]) -> dict[Item, Spent]:
    # Of plain numbers: adding up one `Spent` for each record took longer than inserting its row.
    totals: dict[tuple[Item, Kind], list[int]] = {}
    for record in records:
        usage = record.usage
        group = Item(record.purpose, record.account, record.model), record.kind
        total = totals.setdefault(group, [0, 0, 0, 0, 0])
        total[0] += 1
        total[1] += usage.prompt_tokens
        total[2] += usage.completion_tokens
        total[3] += usage.cached_tokens
        total[4] += usage.reasoning_tokens
    sums: dict[Item, Spent] = {}
    for (item, kind), (count, *tokens) in totals.items():
        spent = _spent(kind, count, Usage(*tokens))
        sums[item] = sums[item] + spent if item in sums else spent
    return sums


def _spent(kind: Kind, count: int, usage: Usage) -> Spent:
    # Rejected attempts cost nothing and have no record, so a reply counts as one attempt here.
    if kind == "unknown":
        return Spent.of(None, attempts=count, unknown=count, reserved=usage)
    return Spent.of(None, usage, calls=count if kind == "reply" else 0, attempts=count)


def _add_sums(connection: sqlite3.Connection, sums: Mapping[Item, Spent]) -> None:
    """Add sums to the file's, in the caller's transaction."""
    for item, spent in sums.items():
        usage, reserved = spent.usage, spent.reserved
        failed = spent.attempts - spent.calls - spent.unknown
        connection.execute(
            _ADD_SUMS,
            (
                *item, spent.calls, failed, spent.unknown, usage.prompt_tokens, usage.completion_tokens,
                usage.cached_tokens, usage.reasoning_tokens, reserved.prompt_tokens,
                reserved.completion_tokens,
            ),
        )  # fmt: skip


def _read_sums(connection: sqlite3.Connection) -> Ledger:
    """Return the file's ledger. It has no prices, so all of its calls are `unpriced`."""
    return Ledger(
        {
            Item(purpose, account, model): Spent.of(
                None,
                Usage(*tokens[:4]),
                calls=calls,
                attempts=calls + failed + unknown,
                unknown=unknown,
                reserved=Usage(*tokens[4:]),
            )
            for purpose, account, model, calls, failed, unknown, *tokens in connection.execute(_READ_SUMS)
        }
    )


# --- Reading ---

_SELECTED = ", ".join(_COLUMNS)


def _by_address(kinds: str) -> str:
    return f"""
        SELECT id, source, key, {_SELECTED} FROM records
        WHERE address = ? AND kind {kinds} AND id <= ? ORDER BY session DESC, id
    """  # noqa: S608 - constants


def _by_key(kind: str) -> str:
    return f"""
        SELECT id, session, scope, address FROM records
        WHERE key = ? AND kind = '{kind}' AND reusable AND source IS NULL AND id <= ?
    """  # noqa: S608 - constants


_BY_ADDRESS: Final[Mapping[Answering, str]] = {
    "reply": _by_address("IN ('reply', 'shared', 'reused')"),
    "result": _by_address("= 'result'"),
}
_BY_KEY: Final[Mapping[Answering, str]] = {"reply": _by_key("reply"), "result": _by_key("result")}
_BY_ID = f"SELECT {_SELECTED} FROM records WHERE id = ?"  # noqa: S608 - constants
_HAS_RESULTS: Final = "SELECT 1 FROM sqlite_schema WHERE name = 'results_by_address'"
_PARCELS: Final = "SELECT address, payload FROM records WHERE kind = 'parcel' AND id <= ? ORDER BY id"
_OF_KEY: Final = "SELECT scope, address FROM records WHERE kind = 'reply' AND key >= ? AND key < ?"


class Found(NamedTuple):
    """A row that can answer an address: `row` itself, or if that is None the row with the id `reply`."""

    reply: int
    key: bytes
    row: tuple[Any, ...] | None


@final
class JournalReader:
    """Looks up the records that were in the file when it was opened, by address and by key.

    Every look-up is an indexed query. At a million records one takes 20 to 30 µs, and opening takes 2 ms; a
    copy in memory would take seconds to load.

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
        # Without their indexes, each search for a result would read the whole file.
        self._kinds: set[Answering] = {"reply"} if self.last else set()  # a new file has nothing
        if self.last and self._fetch(_HAS_RESULTS):
            self._kinds.add("result")

    def at(self, address: str, kind: Answering = "reply") -> list[Found]:
        """Return the rows that answered the address: the newest session's first, in order of record."""
        rows = self._fetch(_BY_ADDRESS[kind], address, self.last) if kind in self._kinds else []
        return [
            Found(row[0] if row[1] is None else row[1], row[2], row[3:] if row[1] is None else None)
            for row in rows
        ]

    def record(self, match: Found) -> Record:
        """Return the record behind a match."""
        return self._decoded(match.row) if match.row is not None else self.by_id(match.reply)

    def by_id(self, number: int) -> Record:
        return self._decoded(self._fetch(_BY_ID, number)[0])

    def replies(self, key: bytes, scope: str | None = None, kind: Answering = "reply") -> list[int]:
        """Return the reusable replies to a request, of one scope or all: oldest session first, by address."""
        if kind not in self._kinds:
            return []
        rows = self._fetch(_BY_KEY[kind], key, self.last)
        if scope is not None:
            rows = [row for row in rows if row[2] == scope]
        rows.sort(key=lambda row: (row[1], _natural(row[3]), row[0]))
        return [row[0] for row in rows]

    def reply_below(self, key: bytes, address: str) -> Record | None:
        """Return a reusable reply to a request at an address that begins with `address` and a slash, or None."""
        for number, _, _, recorded in self._fetch(_BY_KEY["reply"], key, self.last) if self._kinds else ():
            if recorded.startswith(f"{address}/"):
                return self.by_id(number)
        return None

    def parcels(self) -> list[tuple[str, bytes]]:
        """Return the states of parcels, in order: name and payload."""
        if not self.last or not self._fetch("SELECT 1 FROM sqlite_schema WHERE name = 'parcels'"):
            return []
        return [(name, zlib.decompress(payload)) for name, payload in self._fetch(_PARCELS, self.last)]

    def ledger(self) -> Ledger:
        """Return the sums in the file now."""
        try:
            return _read_sums(self._connection)
        except sqlite3.Error as error:
            raise unreadable(self.path, error) from error

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, statement: str, *values: object) -> list[Any]:
        # To the end: an open statement would keep SQLite from folding the write-ahead log into the file.
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise unreadable(self.path, error) from error

    def _decoded(self, row: tuple[Any, ...]) -> Record:
        try:
            return _from_row(row)
        except zlib.error as error:
            raise corrupt(self.path, f"the reply at [{row[1]}]: {error}") from error


def _natural(address: str) -> list[str | int]:
    """Return a sort key that puts "step 10" behind "step 9".

    >>> sorted(["step 10/1", "step 9/2", "step 9/10"], key=_natural)
    ['step 9/2', 'step 9/10', 'step 10/1']
    """
    # Splitting by a group yields text and digits in turn, so text is never compared with a number.
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", address))]


# --- Writing ---

Done: TypeAlias = Callable[[BaseException | None], object]

# Records per transaction. More aren't faster, but the first one's caller waits longer.
_GROUP: Final = 512

_WRITTEN: Final = ("session", "source", *_COLUMNS)
_PLACEHOLDERS: Final = f"({', '.join('?' * len(_WRITTEN))})"


class PendingRecord(NamedTuple):
    """A record to append.

    Attributes:
        done: called in the writer's thread, with None or the error.
        payload: makes the payload in the writer's thread, in place of the record's own.
        source: the id of the record whose reply or result this address took. A reply's row is then "reused".
    """

    record: Record
    done: Done
    payload: Callable[[], bytes] | None = None
    source: int | None = None


class _Row(NamedTuple):
    values: tuple[Any, ...]
    paid: Record | None


def open_writer(path: Path, session: int, ended: Callable[[], object]) -> SQLiteWriter[PendingRecord, _Row]:
    """Start the thread that appends to the journal at `path`.

    Args:
        ended: called once the file is closed; not if opening it failed.

    Raises:
        JournalError: the file can't be opened.
    """

    def connect() -> sqlite3.Connection:
        try:
            return connect_writer(path)
        except Exception as error:
            raise unreadable(path, error) from error

    def prepare(pending: PendingRecord) -> _Row:
        try:
            return _prepared(pending, session)
        except Exception as error:
            raise _unfit(pending.record, error) from error

    return SQLiteWriter(
        "afnio-journal",
        connect,
        prepare=prepare,
        write=_write,
        settled=lambda pending, error: pending.done(error),
        broke=lambda error: _refused(path, error),
        group=_GROUP,
        ended=ended,
    )


def _prepared(pending: PendingRecord, session: int) -> _Row:
    record, source = _storable(pending.record), pending.source
    payload = record.payload if pending.payload is None else pending.payload()
    kind = record.kind if source is None or record.kind == "result" else "reused"
    values = (session, source, *_to_row(record, kind, payload))
    counts = source is None and record.kind not in ("shared", "result")
    if record.kind == "parcel":
        counts = record.usage != _NO_TOKENS
    return _Row(values, record if counts else None)


def _storable(record: Record) -> Record:
    """Clamp token counts that the file can't hold; a broken provider must not break the journal."""
    usage = record.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    if all(0 <= count <= _LARGEST_COUNT for count in counts):
        return record
    return replace(record, usage=Usage(*(min(max(count, 0), _LARGEST_COUNT) for count in counts)))


def _write(connection: sqlite3.Connection, rows: list[_Row]) -> None:
    if any(row.values[2] == "result" for row in rows):
        for statement in _RESULT_INDEXES:
            connection.execute(statement)
    if any(row.values[2] == "parcel" for row in rows):
        connection.execute(_PARCEL_INDEX)
    _insert(connection, [row.values for row in rows])
    _add_sums(connection, _sums_of(row.paid for row in rows if row.paid is not None))


def _insert(connection: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    # One statement for as many rows as SQLite takes values (999 before 3.32). Each statement releases the
    # interpreter's lock, and a busy event loop keeps it for 5 ms before this thread runs again.
    size = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(_WRITTEN)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        places = ", ".join([_PLACEHOLDERS] * len(chunk))
        statement = f"INSERT INTO records ({', '.join(_WRITTEN)}) VALUES {places}"  # noqa: S608 - constants
        connection.execute(statement, [value for row in chunk for value in row])


# --- Summary ---

_ENDS: Final = (
    "SELECT id, created FROM records WHERE id = 1 OR id = (SELECT max(id) FROM records) ORDER BY id"
)


@dataclass(frozen=True, slots=True)
class JournalStat:
    """A summary of a journal.

    Attributes:
        version: of the file's format.
        records: rows of all kinds, including those that only note which reply an address took.
        spent: per purpose, account and model, without prices.
        size: bytes of the file and its write-ahead log.
        first: when the oldest record was made, in seconds since 1970 UTC; None without records.
        last: when the newest one was made.
    """

    path: Path
    version: int
    records: int
    spent: Ledger
    size: int
    first: float | None
    last: float | None

    @property
    def total(self) -> Spent:
        return self.spent.total

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """Read the summary, also while a process writes.

        Raises:
            JournalFormatError: the file isn't a journal, or this Afnio can't use its format.
            JournalError: it can't be read.
        """
        file = Path(os.path.realpath(path))
        version = check_file(file, pages=False)
        try:
            with closing(connect_reader(file, still=True)) as connection:
                connection.execute("BEGIN")  # both queries see the same state of the file
                spent = _read_sums(connection)
                ends = connection.execute(_ENDS).fetchall()
                connection.execute("COMMIT")
            size = sum(part.stat().st_size for part in (file, _log_of(file)) if part.exists())
        except (sqlite3.Error, OSError) as error:
            raise unreadable(file, error) from error
        first, last = (ends[0][1], ends[-1][1]) if ends else (None, None)
        return cls(file, version, ends[-1][0] if ends else 0, spent, size, first, last)


def recorded_calls(path: Path, keys: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the scopes and addresses of the recorded replies to some requests, by the beginnings of their keys.

    Args:
        keys: even numbers of hex digits.
    """
    calls = {}
    try:
        with closing(connect_reader(path)) as connection:
            for key in dict.fromkeys(keys):
                first = bytes.fromhex(key)
                rows = connection.execute(_OF_KEY, (first, first + 32 * b"\xff")).fetchall()
                calls[key] = [(scope, address) for scope, address in rows]
    except sqlite3.Error as error:
        raise unreadable(path, error) from error
    return calls


# --- Files and connections ---

# Seconds to wait for another program, such as a SQLite shell, that locks the file.
BUSY_TIMEOUT: Final = 30.0

# Up to this size every page is checked at opening, at about 1 s per GB. Damage in a larger file is found when
# the page is read.
CHECKED_BYTES: Final = 256 * 1024 * 1024


def create_file(path: Path) -> None:
    """Put an empty journal at `path`, whole or not at all, for this user only."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    new.replace(path)
    # Without this a power cut may forget the file's name.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect_reader(path: Path, *, still: bool = False) -> sqlite3.Connection:
    """Connect read-only; even closing the connection leaves the file as it was.

    Args:
        still: if no one else is connected, leave no side files either. A file without a write-ahead log is
            complete, and can be read as one that never changes.
    """
    immutable = still and not _log_of(path).exists()
    return sqlite3.connect(
        f"{path.as_uri()}?mode=ro{'&immutable=1' if immutable else ''}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def connect_writer(path: Path) -> sqlite3.Connection:
    """Connect for appending: a committed record survives a power cut."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT, isolation_level=None
    )
    connection.execute("PRAGMA synchronous = FULL")
    # Digests fall on random pages of their index. Keep 16 MiB of it in memory.
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    return connection


def check_file(path: Path, *, pages: bool = True) -> int:
    """Return the format's version of the journal at `path`.

    Args:
        pages: also check every page of a file of at most `CHECKED_BYTES`.

    Raises:
        JournalFormatError: the file isn't a journal, or this Afnio can't use its format.
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
        raise _foreign(path)
    if version != VERSION:
        raise JournalFormatError(
            f"a journal must have format {VERSION} (got {version}: {path}); use the Afnio that wrote it, or name "
            "another path"
        )
    if not sound:
        raise corrupt(path, "its pages don't fit together")
    return version


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _pragma(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchall()[0][0])


def _is_sound(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]


# --- Errors ---


def unreadable(path: Path, error: Exception) -> JournalError:
    """Return the error for a file that can't be read."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return _foreign(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return corrupt(path, str(error))
    return JournalError(
        f"the journal must be readable ({path}: {error}); check its permissions and the disk, or name another path"
    )


def corrupt(path: Path, reason: str) -> JournalFormatError:
    """Return the error for a damaged file."""
    return JournalFormatError(
        f"the journal must be undamaged (got {path}, {reason}); it was left unchanged: restore a copy of it, or name "
        "another path"
    )


def _foreign(path: Path) -> JournalFormatError:
    return JournalFormatError(f"the path must name a journal of Afnio (got {path}); name another path")


def _refused(path: Path, error: Exception) -> JournalError:
    reason = f"{type(error).__name__}: {error}"
    broken = JournalError(
        f"the journal {path} can't be written any more ({reason}); make room there and start again: every reply that "
        "was recorded so far is kept"
    )
    broken.__cause__ = error
    return broken


def _unfit(record: Record, error: Exception) -> JournalError:
    return JournalError(
        f"the reply to {record.address} can't be recorded ({type(error).__name__}: {error}); nothing else is affected"
    )
