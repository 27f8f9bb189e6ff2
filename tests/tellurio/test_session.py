"""Starting runs and logging into the active one."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import afnio.tellurio as te

if TYPE_CHECKING:
    from conftest import Read


def test_importing_does_nothing() -> None:
    """No thread, no file, no handler, no output."""
    program = (
        "import logging, threading, afnio.tellurio\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger().handlers + logging.getLogger('afnio').handlers\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert list(Path.cwd().iterdir()) == []


def test_init_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither does the run's end."""
    with te.init("me", "emails"):
        te.log("loss", 1)
    assert capfd.readouterr() == ("", "")


def test_a_plain_run_is_the_process_default() -> None:
    """In every thread, until it ends; then the one started before it is."""
    first = te.init("me", "emails")
    second = te.init("me", "emails")
    found = []
    thread = threading.Thread(target=lambda: found.append(te.get_active_run()))
    thread.start()
    thread.join()
    assert found == [second]
    second.finish()
    assert te.get_active_run() is first
    first.finish()


def test_a_block_has_its_own_run() -> None:
    """It hides the process default, and nested blocks hide one another."""
    plain = te.init("me", "emails")
    with te.init("me", "emails") as outer:
        with te.init("me", "other") as inner:
            assert te.get_active_run() is inner
        assert te.get_active_run() is outer
    assert te.get_active_run() is plain
    plain.finish()


async def test_tasks_side_by_side_have_their_own_runs(read: Read) -> None:
    """A value goes to the run of the task that logs it."""
    both_started = [anyio.Event(), anyio.Event()]

    async def train(own: int) -> None:
        async with te.init("me", "emails", name=f"run{own}"):
            both_started[own].set()
            await both_started[1 - own].wait()
            te.log("own", own)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(train, 0)
        tasks.start_soon(train, 1)
    rows = read(
        Path(".afnio/me/emails.db"),
        "SELECT runs.name, value FROM metrics JOIN runs ON runs.id = run_id ORDER BY 1",
    )
    assert rows == [("run0", "0"), ("run1", "1")]


def test_logging_without_a_run_says_what_to_do() -> None:
    """The error names te.init."""
    with pytest.raises(ValueError, match=r"start one with te\.init\(namespace, project\)"):
        te.log("loss", 1)


def test_log_takes_a_dict_too(read: Read) -> None:
    """As the run's own log does."""
    with te.init("me", "emails"):
        te.log({"a": 1, "b": 2}, step=4)
    rows = read(Path(".afnio/me/emails.db"), "SELECT name, step, value FROM metrics ORDER BY id")
    assert rows == [("a", 4, "1"), ("b", 4, "2")]


def test_a_name_is_made_up_when_none_is_given() -> None:
    """It is not empty, and two runs never share one."""
    names = set()
    for _ in range(3):
        with te.init("me", "emails") as run:
            names.add(run.name)
    assert len(names) == 3
    assert "" not in names


def test_a_taken_name_gets_a_suffix() -> None:
    """Counting from 2; another project is another name space."""
    names = []
    for project in ("emails", "emails", "emails", "other"):
        with te.init("me", project, name="first") as run:
            names.append(run.name)
    assert names == ["first", "first-2", "first-3", "first"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"namespace": "///"}, ValueError, r"namespace must have a letter .*got '///'"),
        ({"project": ".."}, ValueError, r"project must have a letter .*got '\.\.'"),
        ({"project": None}, TypeError, r"project must be a string \(got None\)"),
        ({"name": 3}, TypeError, r"name must be a string \(got 3\)"),
        ({"description": 3}, TypeError, r"description must be a string \(got 3\)"),
        ({"config": {"client": object()}}, TypeError, r"config must be JSON \(got object in it\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before any file is made."""
    with pytest.raises(error, match=message):
        te.init(**{"namespace": "me", "project": "emails", **arguments})
    assert list(Path.cwd().iterdir()) == []
