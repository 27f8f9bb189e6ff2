"""Runs, budgets and sinks of a server's lifespan: requests don't run in its block, and count all the same."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.cli import main
from afnio.errors import BudgetExceeded
from afnio.tellurio.sinks import JsonlSink
from afnio.testing import ScriptedClient

FILE = Path(".afnio/me/service.db")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFNIO_HOME", raising=False)


def ask(text: str = "hello") -> str:
    return str(ScriptedClient("hi").chat(messages=[{"role": "user", "content": text}], model="m"))


def elsewhere(work: Callable[[], Any] = ask) -> Any:
    """Do it as a request does: in another thread, with a context that has never seen our blocks."""
    found: list[Any] = []

    def guarded() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=Context().run, args=(guarded,))
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def printed(*command: str) -> str:
    """What a command of `afnio` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command) == 0
    return out.getvalue()


def runs() -> dict[str, Any]:
    """The runs by their names."""
    return {run["name"]: run for run in json.loads(printed("runs", "list", "--json"))}


def calls() -> dict[str, int]:
    """How many calls each run has."""
    return {name: run["calls"] for name, run in runs().items()}


def exported(name: str, table: str) -> list[dict[str, Any]]:
    """What a run has recorded in a table."""
    lines = map(json.loads, printed("runs", "export", name).splitlines())
    return [line for line in lines if line["table"] == table]


def test_requests_count_in_the_run_the_budget_and_the_sinks_of_a_lifespan() -> None:
    """And no longer once it has ended."""
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
    from fastapi.testclient import TestClient

    client, heard, spent = ScriptedClient("hi"), [], []

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with (
            te.init("me", "service", name="served", sinks=[heard.append], process_wide=True),
            afnio.budget(max_calls=3, process_wide=True) as budget,
        ):
            with JsonlSink("events.jsonl", process_wide=True):
                spent.append(budget)
                yield

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/answer")
    async def answer(text: str) -> str:
        te.log("length", len(text))
        messages = [{"role": "user", "content": [afnio.Variable(text, role="question")]}]
        async with afnio.scope(name="answer"):
            return (await cog.functional.chat_completion(client, messages, model="m")).data

    with TestClient(app) as visitor:
        assert [visitor.get("/answer", params={"text": str(n)}).json() for n in range(3)] == ["hi"] * 3
        with pytest.raises(BudgetExceeded, match="max_calls=3"):
            visitor.get("/answer", params={"text": "3"})
    names = [type(event).__name__ for event in heard]
    assert (names[0], names[-1]) == ("RunStarted", "RunEnded")
    assert [event.error for event in heard if type(event).__name__ == "CallEnded"][:3] == [None] * 3
    lines = [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["event"] == "CallEnded"]) == 4
    assert (spent[0].ledger.total.calls, spent[0].ledger.total.attempts) == (3, 3)
    assert calls() == {"served": 4}
    assert (runs()["served"]["status"], len(exported("served", "metrics"))) == ("COMPLETED", 4)
    assert elsewhere() == "hi"
    assert calls() == {"served": 4}


def test_the_inner_of_two_runs_hides_the_outer() -> None:
    """Of two that are process-wide the last has what is in no block, and a block's run what is in the block."""

    def in_a_block() -> None:
        with te.init("me", "service", name="block", resume=False):
            ask()

    with te.init("me", "service", name="first", process_wide=True):
        elsewhere()
        with te.init("me", "service", name="second", process_wide=True) as second:
            assert second is elsewhere(te.get_active_run)
            elsewhere()
            ask()
            elsewhere(in_a_block)
        elsewhere()
        ask()
    elsewhere()
    assert calls() == {"first": 3, "second": 2, "block": 1}


def test_runs_that_overlap_end_in_any_order() -> None:
    """The last one that goes on has what comes."""
    first = te.init("me", "service", name="first", process_wide=True)
    second = te.init("me", "service", name="second", process_wide=True)
    with second:
        with first:
            elsewhere()
        elsewhere()
    elsewhere()
    assert calls() == {"first": 0, "second": 2}


def test_each_of_several_budgets_must_agree() -> None:
    """Those that are process-wide and the block's; each counts what was made while it was open."""
    with (
        afnio.budget(max_calls=2, process_wide=True) as process,
        afnio.budget(process_wide=True) as other,
        afnio.budget() as block,
    ):
        ask()
        elsewhere()
        for work in (ask, lambda: elsewhere(ask)):
            with pytest.raises(BudgetExceeded, match="max_calls=2"):
                work()
    ask()
    assert tuple(budget.ledger.total.calls for budget in (process, other, block)) == (2, 2, 1)


def test_a_budget_may_be_entered_again() -> None:
    """As with blocks: it counts once, until the outermost end."""
    budget = afnio.budget(max_calls=2, process_wide=True)
    with budget:
        with budget:
            elsewhere()
        elsewhere()
        with pytest.raises(BudgetExceeded):
            elsewhere()
    assert elsewhere() == "hi"


def test_two_sinks_hear_the_process() -> None:
    """Each while it is open."""
    with JsonlSink("a.jsonl", process_wide=True):
        elsewhere()
        with JsonlSink("b.jsonl", process_wide=True), JsonlSink("c.jsonl"):
            elsewhere()
        elsewhere()
    elsewhere()
    assert [len(Path(f"{name}.jsonl").read_text().splitlines()) for name in "abc"] == [3, 1, 0]


PROGRAM = """
import os, signal, sys, threading
from contextvars import Context
import afnio, afnio.tellurio as te
from afnio.tellurio.sinks import JsonlSink
from afnio.testing import ScriptedClient

client = ScriptedClient("hi")

def ask():
    client.chat(messages=[{"role": "user", "content": "hello"}], model="m")

def request():
    thread = threading.Thread(target=Context().run, args=(ask,))
    thread.start()
    thread.join()
"""


def program(source: str) -> subprocess.CompletedProcess[str]:
    Path("program.py").write_text(PROGRAM + source)
    return subprocess.run(
        [sys.executable, "-W", "error", "program.py"], capture_output=True, text=True, timeout=60
    )


def test_a_killed_server_starts_a_new_run() -> None:
    """No request is answered by what another was answered before; a run that is named is continued."""
    source = """
with te.init("me", "service", resume=os.environ.get("RUN"), process_wide=True) as run:
    ask()
    request()
    run.flush()
    print(len(client.requests), run.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    sent, run_id = program(source).stdout.split()
    assert sent == "2"
    journal = FILE.with_suffix("") / f"{run_id}.journal"
    assert json.loads(printed("journal", "stat", str(journal), "--json"))["records"] == 1
    assert program(source).stdout.split()[0] == "2"
    assert len(calls()) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN", run_id)
        assert program(source).stdout.split() == ["1", run_id]


def test_a_forked_child_has_the_run_and_a_budget_of_its_own() -> None:
    """What was spent before the fork counts for both; the sinks are the parent's."""
    done = program(
        """
with (
    te.init("me", "service", name="served", process_wide=True),
    afnio.budget(max_calls=3, process_wide=True) as budget,
    JsonlSink("events.jsonl", process_wide=True),
):
    request()
    child = os.fork()
    if child == 0:
        Context().run(ask)
        Context().run(ask)
        try:
            Context().run(ask)
        except afnio.errors.BudgetExceeded:
            sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    request()
    request()
    print(budget.ledger.total.calls)
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("7\n3\n", "", 0)
    assert runs()["served"]["status"] == "COMPLETED"
    assert sum(call["attempts"] for call in exported("served", "calls")) == 5
    assert len([line for line in Path("events.jsonl").read_text().splitlines() if "CallEnded" in line]) == 3
