"""The simulated LM learns from feedback, and from nothing but what its requests show."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.cognitive import _prompts
from afnio.optim._prompts import TGD_SCHEMA, TGD_SYSTEM, TGD_USER, tgd_sections
from afnio.testing import SimulatedLM
from afnio.testing.simulated import (
    SENTIMENTS,
    FixedReply,
    classify,
    kind_of,
    read_blocks,
    read_cues,
    read_section,
    unescape,
)

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
    asked = _prompts.critic_messages(
        variables=[("v0", "system prompt", prompt)],
        conversation=[("system", prompt), ("user", text)],
        reply="{}",
        edited=[],
        reply_format=reply_format,
        feedback=feedback,
    )
    request = {"messages": asked, "response_format": _prompts.CRITIC_SCHEMA, **request}
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
        feedback = _prompts.deterministic_feedback("exact match", said, label, 0)
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
    for form in (None, SCHEMA, _prompts.CRITIC_SCHEMA, TGD_SCHEMA):
        asked = messages(("system", told), ("user", text))
        request = {"messages": asked, "response_format": form}
        assert lm(request) == SimulatedLM()(request)


# The critic and the optimizer ------------------------------------------------------------------


def test_the_critic_names_phrases_of_the_message_for_the_expected_label():
    feedback = _prompts.deterministic_feedback("exact match", "positive", "negative", 0)
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


def told(feedback: list[str], samples: list[int] | None, value: str = PROMPT, **given: Any) -> str:
    sections = tgd_sections(
        role="r", value=value, constraints=[], history=[], feedback=feedback, samples=samples, **given
    )
    asked = messages(("system", TGD_SYSTEM), ("user", TGD_USER.format(**sections)))
    return json.loads(lm({"messages": asked, "response_format": TGD_SCHEMA}))["value"]


def test_a_summary_has_as_many_votes_as_samples():
    said = [claim("late")] + [claim("late", "date", label="neutral")] * 2
    negative, neutral = '"negative" when the message mentions: late', '"neutral" when the message mentions: '
    assert f"{neutral}late, date" in told(said, None)
    weighed = told(said, [5, 1, 1])
    assert negative in weighed
    assert f"{neutral}date." in weighed
    # The most frequent first, and what is denied by more than claimed it goes.
    assert "mentions: rude, late." in told([claim("late"), claim("rude")], [2, 7])
    denial = 'The text should not say that "late" mean the sentiment is "negative".'
    assert "late" in told([claim("late"), denial], [3, 2])
    assert "late" not in told([claim("late"), denial], [3, 4])
    wishes = [f"The text should ask for this: wish {n}." for n in range(4)]
    assert "wish 0" not in told(wishes, [1, 2, 2, 2])


def test_what_is_against_the_most_frequent_failure_goes_first():
    """Of what equally many samples say."""
    said = [claim("late"), claim("date", label="neutral")]
    failures = [
        ('predicted "negative", expected "neutral"', 9),
        ('predicted "neutral", expected "negative"', 2),
    ]
    first, second = told(said, [2, 2]), told(said, [2, 2], failures=failures)
    assert first.index("late") < first.index("date")
    assert second.index("date") < second.index("late")


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
    feedback = _prompts.deterministic_feedback("exact match", "positive", "negative", 0)
    assert "awful" in ask_critic(PROMPT, "This is awful.", [feedback], response_format=None)
    new = ask_optimizer("Echo.", ["shorter"], response_format={"type": "json_object"})
    assert new == "Echo.\nIn every reply: shorter."
    assert kind_of({"messages": messages(("system", PROMPT))}) == "student"


TAGS = _prompts._TAGS.split("|")


@given(st.lists(st.sampled_from([*(f"<{t}>" for t in TAGS), *(f"\n</{t}>\n" for t in TAGS), "&lt;b"])))
def test_data_in_tags_is_read_as_it_was_written(pieces):
    text = "".join(pieces)
    assert unescape(_prompts.escape(text)) == text
    section = f"<feedbacks>\n{_prompts.block('feedback', text, source=text)}\n</feedbacks>"
    assert read_blocks(read_section(section, "feedbacks"), "feedback") == [({"source": text}, text)]


def test_a_fixed_reply_satisfies_critic_and_optimizer():
    fixed = FixedReply("ok")
    asked = _prompts.critic_messages(
        variables=[("a", "r", "x"), ("b", "r", "y")],
        conversation=[],
        reply="",
        edited=[],
        reply_format=None,
        feedback=[],
    )
    reply = fixed({"messages": asked, "response_format": _prompts.CRITIC_SCHEMA})
    entries = json.loads(reply)["feedback"]
    assert [(entry["variable"], entry["text"]) for entry in entries] == [("a", "ok"), ("b", "ok")]
    value = {"messages": messages(("user", _prompts.block("variable", "v")))}
    reply = fixed({**value, "response_format": TGD_SCHEMA})
    assert json.loads(reply) == {"value": "v ok"}


# The limited reader ----------------------------------------------------------------------------


LIMITED = "simulated-limited"


def propose(
    feedback: list[str], model: str = LIMITED, attempt: int = 1, *constraints: str, **args: Any
) -> str:
    sections = tgd_sections(
        role="prompt", value="Say the mood.", constraints=list(constraints), history=[], feedback=feedback
    )
    asked = messages(("system", TGD_SYSTEM), ("user", TGD_USER.format(**sections)))
    request = {"messages": asked, "response_format": TGD_SCHEMA, "model": model, **args}
    return json.loads(lm(request, attempt))["value"]


def claims(count: int) -> list[str]:
    return [f'Phrases such as "p{n}a", "p{n}b" mean the sentiment is "neutral".' for n in range(count)]


def cues(value: str) -> int:
    return sum(len(phrases) for phrases in read_cues(value, SENTIMENTS).values())


def test_the_more_feedback_in_one_prompt_the_smaller_the_share_that_is_used():
    """The wall: near all of 4 texts, about half of 50, next to nothing of 500; a perfect reader takes all it may."""

    def used(count: int) -> float:
        drawn = [len(re.findall(r'One input with "', propose(claims(count), attempt=n))) for n in range(1, 9)]
        return sum(drawn) / len(drawn)

    few, wall, many = used(4), used(50), used(500)
    assert few > 3.5
    assert 18 < wall < 32
    assert many < 12
    assert cues(propose(claims(50), "simulated")) == 25


def test_a_summary_is_no_more_likely_to_be_noticed_than_any_feedback():
    """Its samples are its weight; the wall counts what there is to read."""
    said = claims(200)

    def used(samples: list[int]) -> list[int]:
        sections = tgd_sections(
            role="r", value="Say.", constraints=[], history=[], feedback=said, samples=samples
        )
        asked = messages(("user", TGD_USER.format(**sections)))
        request = {"messages": asked, "response_format": TGD_SCHEMA, "model": LIMITED}
        return [
            len(re.findall(r'One input with "', json.loads(lm(request, n))["value"])) for n in range(1, 31)
        ]

    light, heavy = sum(used([1] * 200)) / 30, sum(used([9] * 200)) / 30
    assert 6 < light < 18
    assert 6 < heavy < 18


def test_a_limited_proposer_lengthens_the_text_unless_it_is_told_not_to():
    long = propose(claims(12))
    short = propose(claims(12), LIMITED, 1, "Use at most 400 characters.")
    assert len(long) > 1000
    assert len(short) <= 400
    assert "answered wrongly before" not in short
    assert cues(short) > 8
    assert "answered wrongly before" not in propose(claims(12), "simulated")


def test_a_student_follows_the_fewer_instructions_the_more_there_are():
    message = "The price of the visit."

    def followed(padding: int) -> int:
        told = 'Answer "positive" when the message mentions: price.' + " Be kind." * padding
        asked = [
            {
                "messages": messages(("system", told), ("user", f"{message} {n}")),
                "response_format": SCHEMA,
                "model": LIMITED,
                "temperature": 0,
            }
            for n in range(100)
        ]
        return sum(json.loads(lm(request))["sentiment"] == "positive" for request in asked)

    assert followed(0) > 95
    assert 20 < followed(250) < 55


def test_at_temperature_0_each_attempt_is_the_same_and_above_its_own():
    told = claims(50)
    assert propose(told, attempt=1, temperature=0) == propose(told, attempt=2, temperature=0)
    assert propose(told, attempt=1) == propose(told, attempt=1)
    assert len({propose(told, attempt=n) for n in range(1, 6)}) == 5
    assert SimulatedLM(seed=1)._seed != lm._seed


def test_a_cue_that_misled_is_denied_and_goes():
    value = 'Say the mood.\nAnswer "positive" when the message mentions: late.'
    asked = _prompts.critic_messages(
        variables=[("v1", "prompt", value)],
        conversation=[("system", value), ("user", "I am frustrated that you are late.")],
        reply="",
        edited=[],
        reply_format=SCHEMA,
        feedback=[_prompts.deterministic_feedback("exact match", "positive", "negative", 0)],
    )
    request = {"messages": asked, "response_format": _prompts.CRITIC_SCHEMA, "model": LIMITED}
    said = json.loads(lm(request))["feedback"][0]["text"]
    assert 'should not say that "late" mean the sentiment is "positive"' in said
    assert "late" not in ask_optimizer(value, [said]).partition('"negative"')[0]


def test_a_quarter_of_criticism_is_beside_the_point():
    feedback = [_prompts.deterministic_feedback("exact match", "1", "2", 0)]

    def criticism(number: int) -> str:
        asked = _prompts.critic_messages(
            variables=[("v1", "prompt", "Count.")],
            conversation=[("system", "Count."), ("user", f"Case {number}. {COUNT}")],
            reply="1",
            edited=[],
            reply_format=None,
            feedback=feedback,
        )
        request = {"messages": asked, "response_format": _prompts.CRITIC_SCHEMA, "model": LIMITED}
        return json.loads(lm(request))["feedback"][0]["text"]

    to_the_point = sum("quantities" in criticism(number) for number in range(200))
    assert 125 <= to_the_point <= 175


# Skills, notes, judges -------------------------------------------------------------------------

COUNT = "I have two apples. How many fruits do I have?"


@pytest.mark.parametrize(
    ("told", "message", "answer"),
    [
        ("Count.", "I have two apples, and a bed. How many fruits do I have?", "2"),
        ("Add up the quantities.", "I have two apples, and a bed. How many fruits do I have?", "3"),
        ("Add up. Leave out other kinds.", "I have two apples, and a bed. How many fruits do I have?", "2"),
        ("Sort.", "Sort the following words alphabetically: List: bb ba", "bb ba"),
        ("Compare letter by letter.", "Sort the following words alphabetically: List: bb ba", "ba bb"),
    ],
)
def test_a_student_makes_the_mistakes_that_nobody_told_it_to_avoid(told, message, answer):
    assert lm({"messages": messages(("system", told), ("user", message))}) == answer


NOTES = "[1] Elm House, lifts, 2020: 7\n[2] Elm House, area, 2019: 40\n[3] Elm House, area, 2022: 44"
QUESTION = "Question: What is the area of Elm House?"


def blamed(told: str, message: str, variables: list[str], said: str, expected: str) -> list[str]:
    asked = _prompts.critic_messages(
        variables=[(f"v{n}", "text", text) for n, text in enumerate(variables)],
        conversation=[("system", told), ("user", message)],
        reply=said,
        edited=[],
        reply_format=None,
        feedback=[_prompts.deterministic_feedback("exact match", said, expected, 0)],
    )
    request = {"messages": asked, "response_format": _prompts.CRITIC_SCHEMA}
    return [entry["text"] for entry in json.loads(lm(request))["feedback"]]


def test_the_critic_blames_the_step_that_went_wrong():
    """A judge who got the wrong draft is blameless; a drafter who had the note is not; nor who never got it."""
    found = "\n".join(NOTES.splitlines()[1:])
    judge = 'Say "unknown" where no note answers.'
    ours, draft, notes = blamed(
        judge, f"{QUESTION}\nRetrieved:\n{found}\nDraft: 40", [judge, "40", found], "40", "44"
    )
    assert (ours, notes) == ("", "")
    assert 'expected "44"' in draft
    ours, notes = blamed("Answer.", f"{QUESTION}\nRetrieved:\n{found}", ["Answer.", found], "40", "44")
    assert "most recent" in ours
    assert notes == ""
    lost = NOTES.splitlines()[0]
    ours, notes = blamed("Answer.", f"{QUESTION}\nRetrieved:\n{lost}", ["Answer.", lost], "7", "44")
    assert ours == ""
    assert 'expected "44"' in notes
    (ours,) = blamed("Find.", f"{QUESTION}\nNotes:\n{NOTES}", ["Find."], notes, "44")
    assert "topic" in ours


def test_a_judge_compares_prediction_and_target():
    asked = messages(("system", "Judge."), ("user", "Prediction: Two\nTarget: two"))
    request = {"messages": asked, "response_format": _prompts.JUDGE_SCHEMA}
    assert json.loads(lm(request))["score"] == 1
    wrong = messages(("user", "Prediction: three\nTarget: two"))
    answer = json.loads(lm({**request, "messages": wrong}))
    assert answer["score"] == 0
    assert 'expected "two"' in answer["explanation"]
    assert kind_of(request) == "judge"


def claim(*phrases: str, label: str = "negative") -> str:
    quoted = ", ".join(f'"{phrase}"' for phrase in phrases)
    return f'The text should say that phrases such as {quoted} mean the sentiment is "{label}".'


def summed_up(
    *said: tuple[str, dict[str, str]], limit: str = "9 points, 200 words"
) -> list[tuple[str, list[int]]]:
    blocks = [
        _prompts.block("feedback", text, **{"id": str(n), "samples": "1", **given})
        for n, (text, given) in enumerate(said, start=1)
    ]
    asked = "\n".join(["<feedbacks>", *blocks, "</feedbacks>", f"Write at most {limit} in all."])
    form = {"type": "json_schema", "json_schema": {"name": "afnio_reduction", "schema": {}}}
    request = {"messages": messages(("user", asked)), "response_format": form}
    assert kind_of(request) == "reducer"
    return [(point["point"], point["sources"]) for point in json.loads(lm(request))["points"]]


def test_a_reducer_says_each_thing_once_what_most_said_first_and_who_said_it():
    said = [(claim("late"), {}), ("The text should ask for this: be brief.", {}), (claim("late"), {})]
    common = (claim("late"), [1, 3])
    assert summed_up(*said) == [common, ("The text should ask for this: be brief.", [2])]
    assert summed_up(*said, limit="1 points, 200 words") == [common]


def test_a_reducer_keeps_rare_things_out_of_the_points_of_many():
    """So that its samples hold for all that it says; what one alone said is left out."""
    many, few = {"samples": "9", "failure": "1"}, {"samples": "2", "failure": "1"}
    one = {"failure": "1"}
    said = [(claim("late", "poor"), many), (claim("rude"), few), (claim("late", "visit"), one)]
    common, rare = (claim("late", "poor"), [1, 3]), (claim("rude"), [2])
    assert summed_up(*said) == [common, rare]
    # One alone whose failure has no point yet is told, with what stands behind it.
    other = (claim("window", label="neutral"), {"failure": "2"})
    assert summed_up(*said, other) == [common, rare, (other[0], [4])]
    assert summed_up(*said, (claim("window"), one)) == [common, rare]


def test_a_reducer_tells_single_things_apart_where_nothing_is_common():
    """Or the number of samples behind a point would not hold for any of them."""
    said = [(claim("late"), {"failure": "1"}), (claim("rude", "poor"), {"failure": "1"})]
    assert summed_up(*said) == [(text, [n]) for n, (text, _) in enumerate(said, start=1)]
