"""The project's file: where it lies, who may read it, and what happens when it can't be written."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import afnio.tellurio as te

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")

TRAINER = """
import sys
import afnio.tellurio as te

print("ready", flush=True)
sys.stdin.readline()
with te.init("me", "emails", name="same") as run:
    for value in range(200):
        run.log("loss", value)
        if value % 50 == 0:
            run.flush()
print(run.name)
"""

LIMITED = """
import resource, signal
import afnio.tellurio as te

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with te.init("me", "emails") as run:
    run.log("loss", 1)
    run.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for value in range(200):
        run.log("text", "x" * 10_000)
        run.flush()
print(run.status)
"""


READ_ONLY = """
import os, tempfile
import afnio.tellurio as te
from afnio.tellurio import init  # while its file can be read

folder = tempfile.mkdtemp()
os.chmod(folder, 0o555)
user = os.geteuid()
if user == 0:
    os.seteuid(65534)
with init("me", "emails", dir=os.path.join(folder, "runs")) as run:
    for value in range(3):
        run.log("loss", value)
        run.flush()
print(run.status)
os.seteuid(user)
os.chmod(folder, 0o755)
os.rmdir(folder)
"""


NO_THREAD = """
import os, threading
import afnio.tellurio as te

def refuse(self):
    raise RuntimeError("can't start new thread")

run = te.init("me", "emails")
run.flush()
pid = os.fork()
if not pid:
    threading.Thread.start = refuse
    run.log("loss", 1)
    run.log("loss", 2)
    run.flush()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
run.finish()
print(run.status)
"""


def test_the_file_lies_in_the_working_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AFNIO_HOME comes before it, and the argument before both."""
    with te.init("me", "emails"):
        assert FILE.is_file()
    monkeypatch.setenv("AFNIO_HOME", str(tmp_path / "home"))
    with te.init("me", "emails"):
        assert (tmp_path / "home" / "me" / "emails.db").is_file()
    with te.init("me", "emails", dir=tmp_path / "own"):
        pass
    assert (tmp_path / "own" / "me" / "emails.db").is_file()


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Team", "my-team"),
        ("../../etc/passwd", "etc-passwd"),
        (".hidden", "hidden"),
        ("a" * 300, "a" * 60),
        ("Über", "über"),
        ("C:\\x\0y", "c-x-y"),
    ],
)
def test_names_become_safe_file_names(name: str, slug: str) -> None:
    """No separator, no leading dot, no endless name."""
    with te.init(name, name):
        assert list(Path(".afnio").rglob("*.db")) == [Path(".afnio") / slug / f"{slug}.db"]


def test_only_the_user_may_read_it() -> None:
    """The folders are 0700 and the files 0600, while the run goes on too."""
    with te.init("me", "emails") as run:
        run.log("loss", 1)
        run.flush()
        below = list(FILE.parent.rglob("*"))
        folders = {p.stat().st_mode & 0o777 for p in (FILE.parent.parent, FILE.parent, *below) if p.is_dir()}
        files = {p.stat().st_mode & 0o777 for p in below if p.is_file()}
    assert folders == {0o700}
    assert files == {0o600}


def test_the_file_is_in_wal_mode_and_whole(read: Read) -> None:
    """After the run no side file is left, and the run's journal beside it."""
    with te.init("me", "emails") as run:
        te.log("loss", 1)
    journal = FILE.with_suffix("") / f"{run.id}.journal"
    assert {path for path in FILE.parent.rglob("*") if path.is_file()} == {FILE, journal}
    assert read(FILE, "PRAGMA journal_mode") == [("wal",)]
    assert read(FILE, "PRAGMA user_version") == [(7,)]
    assert read(FILE, "PRAGMA integrity_check") == [("ok",)]


def test_two_processes_can_record_at_once(read: Read) -> None:
    """Each has its own run and loses nothing, from a file that neither found."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    trainers = [subprocess.Popen([sys.executable, "-c", TRAINER], **pipes) for _ in range(2)]
    for trainer in trainers:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
    for trainer in trainers:
        assert trainer.stdin is not None
        trainer.stdin.write("go\n")
        trainer.stdin.flush()
    names = {trainer.communicate()[0].strip() for trainer in trainers}
    assert names == {"same", "same-2"}
    rows = read(FILE, "SELECT count(*), max(step) FROM metrics GROUP BY run_id")
    assert rows == [(200, 199), (200, 199)]
    assert read(FILE, "SELECT DISTINCT status FROM runs") == [("COMPLETED",)]


def test_a_folder_that_cannot_be_made_costs_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The program goes on as if it were recorded; another warning tells that its calls aren't kept."""
    Path(".afnio").write_text("a file where the folder should be")
    with te.init("me", "emails", name="first") as run:
        for value in range(3):
            run.log("loss", value)
            run.record("call", {})
            run.flush()
    assert (run.name, run.status) == ("first", "COMPLETED")
    record, calls = caplog.records
    assert {record.levelname, calls.levelname} == {"WARNING"}
    assert "AFNIO_HOME" in record.message
    assert "not kept for a resume" in calls.message


def test_a_read_only_folder_costs_one_warning() -> None:
    """As one that can't be made; root, who may write everywhere, steps down for it."""
    done = subprocess.run([sys.executable, "-c", READ_ONLY], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("COMPLETED\n", 0)
    assert done.stderr.count("nothing more is recorded") == 1
    assert len(done.stderr.splitlines()) == 2


def test_a_file_that_is_no_store_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """And is left as it is."""
    FILE.parent.mkdir(parents=True)
    FILE.write_bytes(b"not a database, but somebody's file" * 100)
    before = FILE.read_bytes()
    with te.init("me", "emails") as run:
        run.log("loss", 1)
    assert len(caplog.records) == 1
    assert FILE.read_bytes() == before


def test_a_full_disk_costs_one_warning(read: Read) -> None:
    """What was recorded before stays, and the program ends well."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("COMPLETED\n", 0)
    assert done.stderr.count("nothing more is recorded") == 1
    assert len(done.stderr.splitlines()) == 1
    assert read(FILE, "PRAGMA integrity_check") == [("ok",)]
    assert read(FILE, "SELECT count(*) FROM runs") == [(1,)]


def test_a_thread_that_cannot_start_costs_one_warning(read: Read) -> None:
    """As at the interpreter's end, or in a child process: its values are dropped."""
    done = subprocess.run([sys.executable, "-c", NO_THREAD], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("COMPLETED\n", 0)
    assert done.stderr.count("can't start new thread") == len(done.stderr.splitlines()) == 1
    assert read(FILE, "SELECT count(*) FROM metrics") == [(0,)]


def test_events_that_the_disk_cannot_follow_are_left_out(
    read: Read, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond a bound in bytes, with one warning. Values that the program logs are kept, and drops are counted."""
    monkeypatch.setattr("afnio.tellurio._store.ROOM", 2_500)
    with te.init("me", "emails") as run:
        run.flush()
        with closing(sqlite3.connect(FILE, isolation_level=None)) as slow:
            slow.execute("BEGIN IMMEDIATE")
            for number in range(10):
                run.observe(f"event {number}")
            run.log("loss", 1)
            slow.execute("COMMIT")
        run.flush()
        run.observe("later")
        run.flush()
    events = [json.loads(payload) for (payload,) in read(FILE, "SELECT payload FROM events ORDER BY id")]
    assert events == ["event 0", "event 1", "event 2", "later"]
    assert read(FILE, "SELECT dropped FROM runs") == [(7,)]
    assert read(FILE, "SELECT count(*) FROM metrics") == [(1,)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "events are left out" in caplog.text
