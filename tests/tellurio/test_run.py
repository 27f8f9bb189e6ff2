"""Runs: what they record and how they end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import afnio.tellurio as te

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")


def script(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the test's folder."""
    program = "import os, sys\nimport afnio.tellurio as te\n" + body
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_a_run_knows_what_it_was_given(read: Read) -> None:
    """The attributes and the row agree."""
    with te.init("me", "emails", "first", "a try", {"lr": 0.1}) as run:
        assert (run.namespace, run.project, run.name) == ("me", "emails", "first")
        assert (run.description, run.config) == ("a try", {"lr": 0.1})
        assert run.status == "RUNNING"
        assert run.date_created.tzinfo is UTC
    columns = "id, name, description, namespace, project, status, config"
    row = (run.id, "first", "a try", "me", "emails", "COMPLETED", '{"lr": 0.1}')
    assert read(FILE, f"SELECT {columns} FROM runs") == [row]
    (dates,) = read(FILE, "SELECT date_created, date_updated FROM runs")
    assert dates == (run.date_created.timestamp(), run.date_updated.timestamp())
    assert run.date_updated > run.date_created


def test_metrics_have_steps_of_their_own(read: Read) -> None:
    """Without a step each metric counts from 0, and goes on after a step that was given."""
    with te.init("me", "emails") as run:
        run.log("loss", 0.5)
        run.log("accuracy", 1)
        run.log("loss", 0.25)
        run.log("loss", 0.2, step=10)
        run.log("loss", 0.1)
    rows = read(FILE, "SELECT name, step, value FROM metrics ORDER BY id")
    assert rows == [
        ("loss", 0, "0.5"),
        ("accuracy", 0, "1"),
        ("loss", 1, "0.25"),
        ("loss", 10, "0.2"),
        ("loss", 11, "0.1"),
    ]


def test_several_metrics_can_share_a_step(read: Read) -> None:
    """A dict is logged at one step, or each at its own next."""
    with te.init("me", "emails") as run:
        run.log({"a": 1, "b": None}, step=3)
        run.log({"a": 2})
    rows = read(FILE, "SELECT name, step, value FROM metrics ORDER BY id")
    assert rows == [("a", 3, "1"), ("b", 3, "null"), ("a", 4, "2")]


def test_any_json_value_can_be_logged(read: Read) -> None:
    """Nested values, NaN and broken Unicode come back, as they were when they were logged."""
    value: dict[str, Any] = {"list": [1, True, None], "text": "é \ud800", "nan": math.nan}
    with te.init("me", "emails") as run:
        run.log("value", value)
        value["list"].append("later")
    ((text,),) = read(FILE, "SELECT value FROM metrics")
    back = json.loads(text)
    assert (back["list"], back["text"]) == ([1, True, None], "é \ud800")
    assert math.isnan(back["nan"])


def test_every_json_value_comes_back(read: Read) -> None:
    """Also texts with any character, and infinity."""
    logged = []
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    values = st.recursive(
        scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
    )
    with te.init("me", "emails") as run:

        @given(values)
        def log(value: Any) -> None:
            run.log("x", value)
            logged.append(value)

        log()
    assert [json.loads(text) for (text,) in read(FILE, "SELECT value FROM metrics ORDER BY id")] == logged


def test_a_value_without_json_is_refused(read: Read) -> None:
    """The error names the metric and the type; nothing of the dict is recorded."""
    with te.init("me", "emails") as run:
        with pytest.raises(TypeError, match=r"metric 'b' must be JSON \(got set in it\)"):
            run.log({"a": 1, "b": [{1}]})
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(TypeError, match=r"metric 'c' must be JSON \(got list that contains itself\)"):
            run.log("c", circle)
    assert read(FILE, "SELECT * FROM metrics") == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("loss",), TypeError, r"'loss' must have a value"),
        (({"loss": 1}, 2), TypeError, r"without a value"),
        (({3: 1},), TypeError, r"name must be a string \(got 3\)"),
        (("loss", 1, 1.5), TypeError, r"step must be .* \(got 1.5\)"),
        (("loss", 1, -1), ValueError, r"step must be .* \(got -1\)"),
        (("loss", 1, 2**63), ValueError, r"step must be from 0"),
    ],
)
def test_bad_arguments_of_log_are_named(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    """The error has the value and the fix."""
    with te.init("me", "emails") as run, pytest.raises(error, match=message):
        run.log(*arguments)


def test_flush_shows_readers_what_was_logged(read: Read) -> None:
    """While the run goes on."""
    with te.init("me", "emails") as run:
        run.log("loss", 0.5)
        run.flush()
        assert read(FILE, "SELECT count(*) FROM metrics") == [(1,)]
        assert read(FILE, "SELECT date_updated FROM runs") == [(run.date_updated.timestamp(),)]


def test_events_are_recorded_until_the_end(read: Read) -> None:
    """Late ones are dropped, not refused."""
    with te.init("me", "emails") as run:
        run.record("call", {"tokens": 12})
    run.record("call", {"tokens": 13})
    assert read(FILE, "SELECT run_id, kind, payload FROM events") == [(run.id, "call", '{"tokens": 12}')]


@pytest.mark.parametrize(
    ("exception", "status"),
    [
        (ValueError, "FAILED"),
        (KeyboardInterrupt, "CRASHED"),
        (SystemExit, "CRASHED"),
    ],
)
def test_an_exception_in_the_block_sets_the_status(
    exception: type[BaseException], status: str, read: Read
) -> None:
    """And goes on its way."""
    with pytest.raises(exception), te.init("me", "emails") as run:
        raise exception
    assert run.status == status
    assert read(FILE, "SELECT status FROM runs") == [(status,)]


async def test_an_async_block_ends_its_run_without_blocking(read: Read) -> None:
    """The same life in `async with`."""
    async with te.init("me", "emails") as run:
        te.log("loss", 1)
    with pytest.raises(LookupError):
        async with te.init("me", "emails"):
            raise LookupError
    assert run.status == "COMPLETED"
    assert read(FILE, "SELECT status FROM runs ORDER BY rowid") == [("COMPLETED",), ("FAILED",)]


async def test_a_cancelled_run_ends_as_crashed(read: Read) -> None:
    """Its end is written although the task is cancelled."""
    from anyio import CancelScope, sleep_forever

    with CancelScope() as scope:
        async with te.init("me", "emails"):
            scope.cancel()
            await sleep_forever()
    assert read(FILE, "SELECT status FROM runs") == [("CRASHED",)]


def test_finish_ends_a_run_once(read: Read) -> None:
    """A second end changes nothing, a log afterwards is refused."""
    run = te.init("me", "emails")
    run.finish("FAILED")
    run.finish()
    run.flush()
    assert run.status == "FAILED"
    assert read(FILE, "SELECT status FROM runs") == [("FAILED",)]
    with pytest.raises(ValueError, match=r"must be running \(it ended as FAILED\); start another"):
        run.log("loss", 1)


def test_a_run_cannot_end_as_running() -> None:
    """Nor under a status that doesn't exist, nor be entered again."""
    with te.init("me", "emails") as run:
        with pytest.raises(ValueError, match=r"got RUNNING"):
            run.finish("RUNNING")
        with pytest.raises(ValueError, match="DONE"):
            run.finish("DONE")
        with pytest.raises(RuntimeError, match="can't be entered again"):
            run.__enter__()


def test_many_threads_can_log_into_one_run(read: Read) -> None:
    """No value is lost and no step is given twice."""
    with te.init("me", "emails") as run:
        start = threading.Barrier(4)

        def log() -> None:
            start.wait()
            for value in range(100):
                run.log("loss", value)

        threads = [threading.Thread(target=log) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read(FILE, "SELECT count(DISTINCT step), max(step) FROM metrics") == [(400, 399)]


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", "COMPLETED"),
        ("raise ValueError", "FAILED"),
        ("raise KeyboardInterrupt", "CRASHED"),
    ],
)
def test_the_interpreters_exit_ends_a_plain_run(ending: str, status: str, read: Read) -> None:
    """With all that was logged, and with the status that the program's end tells."""
    script(f"te.init('me', 'emails'); te.log('loss', 1)\n{ending}")
    assert read(FILE, "SELECT status FROM runs") == [(status,)]
    assert read(FILE, "SELECT value FROM metrics") == [("1",)]


def test_a_forked_child_logs_through_a_connection_of_its_own(read: Read) -> None:
    """Both processes' values are there once, and only the parent's end is the run's."""
    done = script(
        """
run = te.init("me", "emails")
for value in range(50):
    run.log("before", value)
child = os.fork()
if child == 0:
    run.log("child", 1)
    sys.exit(0)
os.waitpid(child, 0)
run.flush()
import sqlite3
connection = sqlite3.connect(".afnio/me/emails.db")
print(connection.execute("SELECT status FROM runs").fetchall())
connection.close()
run.log("parent", 1)
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[('RUNNING',)]\n", "", 0)
    rows = read(FILE, "SELECT name, count(*) FROM metrics GROUP BY name ORDER BY name")
    assert rows == [("before", 50), ("child", 1), ("parent", 1)]
    assert read(FILE, "SELECT status FROM runs") == [("COMPLETED",)]
