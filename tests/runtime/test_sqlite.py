"""The writer: groups, order, what one failure takes along, and its end."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from afnio.runtime._files import SQLiteWriter

Start = Callable[..., "Kept"]


class Kept:
    """A writer of texts into a table, and everything that it settled."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.groups: list[list[str]] = []
        self.settled: list[tuple[str, Exception | None]] = []
        self.writer: SQLiteWriter[str, str] = SQLiteWriter(
            "test-writer",
            self.connect,
            prepare=self.prepare,
            write=self.write,
            settled=lambda item, error: self.settled.append((item, error)),
            **options,
        )

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("CREATE TABLE IF NOT EXISTS texts (text TEXT)")
        return connection

    def prepare(self, item: str) -> str:
        if item == "unfit":
            raise ValueError("no")
        return item

    def write(self, connection: sqlite3.Connection, items: list[str]) -> None:
        self.groups.append(items)
        for item in items:
            connection.execute("INSERT INTO texts VALUES (?)", (item,))
            if item == "bad":
                raise sqlite3.OperationalError("disk I/O error")

    def rows(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return [text for (text,) in connection.execute("SELECT text FROM texts ORDER BY rowid")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a writer, which ends with the test."""
    kept: list[Kept] = []

    def make(**options: Any) -> Kept:
        kept.append(Kept(tmp_path / "file.db", **options))
        return kept[-1]

    yield make
    for one in kept:
        one.writer.close()


def test_what_waits_is_committed_together(start: Start) -> None:
    """Items that come while a transaction runs share the next one, up to the group's size."""
    kept = start(group=3)
    held = sqlite3.connect(kept.path, isolation_level=None)
    kept.writer.put("first")
    kept.writer.flush()
    held.execute("BEGIN IMMEDIATE")
    for number in range(5):
        kept.writer.put(f"{number}")
    held.execute("COMMIT")
    held.close()
    kept.writer.flush()
    assert kept.rows() == ["first", *"01234"]
    assert max(len(group) for group in kept.groups) <= 3
    assert len(kept.groups) < 6


def test_close_writes_what_waits(start: Start) -> None:
    """In order; afterwards nothing is taken."""
    kept = start(linger=10.0)
    for number in range(100):
        assert kept.writer.put(f"{number}")
    kept.writer.close()
    kept.writer.close()
    assert not kept.writer.put("late")
    assert not kept.writer.flush()
    assert kept.rows() == [f"{number}" for number in range(100)]
    assert kept.settled == [(f"{number}", None) for number in range(100)]


def test_the_first_failed_transaction_breaks_it(start: Start) -> None:
    """The group is rolled back as a whole, those before it stay, and all later items get the same error."""
    kept = start(broke=lambda error: RuntimeError(f"full: {error}"))
    kept.writer.put("kept")
    kept.writer.flush()
    for item in ("bad", "late", "unfit"):
        kept.writer.put(item)
        kept.writer.flush()
    kept.writer.close()
    broken = kept.writer.broken
    assert str(broken) == "full: disk I/O error"
    assert kept.settled == [("kept", None), ("bad", broken), ("late", broken), ("unfit", broken)]
    assert kept.rows() == ["kept"]


def test_an_unfit_item_fails_alone(start: Start) -> None:
    """It gets its error; its neighbours are written."""
    kept = start(linger=0.2)
    for item in ("one", "unfit", "two"):
        kept.writer.put(item)
    kept.writer.close()
    assert kept.rows() == ["one", "two"]
    assert [type(error) for _, error in kept.settled if error is not None] == [ValueError]
    assert kept.writer.broken is None


def test_it_lingers_unless_someone_waits(start: Start) -> None:
    """Items gather meanwhile; a flush ends it."""
    kept = start(linger=30.0)
    for number in range(3):
        kept.writer.put(f"{number}")
        time.sleep(0.01)
    began = time.monotonic()
    kept.writer.flush()
    assert time.monotonic() - began < 10
    assert kept.groups == [["0", "1", "2"]]


def test_the_beat_comes_without_items(start: Start) -> None:
    """And before those that there are."""
    beats = iter(["beat"])
    kept = start(beat=lambda: next(beats, None), every=0.01)
    deadline = time.monotonic() + 60
    while not kept.settled and time.monotonic() < deadline:
        time.sleep(0.01)
    kept.writer.close()
    assert kept.rows() == ["beat"]


def test_closing_has_a_time_limit(start: Start) -> None:
    """A program's end doesn't wait for a disk that hangs."""
    ended = threading.Event()
    kept = start(ended=ended.set)
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as held:
        held.execute("BEGIN IMMEDIATE")
        kept.writer.put("waits")
        kept.writer.close(timeout=0.05)
        assert not ended.is_set()
        held.execute("COMMIT")
    kept.writer.close()
    assert ended.is_set()
    assert kept.rows() == ["waits"]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """The error comes from where the writer is made, and no thread is left."""
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        Kept(tmp_path / "nowhere" / "file.db")
    assert "test-writer" not in [thread.name for thread in threading.enumerate()]


def test_a_forked_child_does_not_close_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no such thread, and would wait for it forever."""
    kept = start()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    kept.writer.close()
    monkeypatch.undo()
    assert kept.writer.put("of the parent")
    kept.writer.close()
    assert kept.rows() == ["of the parent"]
