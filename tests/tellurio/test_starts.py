"""The same program started several times: as many runs as starts, and a killed one is continued by one start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import afnio.tellurio as te
from afnio.errors import JournalLockedError

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")

# Where it stops is told by the environment, as arguments tell programs apart.
PROGRAM = """
import os, sys
import afnio.tellurio as te
from afnio.testing import ScriptedClient

STOP = os.environ.get("STOP")

def stop():
    print("here", flush=True)
    sys.stdin.readline()

def stop_before_opening(ending):
    def hook(event, args):
        nonlocal ending
        if event == "open" and ending and str(args[0]).endswith(ending):
            ending = ""
            stop()
    sys.addaudithook(hook)

class StopsAtTheEnd:
    def __call__(self, event): pass
    def close(self): stop()

if STOP == "row is there":
    stop_before_opening(".journal.lock")
if STOP == "run is found":
    stop_before_opening(".lease")

client = ScriptedClient("x")
with te.init("me", "emails", sinks=[StopsAtTheEnd()] if STOP == "row is COMPLETED" else None) as run:
    if STOP == "journal is closed":
        close = run.journal.close
        run.journal.close = lambda: (close(), stop())
    for number in range(5):
        client.chat(messages=[{"role": "user", "content": str(number)}], model="m")
        te.log("number", number)
    if STOP == "calls are made":
        run.flush()
        stop()
print("asked", len(client.requests))
"""


@pytest.fixture(autouse=True)
def program(own_folder: None) -> None:
    Path("program.py").write_text(PROGRAM)


def start(stop: str | None = None) -> subprocess.Popen[str]:
    """Start it; if it is to stop somewhere, return when it has, with the line that it says there read."""
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        env=os.environ if stop is None else {**os.environ, "STOP": stop},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if stop is not None:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
    return process


def asked(process: subprocess.Popen[str]) -> int:
    """Let it go on to its end, wherever it stops; return how many calls it sent."""
    out, err = process.communicate("\n" * 10, timeout=60)
    assert process.returncode == 0, err
    assert "not kept for a resume" not in err
    return int(out.splitlines()[-1].removeprefix("asked "))


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("place", ["row is there", "journal is closed", "row is COMPLETED"])
def test_a_start_beside_a_live_run_is_a_run_of_its_own(place: str, read: Read) -> None:
    """Also while that one has a row and no journal yet, and while it is just ending."""
    first = start(place)
    assert asked(start()) == 5
    assert asked(first) == 5
    assert (
        read(
            FILE,
            "SELECT status, (SELECT count(*) FROM calls WHERE run_id = runs.id),"
            " (SELECT count(*) FROM metrics WHERE run_id = runs.id) FROM runs",
        )
        == [("COMPLETED", 5, 5)] * 2
    )


def test_as_many_starts_at_once_are_as_many_runs(read: Read) -> None:
    """Without any order among them."""
    processes = [start() for _ in range(6)]
    assert [asked(process) for process in processes] == [5] * 6
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)] * 6


def test_one_of_many_starts_continues_a_killed_run(read: Read) -> None:
    """The others are runs of their own."""
    kill(start("calls are made"))
    processes = [start() for _ in range(4)]
    assert Counter(asked(process) for process in processes) == {0: 1, 5: 3}
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)] * 4


def test_a_run_that_ended_meanwhile_is_not_continued(read: Read) -> None:
    """Two starts find the same killed run; the second one gets to it when the first has completed it."""
    kill(start("calls are made"))
    second = start("run is found")
    assert asked(start()) == 0
    assert asked(second) == 5
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)] * 2


def test_a_live_run_cannot_be_continued_by_its_id() -> None:
    """The error names the process that has it."""
    with (
        te.init("me", "emails", name="first") as run,
        pytest.raises(JournalLockedError, match=rf"run first is recorded by the process {os.getpid()};"),
    ):
        te.init("me", "emails", resume=run.id)


AFTERWARDS = """
import os, sys
import afnio.tellurio as te
from afnio.testing import ScriptedClient

client = ScriptedClient("x")

def work():
    for number in range(5):
        client.chat(messages=[{"role": "user", "content": str(number)}], model="m")

run = te.init("me", "emails", resume=os.environ.get("RUN"))
if "BLOCK" in os.environ:
    with run:
        work()
else:
    work()
if "STOP" in os.environ:
    run.flush()
    print("here", flush=True)
    sys.stdin.readline()
print("asked", len(client.requests))
"""


def killed_afterwards(read: Read) -> str:
    """Kill the program when its work is done; return the run's id."""
    Path("program.py").write_text(AFTERWARDS)
    kill(start("the work is done"))
    return str(read(FILE, "SELECT id FROM runs")[0][0])


def test_a_program_that_is_killed_after_its_block_starts_a_new_run(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is over, and is continued only by its id; then its journal has all replies."""
    monkeypatch.setenv("BLOCK", "yes")
    run_id = killed_afterwards(read)
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)]
    assert asked(start()) == 5
    monkeypatch.setenv("RUN", run_id)
    assert asked(start()) == 0
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)] * 2


def test_a_run_without_a_block_is_over_with_its_process(read: Read) -> None:
    """So a kill at the end of the program is continued, too."""
    killed_afterwards(read)
    assert asked(start()) == 0
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)]
