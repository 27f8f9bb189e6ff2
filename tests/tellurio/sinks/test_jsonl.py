"""Events as lines of JSON, and what all sinks have in common."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from kit.tiny_training import FIRST, SECOND, reply, train

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.tellurio.sinks import JsonlSink
from afnio.testing import ScriptedClient

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "model": "m"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("content", [False, True])
def test_a_run_as_lines(tmp_path: Path, content: bool) -> None:
    """Every event with its time, in order; texts only where they are wanted; nobody else may read them."""
    path = tmp_path / "new" / "events.jsonl"
    with te.init("me", "p", dir=tmp_path, sinks=[JsonlSink(path, content=content)], resume=False):
        te.log("loss", 0.5)
        pred = cog.functional.chat_completion(
            ScriptedClient("good"),
            [{"role": "user", "content": [afnio.Variable("{x}")]}],
            {"x": ["a"]},
            model="m",
        )
        cog.functional.exact_match_evaluator(pred, ["secret"]).score.data
    rows = lines(path)
    kinds = [row["event"] for row in rows]
    assert kinds[:3] == ["RunStarted", "MetricLogged", "NodeLaunched"]
    assert {"CallEnded", "SampleScored"} < set(kinds)
    assert kinds[-1] == "RunEnded"
    assert sorted(row["time"] for row in rows) == [row["time"] for row in rows]
    call = rows[kinds.index("CallEnded")]
    assert (
        call["model"],
        call["purpose"],
        call["lane"],
        call["usage"]["completion_tokens"],
    ) == ("m", "forward", 0, 1)
    assert content == ("secret" in path.read_text())
    if content:
        assert (call["request"]["messages"][0]["content"], call["reply"]["content"]) == ("a", "good")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [False, True])
def test_a_step_as_a_line(tmp_path: Path, content: bool) -> None:
    """The prompts that it found and made are texts, too."""
    path = tmp_path / "events.jsonl"
    with te.init("me", "p", dir=tmp_path, sinks=[JsonlSink(path, content=content)], resume=False):
        train(ScriptedClient(reply), ScriptedClient(reply))
    assert "StepEnded" in {row["event"] for row in lines(path)}
    assert (content, content) == (FIRST in path.read_text(), SECOND in path.read_text())


def test_lines_are_added_to_a_file(tmp_path: Path) -> None:
    """A second sink on the same file goes on below; `flush` waits for the disk."""
    path = tmp_path / "events.jsonl"
    for number in (1, 2):
        with JsonlSink(path) as sink:
            ScriptedClient("x").chat(**ASK)
            sink.flush()
            assert number == len(lines(path))


def pipe_to_read(path: Path) -> int:
    """Make a named pipe and open its reading end, so that a sink can open the other one."""
    os.mkfifo(path)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def test_a_slow_sink_holds_up_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While nobody reads the pipe, events are queued; those beyond the backlog are dropped, with one warning."""
    path, count = tmp_path / "pipe", 120_000
    reader = pipe_to_read(path)
    sink = JsonlSink(path)
    for number in range(count):
        sink(number)
    os.set_blocking(reader, True)
    found: list[bytes] = []
    with open(reader, "rb") as pipe:
        drain = threading.Thread(target=lambda: found.extend(pipe))
        drain.start()
        sink.close()
        sink("too late")
        drain.join()
    values = [json.loads(line)["value"] for line in found]
    assert 100_000 <= len(values) < count
    assert list(range(100_000)) == values[:100_000]
    assert sum("JsonlSink has lost events (it is 100,000 events" in r.message for r in caplog.records) == 1


def test_a_failing_sink_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It gets later events all the same, and neither `flush` nor `close` hangs."""
    path = tmp_path / "pipe"
    reader = pipe_to_read(path)
    sink = JsonlSink(path)
    os.close(reader)
    for number in range(3):
        sink(number)
        sink.flush()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink("last")
    sink.close()
    with open(reader, "rb") as pipe:
        assert json.loads(pipe.readlines()[-1])["value"] == "last"
    assert sum("JsonlSink has lost events (BrokenPipeError" in r.message for r in caplog.records) == 1
