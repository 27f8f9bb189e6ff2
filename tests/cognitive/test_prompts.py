"""The prompts: data in tags that it can't close, schemas that are strict."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.cognitive import _prompts
from afnio.optim._prompts import TGD_SCHEMA
from afnio.testing.simulated._language import read_blocks, unescape

TAGS = ("message", "feedback", "conversation", "variable", "reply", "value", "step")


@given(
    st.lists(
        st.sampled_from(["<", "</", ">", "\n", "feedback", "variable", "&lt;", " ", "a", "message"])
    ).map("".join)
)
def test_no_text_can_open_or_close_a_block(text):
    """Whatever the data says, the block that holds it is the only one."""
    block = _prompts.block("feedback", text, source=text)
    assert [text.replace("&lt;", "<")] == [
        b.text.replace("&lt;", "<") for b in read_blocks(block, "feedback")
    ]
    assert ["<feedback", "</feedback"] == re.findall(r"</?feedback\b", block)


@pytest.mark.parametrize("tag", TAGS)
def test_escaping_can_be_undone(tag):
    """A critic that quotes the data can be understood."""
    assert f"a </{tag}> <{tag} b>" == unescape(_prompts.escape(f"a </{tag}> <{tag} b>"))


def test_other_angle_brackets_stay():
    """HTML and comparisons are not touched."""
    assert "<b>1 < 2</b>" == _prompts.escape("<b>1 < 2</b>")


@pytest.mark.parametrize("schema", [_prompts.CRITIC_SCHEMA, _prompts.JUDGE_SCHEMA, TGD_SCHEMA])
def test_the_schemas_are_valid_and_strict(schema):
    """OpenAI's strict mode wants every property required and no others, at every level."""
    body = schema["json_schema"]["schema"]
    jsonschema.Draft202012Validator.check_schema(body)
    assert schema["json_schema"]["strict"]

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

    visit(body)


def test_deterministic_feedback_says_what_was_expected():
    """Texts are quoted, so that an empty prediction shows."""
    assert 'accuracy: predicted "", expected "é", score 0.' == _prompts.deterministic_feedback(
        "accuracy", "", "é", 0
    )


def test_a_reply_format_is_shown_as_json():
    """The critic sees the form that was asked for."""
    (_, user) = _prompts.critic_messages(
        variables=[("v1", "role", "value")],
        conversation=[("user", "hi")],
        reply="r",
        edited=["e"],
        reply_format={"type": "json_object"},
        feedback=["f"],
    )
    (shown,) = read_blocks(user["content"], "reply_format")
    assert {"type": "json_object"} == json.loads(shown.text)
