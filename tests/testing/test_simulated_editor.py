"""The simulated LM as an editor: the same rules, answered with edits by block."""

from __future__ import annotations

import json

import pytest

from afnio.optim import prompts
from afnio.testing.simulated import FixedReply, SimulatedLM

LONG = 'Answer "negative" when the message mentions: vague.'


def ask(user, *, lm=None, schema=True, model="simulated"):
    request = {
        "model": model,
        "messages": [
            {"role": "system", "content": prompts()["edit.system"].text},
            {"role": "user", "content": user},
        ],
    }
    if schema:
        request["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "afnio_edits", "schema": {}},
        }
    return json.loads((lm or SimulatedLM())(request))["edits"]


def variable(*blocks):
    shown = [f'<block id="{n}">\n{text}\n</block>' for n, text in enumerate(blocks, start=1)]
    return "\n".join(['<variable role="prompt">', *shown, "</variable>"])


def mistake(number, message, expected):
    return (
        f'<mistake id="{number}">\n<conversation>\n<message role="user">\n{message}\n</message>\n</conversation>\n'
        f'<reply>\nx\n</reply>\n<feedback>\nexact match: predicted "x", expected "{expected}", score 0.\n</feedback>\n'
        "</mistake>"
    )


def section(tag, *parts):
    return "\n".join([f"<{tag}>", *parts, f"</{tag}>"])


@pytest.mark.parametrize("schema", [True, False])
def test_it_adds_cue_sentences_with_the_mistakes_behind_them(schema):
    """Asked by schema or in words."""
    shown = section(
        "mistakes",
        mistake(1, "I am frustrated.", "negative"),
        mistake(2, "What are your options?", "neutral"),
    )
    edits = ask(f"{variable('Read it.')}\n{shown}", schema=schema)
    assert [(e["op"], e["block"], e["text"], e["samples"]) for e in edits] == [
        ("add", 1, 'Answer "negative" when the message mentions: frustrated.', [1]),
        ("add", 1, 'Answer "neutral" when the message mentions: options.', [2]),
    ]


def test_it_replaces_the_cue_sentence_of_a_label():
    """And leaves the others; feedback of a critic is read as well as mistakes."""
    said = 'The text should say that phrases such as "unhappy" mean the sentiment is "negative".'
    shown = section("feedbacks", f'<feedback id="7">\n{said}\n</feedback>')
    (edit,) = ask(f"{variable('Read it.', LONG)}\n{shown}")
    text = 'Answer "negative" when the message mentions: vague, unhappy.'
    assert edit == {"op": "replace", "block": 2, "text": text, "samples": [7]}


def test_without_a_mistake_it_edits_nothing():
    """It has no ideas of its own."""
    assert ask(variable("Read it.")) == []


def test_it_merges_edits_of_one_place_by_their_samples():
    """A phrase that two labels claim goes to the one with more; over the limit the rarest go."""
    edits = [
        '<edit op="add" samples="3">\nAnswer "negative" when the message mentions: vague, poor.\n</edit>',
        '<edit op="add" samples="1">\nAnswer "neutral" when the message mentions: vague, options.\n</edit>',
    ]
    places = section("places", "\n".join(['<place block="1">', *edits, "</place>"]))
    merged = [e["text"] for e in ask(f"{variable('Read it.')}\n{places}")]
    assert merged == [
        'Answer "negative" when the message mentions: vague, poor.',
        'Answer "neutral" when the message mentions: options.',
    ]
    limit = section("constraints", "<constraint>\nUse at most 60 characters.\n</constraint>")
    (short,) = ask(f"{variable('Read it.')}\n{limit}\n{places}")
    assert short["text"] == 'Answer "negative" when the message mentions: vague, poor.'


def test_a_cue_that_one_edit_takes_out_stays_out():
    """Whatever the others keep."""
    edits = [
        '<edit op="replace" samples="1">\nAnswer "negative" when the message mentions: poor.\n</edit>',
        '<edit op="replace" samples="4">\nAnswer "negative" when the message mentions: vague, unhappy.\n</edit>',
    ]
    places = section("places", "\n".join(['<place block="2">', *edits, "</place>"]))
    (edit,) = ask(f"{variable('Read it.', LONG)}\n{places}")
    assert (edit["op"], edit["block"]) == ("replace", 2)
    assert edit["text"] == 'Answer "negative" when the message mentions: unhappy, poor.'


def test_a_fixed_reply_is_an_edit_too():
    """So that benchmarks of throughput run."""
    (edit,) = ask(variable("Read it."), lm=FixedReply("ok"))
    assert (edit["op"], edit["text"]) == ("add", "ok")
