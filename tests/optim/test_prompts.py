"""The optimizer's prompt: stable parts first, data in tags."""

from __future__ import annotations

import json

from afnio.cognitive.template import fill
from afnio.optim.prompts import TGD_OBJECTION, TGD_SCHEMA, TGD_SYSTEM, TGD_USER, tgd_sections
from afnio.testing.simulated.tags import read_blocks, read_section


def test_all_that_the_proposer_needs_is_in_the_sections():
    """Variable, constraints, history and feedback, each readable."""
    sections = tgd_sections(
        role="prompt",
        value="old </variable>",
        constraints=["short"],
        history=[("older", ["f1", "f2"])],
        feedback=["f3"],
    )
    text = fill(TGD_USER, sections)
    (variable,) = read_blocks(text, "variable")
    assert ({"role": "prompt"}, "old </variable>") == (variable.attributes, variable.text)
    assert ["short"] == [b.text for b in read_blocks(read_section(text, "constraints"), "constraint")]
    history = read_section(text, "history")
    assert (["older"], ["f1", "f2"]) == (
        [b.text for b in read_blocks(history, "value")],
        [b.text for b in read_blocks(history, "feedback")],
    )
    assert ["f3"] == [b.text for b in read_blocks(read_section(text, "feedbacks"), "feedback")]


def test_what_is_not_there_leaves_no_empty_section():
    """No constraints, no history."""
    sections = tgd_sections(role="r", value="v", constraints=[], history=[], feedback=["f"])
    assert ("", "") == (sections["constraints"], sections["history"])


def test_the_form_is_in_words_too():
    """For endpoints without schemas; it names the schema's key."""
    assert '{"value": "' in TGD_SYSTEM
    assert ["value"] == list(TGD_SCHEMA["json_schema"]["schema"]["properties"])
    assert "{reasons}" in TGD_OBJECTION
    json.dumps(TGD_SCHEMA)
