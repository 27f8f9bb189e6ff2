"""The writing thread: groups, order, and its end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afnio.tellurio import _store as writer_module
from afnio.tellurio._store import StoreWriter

if TYPE_CHECKING:
    import sqlite3

    from conftest import Read

FILE = Path(".afnio/me/emails.db")
INSERT = "INSERT INTO events (run_id, kind, payload, time) VALUES ('r', 'k', ?, 0)"


def test_what_waits_is_committed_together() -> None:
    """Writes that come while another runs share one transaction."""
    writer = StoreWriter(FILE)
    running, go_on = threading.Event(), threading.Event()
    changes = []

    def first(connection: sqlite3.Connection) -> None:
        running.set()
        go_on.wait()
        connection.execute(INSERT, ("first",))

    def later(connection: sqlite3.Connection) -> None:
        changes.append(connection.in_transaction)
        connection.execute(INSERT, (str(len(changes)),))
        statements.append("write")

    statements: list[str] = []
    writer.submit(lambda db: db.set_trace_callback(statements.append))
    writer.submit(first)
    running.wait()
    for _ in range(5):
        writer.submit(later)
    go_on.set()
    writer.flush()
    writer.close()
    begins = [index for index, text in enumerate(statements) if text.startswith("BEGIN")]
    assert len(begins) == 1
    assert statements[begins[0] :].count("write") == 5


def test_close_writes_what_waits(read: Read) -> None:
    """In order; the thread is gone, and flushing or submitting afterwards does nothing."""
    writer = StoreWriter(FILE)
    for value in range(100):
        writer.submit(lambda db, value=value: db.execute(INSERT, (str(value),)))
    writer.close()
    writer.close()
    writer.flush()
    writer.submit(lambda db: db.execute(INSERT, ("late",)))
    assert read(FILE, "SELECT payload FROM events ORDER BY id") == [(str(n),) for n in range(100)]


def test_a_write_that_fails_takes_no_part_of_its_group_along(read: Read) -> None:
    """The group is rolled back as a whole; the groups before it stay."""
    writer = StoreWriter(FILE)
    writer.submit(lambda db: db.execute(INSERT, ("kept",)))
    writer.flush()
    running, go_on = threading.Event(), threading.Event()
    writer.submit(lambda _: (running.set(), go_on.wait()))
    running.wait()
    writer.submit(lambda db: db.execute(INSERT, ("lost",)))
    writer.submit(lambda db: db.execute("INSERT INTO nowhere VALUES (1)"))
    go_on.set()
    writer.flush()
    writer.close()
    assert read(FILE, "SELECT payload FROM events") == [("kept",)]


def test_a_thread_that_cannot_start_is_no_error() -> None:
    """As at the interpreter's end: the writes are dropped."""

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    original = threading.Thread
    threading.Thread = NoThread  # type: ignore[misc]
    try:
        writer = StoreWriter(FILE)
    finally:
        threading.Thread = original  # type: ignore[misc]
    writer.submit(lambda db: db.execute(INSERT, ("lost",)))
    writer.flush()
    writer.close()
    assert not FILE.exists()


def test_what_the_disk_cannot_follow_is_left_out(
    read: Read, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond a bound in bytes, with one warning; what the program logs itself is kept; the count is known."""
    monkeypatch.setattr(writer_module, "ROOM", 1_000)
    seen: list[str] = []
    writer = StoreWriter(FILE, recorded=lambda db, event, date: seen.append(event))
    running, go_on = threading.Event(), threading.Event()
    writer.submit(lambda _: (running.set(), go_on.wait()))
    running.wait()
    for number in range(10):
        writer.offer(f"event {number}", 0.0, 400)
    writer.submit(lambda db: db.execute(INSERT, ("kept",)))
    go_on.set()
    writer.flush()
    writer.offer("later", 0.0, 400)
    writer.close()
    assert seen == ["event 0", "event 1", "event 2", "later"]
    assert writer.dropped == 7
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "events are left out" in caplog.text
    assert read(FILE, "SELECT payload FROM events") == [("kept",)]
