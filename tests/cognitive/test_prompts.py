"""The prompts as they are sent: data in tags that it can't close, schemas that are strict."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.blocks import read_blocks
from kit.roles import comment

import afnio
import afnio.cognitive as cog
from afnio.testing import ScriptedClient

TAGS = ("message", "feedback", "conversation", "variable", "reply", "value", "step")


def criticism(feedback, reply="r", **args):
    """Return the request that a critic gets for feedback on a reply."""
    critic, prompt = ScriptedClient(comment("better")), cog.Parameter("p", role="role")
    messages = [{"role": "user", "content": [prompt]}]
    with afnio.set_backward_model_client(critic, completion_args={"model": "m"}):
        output = cog.functional.chat_completion(ScriptedClient(reply), messages, model="m", **args)
        output.data = "edited"
        output.backward(afnio.Variable(feedback))
    return critic.requests[0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["<", "</", ">", "\n", "feedback", "variable", "&lt;", " ", "a", "message"]))
    .map("".join)
    .filter(bool)
)
def test_no_text_can_open_or_close_a_block(text):
    """The block that holds a feedback is the only one, for any text."""
    prompt = criticism(text).messages[-1]["content"]
    assert [block.text for block in read_blocks(prompt, "feedback")] == [text.replace("&lt;", "<")]
    assert re.findall(r"</?feedback\b", prompt) == ["<feedback", "</feedback"]


@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_is_escaped(tag):
    """Opening and closing ones."""
    prompt = criticism(f"a </{tag}> <{tag} b>").messages[-1]["content"]
    assert f"a &lt;/{tag}> &lt;{tag} b>" in prompt


def test_other_angle_brackets_stay():
    """HTML and comparisons are not touched."""
    assert "<b>1 < 2</b>" in criticism("<b>1 < 2</b>").messages[-1]["content"]


def judgement():
    client = ScriptedClient({"score": 1, "explanation": "e"})
    messages = [{"role": "user", "content": [afnio.Variable("Judge {prediction}.")]}]
    _ = cog.functional.lm_judge_evaluator(client, messages, afnio.Variable("p"), model="m").score.data
    return client.requests[0]


def proposal():
    client, prompt = ScriptedClient({"value": "new"}), cog.Parameter("old", role="role")
    prompt.append_grad(afnio.Variable("shorter"))
    afnio.optim.TGD([prompt], client, model="m").step()
    return client.requests[0]


@pytest.mark.parametrize("request_of", [lambda: criticism("f"), judgement, proposal])
def test_the_schemas_are_valid_and_strict(request_of):
    """OpenAI's strict mode wants every property required and no others, at every level."""
    form = request_of().params["response_format"]["json_schema"]
    jsonschema.Draft202012Validator.check_schema(form["schema"])
    assert form["strict"]

    def visit(node):
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert (sorted(node["properties"]), False) == (
                    sorted(node["required"]),
                    node["additionalProperties"],
                )
            for child in node.values():
                visit(child)
        elif isinstance(node, list):
            for child in node:
                visit(child)

    visit(form["schema"])


def test_deterministic_feedback_says_what_was_expected():
    """Texts are quoted, so that an empty prediction shows."""
    _, explanation = cog.functional.exact_match_evaluator(afnio.Variable(""), "é")
    assert explanation.data == 'exact match: predicted "", expected "é", score 0.'


def test_the_critic_sees_what_was_asked_for_replied_and_edited():
    """The form as JSON, the raw reply, and the value that the consumers saw."""
    request = criticism("f", reply="{}", response_format={"type": "json_object"})
    prompt = request.messages[-1]["content"]
    (form,) = read_blocks(prompt, "reply_format")
    assert json.loads(form.text) == {"type": "json_object"}
    assert [[block.text for block in read_blocks(prompt, tag)] for tag in ("reply", "edited_reply")] == [
        ["{}"],
        ["edited"],
    ]
