"""Events as lines of JSON, and what all sinks have in common."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_training import FIRST, SECOND, reply, train

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.runtime.events import subscribed
from afnio.tellurio.sinks import JsonlSink
from afnio.tellurio.sinks import _sink as sink_file
from afnio.tellurio.sinks._sink import Moment, Sink
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
        pred = cog.chat_completion(
            ScriptedClient("good"),
            [{"role": "user", "content": [afnio.Variable("{x}")]}],
            {"x": ["a"]},
            model="m",
        )
        cog.exact_match_evaluator(pred, ["secret"]).score.data
    rows = lines(path)
    kinds = [row["event"] for row in rows]
    assert ["RunStarted", "MetricLogged", "NodeLaunched"] == kinds[:3]
    assert {"CallEnded", "SampleScored"} < set(kinds)
    assert "RunEnded" == kinds[-1]
    assert sorted(row["time"] for row in rows) == [row["time"] for row in rows]
    call = rows[kinds.index("CallEnded")]
    assert ("m", "forward", 0, 1) == (
        call["model"],
        call["purpose"],
        call["lane"],
        call["usage"]["completion_tokens"],
    )
    assert content == ("secret" in path.read_text())
    if content:
        assert ("a", "good") == (call["request"]["messages"][0]["content"], call["reply"]["content"])
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


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


class Listed(Sink):
    """Keeps what it takes; fails on what it is told to."""

    def __init__(self, fail: bool = False) -> None:
        self.taken: list[Any] = []
        self.threads: set[str] = set()
        self.ready = threading.Event()
        self.fail = fail
        super().__init__()

    def take(self, moments: Sequence[Moment]) -> None:
        self.ready.wait(10)
        self.threads.add(threading.current_thread().name)
        if self.fail:
            raise OSError("disk full")
        self.taken += [moment.event for moment in moments]


def test_a_slow_sink_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on while it waits; beyond its backlog events are left out, and a warning says so once."""
    monkeypatch.setattr(sink_file, "BACKLOG", 5)
    slow = Listed()
    with subscribed(slow):
        for _ in range(10):
            ScriptedClient("x").chat(**ASK)
    slow.ready.set()
    slow.close()
    assert 5 <= len(slow.taken) < 10
    assert {"afnio-Listed"} == slow.threads
    assert 1 == sum("Listed has lost events (it is 5 events behind" in r.message for r in caplog.records)
    slow(1)
    slow.close()
    assert 1 not in slow.taken


def test_a_failing_sink_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on being handed events, and neither `flush` nor `close` hangs."""
    broken = Listed(fail=True)
    broken.ready.set()
    for number in range(3):
        broken(number)
        broken.flush()
    broken.fail = False
    broken("last")
    broken.close()
    assert ["last"] == broken.taken
    assert 1 == sum("Listed has lost events (OSError: disk full)" in r.message for r in caplog.records)
