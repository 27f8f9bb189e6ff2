"""One journal object of one process holds a file, and no child inherits it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afnio.errors import JournalError, JournalForkedError, JournalLockedError
from afnio.runtime._journal import Journal

if TYPE_CHECKING:
    from conftest import Reply, Script

HOLD = """
journal = Journal.open(path)
journal.append(reply("1", b"1"), lambda error: None)
journal.flush()
print(os.getpid(), flush=True)
"""


def test_second_process_is_refused(path: Path, script: Script) -> None:
    """By a sentence with the holder's pid; once that is killed, the file is free and complete."""
    program = script(HOLD + "sys.stdin.read()")
    pid = int(program.stdout.readline())
    with pytest.raises(JournalLockedError, match=rf"in use by process {pid}; wait for its end") as caught:
        Journal.open(path)
    assert caught.value.pid == pid
    program.kill()
    program.wait()
    with Journal.open(path) as journal:
        assert journal.take("1", "aa").payload == b"1"


def test_second_object_is_refused(path: Path, tmp_path: Path) -> None:
    """Through a link too, and in both modes."""
    link = tmp_path / "link"
    link.symlink_to(path)
    with (
        Journal.open(path),
        pytest.raises(JournalLockedError, match="open in this process already; close it"),
    ):
        Journal.open(link, "reuse")
    with Journal.open(link) as journal:
        assert journal.path == path


def test_holder_without_a_name(path: Path) -> None:
    """Between locking and writing the pid there is none to report."""
    with Journal.open(path):
        path.with_name("calls.journal.lock").write_text("")
        with pytest.raises(JournalLockedError, match="in use by another process;") as caught:
            Journal.open(path)
        assert caught.value.pid is None


def test_no_folder_for_the_lock(tmp_path: Path) -> None:
    """A path below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        JournalError, match=r"must be a file that can be opened \(got .*/file/calls: .* or name another path"
    ):
        Journal.open(tmp_path / "file" / "calls")
    (tmp_path / "calls.lock").mkdir()
    with pytest.raises(JournalError, match=r"journal's folder must accept a lock file"):
        Journal.open(tmp_path / "calls")


def test_forked_child_cannot_use_it(path: Path, script: Script) -> None:
    """Every use raises there, closing does nothing, and the parent goes on."""
    program = script(
        HOLD
        + """
pid = os.fork()
if not pid:
    for use in (journal.flush, lambda: journal.take("1", "aa"), lambda: journal.append(None, print)):
        try:
            use()
        except JournalForkedError as error:
            print(error, flush=True)
    journal.close()
    try:
        Journal.open(path)
    except JournalLockedError as error:
        print(error.pid == os.getppid(), flush=True)
    with Journal.open(path + ".child") as own:
        own.append(reply("1"), lambda error: None)
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
journal.append(reply("2", b"2"), lambda error: None)
journal.close()
"""
    )
    pid, *lines = program.communicate(timeout=50)[0].splitlines()
    sentence = f"a journal must be used by the process that opened it (got {path}, opened by {pid}, which this process"
    assert [line.startswith(sentence) for line in lines[:3]] == [True] * 3
    assert (lines[3:], program.returncode) == (["True"], 0)
    with Journal.open(path) as journal:
        assert [journal.take(n, "aa").payload for n in ("1", "2")] == [b"1", b"2"]


def test_child_does_not_keep_the_lock(path: Path, script: Script) -> None:
    """The parent dies, the child lives, the journal is free."""
    program = script(
        HOLD
        + """
pid = os.fork()
if not pid:
    print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""
    )
    assert [program.stdout.readline() for _ in range(2)][1] == "child\n"
    os.kill(program.pid, 9)
    program.wait()
    with Journal.open(path) as journal:
        assert journal.take("1", "aa") is not None
    program.stdin.close()
    assert program.stdout.read() == ""


def test_inherited_journal_in_this_process(path: Path, reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, seen by the coverage of this process: another pid touches nothing."""
    journal = Journal.open(path)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(JournalForkedError):
        journal.take("1", "aa")
    journal._writer.close()
    monkeypatch.undo()
    journal.append(reply("1"), lambda error: None)
    journal.close()
