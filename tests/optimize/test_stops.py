"""optimize in a process that is killed or interrupted: nothing is paid twice, and Ctrl-C still gives a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optimize.task import answer, optimized

import afnio.tellurio as te
from afnio.cli import main
from afnio.errors import RunStoppedError
from afnio.testing import ScriptedClient

PROGRAM = Path(__file__).with_name("program.py")
WHOLE = 308
"""Requests of a run that nothing interrupts."""
IN_FLIGHT = 64
"""The most requests that a kill can cut off: those of a look, side by side."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], cwd=folder, env=os.environ,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sent(process: subprocess.Popen[str], count: int) -> int:
    """Wait until the program has sent this number of requests."""
    assert process.stdout is not None
    for number, line in enumerate(process.stdout, 1):
        assert line == "sent\n"
        if number == count:
            return number
    raise AssertionError(process.communicate())


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the requests that the rest of the program sent, what it printed, and its standard error."""
    out, errors = process.communicate(timeout=100)
    return out.count("sent\n"), out.replace("sent\n", ""), errors


@pytest.mark.nightly
def test_killed_it_continues(tmp_path: Path) -> None:
    """Killed three times, the same program ends with the same result and pays for no reply twice."""
    requests = 0
    for count in (60, 60, 60):  # in the first step, in the second, at the gate
        process = start(tmp_path)
        requests += sent(process, count)
        process.kill()
        requests += ended(process)[0]
    number, said, errors = ended(start(tmp_path))
    assert "verdict: Better: +" in said
    assert "continuing run" in errors
    assert WHOLE <= requests + number <= WHOLE + 3 * IN_FLIGHT
    number, again, errors = ended(start(tmp_path))
    assert number == 0
    (line,) = [line for line in again.splitlines(keepends=True) if line.startswith("earlier ")]
    assert again.replace(line, "") == said
    assert "returns the result of" in errors


def test_the_first_interrupt_ends_in_a_result(tmp_path: Path) -> None:
    """The training ends early, and what it has is tested."""
    process = start(tmp_path)
    sent(process, 30)
    process.send_signal(signal.SIGINT)
    number, said, errors = ended(process)
    assert process.returncode == 0
    assert "ended     Ctrl-C" in said
    assert "Ctrl-C again stops" in errors
    assert number + 30 < WHOLE


@pytest.mark.nightly
def test_the_second_interrupt_stops_and_can_be_continued(tmp_path: Path) -> None:
    """It ends at once, without a result; the same program continues."""
    process = start(tmp_path)
    sent(process, 60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    for line in process.stderr:
        if "Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    number, said, errors = ended(process)
    assert process.returncode != 0
    assert "verdict" not in said
    assert "KeyboardInterrupt" in errors
    rest, said, _ = ended(start(tmp_path))
    assert "verdict: Better: +" in said
    assert rest + number + 60 <= WHOLE + IN_FLIGHT


def test_an_interrupt_ends_a_paused_run_which_stays_paused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first Ctrl-C, as its step would end when it goes on. Started again it waits until it may."""
    process = start(tmp_path, "pause")
    assert process.stdout is not None
    assert "paused\n" in process.stdout
    process.send_signal(signal.SIGINT)
    number, said, errors = ended(process)
    assert "KeyboardInterrupt" in errors
    assert "verdict" not in said
    process = start(tmp_path)
    assert process.stderr is not None
    assert any("earlier orders hold on (paused)" in line for line in process.stderr)
    folder = ["--dir", str(tmp_path / ".afnio")]
    assert main(["runs", "list", "--json", *folder]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert main(["runs", "stop", run["name"], *folder]) == 0
    number, said, _ = ended(process)
    assert process.returncode == 0
    assert "was stopped by the command line" in said
    assert number < WHOLE


class Orders:
    """A model that gives its run an order with its n-th request; `sent` counts them."""

    def __init__(self, when: int, order: Callable[[te.Run], object]) -> None:
        self.sent, self._when, self._order = 0, when, order
        self.client = ScriptedClient(self.answer)

    def answer(self, request: Any) -> Any:
        self.sent += 1
        if self.sent == self._when:
            self._order(te.get_active_run())
        return answer(request)


def test_a_run_that_is_stopped_ends_in_a_result(tmp_path: Path) -> None:
    """As with the first Ctrl-C: the training ends after its step, and what it has is tested."""
    model = Orders(30, lambda run: run.stop())
    result = optimized(model.client, dir=tmp_path)
    assert result.stopped.startswith("the run ")
    assert "was stopped by its program" in result.stopped
    assert result.gain is not None
    assert model.sent < WHOLE


def test_a_run_that_is_stopped_at_once_is_continued(tmp_path: Path) -> None:
    """The same call goes on and pays for no reply again."""
    model = Orders(60, lambda run: run.stop(now=True))
    with pytest.raises(RunStoppedError, match="the same call of optimize continues it"):
        optimized(model.client, dir=tmp_path)
    result = optimized(model.client, dir=tmp_path)
    assert result.verdict.startswith("Better: +")
    assert model.sent <= WHOLE + IN_FLIGHT


def test_a_lower_ceiling_leaves_enough_for_the_result(tmp_path: Path) -> None:
    """The training ends early, and the held-out rows are still scored."""
    model = Orders(30, lambda run: run.limit(max_calls=250))
    result = optimized(model.client, dir=tmp_path)
    assert result.gain is not None
    assert model.sent <= 250
