"""The file's versions: an older one is brought to this one in place, and loses nothing."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from first_store import CALL, first_version, second_version
from hypothesis import given, settings
from hypothesis import strategies as st

import afnio.tellurio as te

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")


def record(path: Path) -> None:
    """Record a run into a file."""
    te.init(path.parent.name, path.stem, dir=path.parent.parent, resume=False).finish()


RETRY = {**CALL, "attempt": 1, "error": "RateLimitedError: slow", "wait": 0.25}


def test_a_file_of_version_1_is_brought_to_this_one(read: Read) -> None:
    """Its calls and retries, which were events, become rows of their own; what it had stays."""
    first_version(FILE, [("call", json.dumps(CALL)), ("retry", json.dumps(RETRY)), ("mine", "{}")])
    with te.init("me", "emails", name="new"):
        pass
    assert read(FILE, "PRAGMA user_version") == [(5,)]
    assert read(FILE, "SELECT name, status, versions FROM runs WHERE id = 'r'") == [
        ("old", "COMPLETED", "{}")
    ]
    assert read(FILE, "SELECT value FROM metrics") == [("0.5",)]
    columns = (
        "address, purpose, model, status, attempts, seconds, waited, started, ended, prompt_tokens, cost"
    )
    assert read(FILE, f"SELECT {columns} FROM calls") == [
        ("run/1/0/forward", "forward", "m", "ok", 2, 1.5, 0.5, 8.0, 10.0, 7, None)
    ]
    assert read(FILE, "SELECT address, attempt, error, wait FROM retries") == [
        ("run/1/0/forward", 1, "RateLimitedError: slow", 0.25)
    ]
    assert read(FILE, "SELECT kind FROM events") == [("mine",)]
    assert read(FILE, "PRAGMA integrity_check") == [("ok",)]


def test_calls_that_version_2_took_for_failed_were_cancelled(read: Read) -> None:
    """An error without a word was a cancellation."""
    second_version(FILE)
    with closing(sqlite3.connect(FILE, isolation_level=None)) as connection:
        for address, error in (("a", "CancelledError: "), ("b", "ModelError: no")):
            connection.execute(
                "INSERT INTO calls (run_id, address, node, phase, purpose, account, model, status, attempts, seconds, "
                "waited, started, ended, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, error, "
                "messages) VALUES ('r', ?, ?, '', 'forward', 'h', 'm', 'failed', 1, 1, 0, 1, 2, 0, 0, 0, 0, ?, '')",
                (address, address, error),
            )
    record(FILE)
    rows = read(FILE, "SELECT address, status, error FROM calls ORDER BY address")
    assert rows == [("a", "cancelled", None), ("b", "failed", "ModelError: no")]
    assert read(FILE, "SELECT waiting FROM runs WHERE id = 'r'") == [(0,)]


def test_an_upgrade_has_the_tables_of_a_new_file(read: Read) -> None:
    """Statement for statement."""
    first_version(FILE, [])
    record(FILE)
    record(Path("new/me/new.db"))
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    assert read(FILE, schema) == read(Path("new/me/new.db"), schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*CALL, "attempt", "wait"]), inner, max_size=5), max_leaves=8,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["call", "retry", "other"]), json_values), max_size=4))
def test_no_event_of_version_1_stops_an_upgrade(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, object]]
) -> None:
    """A program may have recorded anything under these kinds; what is no call stays an event."""
    path = tmp_path_factory.mktemp("upgrade") / "me" / "emails.db"
    first_version(path, [(kind, json.dumps(value)) for kind, value in events])
    record(path)
    with closing(sqlite3.connect(path)) as connection:
        kept = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        moved = connection.execute(
            "SELECT (SELECT count(*) FROM calls) + (SELECT count(*) FROM retries)"
        ).fetchone()[0]
    assert kept + moved >= len({json.dumps(event) for event in events if event[0] == "other"})
    assert kept >= sum(kind == "other" for kind, _ in events)


def test_threads_that_open_an_old_file_at_once_upgrade_it_once(read: Read) -> None:
    """As two processes would."""
    first_version(FILE, [("call", json.dumps(CALL))])
    start = threading.Barrier(4)
    errors: list[BaseException] = []

    def open_it() -> None:
        start.wait()
        try:
            record(FILE)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read(FILE, "SELECT count(*) FROM calls") == [(1,)]


def test_an_upgrade_that_fails_changes_nothing(read: Read) -> None:
    """The run goes on with one warning; the file stays as it was."""
    first_version(FILE, [])
    with closing(sqlite3.connect(FILE)) as connection:
        connection.execute("CREATE TABLE steps (somebody TEXT)")
        connection.commit()
    with te.init("me", "emails") as run:
        run.log("loss", 1)
    assert read(FILE, "PRAGMA user_version") == [(1,)]
    assert read(FILE, "SELECT count(*) FROM runs") == [(1,)]
    with closing(sqlite3.connect(FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'calls'").fetchone() == (
            0,
        )
