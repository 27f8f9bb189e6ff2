"""Templates fill what is named, leave every other brace alone, and say what doesn't fit."""

from __future__ import annotations

import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, TemplateError
from afnio.testing import ScriptedClient


def message(text, role="user"):
    return {"role": role, "content": [text if isinstance(text, afnio.Variable) else afnio.Variable(text)]}


def ask(messages, inputs=None):
    """Return the first request that a chat sends."""
    client = ScriptedClient("ok")
    cog.functional.chat_completion(client, messages, inputs, model="m").data
    return client.requests[0].messages


def filled(text, inputs):
    return ask([message(afnio.Parameter(text))], inputs)[0]["content"]


def test_filling_is_one_pass_and_leaves_other_braces():
    """A value's own braces and JSON braces stay as they are."""
    assert filled('{a} {"a": 1} {} {{b}} {c d}', {"a": "x {b}"}) == 'x {b} {"a": 1} {} {{b}} {c d}'


def test_a_filled_value_is_never_a_template_itself():
    """An input that looks like a placeholder of another input is not filled."""
    assert filled("{a} {b}", {"a": "{b}", "b": "B"}) == "{b} B"


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], TypeError, "messages must be a list of at least one message (got [])"),
        ("hello", TypeError, "messages must be a list of at least one message (got 'hello')"),
        (["hello"], TypeError, "message 0 must be a dict with 'role' and 'content' (got 'hello')"),
        ([{"role": "user"}], ValueError, "message 0 needs 'role' and 'content' (got ['role'])"),
        ([{"role": "tool", "content": []}], ValueError, "message 0 has role 'tool'; use one of system"),
        ([{"role": "user", "content": "hi"}], TypeError, "needs a list of Variables as 'content' (got 'hi')"),
        ([{"role": "user", "content": []}], TypeError, "needs a list of Variables as 'content' (got [])"),
        (
            [{"role": "user", "content": ["hi"]}],
            TypeError,
            "the content of message 0 must be Variables (got 'hi'); wrap",
        ),
    ],
)
def test_bad_messages_are_refused_with_the_value_and_the_fix(messages, error, words):
    """Each refusal names the message and shows what it got."""
    with pytest.raises(error) as caught:
        ask(messages)
    assert words in str(caught.value)


def test_an_unfilled_placeholder_is_an_error_that_names_the_inputs():
    """A forgotten input is caught before anything is sent."""
    with pytest.raises(TemplateError) as caught:
        ask([message("Read {text}.")], {"message": "hi"})
    assert str(caught.value) == (
        "message 0 (user) has the placeholder {text}, which no input fills (inputs: message); add it to inputs"
    )


def test_an_input_that_no_message_uses_is_an_error():
    """So a misspelt input is no silent loss."""
    with pytest.raises(TemplateError) as caught:
        ask([message("Read {text}.")], {"text": "a", "note": "b"})
    assert str(caught.value) == (
        "input 'note' is used by no message (placeholders: text); write {note} where it belongs"
    )


def test_a_parameter_may_hold_stray_placeholders():
    """An optimizer may rewrite a prompt to anything, braces included."""
    assert filled("Answer {like_this} and { so }.", None) == "Answer {like_this} and { so }."


def test_a_parameter_may_use_inputs():
    """A placeholder in a Parameter counts as a use."""
    assert filled("Answer {question}.", {"question": "why?"}) == "Answer why?."


async def test_texts_that_are_pending_are_not_judged():
    """A text that isn't known at the launch line is no error there."""
    client = ScriptedClient("ok")
    pending = afnio.Variable("{later}").map(str)
    await cog.functional.chat_completion(client, [message(pending)], {"later": "now"}, model="m")
    assert client.requests[0].messages[0]["content"] == "now"


def test_a_list_in_a_message_is_refused():
    """A model reads text; lists have to be joined."""
    nested = [message(afnio.Variable([["a", "b"], ["c", "d"]]))]
    with pytest.raises(
        TypeError, match="message 0 must hold texts .got the list .* join it first, with variable.map"
    ):
        ask(nested)
    later = afnio.Variable(["a", "b"]).map(lambda text: [text])
    with pytest.raises((TypeError, BatchError), match="message 0 must hold texts"):
        ask([message(later)])


def test_rendering_sends_one_text_or_parts():
    """One part is sent as a string, several as text parts, each filled."""
    parts = [afnio.Variable("{a}"), afnio.Variable(3)]
    sent = ask([message("Hi {a}", "system"), {"role": "user", "content": parts}], {"a": "x"})
    assert list(sent) == [
        {"role": "system", "content": "Hi x"},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "3"}]},
    ]
