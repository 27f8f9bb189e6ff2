"""Responses: what Afnio reads of a chat completion's body."""

from __future__ import annotations

import copy
import pickle

import pytest
from kit.wire import read
from pydantic import TypeAdapter

import afnio
from afnio.models import ChatClient, ChatResponse, ToolCall, Usage
from afnio.runtime import Account, LimitReading, RateLimits


async def body(message, **more):
    return await read({"choices": [{"message": message, "finish_reason": "stop"}], "model": "m-1", **more})


async def test_text_model_reason_and_usage_are_read():
    """With the details that some providers give."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    response = await body({"content": "hi"}, usage=usage)
    assert (
        str(response),
        response.content,
        response.model,
        response.finish_reason,
    ) == ("hi", "hi", "m-1", "stop")
    assert Usage(10, 5, 4, 2) == response.usage
    assert response.usage.total_tokens == 15


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens_details": None}])
async def test_usage_that_is_not_there_counts_nothing(usage):
    """Local servers leave it out."""
    assert Usage() == (await body({"content": "hi"}, usage=usage)).usage


@pytest.mark.parametrize(
    ("sent", "tokens"),
    [
        (5.5, 6),
        ("5", 5),
        (-7, -7),
        (99999999999999999999, 99999999999999999999),
        (float("nan"), 0),
        (float("inf"), 0),
        ("many", 0),
        ([5], 0),
        ({"a": 5}, 0),
    ],
)
async def test_an_odd_number_of_tokens_costs_no_reply(sent, tokens):
    """It is a whole number to the engine, which judges its size; 0 where it is none."""
    usage = {"prompt_tokens": sent, "completion_tokens_details": {"reasoning_tokens": sent}}
    assert Usage(tokens, 0, 0, tokens) == (await body({"content": "hi"}, usage=usage)).usage


@pytest.mark.parametrize("usage", ["none", [1], 5, {"prompt_tokens_details": [1]}])
async def test_usage_of_another_shape_counts_nothing(usage):
    """The reply is used."""
    response = await body({"content": "hi"}, usage=usage)
    assert ("hi", Usage()) == (response.content, response.usage)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "b"}], "b"),
        ([{"type": "reasoning", "text": "hm"}, "b"], "b"),
        ([{"type": "refusal", "refusal": "I can't."}], "I can't."),
        ({"type": "text", "text": "a"}, "a"),
        ([], ""),
    ],
)
async def test_a_text_in_parts_is_joined(content, text):
    """Without the model's thoughts; Mistral and others send it so."""
    assert text == (await body({"content": content})).content


async def test_tool_calls_are_visible():
    """With their arguments as the model wrote them."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    response = await body({"content": None, "tool_calls": [call]})
    assert (ToolCall(id="c1", name="add", arguments='{"a": 1}'),) == response.tool_calls
    assert (str(response), response.content) == ("", None)


@pytest.mark.parametrize(("sent", "arguments"), [({"a": 1}, '{"a": 1}'), (None, "")])
async def test_tool_calls_without_text_or_id_are_read(sent, arguments):
    """Ollama and others send the arguments as they are, and null for an id."""
    call = {"id": None, "function": {"name": "add", "arguments": sent}}
    response = await body({"content": None, "tool_calls": [call]})
    assert (ToolCall(id="", name="add", arguments=arguments),) == response.tool_calls


async def test_a_refusal_is_what_the_model_said():
    """Not silence."""
    assert (await body({"content": None, "refusal": "I can't."})).content == "I can't."
    assert (await body({"content": "", "refusal": None})).content == ""


def test_a_response_does_not_change():
    """It is shared by readers."""
    with pytest.raises(AttributeError):
        ChatResponse(content="a").content = "b"


def test_a_response_can_be_copied_and_pickled():
    """Under its public name."""
    response = ChatResponse(
        content="a", tool_calls=[ToolCall(id="1", name="f", arguments="{}")], usage=Usage(1, 2)
    )
    assert response == copy.deepcopy(response) == pickle.loads(pickle.dumps(response))
    assert ToolCall.__module__ == ChatResponse.__module__ == "afnio.models"
    assert isinstance(response.tool_calls, tuple)


def test_a_response_that_is_no_text_is_refused():
    """Where a client makes it."""
    with pytest.raises(TypeError, match=r"content must be a str or None \(got \{'a': 1\}\)"):
        ChatResponse(content={"a": 1})


@pytest.mark.parametrize("model", [None, 5, ["m"]])
async def test_a_model_without_a_name_is_read(model):
    """Some servers send null."""
    assert (await body({"content": "hi"}, model=model)).model == ""


class Limited(ChatClient):
    """A client whose one reply reports a limit."""

    reply = ChatResponse(content="hi", usage=Usage(3, 2), limits=RateLimits(LimitReading(60, 59)))

    async def send(self, request):
        return self.reply


def test_a_response_can_be_a_field_of_a_pydantic_model():
    """Its annotations can be resolved where it is public."""
    response = ChatResponse(content="hé\n", tool_calls=(ToolCall(id="1", name="f", arguments="{}"),))
    adapter = TypeAdapter(ChatResponse)
    assert response == adapter.validate_json(adapter.dump_json(response))


def test_limits_belong_to_the_moment(tmp_path):
    """They are neither compared nor written: a journal doesn't keep them, and a replay has none."""
    plain = ChatResponse(content="hi", usage=Usage(3, 2))
    assert (plain, hash(plain)) == (Limited.reply, hash(Limited.reply))
    assert "limits" not in repr(Limited.reply)
    assert ChatResponse(content="ho") != plain
    client, replies = Limited(Account("http://limited", "")), []
    for _ in range(2):
        with afnio.journal(tmp_path / "j"):
            replies.append(client.chat(messages=[{"role": "user", "content": "hi"}], model="m"))
    assert replies == [plain, plain]
    assert [reply.limits for reply in replies] == [Limited.reply.limits, None]
