"""The writer of SQLite files: when it writes, and its end.

Groups, order and failures are tested by what uses it: runtime/journal, tellurio/test_store.
"""

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
        self.settled: list[str] = []
        self.groups = 0
        self.writer: SQLiteWriter[str, str] = SQLiteWriter(
            "test-writer",
            self.connect,
            prepare=str,
            write=self.write,
            settled=lambda item, error: self.settled.append(item),
            **options,
        )

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("CREATE TABLE IF NOT EXISTS texts (text TEXT)")
        return connection

    def write(self, connection: sqlite3.Connection, items: list[str]) -> None:
        self.groups += 1
        connection.executemany("INSERT INTO texts VALUES (?)", [(item,) for item in items])

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


def test_it_lingers_unless_someone_waits(start: Start) -> None:
    """Items gather meanwhile; a flush ends it."""
    kept = start(linger=30.0)
    for number in range(3):
        kept.writer.put(f"{number}")
    began = time.monotonic()
    kept.writer.flush()
    assert time.monotonic() - began < 10
    assert (kept.rows(), kept.groups) == (["0", "1", "2"], 1)
    kept.writer.close()
    assert not kept.writer.flush()


def test_the_beat_comes_without_items(start: Start) -> None:
    """And before those that there are."""
    beats, beaten = iter(["beat"]), threading.Event()
    kept = start(beat=lambda connection: next(beats, None) or beaten.set(), every=0.001)
    assert beaten.wait(60)
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
