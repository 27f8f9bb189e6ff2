"""Calls under a journal: answered from it, recorded in it, shared where that is right."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import anyio
import kit
import pytest
from entrances.scenarios import Agent, replies
from kit.virtual import virtual_runtime

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, JournalError, TransientModelError
from afnio.models import ChatResponse, ToolCall
from afnio.runtime import _journal_file
from afnio.runtime._journal import Journal
from afnio.runtime.events import CallEnded, CallReplayed, Usage
from afnio.testing import ScriptedClient

DEAD = FinalModelError("the provider is gone")


def train(client: ScriptedClient, delays: bool = False) -> list[Any]:
    """Run two steps with a judge; return everything that came of it."""
    agent, loss = Agent(), cog.ExactMatchEvaluator()
    optimizer = afnio.optim.TGD(agent.parameters(), client, model="m", momentum=2)
    seen: list[Any] = []
    with afnio.set_backward_model_client(client, completion_args={"model": "m"}):
        for step in range(2):
            with afnio.scope(name=f"step {step}"):
                pred = agent(client, ["Yes", "No", "Maybe", None])
                score, explanation = loss(pred, ["yes", "never", f"{step}", "x"])
                explanation.backward()
                optimizer.step()
            seen += [pred.data, score.data, [g.data for g in agent.prompt.grad], agent.prompt.data]
            optimizer.clear_grad()
    return seen


def test_a_finished_journal_replays_with_the_provider_dead(tmp_path: Path) -> None:
    """The same program ends with the same values, without a call, in another completion order too."""
    live, dead = ScriptedClient(replies), ScriptedClient(DEAD)
    with afnio.journal(tmp_path / "j"):
        first = train(live)
    with afnio.journal(tmp_path / "j"), kit.events() as events:
        second = train(dead)
    assert first == second
    assert dead.requests == []
    replayed = [event for event in events if isinstance(event, CallReplayed)]
    assert len(live.requests) == len(replayed)
    assert not any(isinstance(event, CallEnded) for event in events)


def test_usage_of_replays_is_not_counted(tmp_path: Path) -> None:
    """What came from the journal costs nothing."""
    for client in (ScriptedClient(replies), ScriptedClient(DEAD)):
        with afnio.journal(tmp_path / "j"):
            train(client)
        assert len(client.requests) == client.get_usage()["calls"]


def test_off(tmp_path: Path) -> None:
    """Mode "off" neither reads nor writes, inside another journal too; a wrong mode is refused."""
    client = ScriptedClient("hi")
    ask = {"messages": [{"role": "user", "content": "x"}], "model": "m"}
    with afnio.journal(tmp_path / "outer"), afnio.journal(tmp_path / "j", mode="off") as opened:
        assert opened is None
        client.chat(**ask)
    assert not (tmp_path / "j").exists()
    assert Journal.stat(tmp_path / "outer").records == 0
    with pytest.raises(ValueError, match="got 'on'"):
        afnio.journal(tmp_path / "j", mode="on")  # type: ignore[arg-type]


def test_failures_are_not_recorded(tmp_path: Path) -> None:
    """A call that failed is made again the next time."""
    ask = {"messages": [{"role": "user", "content": "x"}], "model": "m"}
    with afnio.journal(tmp_path / "j"), pytest.raises(FinalModelError):
        ScriptedClient(DEAD).chat(**ask)
    client = ScriptedClient("hi")
    with afnio.journal(tmp_path / "j"):
        assert client.chat(**ask).content == "hi"
    assert len(client.requests) == 1


def test_a_changed_program_takes_what_it_still_asks(tmp_path: Path, caplog: Any) -> None:
    """A call that was added is made; the others in its scope are found by their request; it says so once."""

    def program(client: ScriptedClient, extra: bool) -> list[Any]:
        words = ["new", "a", "b"] if extra else ["a", "b"]
        return [
            client.chat(messages=[{"role": "user", "content": word}], model="m").content for word in words
        ]

    echo = ScriptedClient(lambda request: request.messages[0]["content"].upper())
    with afnio.journal(tmp_path / "j"):
        assert program(echo, extra=False) == ["A", "B"]
    with afnio.journal(tmp_path / "j"):
        assert program(echo, extra=True) == ["NEW", "A", "B"]
    assert len(echo.requests) == 3
    assert sum("changed" in record.message for record in caplog.records) == 1


def test_a_full_disk_stops_new_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that can't be recorded reaches its waiter; then no new call is sent, and the error says why."""

    def full(*args: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    client = ScriptedClient("hi")
    ask = {"messages": [{"role": "user", "content": "x"}], "model": "m"}
    with afnio.journal(tmp_path / "j"):
        monkeypatch.setattr(_journal_file, "_insert", full)
        assert client.chat(**ask).content == "hi"
        with pytest.raises(JournalError, match=str(tmp_path)):
            client.chat(**ask)
    assert len(client.requests) == 1


def test_a_reply_that_is_no_text_fails_its_call_alone(tmp_path: Path) -> None:
    """A custom client's reply that can't be recorded isn't returned; other calls are."""
    broken: Any = object()
    client = ScriptedClient([ChatResponse(content="x", model=broken), "whole"])
    with afnio.journal(tmp_path / "j"):
        with pytest.raises(JournalError, match=r"the reply to .* can't be recorded"):
            client.chat(messages=[{"role": "user", "content": "first"}], model="m")
        assert client.chat(messages=[{"role": "user", "content": "whole"}], model="m").content == "whole"
    assert Journal.stat(tmp_path / "j").records == 1


def test_half_a_character_comes_back_as_it_was(tmp_path: Path) -> None:
    """A server may send half of a surrogate pair, which UTF-8 can't express."""
    for client in (ScriptedClient("half: \ud800"), ScriptedClient(DEAD)):
        with afnio.journal(tmp_path / "j"):
            reply = client.chat(messages=[{"role": "user", "content": "x"}], model="m")
        assert reply.content == "half: \ud800"


def test_a_reply_comes_back_as_it_was(tmp_path: Path) -> None:
    """With its text, its tool calls, its counts and how it ended."""
    given = ChatResponse(
        content="“\x00é𝄞\n", tool_calls=(ToolCall(id="1", name="look", arguments='{"a": 1}'),), finish_reason="length",
        model="m-2", usage=Usage(10, 4, 2, 3),
    )  # fmt: skip
    ask = {"messages": [{"role": "user", "content": "x"}], "model": "m"}
    for client in (ScriptedClient([given]), ScriptedClient(DEAD)):
        with afnio.journal(tmp_path / "j"):
            again = client.chat(**ask)
    assert given == again


def test_a_closed_journal_hides_no_error(tmp_path: Path) -> None:
    """A call whose journal is closed while it is on the wire fails of what it failed of."""

    async def never(request: Any) -> str:
        opened.close()
        await anyio.sleep_forever()
        return ""

    with (
        virtual_runtime(),
        afnio.journal(tmp_path / "j") as opened,
        pytest.raises(TransientModelError, match="gave no reply within 600 s"),
    ):
        ScriptedClient(never).chat(messages=[{"role": "user", "content": "x"}], model="m")


def tenant(name: str, reply: str) -> ScriptedClient:
    client = ScriptedClient(reply)
    client.variant = name
    return client


@pytest.mark.parametrize("mode", ["resume", "reuse"])
def test_what_a_client_adds_is_part_of_the_request(tmp_path: Path, mode: Any) -> None:
    """Another tenant's reply is never served, and one's own is."""
    ask = {"messages": [{"role": "user", "content": "x"}], "model": "m"}
    answers = []
    for name, reply in [("a", "for a"), ("b", "for b"), ("", "for all"), ("a", "again"), ("b", "again")]:
        with afnio.journal(tmp_path / "j", mode):
            answers.append(tenant(name, reply).chat(**ask).content)
    assert answers == ["for a", "for b", "for all", "for a", "for b"]
