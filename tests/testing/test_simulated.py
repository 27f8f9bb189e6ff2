"""The simulated LM learns from feedback, and from nothing but what its requests show."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.cognitive import prompts
from afnio.optim.prompts import TGD_SCHEMA, TGD_SYSTEM, TGD_USER, tgd_sections
from afnio.testing.simulated import FixedReply, SimulatedLM, kind_of
from afnio.testing.simulated.cues import read_cues
from afnio.testing.simulated.student import SENTIMENTS, classify
from afnio.testing.simulated.tags import read_blocks, read_section, unescape

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "sentiment_response_schema",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"sentiment": {"type": "string", "enum": list(SENTIMENTS)}},
            "required": ["sentiment"],
            "additionalProperties": False,
        },
    },
}
PROMPT = "Read the provided message and determine the sentiment."
NO_BRACES = "The improved variable must never include the characters `{` or `}`."
lm = SimulatedLM()


def messages(*texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in texts]


def ask_student(prompt: str, text: str, model: SimulatedLM = lm) -> str:
    request = {
        "messages": messages(("system", prompt), ("user", f"**Message:**\n\n{text}\n\n")),
        "response_format": SCHEMA,
    }
    return json.loads(model(request))["sentiment"]


def ask_critic(
    prompt: str, text: str, feedback: list[str], reply_format: Any = SCHEMA, **request: Any
) -> str:
    asked = prompts.critic_messages(
        variables=[("v0", "system prompt", prompt)],
        conversation=[("system", prompt), ("user", text)],
        reply="{}",
        edited=[],
        reply_format=reply_format,
        feedback=feedback,
    )
    request = {"messages": asked, "response_format": prompts.CRITIC_SCHEMA, **request}
    entries = json.loads(lm(request))["feedback"]
    assert [entry["variable"] for entry in entries] == ["v0"]
    return entries[0]["text"]


def ask_optimizer(value: str, feedback: list[str], *constraints: str, **request: Any) -> str:
    sections = tgd_sections(
        role="prompt", value=value, constraints=list(constraints), history=[], feedback=feedback
    )
    asked = messages(("system", TGD_SYSTEM), ("user", TGD_USER.format(**sections)))
    request = {"messages": asked, "response_format": TGD_SCHEMA, **request}
    return json.loads(lm(request))["value"]


# The loop over FacilitySupport -----------------------------------------------------------------


@pytest.fixture(scope="module")
def facility() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    folder = os.environ.get("AFNIO_DATA")
    if folder is None:
        pytest.skip("AFNIO_DATA is not set; point it to the folder with facility_support.json")
    items = json.loads((Path(folder) / "facility_support.json").read_text())
    random.Random(0).shuffle(items)
    pairs = [(i["fields"]["input"], json.loads(i["answer"])["sentiment"]) for i in items]
    return pairs[:66], pairs[132:]


def score(prompt: str, pairs: list[tuple[str, str]]) -> int:
    return sum(ask_student(prompt, text) == label for text, label in pairs)


def improve(
    prompt: str,
    batch: list[tuple[str, str]],
    *,
    cut_feedback: bool = False,
    cut_critic: bool = False,
) -> str:
    comments = []
    for text, label in batch:
        said = ask_student(prompt, text)
        if said == label:
            continue
        feedback = prompts.deterministic_feedback("exact match", said, label, 0)
        comment = ask_critic(prompt, text, ["" if cut_feedback else feedback])
        comments.append("" if cut_critic else comment)
    return ask_optimizer(prompt, comments, NO_BRACES)


def train(pairs: list[tuple[str, str]], seed: int, **cut: bool) -> str:
    prompt, order = PROMPT, random.Random(seed)
    for _ in range(3):
        epoch = order.sample(pairs, len(pairs))
        for batch in (epoch[:33], epoch[33:]):
            prompt = improve(prompt, batch, **cut)
    return prompt


@pytest.mark.parametrize("seed", range(3))
def test_feedback_raises_the_score(facility, seed, record_property):
    training, held_out = facility
    before = score(PROMPT, held_out)
    after = score(train(training, seed), held_out)
    record_property("correct_of_68", (before, after))
    assert 25 <= before <= 35
    assert 45 <= after <= 60


@pytest.mark.parametrize("cut", ["cut_feedback", "cut_critic"])
def test_nothing_is_learnt_where_the_feedback_is_cut(facility, cut):
    training, _ = facility
    assert train(training, 0, **{cut: True}) == PROMPT


def test_a_student_reads_no_further_than_its_context(facility):
    _, held_out = facility
    told = f'{PROMPT}{" " * 100}\nAnswer "neutral" when the message mentions: procare.'
    short = SimulatedLM(context=100)
    assert {ask_student(told, text) for text, _ in held_out} == {"neutral"}
    assert [ask_student(told, text, short) for text, _ in held_out] == [
        ask_student(PROMPT, text, short) for text, _ in held_out
    ]


# The student -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "cues"),
    [
        (PROMPT, {}),
        ("Classify as positive, neutral or negative.", {}),
        (
            'Words like "vague" or "late" mean negative, not neutral.',
            {"negative": ["vague", "late"]},
        ),
        ("- neutral: schedule, inquiry", {"neutral": ["schedule", "inquiry"]}),
        (
            "If it mentions prices, or opening hours and dates, it is neutral",
            {"neutral": ["prices", "opening hours", "dates"]},
        ),
        (
            "Say neutral for messages that mention prices or dates. Never guess.",
            {"neutral": ["prices", "dates"]},
        ),
    ],
)
def test_cues_are_read_from_prose(prompt, cues):
    found = read_cues(prompt, SENTIMENTS)
    assert {label: [phrase.strip() for phrase in found[label]] for label in found} == cues


def test_the_most_cues_win_and_the_naive_reading_breaks_ties():
    told = 'Answer "neutral" when the message mentions: price, date.\nThe word "late" means negative.'
    assert classify("The price and the date are late.", told, SENTIMENTS) == "neutral"
    assert classify("The price is late.", told, SENTIMENTS) == "neutral"
    assert classify("The price is late. Awful.", told, SENTIMENTS) == "negative"
    assert classify("Late.", told, SENTIMENTS) == "negative"


def test_without_a_schema_the_student_says_a_label_or_an_echo():
    asked = messages(("system", PROMPT), ("user", "This is awful."))
    assert lm({"messages": asked}) == "negative"
    wish = "Repeat. In every reply: use only capital letters."
    assert lm({"messages": messages(("system", wish), ("user", "Two dogs."))}) == "TWO DOGS."
    assert lm({"messages": [{"role": "system", "content": "x"}]})
    json_object = {"messages": asked, "response_format": {"type": "json_object"}}
    assert json.loads(lm(json_object)) == {"sentiment": "negative"}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 3, "maxLength": 5},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["name", "next"],
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 2, "exclusiveMaximum": 5},
        {"type": "array", "items": {"type": "number"}, "minItems": 2},
        {"type": ["string", "null"], "maxLength": 4},
        {"const": 7},
        {"enum": [1, 2]},
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a", "b"]},
        TREE,
        {},
    ],
)
@given(text=st.text())
def test_answers_obey_any_schema(schema, text):
    form = {"type": "json_schema", "json_schema": {"name": "other", "schema": schema}}
    reply = lm({"messages": messages(("user", text)), "response_format": form})
    jsonschema.validate(json.loads(reply), schema)


@given(text=st.text(), told=st.text())
def test_any_text_gets_the_same_reply_twice(text, told):
    for form in (None, SCHEMA, prompts.CRITIC_SCHEMA, TGD_SCHEMA):
        asked = messages(("system", told), ("user", text))
        request = {"messages": asked, "response_format": form}
        assert lm(request) == SimulatedLM()(request)


# The critic and the optimizer ------------------------------------------------------------------


def test_the_critic_names_phrases_of_the_message_for_the_expected_label():
    feedback = prompts.deterministic_feedback("exact match", "positive", "negative", 0)
    comment = ask_critic(PROMPT, "I am frustrated; this is unacceptable.", [feedback])
    assert comment == (
        'The text should say that phrases such as "frustrated", "unacceptable" '
        'mean the sentiment is "negative".'
    )
    assert ask_critic(comment, "I am frustrated; this is unacceptable.", [feedback]) == ""
    assert "answer is" in ask_critic(PROMPT, "I am frustrated.", [feedback], reply_format=None)


def test_the_critic_passes_other_feedback_on_and_has_nothing_to_add():
    assert "use fewer words" in ask_critic(PROMPT, "I am frustrated.", ["use fewer words"])
    assert ask_critic(PROMPT, "I am frustrated.", []) == ""


def test_the_majority_keeps_a_contested_cue_and_a_tie_drops_it():
    claims = ['Phrases such as "late" mean the sentiment is "negative".'] * 2
    claims += ['Phrases such as "late", "date" mean the sentiment is "neutral".']
    new = ask_optimizer(PROMPT, claims)
    assert new == (
        f'{PROMPT}\nAnswer "negative" when the message mentions: late.'
        '\nAnswer "neutral" when the message mentions: date.'
    )
    contested = ['Phrases such as "date" mean the sentiment is "positive".']
    assert ask_optimizer(new, contested) == new
    assert "late" not in ask_optimizer(PROMPT, claims[1:])


def test_a_new_value_obeys_its_constraints():
    claims = ['Phrases such as "a", "b", "c", "d" mean the sentiment is "neutral".']
    assert "{" not in ask_optimizer("Be {kind}.", claims, NO_BRACES)
    assert len(ask_optimizer(PROMPT, claims, "Use at most 110 characters.")) <= 110
    assert ask_optimizer("Be {kind}.", [""], NO_BRACES) == "Be {kind}."


def test_feedback_in_prose_becomes_an_instruction():
    new = ask_optimizer("Echo.", ["answer in Italian.", "answer in Italian"])
    assert new == "Echo.\nIn every reply: answer in Italian."
    assert ask_optimizer(new, ["answer in Italian"]) == new


def test_an_optimizer_reads_the_feedback_within_its_context_and_no_history():
    history = [("Echo.", ["answer in Italian"])]
    sections = tgd_sections(
        role="r", value="Echo.", constraints=[], history=history, feedback=["shorter", "louder"]
    )
    prompt = TGD_USER.format(**sections)
    request = {"messages": messages(("user", prompt)), "response_format": TGD_SCHEMA}
    short = SimulatedLM(context=prompt.index("louder"))
    assert json.loads(short(request)) == {"value": "Echo.\nIn every reply: shorter."}
    sections["feedback"] = ""
    silent = {**request, "messages": messages(("user", TGD_USER.format(**sections)))}
    assert json.loads(lm(silent)) == {"value": "Echo."}


def test_roles_are_told_apart_without_a_schema():
    feedback = prompts.deterministic_feedback("exact match", "positive", "negative", 0)
    assert "awful" in ask_critic(PROMPT, "This is awful.", [feedback], response_format=None)
    new = ask_optimizer("Echo.", ["shorter"], response_format={"type": "json_object"})
    assert new == "Echo.\nIn every reply: shorter."
    assert kind_of({"messages": messages(("system", PROMPT))}) == "student"


TAGS = prompts._TAGS.split("|")


@given(st.lists(st.sampled_from([*(f"<{t}>" for t in TAGS), *(f"\n</{t}>\n" for t in TAGS), "&lt;b"])))
def test_data_in_tags_is_read_as_it_was_written(pieces):
    text = "".join(pieces)
    assert unescape(prompts.escape(text)) == text
    section = f"<feedbacks>\n{prompts.block('feedback', text, source=text)}\n</feedbacks>"
    assert read_blocks(read_section(section, "feedbacks"), "feedback") == [({"source": text}, text)]


def test_a_fixed_reply_satisfies_critic_and_optimizer():
    fixed = FixedReply("ok")
    asked = prompts.critic_messages(
        variables=[("a", "r", "x"), ("b", "r", "y")],
        conversation=[],
        reply="",
        edited=[],
        reply_format=None,
        feedback=[],
    )
    reply = fixed({"messages": asked, "response_format": prompts.CRITIC_SCHEMA})
    entries = json.loads(reply)["feedback"]
    assert [(entry["variable"], entry["text"]) for entry in entries] == [("a", "ok"), ("b", "ok")]
    value = {"messages": messages(("user", prompts.block("variable", "v")))}
    reply = fixed({**value, "response_format": TGD_SCHEMA})
    assert json.loads(reply) == {"value": "v ok"}
