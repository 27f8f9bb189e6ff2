"""Responses: what Afnio reads of a chat completion's body."""

from __future__ import annotations

import pytest

from afnio.models import ChatResponse, ToolCall, Usage
from afnio.models._messages import ChatBody
from afnio.runtime import LimitReading, RateLimits


def body(message, **more):
    return ChatBody.model_validate(
        {"choices": [{"message": message, "finish_reason": "stop"}], "model": "m-1", **more}
    ).response()


def test_text_model_reason_and_usage_are_read():
    """With the details that some providers give."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    response = body({"content": "hi"}, usage=usage)
    assert ("hi", "hi", "m-1", "stop") == (
        str(response),
        response.content,
        response.model,
        response.finish_reason,
    )
    assert Usage(10, 5, 4, 2) == response.usage
    assert 15 == response.usage.total_tokens


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens_details": None}])
def test_usage_that_is_not_there_counts_nothing(usage):
    """Local servers leave it out."""
    assert Usage() == body({"content": "hi"}, usage=usage).usage


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
def test_an_odd_number_of_tokens_costs_no_reply(sent, tokens):
    """It is a whole number to the engine, which judges its size; 0 where it is none."""
    usage = {"prompt_tokens": sent, "completion_tokens_details": {"reasoning_tokens": sent}}
    assert Usage(tokens, 0, 0, tokens) == body({"content": "hi"}, usage=usage).usage


@pytest.mark.parametrize("usage", ["none", [1], 5, {"prompt_tokens_details": [1]}])
def test_usage_of_another_shape_counts_nothing(usage):
    """The reply is used."""
    response = body({"content": "hi"}, usage=usage)
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
def test_a_text_in_parts_is_joined(content, text):
    """Without the model's thoughts; Mistral and others send it so."""
    assert text == body({"content": content}).content


def test_tool_calls_are_visible():
    """With their arguments as the model wrote them."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    response = body({"content": None, "tool_calls": [call]})
    assert (ToolCall(id="c1", name="add", arguments='{"a": 1}'),) == response.tool_calls
    assert ("", None) == (str(response), response.content)


@pytest.mark.parametrize(("sent", "arguments"), [({"a": 1}, '{"a": 1}'), (None, "")])
def test_tool_calls_without_text_or_id_are_read(sent, arguments):
    """Ollama and others send the arguments as they are, and null for an id."""
    call = {"id": None, "function": {"name": "add", "arguments": sent}}
    response = body({"content": None, "tool_calls": [call]})
    assert (ToolCall(id="", name="add", arguments=arguments),) == response.tool_calls


def test_a_refusal_is_what_the_model_said():
    """Not silence."""
    assert "I can't." == body({"content": None, "refusal": "I can't."}).content
    assert "" == body({"content": "", "refusal": None}).content


def test_a_response_does_not_change():
    """It is shared by readers."""
    with pytest.raises(ValueError, match="frozen"):
        ChatResponse(content="a").content = "b"


@pytest.mark.parametrize("model", [None, 5, ["m"]])
def test_a_model_without_a_name_is_read(model):
    """Some servers send null."""
    assert "" == body({"content": "hi"}, model=model).model


def test_limits_belong_to_the_moment():
    """They are neither compared nor written, so a journal keeps what it kept and a replay has none."""
    reply = ChatResponse(content="hi", usage=Usage(3, 2))
    taught = ChatResponse(content="hi", usage=Usage(3, 2), limits=RateLimits(LimitReading(60, 59)))
    assert (reply, hash(reply)) == (taught, hash(taught))
    assert reply.model_dump_json() == taught.model_dump_json()
    assert ChatResponse.model_validate_json(taught.model_dump_json()).limits is None
    assert "limits" not in repr(taught)
    assert ChatResponse(content="ho") != reply
