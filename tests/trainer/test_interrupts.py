"""What ends a training from outside: Ctrl-C at any time, and a folder that another Trainer uses.

Trainings in scripts, threads, loops and notebooks are among tests/entrances.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from trainer import scenarios
from trainer.scenarios import Agent, afitted, fitted, loader, told, trainer

from afnio.errors import CheckpointError
from afnio.testing import ScriptedClient


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
    assert "in use by this process" in errors[0]
    assert second.client.requests == []


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
