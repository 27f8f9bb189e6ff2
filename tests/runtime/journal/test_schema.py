"""What is refused: foreign, newer, damaged files, by one sentence and left as they are."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afnio.errors import JournalError, JournalFormatError
from afnio.runtime import _journal_file
from afnio.runtime._journal import Journal

if TYPE_CHECKING:
    from conftest import Reply, Script


@pytest.fixture
def full(path: Path, reply: Reply) -> Path:
    """A journal of some pages."""
    with Journal.open(path) as journal:
        for number in range(200):
            journal.append(reply(f"{number}", os.urandom(300), key=f"{number:04x}"), lambda error: None)
    return path


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE records (id INTEGER PRIMARY KEY)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {_journal_file.VERSION + 1}")


def older(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(os.urandom(4096))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (
            lambda path: path.write_text("dear diary"),
            r"a journal of Afnio \(got .*\); name another path$",
        ),
        (
            lambda path: path.write_bytes(os.urandom(9000)),
            r"a journal of Afnio \(got .*\); name another path$",
        ),
        (foreign, r"a journal of Afnio \(got .*\); name another path$"),
        (newer, r"must have format 2 \(got 3: .*\); use the Afnio that wrote it, or name another path$"),
        (older, r"must have format 2 \(got 1: .*\); use the Afnio that wrote it, or name another path$"),
        (damaged, r"undamaged \(got .*\); it was left unchanged: restore a copy"),
        (
            lambda path: os.truncate(path, 10_000),
            r"undamaged \(got .*\); it was left unchanged: restore a copy",
        ),
        (
            lambda path: os.truncate(path, 60),
            r"undamaged \(got .*\); it was left unchanged: restore a copy",
        ),
    ],
    ids=["text", "noise", "foreign", "newer", "older", "damaged", "cut", "stump"],
)
def test_refused_file_is_left_as_it_is(full: Path, harm: Callable[[Path], object], sentence: str) -> None:
    """To the byte, with nothing beside it."""
    harm(full)
    before = full.read_bytes()
    for mode in ("resume", "reuse"):
        with pytest.raises(JournalFormatError, match=sentence) as caught:
            Journal.open(full, mode)  # type: ignore[arg-type]
        assert str(full) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert before == full.read_bytes()
    assert os.listdir(full.parent) == [full.name]


def test_newer_log_is_left_as_it_is(path: Path, script: Script) -> None:
    """The version may be in the log only, after a crash of a newer Afnio."""
    program = script(
        """
        import sqlite3
        Journal.open(path).close()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA user_version = 7")
        print("written", flush=True)
        sys.stdin.read()
        """
    )
    program.stdout.readline()
    program.kill()
    program.wait()
    files = [path, path.with_name(path.name + "-wal")]
    before = [file.read_bytes() for file in files]
    assert before[1]
    with pytest.raises(JournalFormatError, match="got 7"):
        Journal.open(path)
    assert before == [file.read_bytes() for file in files]


def test_damaged_reply_is_found_when_it_is_taken(full: Path) -> None:
    """The pages fit together, the bytes in one don't; the other replies are served."""
    with closing(sqlite3.connect(full, isolation_level=None)) as connection:
        connection.execute("UPDATE records SET payload = x'00ff' WHERE address = '7'")
    with Journal.open(full) as journal:
        with pytest.raises(
            JournalFormatError, match=r"undamaged \(got .*, the reply at \[7\]: .*restore a copy"
        ):
            journal.take("7", "0007")
        assert journal.take("8", "0008") is not None


def test_page_damaged_meanwhile(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check at opening doesn't see is refused when it is read."""
    monkeypatch.setattr(_journal_file, "CHECKED_BYTES", 0)
    data = full.read_bytes()
    full.write_bytes(data[:8192] + bytes(len(data) - 8192))
    with pytest.raises(JournalFormatError, match="must be undamaged"), Journal.open(full) as journal:
        for number in range(200):
            journal.take(f"{number}", f"{number:04x}")


def test_empty_file_becomes_a_journal(path: Path, reply: Reply) -> None:
    """Somebody touched it; a half-made one of a crash is dropped."""
    path.touch(mode=0o644)
    path.with_name(path.name + ".new").write_text("half")
    with Journal.open(path) as journal:
        journal.append(reply("1"), lambda error: None)
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600


def test_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(
        JournalError, match=r"opened \(got .*: it isn't a file\); check its folder's permissions"
    ):
        Journal.open(tmp_path)
    with pytest.raises(JournalError, match=r"must be readable \(.*missing: unable to open"):
        Journal.stat(tmp_path / "missing")


def test_no_right_to_write(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write anything, so the system's answer is set here."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(JournalError, match=r"opened \(got .*: no right to write\); check its folder's"):
        Journal.open(full)
    monkeypatch.undo()
    with Journal.open(full) as journal:
        assert journal.take("1", "0001") is not None


def test_writer_that_cannot_connect(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the opener's, and the file is free afterwards."""

    def refuse(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(_journal_file, "connect_writer", refuse)
    with pytest.raises(JournalError, match=r"must be readable \(.*: disk I/O error\)"):
        Journal.open(full)
    monkeypatch.undo()
    Journal.open(full).close()
