"""Requests: what is sent, what is refused, and a key for all that can change the reply."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from afnio.models import ChatRequest

LONG, LONGEST_KEPT, KEPT = 4_000, 1_000_000, 4
"""See afnio.models._messages."""

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
    assert request.body == {"model": "m", "messages": HELLO, "temperature": 0}


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
    assert ChatRequest.build(HELLO, model="m", n=1, stream=False, modalities=["text"]).params["n"] == 1


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

    assert schema_of(Settings)["required"] == ["default"]
    assert list(schema_of(Settings)["properties"]) == ["default"]


def test_a_schema_is_sent_in_its_order():
    """A model that is to reason before it answers writes the fields in the order in which they are sent."""

    class Verdict(BaseModel):
        why: str
        answer: str

    request = ChatRequest.build(HELLO, model="m", response_format=Verdict)
    sent = json.loads(request.encoded)["response_format"]["json_schema"]["schema"]
    assert sent["required"] == list(sent["properties"]) == ["why", "answer"]


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
    assert len(keys) == 5
    assert base.key("u") == ChatRequest.build(HELLO, model="m", b=2, a=1).key("u")
    turned = [dict(reversed(message.items())) for message in HELLO]
    assert base.key("u") == ChatRequest.build(turned, model="m", a=1, b=2).key("u")


# The canonical bytes


def canonical(model, messages, params):
    """As every version since the first has encoded requests; journals on disk have digests of it."""
    in_order = [dict(sorted(message.items())) for message in messages]
    body = dict(sorted({"model": model, **params, "messages": in_order}.items()))
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from('a"\\/\n\t\x00\x1f\x7f\u2028é𝄞')
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(TEXTS | st.integers() | st.booleans() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)
CONTENTS = (
    TEXTS | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=3)
)
MESSAGES = st.builds(
    lambda role, content, more: {"role": role, "content": content, **more},
    TEXTS, CONTENTS, st.dictionaries(TEXTS, VALUES, max_size=2),
)  # fmt: skip


@given(TEXTS, st.lists(MESSAGES, min_size=1, max_size=3), st.dictionaries(TEXTS, VALUES, max_size=3))
def test_requests_have_the_bytes_that_they_always_had(model, messages, params):
    """Otherwise no journal would answer any more."""
    assert canonical(model, messages, params) == ChatRequest(model, messages, params).encoded


@pytest.mark.parametrize("length", [LONG - 1, LONG, LONG + 1, LONGEST_KEPT, LONGEST_KEPT + 1])
def test_long_texts_are_encoded_alike_each_time(length):
    """Their JSON may be kept for the next request."""
    shared = ('é"\n' * length)[:length]
    for number in range(2 * KEPT):
        messages = [{"role": "system", "content": shared}, {"role": "user", "content": f"{number}" * LONG}]
        assert canonical("m", messages, {}) == ChatRequest("m", messages).encoded


def test_half_a_character_is_an_error_of_its_request():
    """A lone surrogate can't be sent."""
    with pytest.raises(UnicodeEncodeError, match="surrogates"):
        _ = ChatRequest("m", [{"role": "user", "content": "\ud800"}]).encoded


def test_a_key_of_the_first_journals():
    """The digest of a request, as it is on users' disks."""
    request = ChatRequest.build(
        [{"role": "system", "content": "Sé brief."}, {"role": "user", "content": [{"type": "text", "text": "“Hi”\n"}]}],
        model="gpt-5", temperature=1e-7, seed=2**70, stop=["\x7f", None], response_format={"b": 1e16, "a": True},
    )  # fmt: skip
    assert (
        request.key("https://host/v1", "v")
        == "47c0c36de0e68f804c34e00d44692b40abda65c748bd5b827f93b94a1451d03b"
    )
