"""Sinks of a run: every event, in order, and no harm done by one that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from kit.tiny_training import reply, train

import afnio.tellurio as te
from afnio.runtime.events import (
    CallEnded,
    MetricLogged,
    NodeLaunched,
    RunEnded,
    RunStarted,
    SampleScored,
    StepEnded,
    TableLogged,
    TextLogged,
)
from afnio.tellurio.sinks import Moment, Sink
from afnio.testing import ScriptedClient

BACKLOG = 100_000
"""Events that may wait in a `Sink`, and for the sinks of a run."""
BATCH = 1_000
"""Events that a `Sink` takes at once."""


class Kept(list[Any]):
    """A sink that keeps what it gets, and knows whether it was closed."""

    closed = 0

    def __call__(self, event: Any) -> None:
        self.append(event)

    def close(self) -> None:
        self.closed += 1


def test_sinks_get_every_event_in_order() -> None:
    """The start first, the end last, the same for each, from one thread; closed once."""
    sinks = Kept(), Kept()
    with te.init("me", "emails", name="first", config={"a": 1}, sinks=sinks) as run:
        run.log("loss", 0.5, step=3)
        run.log_text("note", "a text")
        run.log_table("t", ["a"], [[1]])
        train(ScriptedClient(reply), ScriptedClient(reply))
    assert sinks[0] == sinks[1]
    events = sinks[0]
    assert RunStarted(run.id, "first", "me", "emails", None, {"a": 1}, events[0].date, False) == events[0]
    logged = [
        MetricLogged("loss", 0.5, 3),
        TextLogged("note", "a text", None),
        TableLogged("t", ["a"], [[1]], None),
    ]
    assert logged == events[1:4]
    assert RunEnded("COMPLETED") == events[-1]
    kinds = (CallEnded, SampleScored, NodeLaunched, StepEnded)
    counts = [sum(isinstance(event, kind) for event in events) for kind in kinds]
    assert counts == [11, 9, 7, 1]
    assert (sinks[0].closed, sinks[1].closed) == (1, 1)


def test_a_sink_that_fails_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on being called; the others and the run go on."""
    calls, kept = [], Kept()

    def broken(event: Any) -> None:
        calls.append(event)
        raise OSError("the network is down")

    with te.init("me", "emails", sinks=[broken, kept]) as run:
        for value in range(3):
            run.log("loss", value)
    told = ["RunStarted", *["MetricLogged"] * 3, "RunEnded"]
    for heard in (calls, kept):  # the end of the run's scope comes from another thread, maybe too late
        assert told == [name for name in map(_name, heard) if name != "ScopeEnded"]
    assert len(caplog.records) == 1
    assert "the network is down" in caplog.text
    assert run.status == "COMPLETED"


def _name(event: Any) -> str:
    return type(event).__name__


def test_a_sink_that_is_no_function_is_refused() -> None:
    """Before anything is recorded."""
    with pytest.raises(TypeError, match=r"a sink must be a function of an event \(got 3\)"):
        te.init("me", "emails", sinks=[3])  # type: ignore[list-item]


def test_a_slow_sink_leaves_events_out_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    """With one warning; memory is bounded."""
    go_on, seen = threading.Event(), []

    def slow(event: Any) -> None:
        go_on.wait()
        seen.append(event)

    with te.init("me", "emails", sinks=[slow]) as run:
        for value in range(BACKLOG + BATCH + 100):
            run.log("loss", value)
        go_on.set()
    # What waits, what the sink has taken at once, and the ends of the scope and the run, which come later.
    assert BACKLOG <= len(seen) <= BACKLOG + BATCH + 2
    assert ["100,000 events behind" in record.message for record in caplog.records] == [True]


def test_a_sink_that_outlasts_the_end_of_its_run_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("afnio.tellurio._run._SINK_TIMEOUT", 0.01)
    with te.init("me", "emails", sinks=[lambda event: go_on.wait()]):
        pass
    go_on.set()
    assert [record.message for record in caplog.records] == [
        "RunSinks hasn't sent all its events after 0.01 seconds; what it hasn't sent when the program exits is lost"
    ]


def test_a_slow_sink_is_told_how_the_run_ended() -> None:
    """Whatever is left out: a sink that isn't told would take a run that failed for completed."""
    go_on, taken = threading.Event(), threading.Semaphore(0)

    class Slow(Sink):
        def __init__(self) -> None:
            self.seen: list[Any] = []
            super().__init__()

        def take(self, moments: Sequence[Moment]) -> None:
            taken.release()
            go_on.wait()
            self.seen += [moment.event for moment in moments]

    slow, kept = Slow(), Kept()

    def held(event: Any) -> None:
        taken.release()
        go_on.wait()
        kept(event)

    def fail() -> None:
        with te.init("me", "emails", sinks=[held]) as run:
            assert taken.acquire(timeout=60)  # so that the rest finds the sink busy and its queue empty
            for value in range(BACKLOG + BATCH + 100):
                run.log("loss", value)
            threading.Thread(target=free, args=(run,)).start()
            raise OSError("no data")

    def free(run: te.Run) -> None:
        while run.status == "RUNNING":
            time.sleep(0.001)
        go_on.set()

    slow(MetricLogged("loss", 0, None))
    assert taken.acquire(timeout=60)
    for value in range(1, BACKLOG + 100):
        slow(MetricLogged("loss", value, None))
    slow(RunEnded("FAILED"))
    with pytest.raises(OSError, match="no data"):
        fail()
    slow.close()
    assert RunEnded("FAILED") == kept[-1] == slow.seen[-1]
    assert (len(slow.seen), len(kept)) == (1 + BACKLOG + 1, 1 + BACKLOG + 1)


def test_sinks_get_redacted_texts() -> None:
    """What is kept out of the store is kept from them too."""
    kept = Kept()
    with te.init("me", "emails", sinks=[kept], redact=["hush"]) as run:
        run.log_text("note", "hush now")
        ScriptedClient("hush").chat(messages=[{"role": "user", "content": "hush?"}], model="m")
    ended = next(event for event in kept if isinstance(event, CallEnded))
    assert (ended.request.messages[0]["content"], ended.reply.content) == ("[redacted]?", "[redacted]")
    assert kept[1].text == "[redacted] now"
