"""A run that is killed and continued: nothing is recorded twice, nothing paid is forgotten."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from afnio.cli import main

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")

PROGRAM = """
import os, sys
import afnio, afnio.tellurio as te
from afnio.testing import ScriptedClient
from kit.tiny_training import reply, train

stop = int(os.environ["STOP"])
asked = []

def answer(request):
    asked.append(request)
    if len(asked) == stop:
        run.flush()
        print("ready", flush=True)
        sys.stdin.readline()
    return reply(request)

with te.init("me", "emails", name="first") as run:
    run.log("loss", 1)
    client = ScriptedClient(answer)
    train(client, client)
print("asked", len(asked), flush=True)
"""


def start(stop: int) -> subprocess.Popen[str]:
    Path("program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, "program.py"],
        env={**os.environ, "STOP": str(stop)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_run_that_is_continued_has_everything_once(read: Read) -> None:
    """In the middle of the backward pass; then its calls are replayed, and the rest is made."""
    process = start(stop=7)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read(FILE, "SELECT status FROM runs") == [("RUNNING",)]
    before = read(FILE, "SELECT address, ended FROM calls ORDER BY id")
    assert len(before) == 6
    done = start(stop=-1)
    out, err = done.communicate()
    assert (done.returncode, out) == (0, "asked 5\n"), err
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)]
    # Calls that were made before keep their rows; the journal's answers are counted, not added.
    assert before == read(FILE, f"SELECT address, ended FROM calls WHERE id <= {6} ORDER BY id")
    assert read(
        FILE, "SELECT count(*), count(DISTINCT address), sum(replayed), sum(attempts) FROM calls"
    ) == [(11, 11, 6, 11)]
    counts: dict[str, Any] = {
        "metrics": 1, "samples": 9, "nodes": 7, "steps": 1, "changes": 1, "evidence": 1, "parameters": 2,
    }  # fmt: skip
    assert counts == {table: read(FILE, f"SELECT count(*) FROM {table}")[0][0] for table in counts}
    assert read(FILE, "PRAGMA integrity_check") == [("ok",)]
    assert [path.name for path in FILE.with_suffix("").iterdir() if path.suffix == ".lease"] == []
    assert json.loads(read(FILE, "SELECT identity FROM runs")[0][0])[1].endswith("program.py")


def test_an_unknown_cost_stays_unknown_and_an_hour_of_death_is_no_duration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The models have no price. The process died before the rows of its calls were written; its journal has them."""
    process = start(stop=7)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with closing(sqlite3.connect(FILE)) as connection, connection:
        connection.execute("DELETE FROM calls")
        connection.execute(
            "UPDATE runs SET date_created = date_created - 3600, date_updated = date_updated - 3600"
        )
    done = start(stop=-1)
    out, err = done.communicate()
    assert (done.returncode, out) == (0, "asked 5\n"), err
    assert main(["runs", "list", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["calls"], run["cost"], run["unpriced"]) == (11, None, 11)
    assert run["seconds"] < 600
