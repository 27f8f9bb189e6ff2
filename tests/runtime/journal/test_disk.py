"""A disk that takes no more: nothing acknowledged is lost, every waiter is told, nothing hangs."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from afnio.errors import JournalError
from afnio.runtime import _journal_file
from afnio.runtime._journal import Journal

if TYPE_CHECKING:
    from conftest import Reply, Script


def test_file_size_limit(path: Path, script: Script) -> None:
    """The system refuses at 1 MB; more room later, and the journal goes on."""
    program = script(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, resource.RLIM_INFINITY))
        good, bad = [], []
        def done(error, number):
            (good if error is None else bad).append((number, str(error)))
        journal = Journal.open(path)
        for number in range(2000):
            journal.append(reply(f"{number}", os.urandom(500)), lambda error, n=number: done(error, n))
            try:
                journal.flush() if number % 50 == 49 else None
            except JournalError as error:
                assert error is journal.broken
        assert [*range(2000)] == [number for number, _ in good + bad], (len(good), len(bad))
        assert {text for _, text in bad} == {str(journal.broken)}
        assert journal.take("0", "aa") is None
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        journal.append(reply("late"), lambda error: done(error, "late"))
        journal.close()
        assert bad[-1][0] == "late"
        print(len(good), journal.broken)
        """
    )
    output, errors = program.communicate(timeout=50)
    assert errors == ""
    good, _, sentence = output.strip().partition(" ")
    assert sentence.startswith(f"the journal {path} can't be written any more (")
    assert sentence.endswith("make room there and start again: every reply that was recorded so far is kept")
    assert 0 < int(good) < 2000
    with Journal.open(path) as journal:
        assert [True] * int(good) == [journal.take(f"{n}", "aa") is not None for n in range(int(good))]
        assert journal.spent().total.calls == int(good)


class Failing(sqlite3.Connection):
    """A connection whose `fails`-th statement of a kind fails, and all after that."""

    statement = ""
    fails = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if self.statement and sql.startswith(self.statement):
            Failing.fails -= 1
            if Failing.fails < 0:
                raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Failing]:
    def connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, factory=Failing)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    monkeypatch.setattr(_journal_file, "connect_writer", connect)
    monkeypatch.setattr(Failing, "statement", "")
    monkeypatch.setattr(Failing, "fails", 0)
    return Failing


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO records", "INSERT INTO ledger", "COMMIT"])
def test_any_statement_may_fail(path: Path, reply: Reply, failing: type[Failing], statement: str) -> None:
    """The group is not there at all, those before it are, and the journal stays broken."""
    told: dict[str, BaseException | None] = {}
    with Journal.open(path) as journal:
        for number in range(3):
            if number == 1:
                failing.statement, failing.fails = statement, 0
            journal.append(reply(f"{number}"), lambda error, n=number: told.update({f"{n}": error}))
            with suppress(JournalError):
                journal.flush()
        spent = journal.spent()
    assert told["0"] is None
    assert told["1"] is told["2"] is journal.broken is not None
    assert isinstance(journal.broken.__cause__, sqlite3.OperationalError)
    failing.statement = ""
    with Journal.open(path) as journal:
        assert [journal.take(f"{n}", "aa") is not None for n in range(3)] == [True, False, False]
        assert spent == journal.spent()
        journal.append(reply("1"), lambda error: told.update({"1": error}))
    assert told["1"] is None


def test_failing_rollback(path: Path, reply: Reply, failing: type[Failing]) -> None:
    """The thread survives it; closing the connection undoes the rest."""

    def execute(self: Failing, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql in ("COMMIT", "ROLLBACK"):
            raise sqlite3.OperationalError("disk I/O error")
        return sqlite3.Connection.execute(self, sql, *args)

    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Failing, "execute", execute)
        with Journal.open(path) as journal:
            journal.append(reply("1"), told.append)
    assert told == [journal.broken]
    with Journal.open(path) as journal:
        assert journal.take("1", "aa") is None


def test_waiters_on_other_threads_are_told(path: Path, reply: Reply, failing: type[Failing]) -> None:
    """Many at once, each exactly once, also those that come while it breaks."""
    told: list[BaseException | None] = []
    with Journal.open(path) as journal:
        failing.statement, failing.fails = "COMMIT", 3

        def append(name: int) -> None:
            for number in range(500):
                journal.append(reply(f"{name}/{number}"), told.append)

        threads = [threading.Thread(target=append, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(told) == 2000
    failing.statement = ""
    assert Journal.stat(path).records == told.count(None)
