"""One training through every entrance: script, threads, asyncio, trio, a notebook kernel: the same results."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import nbformat
import pytest
from nbclient import NotebookClient
from trainer import scenarios
from trainer.scenarios import Agent, ReadingAgent, afitted, fitted, loader, told, trainer

from afnio.errors import CheckpointError
from afnio.testing import ScriptedClient


def run(folder: Any, kind: Any = Agent, latency: float = 0.0) -> Any:
    agent = kind(ScriptedClient(scenarios.replies, latency=latency))
    return told(fitted(agent, trainer(folder, max_epochs=2), loader(10, shuffle=True), loader(6)), agent)


async def arun(folder: Any, kind: Any = Agent, latency: float = 0.0) -> Any:
    agent = kind(ScriptedClient(scenarios.replies, latency=latency))
    return told(
        await afitted(agent, trainer(folder, max_epochs=2), loader(10, shuffle=True), loader(6)), agent
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("main"))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_loops(tmp_path: Path, expected: Any, backend: str) -> None:
    """`afit` on either loop, with both kinds of steps."""
    assert anyio.run(arun, tmp_path / "a", backend=backend) == expected
    reading = anyio.run(arun, tmp_path / "b", ReadingAgent, backend=backend)
    assert expected[0].items() <= reading[0].items()
    assert expected[2] == reading[2]


async def test_two_trainers_beside_each_other(tmp_path: Path, expected: Any) -> None:
    """In one process and on one loop, each with its own folder, replies and metrics."""
    found: list[Any] = [None, None]

    async def one(number: int) -> None:
        found[number] = await arun(tmp_path / str(number), latency=0.001 * number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, 0)
        tasks.start_soon(one, 1)
    assert found == [expected, expected]


def test_a_ctrl_c_while_the_loop_is_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training has not begun by then: it ends at its first wait, and sends nothing."""
    run_loop, agent = anyio.run, Agent(ScriptedClient(scenarios.replies))

    def interrupted(*given: Any, **options: Any) -> Any:
        before = set(threading.enumerate())
        signal.raise_signal(signal.SIGINT)
        for helper in set(threading.enumerate()) - before:
            helper.join()
        return run_loop(*given, **options)

    monkeypatch.setattr(anyio, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(agent, trainer(tmp_path, max_epochs=2), loader(10), loader(6))
    assert agent.client.requests == []


def test_threads(tmp_path: Path, expected: Any) -> None:
    """Several threads at once."""
    found: list[Any] = [None] * 4

    def one(number: int) -> None:
        found[number] = run(tmp_path / str(number))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 4


async def test_two_trainers_in_one_folder(tmp_path: Path) -> None:
    """The second is told who has the folder, and calls nothing."""
    second = Agent(ScriptedClient(scenarios.replies))
    errors: list[str] = []

    class Other:
        async def on_train_epoch_start(self, made: Any, agent: Any) -> None:
            try:
                await afitted(second, trainer(tmp_path), loader(4))
            except CheckpointError as error:
                errors.append(str(error))

    first = Agent(ScriptedClient(scenarios.replies))
    await afitted(first, trainer(tmp_path, max_epochs=1, callbacks=[Other()]), loader(4))
    assert "in use by another trainer, of this process" in errors[0]
    assert second.client.requests == []


def test_notebook(tmp_path: Path, expected: Any) -> None:
    """`fit` in a cell, `await afit` in another: the same; and the kernel's loop goes on."""
    cells = [
        "import json\nfrom trainer.test_entrances import run, arun",
        f"print(json.dumps(run({str(tmp_path / 'a')!r})))",
        f"print(json.dumps(await arun({str(tmp_path / 'b')!r})))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    texts = [
        "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")
        for cell in notebook.cells
    ]
    assert [json.loads(text) for text in texts[1:]] == [expected, expected]


CTRL_C = """
from trainer.scenarios import *
from trainer import scenarios
agent = Agent(ScriptedClient(scenarios.replies, latency={latency}))
class Say:
    def on_train_batch_start(self, made, agent, batch, number):
        if made.global_step == 2:
            print("NOW", flush=True)
fitted(agent, trainer({folder!r}, max_epochs=50, callbacks=[Say()]), loader(40))
print("ended")
"""


def _in_terminal(code: str, interrupts: int) -> tuple[str, int, float]:
    """Run code in a terminal of its own, press Ctrl-C there; return what it showed, its code and how long it took."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-W", "error", "-c", code])
    shown, pressed = b"", 0.0
    while True:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, shown
        try:
            part = os.read(terminal, 65536)
        except OSError:
            part = b""
        if not part:
            break
        shown += part
        if b"NOW" in shown and not pressed:
            pressed = time.monotonic()
            for _ in range(interrupts):
                os.write(terminal, b"\x03")
                time.sleep(1.0)  # signals that come at once are one
    _, status = os.waitpid(pid, 0)
    return shown.decode(), os.waitstatus_to_exitcode(status), time.monotonic() - pressed


def test_ctrl_c_stops_after_recording(tmp_path: Path) -> None:
    """It says how to go on, and going on ends as a run left alone."""
    code = CTRL_C.format(latency=0.3, folder=str(tmp_path))
    shown, status, _ = _in_terminal(code, 1)
    assert 'was stopped after step 2, in epoch 1; trainer.fit(..., ckpt_path="last") goes on' in shown
    assert "KeyboardInterrupt" in shown
    assert status in (1, 130, -signal.SIGINT)
    agents = [Agent(ScriptedClient(scenarios.replies)) for _ in range(2)]
    again = fitted(agents[0], trainer(tmp_path, max_epochs=1), loader(40), ckpt_path="last")
    alone = fitted(agents[1], trainer(tmp_path / "alone", max_epochs=1), loader(40))
    assert told(alone, agents[1]) == told(again, agents[0])


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    """Even where a step holds on: a thread that sleeps is not waited for."""
    code = (
        CTRL_C.format(latency=0.3, folder=str(tmp_path))
        .replace(
            "fitted(agent",
            "import time\n"
            "class Slow:\n"
            "    async def on_train_batch_end(self, made, agent, metrics, batch, number):\n"
            "        if made.global_step == 3:\n"
            "            print('NOW', flush=True)\n"
            "            try:\n"
            "                await anyio.sleep(30)\n"
            "            finally:\n"
            "                with anyio.CancelScope(shield=True):\n"
            "                    await anyio.sleep(30)\n"
            "import anyio\n"
            "fitted(agent",
        )
        .replace("callbacks=[Say()]", "callbacks=[Slow()]")
    )
    _, status, took = _in_terminal(code, 2)
    assert status != 0
    assert took < 30  # what the step sleeps, twice


def test_a_script_ends_quietly(tmp_path: Path) -> None:
    """A fresh process trains and leaves nothing behind on stderr."""
    code = f"from trainer.test_entrances import run\nrun({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
