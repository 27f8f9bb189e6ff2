"""Traces of native calls: what a lane asked, what it got, and what ended it."""

from __future__ import annotations

import anyio
import pytest

from afnio import budget, run
from afnio.errors import BudgetExceeded
from afnio.models import ChatResponse, ToolCall
from afnio.models._trace import current_trace, tracing
from afnio.testing import ScriptedClient

ASK = {"messages": [{"role": "user", "content": "Hi"}], "model": "m", "temperature": 0.5}


def test_a_call_has_its_request_and_its_reply() -> None:
    call = ToolCall(id="1", name="search", arguments="{}")
    with tracing() as trace:
        ScriptedClient(ChatResponse(content="Hello", tool_calls=(call,))).chat(**ASK)
    (traced,) = trace.calls
    assert ("chat/completions", "m", "chat") == (traced.path, traced.model, traced.purpose)
    assert ASK == traced.request
    assert traced.reply is not None
    message = traced.reply["choices"][0]["message"]
    assert "Hello" == message["content"]
    assert {"name": "search", "arguments": "{}"} == message["tool_calls"][0]["function"]


def test_calls_are_in_the_order_of_their_launch() -> None:
    async def main() -> list[str]:
        client = ScriptedClient(lambda request: request.messages[0]["content"].upper())

        async def ask(text: str) -> None:
            await client.achat(messages=[{"role": "user", "content": text}], model="m")

        with tracing() as trace:
            async with anyio.create_task_group() as group:
                for text in "abc":
                    group.start_soon(ask, text)
        return [call.request["messages"][0]["content"] for call in trace.calls]

    assert ["a", "b", "c"] == sorted(run(main()))


def test_without_recording_calls_are_only_counted() -> None:
    with tracing(record=False) as trace:
        ScriptedClient("Hello").chat(**ASK)
    assert ([], 1) == (trace.calls, trace.launched)


def test_outside_there_is_no_trace() -> None:
    with tracing():
        pass
    assert current_trace.get() is None


def test_a_budget_around_the_lane_ends_it() -> None:
    with budget(max_calls=0), tracing() as trace, pytest.raises(BudgetExceeded) as caught:
        ScriptedClient("Hello").chat(**ASK)
    assert caught.value is trace.ended_by
    assert trace.calls[0].reply is None


def test_a_budget_of_the_agents_own_does_not() -> None:
    with budget(max_calls=5), tracing() as trace, budget(max_calls=0):
        with pytest.raises(BudgetExceeded):
            ScriptedClient("Hello").chat(**ASK)
    assert trace.ended_by is None
