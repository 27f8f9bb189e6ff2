"""Requests: what is sent, what is refused, and a key for all that can change the reply."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from afnio.models import ChatRequest

HELLO = [{"role": "user", "content": "hi"}]


class Inner(BaseModel):
    text: str
    count: int = 3


class Outer(BaseModel):
    inner: Inner
    more: list[Inner]


def schema_of(model):
    """Return what is sent for a response format that is a pydantic model."""
    return ChatRequest.build(HELLO, model="m", response_format=model).body["response_format"]["json_schema"][
        "schema"
    ]


def test_the_body_is_model_messages_and_what_was_given():
    """None stands for not given."""
    request = ChatRequest.build(HELLO, model="m", temperature=0, max_tokens=None)
    assert {"model": "m", "messages": HELLO, "temperature": 0} == request.body


@pytest.mark.parametrize(
    ("messages", "params", "error", "words"),
    [
        ([], {}, TypeError, "at least one message (got [])"),
        ("hi", {}, TypeError, "(got 'hi')"),
        ([{"content": "hi"}], {}, TypeError, "a message must be a dict with 'role' and 'content'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, ValueError, "type 'image_url' are not"),
        ([{"role": "user", "content": ["hi"]}], {}, ValueError, "type 'str' are not supported; only text is"),
        (HELLO, {"model": ""}, TypeError, "a call needs a model name (got '')"),
        (HELLO, {"n": 2}, ValueError, "n=2 replies"),
        (HELLO, {"stream": True}, ValueError, "stream=True"),
        (HELLO, {"modalities": ["text", "audio"]}, ValueError, "modalities="),
        (HELLO, {"response_format": Inner(text="x")}, TypeError, "a dict or a pydantic model class"),
    ],
)
def test_what_cannot_be_carried_is_refused(messages, params, error, words):
    """With the value and the reason."""
    with pytest.raises(error) as caught:
        ChatRequest.build(messages, **{"model": "m", **params})
    assert words in str(caught.value)


def test_what_changes_nothing_is_let_through():
    """n=1, stream=False and text alone."""
    assert 1 == ChatRequest.build(HELLO, model="m", n=1, stream=False, modalities=["text"]).params["n"]


def test_a_pydantic_model_becomes_a_strict_schema_at_every_level():
    """No other properties, all required, no defaults."""
    schema = schema_of(Outer)
    for part in (schema, schema["$defs"]["Inner"]):
        assert (False, sorted(part["properties"])) == (part["additionalProperties"], sorted(part["required"]))
    assert "default" not in schema["$defs"]["Inner"]["properties"]["count"]


def test_a_property_may_be_named_default():
    """It is a name there, not a keyword."""

    class Settings(BaseModel):
        default: str

    assert ["default"] == schema_of(Settings)["required"]
    assert ["default"] == list(schema_of(Settings)["properties"])


def test_a_schema_is_sent_in_its_order():
    """A model that is to reason before it answers writes the fields in the order in which they are sent."""

    class Verdict(BaseModel):
        why: str
        answer: str

    request = ChatRequest.build(HELLO, model="m", response_format=Verdict)
    sent = json.loads(request.encoded)["response_format"]["json_schema"]["schema"]
    assert ["why", "answer"] == list(sent["properties"]) == sent["required"]


def test_the_key_tells_requests_apart():
    """By endpoint, model, messages and parameters, not by their order."""
    base = ChatRequest.build(HELLO, model="m", a=1, b=2)
    keys = {
        base.key("u"),
        base.key("v"),
        ChatRequest.build(HELLO, model="n", a=1, b=2).key("u"),
        ChatRequest.build(HELLO, model="m", a=1, b=3).key("u"),
        ChatRequest.build([*HELLO, *HELLO], model="m", a=1, b=2).key("u"),
    }
    assert 5 == len(keys)
    assert base.key("u") == ChatRequest.build(HELLO, model="m", b=2, a=1).key("u")
    turned = [dict(reversed(message.items())) for message in HELLO]
    assert base.key("u") == ChatRequest.build(turned, model="m", a=1, b=2).key("u")
