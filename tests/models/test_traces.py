"""Traces of native calls: what a lane asked, what it got, and what ended it."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from kit.wire import http

from afnio import bridge, budget, run
from afnio.errors import BudgetExceeded
from afnio.models import ChatResponse, ToolCall, rehearsing, tracing
from afnio.testing import ScriptedClient

ASK = {"messages": [{"role": "user", "content": "Hi"}], "model": "m", "temperature": 0.5}


def test_a_call_has_its_request_and_its_reply() -> None:
    call = ToolCall(id="1", name="search", arguments="{}")
    with tracing() as trace:
        ScriptedClient(ChatResponse(content="Hello", tool_calls=(call,))).chat(**ASK)
    (traced,) = trace.calls
    assert (traced.path, traced.model, traced.purpose) == ("chat/completions", "m", "chat")
    assert traced.request == ASK
    assert traced.reply is not None
    message = traced.reply["choices"][0]["message"]
    assert message["content"] == "Hello"
    assert message["tool_calls"][0]["function"] == {"name": "search", "arguments": "{}"}


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

    assert sorted(run(main())) == ["a", "b", "c"]


def test_without_recording_calls_are_only_counted() -> None:
    with tracing(record=False) as trace:
        ScriptedClient("Hello").chat(**ASK)
    assert (trace.calls, trace.launched) == ([], 1)


def test_outside_nothing_is_traced() -> None:
    with tracing() as trace:
        pass
    ScriptedClient("Hello").chat(**ASK)
    assert (trace.calls, trace.launched) == ([], 0)


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


def test_a_bridged_call_is_traced_alike() -> None:
    found = {"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
    with tracing() as trace, client_of(lambda request: http.Response(200, json=found)) as client:
        client.post("http://host/v1/chat/completions", json=ASK)
    (traced,) = trace.calls
    assert (traced.path, traced.model, traced.purpose) == ("chat/completions", "m", "chat")
    assert traced.request == ASK
    assert found == traced.reply


EVENTS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"index": 0, "delta": {"content": "Hel"}}]},
    {"choices": [{"index": 0, "delta": {"content": "lo"}}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{"}}]
                },
            }
        ]
    },
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
]


def streamed(request: Any) -> Any:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"
    return http.Response(200, headers={"content-type": "text/event-stream"}, content=body.encode())


def test_a_stream_is_traced_in_the_form_of_a_whole_reply() -> None:
    with tracing() as trace, client_of(streamed) as client:
        client.post("http://host/v1/chat/completions", json={**ASK, "stream": True})
    (traced,) = trace.calls
    assert traced.request == {**ASK, "stream": True}  # without what the bridge added
    assert traced.reply is not None
    (choice,) = traced.reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_a_stream_that_is_left_early_is_traced_as_far_as_it_was_read() -> None:
    with tracing() as trace, client_of(streamed) as client:
        with client.stream("POST", "http://host/v1/chat/completions", json={**ASK, "stream": True}) as reply:
            for line in reply.iter_lines():
                if "Hel" in line:
                    break
    (traced,) = trace.calls
    assert traced.reply is not None
    assert traced.reply["choices"][0]["message"]["content"] == "Hel"


def test_an_agent_that_swallows_every_error_has_a_trace_that_does_not() -> None:
    def agent() -> str:
        with client_of(streamed) as client:
            try:
                return client.post("http://host/v1/chat/completions", json=ASK).raise_for_status().text
            except Exception:
                return "an answer all the same"

    with budget(max_calls=0), tracing() as trace:
        assert agent() == "an answer all the same"
    assert isinstance(trace.ended_by, BudgetExceeded)


def client_of(answer: Any) -> Any:
    inner = http.MockTransport(answer)
    return http.Client(transport=bridge.transport(inner=inner))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("v1/chat/completions", ASK),
        ("v1/responses", {"model": "m", "input": "Hi"}),
        ("v1/messages", {**ASK, "max_tokens": 50}),
        ("v1beta/models/m:generateContent", {"contents": [{"parts": [{"text": "Hi"}]}]}),
        ("v1/embeddings", {"model": "m", "input": "Hi"}),
    ],
)
def test_a_rehearsal_sends_nothing(path: str, body: dict[str, Any], stream: bool) -> None:
    if stream:
        path = path.replace(":generate", ":streamGenerate")
        body = body if "contents" in body else {**body, "stream": True}
    headers = {"anthropic-version": "2023-06-01"}
    with tracing() as trace, rehearsing() as found, client_of(lambda request: pytest.fail("sent")) as client:
        reply = client.post(f"http://host/{path}", json=body, headers=headers)
    assert reply.status_code == 200
    assert [call.model for call in found.calls] == ["m"]
    assert trace.calls[0].reply
    if "embeddings" not in path:
        assert "made-up reply 1" in reply.text
        assert "made-up reply 1" in json.dumps(trace.calls[0].reply)
