"""Runs that are paused, limited and stopped: by the command line, and by code."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import anyio
import pytest
from kit.tiny_training import FIRST, evaluate, reply

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.cli import main
from afnio.cognitive import Module, Parameter
from afnio.errors import BatchError, BudgetExceeded, RunStoppedError
from afnio.optim import TGD
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer

ASK = [{"role": "user", "content": "Hi"}]
PROGRAM = """
import sys
import afnio.tellurio as te
from afnio.testing import ScriptedClient

client = ScriptedClient("hi")
with te.init("me", "p", name="steered", dir="runs"):
    for line in sys.stdin:
        print(client.chat(messages=[{"role": "user", "content": line}], model="m").content, flush=True)
"""


class Steered:
    """A program that makes a call for each line that it gets."""

    def __init__(self, folder: Path) -> None:
        (folder / "program.py").write_text(PROGRAM)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "program.py"], cwd=folder, text=True, stdin=pipe, stdout=pipe, stderr=pipe
        )
        self.notes = ""

    def call(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("ask\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def is_silent(self) -> bool:
        return not select.select([self.process.stdout], [], [], 0)[0]

    def hears(self, text: str) -> None:
        assert self.process.stderr is not None
        while text not in self.notes:
            line = self.process.stderr.readline()
            assert line, self.notes
            self.notes += line

    def end(self) -> int:
        _, notes = self.process.communicate(timeout=60)
        self.notes += notes
        return self.process.returncode


@pytest.fixture(name="start")
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Steered]]:
    monkeypatch.chdir(tmp_path)
    started: list[Steered] = []

    def start() -> Steered:
        started.append(Steered(tmp_path))
        started[-1].call()  # the run has begun once this is answered
        assert started[-1].answer() == "hi\n"
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def runs(*arguments: str) -> int:
    try:
        return main(["runs", *arguments, "--dir", "runs"])
    except SystemExit as error:
        return int(error.code or 0)


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The run as `afnio runs show` has it."""
    capsys.readouterr()
    assert runs("show", "steered", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def orders(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [one["text"] for one in shown(capsys)["orders"]]


def test_a_process_is_paused_and_goes_on(
    start: Callable[[], Steered], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also over a kill and a restart; the journal still answers then. Each order is recorded with its origin."""
    program = start()
    assert runs("pause", "steered") == 0
    assert capsys.readouterr().out == "me/p/steered pauses within two seconds; calls in flight end\n"
    program.hears("paused by the command line")
    program.call()
    assert runs("limit", "steered", "--max-in-flight", "1", "--requests-per-minute", "600") == 0
    program.hears("max_in_flight set to 1")
    assert program.is_silent()
    program.process.send_signal(signal.SIGKILL)
    assert program.end() == -signal.SIGKILL
    program = start()
    program.hears("earlier orders hold on (paused, requests_per_minute 600, max_in_flight 1)")
    program.call()
    assert runs("pause", "steered") == 0
    assert capsys.readouterr().out.endswith("me/p/steered is paused already\n")
    assert program.is_silent()
    assert runs("resume", "steered") == 0
    assert program.answer() == "hi\n"
    assert orders(capsys) == [
        "paused by the command line",
        "requests_per_minute set to 600, max_in_flight set to 1 by the command line",
        "resumed by the command line",
    ]


def test_a_process_is_stopped(start: Callable[[], Steered], capsys: pytest.CaptureFixture[str]) -> None:
    """The next call that would be paid for says so. Then it isn't running, and started again it goes on."""
    program = start()
    assert runs("stop", "steered") == 0
    program.hears("asked to stop after its step by the command line")
    program.call()
    assert program.end() == 1
    assert "RunStoppedError: the run steered was stopped by the command line" in program.notes
    assert shown(capsys)["status"] == "CRASHED"
    for command in ("stop", "pause", "resume"):
        capsys.readouterr()
        assert runs(command, "steered") == 1
        assert (
            capsys.readouterr().err
            == "afnio: me/p/steered must be running (it was killed); start its program again first\n"
        )
    program = start()
    program.call()
    assert program.answer() == "hi\n"


def test_a_process_gets_a_ceiling(start: Callable[[], Steered]) -> None:
    """It counts what the run has spent, and the command line lifts it again."""
    program = start()
    assert runs("limit", "steered", "--max-calls", "1") == 0
    program.hears("max_calls set to 1")
    assert runs("limit", "steered", "--max-calls", "none") == 0
    program.hears("max_calls lifted")
    program.call()
    assert program.answer() == "hi\n"
    assert runs("limit", "steered", "--max-calls", "2") == 0
    program.hears("max_calls set to 2")
    program.call()
    assert program.end() == 1
    assert "max_calls=2 leaves no room" in program.notes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a limit must be given"),
        (["--max-calls", "many"], "a limit must be a number or none (got 'many')"),
        (["--max-calls", "0"], "max_calls must be a whole number of 1 or more (got 0)"),
        (["--max-calls", "1.5"], "max_calls must be a whole number of 1 or more (got 1.5)"),
        (["--max-cost", "nan"], "max_cost must be a number of dollars, 0 or more (got nan)"),
        (
            ["--tokens-per-minute", "1e99"],
            "tokens_per_minute must be a whole number of 1 or more (got 1e+99)",
        ),
        (["--max-cost", "-1"], "max_cost must be a number of dollars, 0 or more (got -1.0)"),
    ],
)
def test_a_limit_that_is_none(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A sentence, exit code 2, and nothing is changed."""
    monkeypatch.chdir(tmp_path)
    with te.init("me", "p", name="steered", dir="runs"):
        assert runs("limit", "steered", *arguments) == 2
        assert said in capsys.readouterr().err
    assert orders(capsys) == []


def test_a_ceiling_in_dollars_needs_prices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with te.init("me", "p", name="steered", dir="runs") as run:
        ScriptedClient("hi").chat(messages=ASK, model="m")
        run.flush()
        assert runs("limit", "steered", "--max-cost", "2") == 1
        assert "max_cost needs prices, and calls of this run have none" in capsys.readouterr().err
    assert orders(capsys) == []


class Agent(Module):
    """Pauses its run for a moment in its first step, and stops it in its third."""

    def __init__(self, *, now: bool) -> None:
        super().__init__()
        self.client, self.now = ScriptedClient(reply), now
        self.prompt = Parameter(FIRST, role="system prompt", requires_grad=True)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch == "first":
            te.get_active_run().pause()
            te.get_active_run().resume()
        if batch == "third":
            te.get_active_run().stop(now=self.now)
        return evaluate(self.prompt, self.client)

    def configure_optimizers(self) -> Any:
        return TGD(self.parameters(), self.client, model="critic")


async def fit(agent: Agent, folder: Path) -> Trainer:
    trainer = Trainer(max_epochs=50, min_epochs=40, default_root_dir=folder, enable_progress_bar=False)
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "critic"}):
        await trainer.afit(agent, ["first", "second", "third", "fourth"])
    return trainer


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_training_ends_after_its_step(library: str, tmp_path: Path) -> None:
    """Whatever its minimum is, and the program goes on."""
    with te.init("me", "p", dir=tmp_path / "runs") as run:
        trainer = anyio.run(fit, Agent(now=False), tmp_path, backend=library)
    assert trainer.global_step == 3
    assert str(trainer.stopped).startswith(f"the run {run.name} was stopped by its program")
    assert run.status == "COMPLETED"


class Held(Agent):
    """Pauses its run in its second step for longer than the training may take."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch == "second":
            run = te.get_active_run()
            run.pause()
            Timer(6.0, run.resume).start()
        return evaluate(self.prompt, self.client)


@pytest.mark.nightly
def test_a_pause_is_no_time_of_a_training(tmp_path: Path) -> None:
    agent = Held(now=False)
    trainer = Trainer(max_epochs=1, max_time=5.0, default_root_dir=tmp_path, enable_progress_bar=False)
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "critic"}):
        with te.init("me", "p", dir=tmp_path / "runs"):
            trainer.fit(agent, ["first", "second", "third", "fourth"])
    assert (trainer.global_step, trainer.stopped) == (4, "max_epochs=1 reached")


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_training_is_cut_off(library: str, tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError, match="was stopped by its program"):
        with te.init("me", "p", dir=tmp_path / "runs") as run:
            anyio.run(fit, Agent(now=True), tmp_path, backend=library)
    assert run.status == "CRASHED"


def test_a_batch_is_cut_off(tmp_path: Path) -> None:
    """The run can be continued, as after one call that is cut off."""
    client = ScriptedClient("yes", latency=0.2)

    async def agent(question: str, system: str) -> str:
        te.get_active_run().stop(now=True)
        return (await client.achat(messages=[{"role": "user", "content": question}], model="m")).content

    with pytest.raises(BatchError) as caught, te.init("me", "p", dir=tmp_path) as run:
        _ = cog.Agent(agent, prompts={"system": "Be brief."})(["first", "second"]).data
    assert caught.value.split(RunStoppedError)[1] is None
    assert run.status == "CRASHED"


@pytest.mark.parametrize("now", [False, True])
def test_an_evaluation_is_stopped_and_continued(now: bool, tmp_path: Path) -> None:
    """The same call has the rest, and pays for no reply twice."""
    client = ScriptedClient("yes", latency=0.2)  # so that not all of them are in flight

    async def agent(question: str) -> str:
        if question == "question 30":
            te.get_active_run().stop(now=now)
        return (await client.achat(messages=[{"role": "user", "content": question}], model="m")).content

    rows = [(f"question {number}", "yes") for number in range(200)]
    with pytest.raises(RunStoppedError):
        afnio.evaluate(agent, rows, exact, dir=tmp_path)
    first = len(client.requests)
    assert 8 <= first < 200
    rows[30] = ("another question", "yes")
    found = afnio.evaluate(agent, rows, exact, dir=tmp_path)
    assert found.score.mean == 1
    assert found.replayed >= 8


def exact(output: str, expected: str) -> bool:
    return output == expected


def test_a_run_of_the_whole_process_is_limited(tmp_path: Path) -> None:
    """One that a plain `init` started; after it nothing is held."""
    client = ScriptedClient("hi")
    run = te.init("me", "p", dir=tmp_path)
    run.limit(max_calls=1)
    client.chat(messages=ASK, model="m")
    with pytest.raises(BudgetExceeded):
        client.chat(messages=ASK, model="m")
    run.finish()
    assert client.chat(messages=ASK, model="m").content == "hi"
    with pytest.raises(ValueError, match="must be running"):
        run.pause()


def test_a_server_goes_on_while_its_run_is_paused(tmp_path: Path) -> None:
    """Requests belong to no block, and the run of the whole process doesn't hold them."""
    client, said = ScriptedClient("hi"), list[Any]()

    def serve() -> None:
        said.append(client.chat(messages=ASK, model="m").content)

    with te.init("me", "p", dir=tmp_path, process_wide=True) as run:
        run.pause()
        server = Thread(target=serve)
        server.start()
        server.join()
        run.resume()
    assert said == ["hi"]
