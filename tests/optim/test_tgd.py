"""TGD rewrites texts by their feedback; what it can't use changes nothing."""

from __future__ import annotations

import json
import logging
import random
import re

import anyio
import kit
import pytest
from kit.roles import kind, prompt, read_blocks, read_section, shown

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ReplyError, TemplateError
from afnio.optim import TGD, prompts
from afnio.runtime.events import StepEnded
from afnio.testing import ScriptedClient


def rewrite(request):
    """Append the feedback to the value."""
    return {"value": " ".join([*shown(request, "variable"), *shown(request, "feedback")])}


def test_all_gradients_go_into_one_rewrite(learned):
    """One call for each parameter, with its schema, phase and arguments."""
    client, parameter = ScriptedClient(rewrite), learned("old", "f1", "f2")
    TGD([parameter], client, model="m", temperature=1.0).step()
    assert parameter.data == "old f1 f2"
    (request,) = client.requests
    assert (
        request.model,
        request.params["temperature"],
        request.params["response_format"]["json_schema"]["name"],
    ) == ("m", 1.0, "afnio_value")
    assert list(client.get_usage()["phases"]) == ["step"]


async def test_parameters_are_rewritten_side_by_side(learned):
    """All calls are on the wire before the first one has been answered."""
    arrived, every = [], anyio.Event()

    async def script(request):
        arrived.append(request)
        if len(arrived) == 5:
            every.set()
        with anyio.fail_after(60):
            await every.wait()
        return rewrite(request)

    parameters = [learned(f"p{n}", "f") for n in range(5)]
    client = ScriptedClient(script)
    await TGD(parameters, client, model="m").step()
    assert [parameter.data for parameter in parameters] == [f"p{n} f" for n in range(5)]
    assert client.peak == 5


def test_groups_have_clients_models_and_constraints_of_their_own(learned):
    """Each option can differ."""
    one, two = ScriptedClient(rewrite), ScriptedClient(rewrite)
    groups = [
        {"params": [learned("a")]},
        {
            "params": [learned("b")],
            "model_client": two,
            "constraints": ["never shout"],
            "completion_args": {"model": "other"},
        },
    ]
    TGD(groups, one, constraints=["short"], model="m").step()
    assert (shown(one.requests[0], "constraint"), one.requests[0].model) == (["short"], "m")
    assert (shown(two.requests[0], "constraint"), two.requests[0].model) == (["never shout"], "other")


def test_constraints_are_texts_or_variables(learned):
    """Both are shown to the proposer."""
    client = ScriptedClient(rewrite)
    TGD([learned()], client, constraints=["short", afnio.Variable("polite")], model="m").step()
    assert shown(client.requests[0], "constraint") == ["short", "polite"]


def test_momentum_is_a_window_of_updates(learned):
    """The last ones, this one counted; the proposer sees those before it."""
    client, parameter = ScriptedClient(rewrite), learned("v0", "g0")
    optimizer = TGD([parameter], client, momentum=2, model="m")
    for number in range(3):
        optimizer.step()
        optimizer.clear_grad()
        parameter.append_grad(afnio.Variable(f"g{number + 1}"))
        parameter.data = f"v{number + 1}"
    buffer = optimizer.state[parameter]["momentum_buffer"]
    assert [(v.data, [g.data for g in gs]) for v, gs in buffer] == [("v1", ["g1"]), ("v2", ["g2"])]
    assert [shown(request, "value") for request in client.requests] == [[], ["v0"], ["v1"]]
    assert [shown(request, "feedback") for request in client.requests] == [["g0"], ["g0", "g1"], ["g1", "g2"]]


def test_without_momentum_nothing_is_remembered(learned):
    """The state stays empty."""
    parameter = learned()
    optimizer = TGD([parameter], ScriptedClient(rewrite), model="m")
    optimizer.step()
    assert optimizer.state[parameter]["momentum_buffer"] == []


def test_own_messages_and_inputs(learned):
    """They may use the sections and further inputs; nothing else is sent."""
    client = ScriptedClient({"value": "new"})
    messages = [
        {"role": "system", "content": [afnio.Variable("Improve the {role}. {tone}!")]},
        {"role": "user", "content": [afnio.Variable("{variable}\n{feedback} {literal brace}")]},
    ]
    parameter = learned("old {x}", "f")
    parameter.role = "system prompt"
    TGD([parameter], client, messages=messages, inputs={"tone": afnio.Variable("Kindly")}, model="m")
    client = ScriptedClient({"value": "new {x}"})
    TGD([parameter], client, messages=messages, inputs={"tone": "Kindly"}, model="m").step()
    (request,) = client.requests
    assert request.messages[0]["content"] == "Improve the system prompt. Kindly!"
    assert shown(request, "variable") == ["old {x}"]
    assert prompt(request).endswith(" {literal brace}")
    assert parameter.data == "new {x}"


# What comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"value": "new"}', "new"),
        ('```json\n{"value": "new"}\n```', "new"),
        ('Here is the improved variable:\n{"value": "new"}', "new"),
        ("Be brief.", "Be brief."),
        ("```\nBe brief.\n```", "Be brief."),
        ("{question} Be brief.", "{question} Be brief."),
        ('Reply as {"value": "x", "why": "y"}.', 'Reply as {"value": "x", "why": "y"}.'),
        ('{"value": "a \\"b\\" {c}"}', 'a "b" {c}'),
    ],
)
def test_a_value_is_found_in_what_models_write(learned, reply, value):
    """JSON in a fence or between words; a plain text is the value itself."""
    parameter = learned("old")
    TGD([parameter], ScriptedClient(reply), model="m").step()
    assert value == parameter.data


@pytest.mark.parametrize(
    "reply",
    ['{"value": "cut o', '{"text": "x"}', '{"value": null}', '{"value": 3}', "{", '```json\n{"value": "cut'],
)
def test_a_reply_without_a_value_keeps_the_old_one_and_the_step_raises(learned, reply):
    """A cut-off object never becomes a prompt."""
    parameter = learned("old")
    with pytest.raises(ReplyError, match='is cut off or has no text as its "value" .it starts'):
        TGD([parameter], ScriptedClient(reply), model="m").step()
    assert parameter.data == "old"


def test_an_endpoint_without_schemas_is_asked_in_words(learned):
    """After one refusal; its plain text is the value."""

    def script(request):
        if "response_format" in request.params:
            return FinalModelError("response_format?", status=400)
        return "new text"

    client, parameter = ScriptedClient(script), learned("old")
    optimizer = TGD([parameter], client, model="m")
    optimizer.step()
    optimizer.step()
    assert (parameter.data, len(client.requests)) == ("new text", 3)


def test_a_failed_call_keeps_the_value_and_the_step_raises(learned):
    """With the launch line as a note."""
    parameter, other = learned("old"), learned("other")

    def script(request):
        return FinalModelError("out of quota") if "old" in prompt(request) else rewrite(request)

    optimizer = TGD([parameter, other], ScriptedClient(script), momentum=2, model="m")
    with pytest.raises(FinalModelError, match="out of quota") as caught:
        optimizer.step()
    assert any("TGD.step" in note and __file__ in note for note in caught.value.__notes__)
    assert (parameter.data, other.data) == ("old", "other be brief")
    assert optimizer.state[parameter]["momentum_buffer"] == []


@pytest.mark.parametrize("texts", [("old", "other"), ("old", "odd")])
def test_after_an_async_closure_too_only_what_failed_is_not_remembered(learned, texts):
    """The others have taken their step, so their momentum has."""
    parameters = [learned(text) for text in texts]

    def script(request):
        failing = shown(request, "variable")[0] in ("old", "odd")
        return FinalModelError("out of quota") if failing else rewrite(request)

    async def closure():
        return None

    optimizer = TGD(parameters, ScriptedClient(script), momentum=2, model="m")
    with pytest.raises((FinalModelError, BaseExceptionGroup)):
        optimizer.step(closure)
    took_it = [text == "other" for text in texts]
    assert [f"{text} be brief" if took else text for text, took in zip(texts, took_it, strict=True)] == [
        parameter.data for parameter in parameters
    ]
    assert took_it == [bool(optimizer.state[parameter]["momentum_buffer"]) for parameter in parameters]


def test_a_lost_placeholder_is_asked_for_once(learned):
    """The repair names it and the value that was refused."""
    client = ScriptedClient([{"value": "Answer."}, {"value": "Answer {q} briefly."}])
    parameter = learned("Answer {q}.")
    TGD([parameter], client, model="m").step()
    assert parameter.data == "Answer {q} briefly."
    assistant, objection = client.requests[1].messages[-2:]
    assert assistant["content"] == '{"value": "Answer."}'
    assert "it must keep the placeholder {q}" in objection["content"]


def test_a_placeholder_lost_twice_changes_nothing_and_warns(learned, caplog):
    """The warning says why."""
    parameter = learned("Answer {q}.")
    with caplog.at_level(logging.WARNING, "afnio"):
        TGD([parameter], ScriptedClient({"value": "Answer."}), model="m").step()
    assert parameter.data == "Answer {q}."
    assert [record.getMessage() for record in caplog.records] == [
        "the proposal for 'prompt' was not taken, as it must keep the placeholder {q}; the parameter keeps its value"
    ]


def test_a_number_is_not_rewritten():
    """TGD is for texts."""
    parameter = cog.Parameter(3, role="count")
    parameter.append_grad(afnio.Variable("more"))
    with pytest.raises(TypeError, match="must be a text .got 3 for 'count'"):
        TGD([parameter], ScriptedClient("4"), model="m").step()
    assert parameter.data == 3


# Options and state -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model_client": "gpt-5"}, TypeError, "model_client must be a model client (got 'gpt-5')"),
        ({"momentum": -1}, ValueError, "momentum must be a number of updates, 0 or more (got -1)"),
        ({"momentum": 0.9}, ValueError, "(got 0.9)"),
        ({"momentum": True}, ValueError, "(got True)"),
        (
            {"constraints": "be short"},
            TypeError,
            "constraints must be a list of texts or Variables (got 'be short')",
        ),
        ({"constraints": [3]}, TypeError, "a constraint must be a text or a Variable (got 3)"),
        ({"model": None}, TypeError, "a call needs a model name (got None)"),
        ({"n": 3}, ValueError, "n=3 replies to one request are not supported"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, TypeError, "must be Variables (got"),
        (
            {"messages": [{"role": "user", "content": [afnio.Variable("{variable} {tone}")]}]},
            TemplateError,
            "has the placeholder {tone}, which no input fills",
        ),
        (
            {
                "messages": [{"role": "user", "content": [afnio.Variable("{variable}")]}],
                "inputs": {"tone": "x"},
            },
            TemplateError,
            "input 'tone' is used by no message",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_where_they_are_given(options, error, words):
    """At the constructor, not in the first step."""
    given = {"model_client": ScriptedClient(), "model": "m", **options}
    with pytest.raises(error) as caught:
        TGD([cog.Parameter("a")], **given)
    assert words in str(caught.value)


def test_state_survives_a_file_and_momentum_goes_on(learned, tmp_path):
    """A restored optimizer shows its proposer what the saved one would have shown."""
    parameter = learned("v0", "g0")
    optimizer = TGD([parameter], ScriptedClient(rewrite), momentum=3, constraints=["short"], model="m")
    optimizer.step()
    afnio.save(optimizer.state_dict(), tmp_path / "optimizer.afnio")
    client, again = ScriptedClient(rewrite), learned("v1", "g1")
    restored = TGD([again], client, model="other")
    restored.load_state_dict(afnio.load(tmp_path / "optimizer.afnio"))
    restored.step()
    (request,) = client.requests
    assert (
        shown(request, "value"),
        shown(request, "feedback"),
        shown(request, "constraint"),
        request.model,
    ) == (["v0"], ["g0", "g1"], ["short"], "m")


async def test_feedback_and_step_need_no_wait_between_them():
    """A step launched while its backward pass is under way waits for it."""
    critic = ScriptedClient(lambda r: json.dumps({"feedback": [{"variable": "v1", "text": "be brief"}]}))
    parameter = cog.Parameter("old", role="prompt")
    with afnio.set_backward_model_client(critic, completion_args={"model": "b"}):
        reply = cog.ChatCompletion()(
            ScriptedClient("long"), [{"role": "user", "content": [parameter]}], model="m"
        )
        backward = reply.backward(afnio.Variable("shorter"))
        step = TGD([parameter], ScriptedClient(rewrite), model="m").step()
    await afnio.resolve([backward, step])
    assert parameter.data == "old be brief"


# Checks ----------------------------------------------------------------------------------------


def test_a_refused_proposal_is_repaired_with_all_reasons(learned):
    """Once; the length is told as a constraint from the start."""
    parameter = learned("old {x}")
    parameter.max_tokens = 20
    parameter.validators = (lambda value: None if "please" in value else "it must say please",)
    client = ScriptedClient([{"value": "very " * 40}, {"value": "please {x}"}])
    TGD([parameter], client, constraints=["polite"], model="m").step()
    assert parameter.data == "please {x}"
    assert shown(client.requests[0], "constraint") == ["polite", "At most 20 tokens, about 15 words."]
    assert (
        "it must keep the placeholder {x}; it must have at most 20 tokens, about 15 words, and has 50; it must say "
        "please." in prompt(client.requests[1])
    )


def test_what_is_refused_twice_changes_nothing_and_says_why(learned, caplog):
    """In a warning and in the step's changes."""
    parameter = learned("old")
    parameter.validators = (lambda value: "it must rhyme",)
    client = ScriptedClient({"value": "new"})
    with kit.events(StepEnded) as events:
        TGD([parameter], client, model="m").step()
    assert (parameter.data, len(client.requests)) == ("old", 2)
    (change,) = events[0].changes
    assert (change.rejected, change.after) == ("it must rhyme", "old")
    assert "was not taken, as it must rhyme; the parameter keeps its value" in caplog.text


def test_a_value_that_stays_is_not_checked(learned):
    """The proposer may find nothing to improve."""
    parameter = learned("x" * 100)
    parameter.max_tokens = 5
    client = ScriptedClient({"value": "x" * 100})
    TGD([parameter], client, model="m").step()
    assert len(client.requests) == 1


def test_a_copied_training_example_is_refused():
    """It is known from the feedback's provenance, through the whole graph."""
    letter = "The heating in the east gymnasium has been out of order since Monday morning."
    parameter = cog.Parameter("Answer.", role="prompt")
    critic = ScriptedClient({"feedback": [{"variable": "v1", "text": "be specific"}]})
    with afnio.set_backward_model_client(critic, completion_args={"model": "b"}):
        reply = cog.ChatCompletion()(
            ScriptedClient("low"),
            [
                {"role": "system", "content": [parameter]},
                {"role": "user", "content": [afnio.Variable("{m}")]},
            ],
            inputs={"m": [letter, "Thank you."]},
            model="m",
        )
        cog.ExactMatchEvaluator()(reply, ["high", "high"]).explanation.backward()
    assert parameter.grad[0].provenance[0]["inputs"] == {"m": letter}
    client = ScriptedClient([{"value": f"Answer high to: {letter}"}, {"value": "Broken heating is high."}])
    TGD([parameter], client, model="m").step()
    assert parameter.data == "Broken heating is high."
    assert "it must not copy training examples" in prompt(client.requests[1])
    lenient = ScriptedClient({"value": f"Answer high to: {letter}"})
    TGD([parameter], lenient, leak_words=None, model="m").step()
    assert letter in parameter.data


@pytest.mark.parametrize("own", [False, True])
def test_the_meta_prompt_does_not_leak(learned, own):
    """Neither ours nor one that was given."""
    text = (
        "You are the editor of this newspaper and will rewrite its rules for letters: {variable} {feedback}"
    )
    messages = [{"role": "user", "content": [afnio.Variable(text)]}] if own else None
    told = (
        "the editor of this newspaper and will rewrite its rules for letters"
        if own
        else prompts()["tgd.system"].text[:80]
    )
    client = ScriptedClient([{"value": f"Be brief. {told}"}, {"value": "Be brief."}])
    parameter = learned("old")
    TGD([parameter], client, messages=messages, model="m").step()
    assert (parameter.data, len(client.requests)) == ("Be brief.", 2)
    assert "it must not repeat instructions of this conversation" in prompt(client.requests[1])


def test_tags_of_the_value_come_back_as_they_were(learned):
    """The prompt escapes them, and a model repeats what it sees."""
    parameter = learned("Read <message>{m}</message>.")
    client = ScriptedClient(
        lambda request: {"value": prompt(request).split("\n")[1].replace("Read", "Study")}
    )
    TGD([parameter], client, model="m").step()
    assert parameter.data == "Study <message>{m}</message>."


# Reduction -------------------------------------------------------------------------------------


def summed(request):
    """Play reducer and proposer."""
    if kind(request) == "reducer":
        count = len(shown(request, "feedback"))
        return {"points": [{"point": f"point {count}", "sources": list(range(1, count + 1))}]}
    return rewrite(request)


def many(learned, count=120):
    """Return a parameter with much feedback, no two alike."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(10 * count)]
    return learned("old", *(" ".join(words[10 * n : 10 * n + 10]) for n in range(count)))


def test_feedback_that_does_not_fit_is_summed_up_first(learned):
    """The proposer sees from how many inputs each point comes; the step's evidence is the points."""
    parameter, client = many(learned), ScriptedClient(summed)
    optimizer = TGD([parameter], client, feedback_tokens=1000, momentum=2, model="m")
    with kit.events(StepEnded) as events:
        optimizer.step()
    *reductions, step = client.requests
    assert (len(reductions), {kind(request) for request in reductions}) == (3, {"reducer"})
    blocks = read_blocks(prompt(step), "feedback")
    assert {(block.text, block.attributes["samples"]) for block in blocks} == {("point 40", "120")}
    (change,) = events[0].changes
    assert (change.gradients, [entry.text for entry in change.evidence]) == (120, ["point 40"])
    ((before, said),) = optimizer.state[parameter]["momentum_buffer"]
    assert (before.data, [gradient.data for gradient in said]) == ("old", ["point 40"])


def test_a_failed_summary_is_told_to_the_proposer(learned, caplog):
    """As feedback that is left out."""
    parameter = many(learned)
    first = parameter.grad[0].data

    def script(request):
        lost = kind(request) == "reducer" and first in prompt(request)
        return FinalModelError("broken") if lost else summed(request)

    client = ScriptedClient(script)
    TGD([parameter], client, feedback_tokens=1000, model="m").step()
    assert "The feedback from 40 more inputs is left out." in prompt(client.requests[-1])
    assert "40 of 120 feedback texts on 'prompt' are left out of the step" in caplog.text


def test_a_cap_for_each_failure(learned):
    """What is left out is named with its number."""
    parameter = learned("old", "other")
    critic = ScriptedClient(
        lambda request: {
            "feedback": [
                {"variable": "v1", "text": f"feedback {re.search('word([0-9])', str(request.messages))[1]}"}
            ]
        }
    )
    messages = [
        {"role": "system", "content": [parameter]},
        {"role": "user", "content": [afnio.Variable("{x}")]},
    ]
    with afnio.set_backward_model_client(critic, completion_args={"model": "m"}):
        inputs = {"x": [f"word{number}" for number in range(9)]}
        reply = cog.functional.chat_completion(
            ScriptedClient(lambda request: "a"), messages, inputs, model="m"
        )
        cog.functional.exact_match_evaluator(reply, ["b"] * 9)[1].backward()
    client = ScriptedClient(rewrite)
    TGD([parameter], client, per_failure=2, model="m").step()
    (request,) = client.requests
    assert shown(request, "feedback") == ["feedback 0", "feedback 1", "other"]
    (failure,) = read_blocks(prompt(request), "failure")
    assert (failure.text, failure.attributes["samples"]) == ('predicted "a", expected "b"', "9")
    assert "The feedback from 7 more inputs is left out." in prompt(request)


def test_groups_reduce_by_their_own_options(learned):
    """One sums up, the other shows all."""
    client = ScriptedClient(summed)
    groups = [{"params": [many(learned)], "feedback_tokens": None}, {"params": [many(learned)]}]
    TGD(groups, client, feedback_tokens=1000, model="m").step()
    steps = [request for request in client.requests if kind(request) == "optimizer"]
    assert sorted(len(shown(request, "feedback")) for request in steps) == [1, 120]


def test_history_takes_no_more_room_than_feedback(learned):
    """Whatever the window."""
    parameter, client = many(learned, 40), ScriptedClient({"value": "new"})
    optimizer = TGD([parameter], client, momentum=5, feedback_tokens=1000, model="m")
    for _ in range(5):
        optimizer.step()
    history = read_section(prompt(client.requests[-1]), "history")
    tokens = sum(-(-len(block.text) // 4) for block in read_blocks(history, "feedback"))
    assert 500 < tokens <= 1000


def test_state_after_a_reduction_is_exact(learned, tmp_path):
    """What was summed up comes back as it was, and the next prompts are the same."""
    first, client = many(learned), ScriptedClient(summed)
    options = {
        "momentum": 4,
        "feedback_tokens": 1000,
        "model": "m",
    }
    optimizer = TGD([first], client, **options)
    for _ in range(3):
        optimizer.step()
    afnio.save(optimizer.state_dict(), tmp_path / "optimizer")
    again, other = many(learned), ScriptedClient(summed)
    again.data = first.data
    restored = TGD([again], other, model="else")
    restored.load_state_dict(afnio.load(tmp_path / "optimizer"))
    assert repr(optimizer.state[first]) == repr(restored.state[again])
    before = len(client.requests)
    for _ in range(3):
        optimizer.step()
        restored.step()
    assert [r.body for r in client.requests[before:]] == [r.body for r in other.requests]
    assert repr(optimizer.state_dict()) == repr(restored.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"feedback_tokens": 10}, "feedback_tokens must be a number from 200, or None (got 10)"),
        ({"per_failure": 0}, "per_failure must be a number from 1, or None (got 0)"),
        ({"leak_words": True}, "leak_words must be a number from 4, or None (got True)"),
    ],
)
def test_options_of_reduction_are_checked(options, words):
    """At the constructor."""
    with pytest.raises(ValueError) as caught:
        TGD([cog.Parameter("a")], ScriptedClient(), model="m", **options)
    assert words in str(caught.value)
