"""Stores as they are found: being written, of an older or a newer version, locked, damaged, gone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from studio.made_store import make_training
from studio.visitor import Studio, started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module", name="studio")
def own_studio(start: Callable[..., Studio], folder: Path) -> Studio:
    return start(folder)


@pytest.fixture
def store(folder: Path) -> Iterator[Path]:
    path = folder / "me" / "mails.db"
    make_training(path)
    yield path
    for one in path.parent.glob("mails.db*"):
        one.unlink()


def test_no_store_at_all(studio: Studio) -> None:
    """Says what to write."""
    assert "te.init" in studio.page("/").text


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """Is told at the start and on the page, as it may be the wrong one; what comes to be there later is shown."""
    home = tmp_path / "nowhere"
    warning = f"afnio: the folder {home} doesn't exist yet, so the studio starts without runs\n"
    with started(home, warning=warning) as studio:
        page = studio.page("/").text
        assert f"There is no folder <code>{home}</code>" in page
        assert "--dir" in page
        make_training(home / "me" / "mails.db")
        assert "calm-heron" in studio.page("/").text


def test_a_store_that_is_being_written(studio: Studio, store: Path) -> None:
    """Shows what is committed, and doesn't wait for the writer."""
    writer = sqlite3.connect(store, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE runs SET name = 'half-written'")
    assert "calm-heron" in studio.page("/").text
    writer.execute("COMMIT")
    assert "half-written" in studio.page("/").text
    writer.close()


def test_a_store_of_a_newer_version(studio: Studio, store: Path) -> None:
    """Says that a newer Afnio is needed; other stores are listed as ever."""
    make_training(store.with_name("other.db"), "other-run")
    run = studio.run("calm-heron")
    db = sqlite3.connect(store)
    db.execute("PRAGMA user_version = 99")
    db.close()
    listed = studio.page("/").text
    assert "install a newer Afnio" in listed
    assert "other-run" in listed
    answer = studio.page(run)
    assert (answer.status, "install a newer Afnio" in answer.text) == (503, True)
    store.with_name("other.db").unlink()


def test_a_locked_store(studio: Studio, store: Path) -> None:
    """Says so after a short wait, and works again when it is let go."""
    run = studio.run("calm-heron")
    db = sqlite3.connect(store, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("BEGIN EXCLUSIVE")
    answer = studio.page(run)
    assert (answer.status, "locked by another program" in answer.text) == (503, True)
    db.execute("ROLLBACK")
    db.close()
    assert studio.page(run).status == 200


def test_a_damaged_store(studio: Studio, store: Path) -> None:
    """Says so, wherever the damage shows: as far as it can be read it is listed."""
    run = studio.run("calm-heron")
    db = sqlite3.connect(store)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = db.execute("PRAGMA page_size").fetchone()[0]
    roots = db.execute("SELECT rootpage FROM sqlite_master WHERE tbl_name = 'calls'").fetchall()
    db.close()
    with store.open("r+b") as file:
        for (root,) in roots:
            file.seek((root - 1) * size)
            file.write(b"\xff" * size)
    answer = studio.page(run)
    assert (answer.status, "is damaged" in answer.text) == (503, True)
    assert studio.page("/").status == 200


RECORDING = """
import sys
import afnio.tellurio as te
run = te.init("me", "lost", name="lost-lynx", dir=sys.argv[1], resume=False)
run.flush()
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_run_whose_process_is_gone(studio: Studio, folder: Path) -> None:
    """Has crashed; one whose process is alive is running; one that was removed isn't found."""
    command = [sys.executable, "-c", RECORDING, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        run = studio.run("lost-lynx")
        assert 'data-status="RUNNING"' in studio.page(run).text
        process.kill()
    assert 'data-status="CRASHED"' in studio.page(run).text
    path = folder / "me" / "lost.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DELETE FROM runs")
    db.close()
    assert studio.page(run).status == 404
    path.unlink()


@pytest.mark.parametrize(
    "rest",
    [
        "/steps/99",
        f"/steps/{5000 * '9'}",
        "/calls/99999999999999999999",
        "/samples/0",
        "/nowhere",
        "/text/call/1/x",
    ],
)
def test_what_is_not_there(studio: Studio, store: Path, rest: str) -> None:
    """Is a page that says so."""
    answer = studio.page(studio.run("calm-heron") + rest)
    assert (answer.status, "Not found" in answer.text) == (404, True)


@pytest.mark.parametrize("number", ["9" * 20, "9" * 5_000])
@pytest.mark.parametrize(
    "asked", ["/?from={}", "{run}?after={}", "{run}/calls?before={}", "{run}/samples?before={}"]
)
def test_a_number_that_nobody_has(studio: Studio, store: Path, asked: str, number: str) -> None:
    """Is past the end, however long it is."""
    path = asked.replace("{run}", studio.run("calm-heron")).replace("{}", number)
    assert studio.page(path).status == 200
