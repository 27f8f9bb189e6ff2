"""The display as people see it: in a real terminal, a real notebook kernel, a pipe; and its silence."""

from __future__ import annotations

import contextvars
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from trainer.screen import TESTS, Screen
from trainer.show import PLAN, show, state

import afnio
from afnio.runtime.events import CallRetried, emit
from afnio.testing import ScriptedClient
from afnio.trainer._progress import Display, PlainScreen, fitting_screen, make_progress

TIMES = re.compile(r"\d+:\d\d, \d+:\d\d left|\d+:\d\d(?= )|[\d.]+ samples/s")


EPOCH = "train loss 0.4242, train accuracy 0.4242, val loss 0.6667, val accuracy 0.6667"


def timeless(lines: list[str]) -> list[str]:
    """Lines without what depends on the clock."""
    return [re.sub(r" in [\d.]+ s:", ":", TIMES.sub("_", line)) for line in lines]


def test_a_wide_terminal() -> None:
    """Live lines at the bottom; what the program prints and logs stays above them."""
    with Screen(120) as screen:
        first = screen.until("cost $0.00 of $1.00")
        assert [
            "fit SentimentAnalyzer  66 samples an epoch  5 epochs  validation on 66  checkpoints in runs/checkpoints",
            f"train  {'─' * 40} 0/66",
            "0 calls  0 tokens  cost $0.00 of $1.00",
        ] == [first[0], *first[2:]]
        screen.enter()
        lines = timeless(screen.until("33/66", "too long"))
        assert [
            "printed by the program",
            "WARNING:program:logged by the program",
            "SentimentAnalyzer  epoch 1/5  step 1  _",
            f"train  {'━' * 20}{'─' * 20} 33/66  _  loss 0.4242  accuracy 0.4242  1 failed",
            "32 calls  3 retried  1 failed  64 tokens  cost unknown of $1.00",
            "a call failed: FinalModelError: 400 the message is too long",
        ] == lines[1:]
        screen.enter()
        lines = timeless(screen.until("epoch 2/5", "slow down"))
        assert [
            f"epoch 1/5  {EPOCH}  samples failed 1  time 0:45".replace(", ", "  "),
            "       cost unknown of $1.00",
            "A message of the loop: the checkpoint [best] is of epoch 1 now.",
            "SentimentAnalyzer  epoch 2/5  step 3  _  best val_loss 0.6667",
            f"train  {'━' * 20}{'─' * 20} 33/66  _  loss 0.4242  accuracy 0.4242",
            f"val    {'━' * 40} 66/66  loss 0.6667  accuracy 0.6667",
            "65 calls  6 retried  1 failed  130 tokens  cost unknown of $1.00",
            "a call is tried again: 429 Too Many Requests: slow down",
        ] == lines[3:]
        screen.enter()
        lines = timeless(screen.until("fit of"))
        assert re.fullmatch(
            r"fit of SentimentAnalyzer  3 steps  (_|1:0\d)  65 calls  6 retried  1 failed  130 tokens  "
            r"cost unknown of \$1.00",
            lines[-1],
        )
        assert ["val", "train"] == [
            name for name in ("val", "train") if not any(x.startswith(name) for x in lines)
        ]
    assert re.search(rb"\x1b\[[\d;]*3[26]", screen.raw), "it has colours"


def test_a_narrow_terminal_without_colours() -> None:
    """Facts go below their bars, and NO_COLOR is heard."""
    with Screen(60, NO_COLOR="1") as screen:
        for texts in (["0 calls"], ["33/66", "too long"], ["epoch 2/5", "slow"]):
            lines = timeless(screen.until(*texts))
            screen.enter()
        assert [
            "SentimentAnalyzer  epoch 2/5  step 3  _",
            "best val_loss 0.6667",
            f"train  {'━' * 10}{'─' * 10} 33/66",
            "       _  loss 0.4242  accuracy 0.4242",
            f"val    {'━' * 20} 66/66",
            "       loss 0.6667  accuracy 0.6667",
            "65 calls  6 retried  1 failed  130 tokens",
            "cost unknown of $1.00",
        ] == lines[-9:-1]
        screen.until("fit of")
    assert not re.search(rb"\x1b\[[\d;]*3\d", screen.raw)


def test_a_terminal_that_is_resized() -> None:
    """From the next frame on it is drawn at the new width."""
    with Screen(120) as screen:
        screen.until("0 calls")
        screen.enter()
        screen.until("1 failed")
        screen.resize(60)
        lines = screen.until("       2.4 samples/s", "too long")
        assert 60 >= max(map(len, lines[-5:]))
        for text in ("epoch 2/5", "fit of"):
            screen.enter()
            screen.until(text)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(environment: dict[str, str]) -> None:
    """Without one escape."""
    with Screen(200, **environment) as screen:
        for text in ("fit Sentiment", "printed", "epoch 1/5", "fit of"):
            screen.until(text)
            screen.enter()
    assert b"\x1b" not in screen.raw


def test_a_pipe_gets_lines_with_the_time() -> None:
    """On standard error; standard output is the program's alone."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer.show"],
        cwd=TESTS, input="\n" * 4, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "@ ", line) for line in done.stderr.splitlines()]
    assert [
        "@ fit SentimentAnalyzer, 66 samples an epoch, 5 epochs, validation on 66, checkpoints in runs/checkpoints",
        "WARNING:program:logged by the program",
        f"@ epoch 1/5, {EPOCH}, samples failed 1, time 0:45, cost unknown of $1.00",
        "@ A message of the loop: the checkpoint [best] is of epoch 1 now.",
    ] == lines[:-1]
    assert lines[-1].startswith("@ fit of SentimentAnalyzer, 3 steps, 1:0")
    assert "printed by the program\n" == done.stdout


def test_a_budget_with_prices_shows_cost_and_ceiling(tmp_path: Path) -> None:
    """In dollars, of the budget that holds."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "m"\ninput = 1000\noutput = 1000\n')
    with Screen(120, "--budget", AFNIO_PRICES=str(prices)) as screen:
        screen.until("cost $0.00 of $1.00")
        screen.enter()
        lines = screen.until("64 tokens  cost $0.0", "too long")
        assert lines[-2].endswith(" of $1.00")


CELLS = [
    """
import sys; sys.path.insert(0, "TESTS")
import afnio, time, threading
from trainer.show import show
from afnio.trainer._progress import make_progress
""",
    """
with afnio.budget():
    show(make_progress(), lambda stage: time.sleep(0.7))
""",
    """
with afnio.budget():
    thread = threading.Thread(target=show, args=(make_progress(), lambda stage: None))
    thread.start()
    thread.join()
""",
]


def test_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """One output of the cell, updated in place; prints come below it; from a thread too."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    kinds: list[tuple[int, str]] = []

    class Client(NotebookClient):
        def process_message(self, message: Any, cell: Any, index: int) -> Any:
            kinds.append((index, message["msg_type"]))
            return super().process_message(message, cell, index)

    cells = [cell.replace("TESTS", str(TESTS)) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    Client(notebook, timeout=60, kernel_name="python3").execute()
    for index in (1, 2):
        outputs = notebook.cells[index].outputs
        shown = [output.data for output in outputs if output.output_type == "display_data"]
        assert 1 == len(shown) == kinds.count((index, "display_data"))
        html, text = shown[0]["text/html"], shown[0]["text/plain"].splitlines()
        assert "<b>val loss</b>" in html
        assert "the checkpoint [best] is of epoch 1 now" in html
        assert text[1].startswith("epoch 1/5, train loss 0.4242")
        assert text[-1].startswith("fit of SentimentAnalyzer, 3 steps")
        printed = "".join(output.text for output in outputs if output.output_type == "stream")
        assert "printed by the program" in printed
    assert 3 <= kinds.count((1, "update_display_data"))


def test_quiet_is_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """When asked; what the loop says is logged then, as it says what went wrong."""
    with afnio.budget():
        show(make_progress(False), lambda stage: None)
    assert ("printed by the program\n", "") == capfd.readouterr()
    assert "the checkpoint [best] is of epoch 1 now" in caplog.text


def test_only_calls_of_the_run_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of another one in this process, nor those after its end."""
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())

    def ask() -> None:
        ScriptedClient("ok").chat(messages=[{"role": "user", "content": "hi"}], model="m")

    one, other = Display(PlainScreen()), Display(PlainScreen())
    mine, theirs = contextvars.copy_context(), contextvars.copy_context()
    mine.run(one.start, PLAN)
    theirs.run(other.start, PLAN)
    mine.run(ask)
    mine.run(ask)
    theirs.run(ask)
    mine.run(one.stop)
    mine.run(ask)
    other.stop()  # in another context than it was started in
    assert ["2 calls", "1 calls"] == re.findall(r"\d calls", log.getvalue())
    assert ["2 tok", "4 tok"] == sorted(re.findall(r"\d tok", log.getvalue()))


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Broken()])
def test_a_log_that_is_gone_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    """Whether closed by the system or by the program."""
    monkeypatch.setattr(sys, "stderr", stream)
    stages: list[str] = []
    with afnio.budget():
        show(Display(PlainScreen()), stages.append)
    assert ["started", "training", "epoch", "stopped"] == stages


def test_a_second_display_in_one_terminal_writes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the live lines of the first."""
    from rich.console import Console
    from rich.file_proxy import FileProxy

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert "TerminalScreen" == type(fitting_screen()).__name__
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=sys.stderr), sys.stderr))
    assert "PlainScreen" == type(fitting_screen()).__name__


def test_a_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log says how far it is, also while nothing ends; seldom in a long run."""
    from afnio.trainer import _progress

    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    now = [1000.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    screen = PlainScreen()
    display = Display(screen)
    monkeypatch.setattr(_progress, "Ticker", lambda tick, period: None)
    display.start(PLAN)
    display.update(state("train", "batch", 1, 33, 20.0, started=980.0))
    emit(CallRetried("1", "https://host", "m", "forward", 1, "429", 30.0))
    for seconds in range(1, 61):
        now[0] = 1000.0 + seconds
        screen._tick()
    for seconds in range(20_000, 20_500):
        now[0] = seconds
        screen._tick()
    display.stop()
    lines = log.getvalue().splitlines()[1:-1]
    assert 6 + 2 == len(lines)
    assert "SentimentAnalyzer, epoch 1/5, step 1, 0:30, " in lines[0]
    assert (
        "; train 33/66, 1.6 samples/s, loss 0.4242, accuracy 0.4242; 0 calls, 1 retried, 0 tokens, cost unknown"
        in lines[0]
    )
    assert lines[0].endswith("of $1.00; a call is tried again in 30.0 s: 429")
    assert not lines[-1].endswith("429")
