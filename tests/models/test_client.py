"""Clients: one send is enough; retries, limits and usage are the engine's."""

from __future__ import annotations

import copy
from decimal import Decimal
from pathlib import Path

import kit
import pytest

import afnio
from afnio.errors import BlockingReadError, FinalModelError, TransientModelError
from afnio.models import ChatClient, ChatResponse, Usage
from afnio.runtime import Account
from afnio.runtime.events import CallEnded, CallRetried
from afnio.testing import ScriptedClient

HELLO = [{"role": "user", "content": "hello"}]


class Mine(ChatClient):
    """A provider of one's own is one method."""

    def __init__(self):
        super().__init__(Account("mine://x", ""))

    async def send(self, request):
        return ChatResponse(content=request.messages[0]["content"].upper(), usage=Usage(3, 2))


def test_a_provider_of_ones_own_writes_send():
    """Everything else works."""
    client = Mine()
    assert (
        client.chat(messages=HELLO, model="m").content,
        client.provider,
        repr(client),
    ) == ("HELLO", "Mine", "Mine('mine://x')")
    assert (client.get_usage()["calls"], client.get_usage()["total_tokens"]) == (1, 5)


async def test_achat_is_awaited():
    """From asyncio."""
    assert (await Mine().achat(messages=HELLO, model="m")).content == "HELLO"


async def test_chat_on_a_loop_is_refused_before_anything_is_sent():
    """Nobody pays for the mistake."""
    client = ScriptedClient("x")
    with pytest.raises(BlockingReadError, match="write `await"):
        client.chat(messages=HELLO, model="m")
    assert client.requests == []


def test_usage_is_counted_by_phase_and_can_be_cleared():
    """Calls and tokens."""
    client = ScriptedClient("12345678")
    client.chat(messages=HELLO, model="m")
    client.chat(messages=HELLO, model="m")
    tokens = {
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "total_tokens": 8,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert client.get_usage() == {"calls": 2, **tokens, "phases": {"chat": {"calls": 2, **tokens}}}
    client.clear_usage()
    assert (client.get_usage()["calls"], client.get_usage()["phases"]) == (0, {})


def test_transient_failures_are_tried_again():
    """And told; the reply counts once."""
    client = ScriptedClient([TransientModelError("busy"), TransientModelError("busy"), "ok"])
    with kit.events() as events:
        assert client.chat(messages=HELLO, model="m").content == "ok"
    assert [type(event) for event in events] == [CallRetried, CallRetried, CallEnded]
    assert (events[-1].attempts, events[-1].error, events[-1].purpose) == (3, None, "chat")
    assert client.get_usage()["calls"] == 1


def test_the_end_of_a_call_tells_what_was_asked_and_answered():
    """And whose call it was; a key in the client is in none of it."""
    client = ScriptedClient("ok")
    with kit.events() as events:
        client.chat(messages=HELLO, model="m", temperature=0.5)
    ended = events[-1]
    assert (list(ended.request.messages), ended.request.params) == (HELLO, {"temperature": 0.5})
    assert (ended.reply.content, ended.cost, ended.lane) == ("ok", None, None)
    assert ended.address.startswith(ended.node + "/")
    assert "content" not in repr(ended)


def test_the_cost_is_told_where_a_budget_asked_for_the_price(monkeypatch, tmp_path):
    """By the price that the budget counts with."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "m"\ninput = 1.0\noutput = 2.0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    with kit.events() as events, afnio.budget(max_cost=1):
        ScriptedClient("ok").chat(messages=HELLO, model="m")
    usage = events[-1].usage
    assert events[-1].cost == Decimal(usage.prompt_tokens + 2 * usage.completion_tokens) / 1_000_000


def test_attempts_end():
    """The error says how many there were, and where it was launched."""
    client = ScriptedClient(TransientModelError("busy"))
    with pytest.raises(TransientModelError, match="busy") as caught:
        client.chat(messages=HELLO, model="m")
    assert len(client.requests) == 8
    notes = " ".join(caught.value.__notes__)
    assert "after 8 attempts" in notes
    assert f"chat, launched at {__file__}" in notes


def test_final_failures_are_not_tried_again():
    """One request, one error event."""
    client = ScriptedClient(FinalModelError("no"))
    with kit.events() as events, pytest.raises(FinalModelError, match="no"):
        client.chat(messages=HELLO, model="m")
    assert (len(client.requests), [event.error for event in events]) == (1, ["FinalModelError: no"])


@pytest.mark.parametrize("limit", [1, 3])
async def test_limits_are_kept_and_used(limit):
    """Never more at once, and as many as allowed."""
    client = ScriptedClient("x", latency=0.001, limits=afnio.Limits(max_in_flight=limit))
    await afnio.resolve([client._launch(HELLO, "m", {}) for _ in range(20)])
    assert limit == client.peak


def test_bad_requests_are_refused_at_the_call():
    """Not in the runtime."""
    with pytest.raises(ValueError, match="n=2"):
        Mine().chat(messages=HELLO, model="m", n=2)
    with pytest.raises(ValueError, match="max_in_flight must be at least 1 .got 0"):
        afnio.Limits(max_in_flight=0)


def test_a_copy_is_the_client_itself():
    """Connections and limits are shared."""
    client = Mine()
    assert client is copy.deepcopy(client)


def test_the_scripted_client_says_when_its_script_is_short_or_wrong():
    """As an error of the call."""
    client = ScriptedClient(["a"])
    client.chat(messages=HELLO, model="m")
    with pytest.raises(FinalModelError, match=r"have a reply for each request \(got request 2\); add one"):
        client.chat(messages=HELLO, model="m")
    with pytest.raises(TypeError, match="a scripted reply must be a text, a dict"):
        ScriptedClient(lambda request: 3).chat(messages=HELLO, model="m")
    assert ScriptedClient({"é": 1}).chat(messages=HELLO, model="m").content == '{"é": 1}'


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (Usage(-1000, -1000), (10, 50)),
        (Usage(10**20, 7, 10**20), (10, 7)),
        (Usage(5.5, 7), (6, 7)),  # type: ignore[arg-type]
        (Usage(5.0, 7), (5, 7)),  # type: ignore[arg-type]
        (Usage(None, 7), (0, 7)),  # type: ignore[arg-type]
        (Usage(float("nan"), "many"), (10, 50)),  # type: ignore[arg-type]
    ],
    ids=["negative", "huge", "fraction", "float", "none", "no number"],
)
def test_usage_that_cant_be_true(
    usage: Usage, counted: tuple[int, int], temperature: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reply is used, what was expected of the call is counted, everywhere; the log says so once."""
    client = ScriptedClient(ChatResponse(content="ok", finish_reason="stop", usage=usage))
    ask = {"model": "m", "max_tokens": 50, "temperature": temperature}
    replies = []
    with afnio.journal(tmp_path / "j"), afnio.budget(max_tokens=1000) as spending:
        for number in range(3):
            replies.append(client.chat(messages=[{"role": "user", "content": f"{number} {'x' * 20}"}], **ask))
    assert [reply.content for reply in replies] == ["ok"] * 3
    assert {type(reply.usage.prompt_tokens) for reply in replies} == {int}
    assert {(reply.usage.prompt_tokens, reply.usage.completion_tokens) for reply in replies} == {counted}
    tokens = 3 * sum(counted)
    assert (3, tokens) == (spending.ledger.total.calls, spending.ledger.total.usage.total_tokens)
    assert (3, tokens) == (client.get_usage()["calls"], client.get_usage()["total_tokens"])
    with afnio.journal(tmp_path / "j"), afnio.budget(max_tokens=1000) as again:
        client.chat(messages=[{"role": "user", "content": f"0 {'x' * 20}"}], **ask)
    assert (3, tokens) == (again.ledger.total.calls, again.ledger.total.usage.total_tokens)
    said = sum("impossible token count" in record.message for record in caplog.records)
    assert (0 if usage == Usage(*counted) else 1) == said
