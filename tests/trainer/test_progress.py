"""The display as people see it: in a real terminal, a real notebook kernel, a pipe, a log; and its silence."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console
from rich.file_proxy import FileProxy
from trainer.scenarios import Agent, fitted, loader, replies, trainer
from trainer.screen import Screen

import afnio
from afnio.testing import ScriptedClient

TIMES = re.compile(r"\d+:\d\d, \d+:\d\d left  [\d.,]+ samples/s|\d+:\d\d(?=  |$)|(?<=time )\d+:\d\d")
TRAIN, VAL = "train score 0.4000 (0.28 to 0.53)", "val score 0.7458 (0.61 to 0.85)"
EPOCH = f"epoch 1/5, {TRAIN}, {VAL}, 2 samples failed, time _, cost unknown"
BEGINNING = "fit Agent, 66 samples an epoch, 5 epochs, validation on 60"


def timeless(lines: list[str]) -> list[str]:
    """Lines without what depends on the clock."""
    return [re.sub(r" in [\d.]+ s:", ":", TIMES.sub("_", line)) for line in lines]


def spread(facts: str) -> str:
    return facts.replace(", ", "  ")


def test_a_wide_terminal() -> None:
    """Live lines at the bottom; what the program prints and logs stays above them."""
    with Screen(120) as screen:
        first = screen.until("cost $0.00")
        assert [spread(BEGINNING), f"train  {'─' * 40} 0/66", "0 calls  0 tokens  cost $0.00"] == [
            first[0],
            *first[2:],
        ]
        screen.enter()
        lines = timeless(screen.until("33/66", "too long", "logged by the program"))
        assert lines[1:5] == [
            "printed by the program",
            "WARNING:program:logged by the program",
            "Agent  epoch 1/5  step 1  _",
            f"train  {'━' * 20}{'─' * 20} 33/66  score 0.2812 (0.14 to 0.47)  1 failed",
        ]
        assert re.fullmatch(r"\d+ calls  3 retried  1 failed  \S+ tokens  cost unknown", lines[5])
        assert lines[6] == "a call failed: FinalModelError: 400 the message is too long"
        screen.enter()
        lines = timeless(screen.until("epoch 2/5", "60/60"))
        assert lines[3:7] == [
            spread(EPOCH),
            "Agent  epoch 2/5  step 3  _  best val score 0.7458",
            f"train  {'━' * 20}{'─' * 20} 33/66  score 0.7500 (0.56 to 0.88)  1 failed",
            f"val    {'━' * 40} 60/60  score 0.7458 (0.61 to 0.85)  1 failed",
        ]
        screen.enter()
        lines = timeless(screen.until("fit of"))
        assert re.fullmatch(
            r"fit of Agent  4 steps  _  \d+ calls  6 retried  4 failed  \S+ tokens  cost unknown", lines[-1]
        )
        assert not any(line.startswith(("val", "train")) for line in lines)
    assert re.search(rb"\x1b\[[\d;]*36", screen.raw), "it has colours"


def test_a_narrow_terminal_without_colours() -> None:
    """Facts go below their bars, and NO_COLOR is respected."""
    with Screen(60, NO_COLOR="1") as screen:
        for texts in (["0 calls"], ["33/66", "too long"], ["epoch 2/5", "60/60"]):
            lines = timeless(screen.until(*texts))
            screen.enter()
        start = lines.index(next(line for line in lines if line.startswith("Agent  epoch 2/5")))
        shown = lines[start:]
        assert "best val score 0.7458" in shown[1]
        assert shown[2:6] == [
            f"train  {'━' * 10}{'─' * 10} 33/66",
            "       score 0.7500 (0.56 to 0.88)  1 failed",
            f"val    {'━' * 20} 60/60",
            "       score 0.7458 (0.61 to 0.85)  1 failed",
        ]
        assert max(map(len, shown)) <= 60
        screen.until("fit of")
    assert not re.search(rb"\x1b\[[\d;]*3\d", screen.raw)


def test_a_terminal_that_is_resized() -> None:
    """From the next frame on it is drawn at the new width."""
    with Screen(120) as screen:
        screen.until("0 calls")
        screen.enter()
        screen.until("1 failed")
        screen.resize(60)
        lines = screen.until("       score 0.2812", "too long")
        assert max(map(len, lines[-5:])) <= 60


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(environment: dict[str, str]) -> None:
    """Without one escape."""
    with Screen(200, **environment) as screen:
        for text in ("fit Agent", "printed", "epoch 1/5", "fit of"):
            screen.until(text)
            screen.enter()
    assert b"\x1b" not in screen.raw


def test_an_account_that_does_not_answer_is_shown() -> None:
    """As long as it doesn't, in one line."""
    with Screen(120, "--down") as screen:
        screen.until("0 calls")
        screen.enter()
        screen.until("https://host does not answer, calls wait: refused by peer")


def test_a_budget_with_prices_shows_cost_and_ceiling(tmp_path: Path) -> None:
    """In dollars."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "m"\ninput = 1\noutput = 1\n')
    with Screen(120, "--budget", AFNIO_PRICES=str(prices)) as screen:
        screen.until("cost $0.00 of $1.00")
        screen.enter()
        lines = screen.until("33/66", "too long")
        assert re.search(r"  cost \$0\.00\d+ of \$1\.00$", lines[-2])


def test_a_pipe_gets_lines_with_the_time() -> None:
    """On standard error; standard output is the program's alone."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer.show"],
        input="\n" * 4, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "@ ", line) for line in done.stderr.splitlines()]
    assert [re.sub(r"time \d:\d\d", "time _", line) for line in lines[:3]] == [
        f"@ {BEGINNING}",
        "WARNING:program:logged by the program",
        f"@ {EPOCH}",
    ]
    # The end of the second epoch is kept too.
    assert lines[3].startswith("@ epoch 2/5, train score")
    assert lines[-1].startswith("@ fit of Agent, 4 steps, 0:0")
    assert done.stdout == "printed by the program\n"


CELLS = [
    """
import time, threading
from trainer.show import show
""",
    "show(lambda: time.sleep(0.7))",
    """
thread = threading.Thread(target=show, args=(lambda: None,))
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

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    Client(notebook, timeout=60, kernel_name="python3").execute()
    for index in (1, 2):
        outputs = notebook.cells[index].outputs
        shown = [output.data for output in outputs if output.output_type == "display_data"]
        assert kinds.count((index, "display_data")) == len(shown) == 1
        text = shown[0]["text/plain"].splitlines()
        assert spread(BEGINNING) == text[0]
        assert text[1].startswith(spread(f"epoch 1/5, {TRAIN}, {VAL}"))
        assert any(line.startswith("fit of Agent  4 steps") for line in text)
        printed = "".join(output.text for output in outputs if output.output_type == "stream")
        assert "printed by the program" in printed
    assert kinds.count((1, "update_display_data")) >= 3


def lines_of(log: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error, which isn't a terminal here, without their dates."""
    return [line[21:] for line in log.readouterr().err.splitlines()]


def shown(folder: Path, **options: Any) -> Any:
    return trainer(folder, enable_progress_bar=True, enable_agent_summary=False, **options)


def test_quiet_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """When asked."""
    fitted(Agent(ScriptedClient(replies)), trainer(tmp_path, max_epochs=1), loader(4))
    assert capfd.readouterr() == ("", "")


def test_a_test_pass_has_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No epochs, no steps; failed samples count in no score."""
    data = [("m0", "m0"), ("m4", "m4"), ("m1", "m1"), ("bad", "bad")]
    shown(tmp_path).test(
        Agent(ScriptedClient(replies)), [([text for text, _ in data], [gold for _, gold in data])]
    )
    begun, ended = lines_of(capsys)
    assert begun == "test Agent, 4 samples" or begun == "test Agent"
    assert re.fullmatch(
        r"test of Agent, 4 samples, score 0\.6667 \(0\.13 to 0\.98\), 1 failed, 0:0\d, 3 calls, 1 failed, "
        r"\d+ tokens, cost unknown",
        ended,
    )


def test_without_validation_an_epoch_is_kept_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loader without a length has no total."""
    batches = ((["m0"], ["m0"]) for _ in range(2))
    made = shown(tmp_path, max_epochs=1, enable_checkpointing=False)
    fitted(Agent(ScriptedClient(replies)), made, batches)
    begun, epoch, ended = lines_of(capsys)
    assert begun == "fit Agent, 1 epoch"
    assert epoch.startswith("epoch 1/1, train score 1.0000 (0.20 to 1.00), time 0:0")
    assert ended.startswith("fit of Agent, 2 steps, 0:0")


def test_a_resumed_run_says_from_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And its replies come from the journal at most once."""
    for epochs in (1, 2):
        agent = Agent(ScriptedClient(replies))
        fitted(agent, shown(tmp_path, max_epochs=epochs), loader(4), ckpt_path="last")
    assert any(
        "fit Agent, continuing from epoch 2, step 1, 4 samples an epoch" in line for line in lines_of(capsys)
    )


class Second(Agent):
    """Asks a second model once a batch."""

    async def test_step(self, batch: Any, batch_idx: int) -> Any:
        messages = [{"role": "user", "content": [self.template]}]
        await self.chat(self.client, messages, inputs={"text": "m0"}, model="n")
        return self.loss(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("kind", "options", "outer", "shown_cost"),
    [
        (Agent, {}, {}, r"\$0\.\d{4}"),
        (Second, {}, {}, r"\$0\.\d{4} and 1 call of unknown cost"),
        (Agent, {"max_cost": 0.5}, {"max_cost": 9}, r"\$0\.\d{4} of \$0\.5000"),
        (Agent, {}, {"max_cost": 9}, r"\$0\.\d{4} of \$9\.00"),
    ],
)
def test_cost_and_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Agent],
    options: dict[str, Any], outer: dict[str, Any], shown_cost: str,
) -> None:  # fmt: skip
    """Of the budget that limits dollars."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "m"\ninput = 100\noutput = 100\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    with afnio.budget(**outer):
        shown(tmp_path, **options).test(kind(ScriptedClient(replies)), loader(4))
    assert re.search(rf", cost {shown_cost}$", lines_of(capsys)[-1])


def test_only_calls_of_the_run_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not those of another one in this process, nor those before it."""
    agent = Agent(ScriptedClient(replies, latency=0.05))
    agent(["m9"]).data
    threads = [
        threading.Thread(target=shown(tmp_path / str(count)).test, args=(agent, loader(count)))
        for count in (3, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(re.findall(r"\d+ calls", capsys.readouterr().err)) == ["3 calls", "7 calls"]


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Broken()])
def test_a_log_that_is_gone_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    """Closed by the system or by the program."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert fitted(Agent(ScriptedClient(replies)), shown(tmp_path, max_epochs=2), loader(4)).current_epoch == 2


def test_a_second_display_in_one_terminal_writes_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the live lines of the first."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=terminal, width=200), terminal))
    shown(tmp_path).test(Agent(ScriptedClient(replies)), loader(4))
    assert re.search(
        r"^\S+\d{4}-\S+ \S+  test of Agent|^\d{4}-\S+ \S+  test of Agent", terminal.getvalue(), re.MULTILINE
    )


def test_a_long_silence_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log says how far it is and what is left, also while nothing ends."""
    monkeypatch.setattr("afnio.trainer._progress._SILENCE", (0.5, 0.5))
    # Each batch is three calls in a row: with 0.3 s for a call, 3.6 s for four batches.
    agent = Agent(
        ScriptedClient(
            lambda request: "wrong" if not request.params.get("response_format") else replies(request),
            latency=0.3,
        )
    )
    fitted(agent, shown(tmp_path, max_epochs=2, max_steps=8), loader(8))
    lines = lines_of(capsys)
    told = [
        re.match(r"Agent, (?:fit|epoch (\d)/2, step (\d)/8), 0:0(\d)(?:, 0:0(\d) left)?", line)
        for line in lines
    ]
    found = [match for match in told if match is not None]
    assert len(found) >= 2
    assert any(" in flight, " in line for line in lines)
    last = found[-1]
    assert last[4] is not None
    assert 2 <= int(last[3]) + int(last[4]) <= 6


def test_what_stands_is_not_about_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While replies stay away the time that is left grows, not down to 0:00; the limit that holds calls is named."""
    monkeypatch.setattr("afnio.trainer._progress._SILENCE", (0.5, 0.5))
    asked = iter(range(10_000))

    async def answer(request: Any) -> Any:
        await anyio.sleep(2.0 if 20 <= next(asked) < 30 else 0.1)
        return "wrong" if not request.params.get("response_format") else replies(request)

    client = ScriptedClient(answer, limits=afnio.Limits(max_in_flight=3))
    fitted(Agent(client), shown(tmp_path, max_epochs=1), loader(24))
    text = "\n".join(lines_of(capsys))
    left = re.findall(r"(\d:\d\d) left", text)
    assert len(left) >= 4
    assert re.search(r": 3 of 3 requests in flight \(your limit\), \d+ calls? waits?", text)
    assert "0:00" not in left
