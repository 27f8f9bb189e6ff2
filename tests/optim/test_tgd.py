"""TGD rewrites texts by their feedback; what it can't use changes nothing."""

from __future__ import annotations

import json
import logging

import anyio
import pytest
from roles import prompt, shown

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ReplyError, TemplateError
from afnio.optim import TGD
from afnio.optim.tgd import value_in
from afnio.testing import ScriptedClient


def rewrite(request):
    """Append the feedback to the value."""
    return {"value": " ".join([*shown(request, "variable"), *shown(request, "feedback")])}


def test_all_gradients_go_into_one_rewrite(learned):
    """One call for each parameter, with its schema, phase and arguments."""
    client, parameter = ScriptedClient(rewrite), learned("old", "f1", "f2")
    TGD([parameter], client, model="m", temperature=1.0).step()
    assert "old f1 f2" == parameter.data
    (request,) = client.requests
    assert ("m", 1.0, "afnio_value") == (
        request.model,
        request.params["temperature"],
        request.params["response_format"]["json_schema"]["name"],
    )
    assert ["step"] == list(client.get_usage()["phases"])


async def test_parameters_are_rewritten_side_by_side(learned):
    """All calls are on the wire before the first one has been answered."""
    arrived, every = [], anyio.Event()

    async def script(request):
        arrived.append(request)
        if len(arrived) == 5:
            every.set()
        with anyio.fail_after(5):
            await every.wait()
        return rewrite(request)

    parameters = [learned(f"p{n}", "f") for n in range(5)]
    client = ScriptedClient(script)
    await TGD(parameters, client, model="m").step()
    assert [f"p{n} f" for n in range(5)] == [parameter.data for parameter in parameters]
    assert 5 == client.peak


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
    assert (["short"], "m") == (shown(one.requests[0], "constraint"), one.requests[0].model)
    assert (["never shout"], "other") == (shown(two.requests[0], "constraint"), two.requests[0].model)


def test_constraints_are_texts_or_variables(learned):
    """Both are shown to the proposer."""
    client = ScriptedClient(rewrite)
    TGD([learned()], client, constraints=["short", afnio.Variable("polite")], model="m").step()
    assert ["short", "polite"] == shown(client.requests[0], "constraint")


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
    assert [("v1", ["g1"]), ("v2", ["g2"])] == [(v.data, [g.data for g in gs]) for v, gs in buffer]
    assert [[], ["v0"], ["v1"]] == [shown(request, "value") for request in client.requests]
    assert [["g0"], ["g0", "g1"], ["g1", "g2"]] == [shown(request, "feedback") for request in client.requests]


def test_without_momentum_nothing_is_remembered(learned):
    """The state stays empty."""
    parameter = learned()
    optimizer = TGD([parameter], ScriptedClient(rewrite), model="m")
    optimizer.step()
    assert [] == optimizer.state[parameter]["momentum_buffer"]


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
    assert "Improve the system prompt. Kindly!" == request.messages[0]["content"]
    assert ["old {x}"] == shown(request, "variable")
    assert prompt(request).endswith(" {literal brace}")
    assert "new {x}" == parameter.data


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
def test_a_value_is_found_in_what_models_write(reply, value):
    """JSON in a fence or between words; a plain text is the value itself."""
    assert value == value_in(reply)


@pytest.mark.parametrize(
    "reply",
    ['{"value": "cut o', '{"text": "x"}', '{"value": null}', '{"value": 3}', "{", '```json\n{"value": "cut'],
)
def test_a_reply_without_a_value_keeps_the_old_one_and_the_step_raises(learned, reply):
    """A cut-off object never becomes a prompt."""
    parameter = learned("old")
    with pytest.raises(ReplyError, match='is cut off or has no text as its "value" .it starts'):
        TGD([parameter], ScriptedClient(reply), model="m").step()
    assert "old" == parameter.data


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
    assert ("new text", 3) == (parameter.data, len(client.requests))


def test_a_failed_call_keeps_the_value_and_the_step_raises(learned):
    """With the launch line as a note."""
    parameter, other = learned("old"), learned("other")

    def script(request):
        return FinalModelError("out of quota") if "old" in prompt(request) else rewrite(request)

    optimizer = TGD([parameter, other], ScriptedClient(script), momentum=2, model="m")
    with pytest.raises(FinalModelError, match="out of quota") as caught:
        optimizer.step()
    assert any("TGD.step" in note and __file__ in note for note in caught.value.__notes__)
    assert ("old", "other be brief") == (parameter.data, other.data)
    assert [] == optimizer.state[parameter]["momentum_buffer"]


def test_a_lost_placeholder_is_asked_for_once(learned):
    """The repair names it and the value that was refused."""
    client = ScriptedClient([{"value": "Answer."}, {"value": "Answer {q} briefly."}])
    parameter = learned("Answer {q}.")
    TGD([parameter], client, model="m").step()
    assert "Answer {q} briefly." == parameter.data
    assistant, objection = client.requests[1].messages[-2:]
    assert '{"value": "Answer."}' == assistant["content"]
    assert "it must keep the placeholder {q}" in objection["content"]


def test_a_placeholder_lost_twice_changes_nothing_and_warns(learned, caplog):
    """The warning says why."""
    parameter = learned("Answer {q}.")
    with caplog.at_level(logging.WARNING, "afnio"):
        TGD([parameter], ScriptedClient({"value": "Answer."}), model="m").step()
    assert "Answer {q}." == parameter.data
    assert [
        "the proposal for 'prompt' was not taken, as it must keep the placeholder {q}; the parameter keeps its value"
    ] == [record.getMessage() for record in caplog.records]


def test_a_number_is_not_rewritten():
    """TGD is for texts."""
    parameter = cog.Parameter(3, role="count")
    parameter.append_grad(afnio.Variable("more"))
    with pytest.raises(TypeError, match="TGD rewrites texts .the value of 'count' is 3"):
        TGD([parameter], ScriptedClient("4"), model="m").step()
    assert 3 == parameter.data


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
            "constraints is a list of texts or Variables (got 'be short')",
        ),
        ({"constraints": [3]}, TypeError, "a constraint is a text or a Variable (got 3)"),
        ({"model": None}, TypeError, "a call needs a model name (got None)"),
        ({"n": 3}, ValueError, "n=3 replies to one request are not supported"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, TypeError, "which is no Variable; wrap it"),
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
    assert (["v0"], ["g0", "g1"], ["short"], "m") == (
        shown(request, "value"),
        shown(request, "feedback"),
        shown(request, "constraint"),
        request.model,
    )


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
    assert "old be brief" == parameter.data
