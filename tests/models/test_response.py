"""Responses: what Afnio reads of a chat completion's body."""

from __future__ import annotations

import pytest

from afnio.models import ChatResponse, ToolCall, Usage
from afnio.models.response import ChatBody


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


def test_tool_calls_are_visible():
    """With their arguments as the model wrote them."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    response = body({"content": None, "tool_calls": [call]})
    assert (ToolCall(id="c1", name="add", arguments='{"a": 1}'),) == response.tool_calls
    assert ("", None) == (str(response), response.content)


def test_a_refusal_is_what_the_model_said():
    """Not silence."""
    assert "I can't." == body({"content": None, "refusal": "I can't."}).content
    assert "" == body({"content": "", "refusal": None}).content


def test_a_response_does_not_change():
    """It is shared by readers."""
    with pytest.raises(ValueError, match="frozen"):
        ChatResponse(content="a").content = "b"


def test_a_model_without_a_name_is_read():
    """Some servers send null."""
    assert "" == body({"content": "hi"}, model=None).model
