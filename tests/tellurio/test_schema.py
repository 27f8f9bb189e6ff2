"""Creating a project's file, once and whole; a file of another version is refused and left alone."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import afnio.tellurio as te
from afnio.errors import StoreVersionError

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")


def record(path: Path) -> None:
    """Record a run into a file."""
    te.init(path.parent.name, path.stem, dir=path.parent.parent, resume=False).finish()


@pytest.mark.parametrize(("version", "install"), [(4, "an older"), (99, "a newer")])
def test_a_file_of_another_version_is_refused_and_left_alone(version: int, install: str) -> None:
    """The error names both versions and the ways out."""
    FILE.parent.mkdir(parents=True)
    with closing(sqlite3.connect(FILE)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = FILE.read_bytes()
    sentence = rf"must have schema version 7 \(got {version}\); install {install} Afnio, or set AFNIO_HOME"
    with pytest.raises(StoreVersionError, match=sentence):
        record(FILE)
    assert FILE.read_bytes() == before
    assert list(FILE.parent.iterdir()) == [FILE]


def test_threads_that_open_a_new_file_at_once_create_it_once(read: Read) -> None:
    """As two processes would."""
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
    assert read(FILE, "SELECT count(*) FROM runs") == [(4,)]
    assert read(FILE, "PRAGMA integrity_check") == [("ok",)]


def test_a_creation_that_fails_changes_nothing(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on with one warning; the file stays as it was."""
    FILE.parent.mkdir(parents=True)
    with closing(sqlite3.connect(FILE)) as connection:
        connection.execute("CREATE TABLE steps (somebody TEXT)")
        connection.commit()
    with te.init("me", "emails") as run:
        run.log("loss", 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert read(FILE, "PRAGMA user_version") == [(0,)]
    assert read(FILE, "SELECT name FROM sqlite_master") == [("steps",)]
