"""Criticism: what a critic's answer may look like, and which variable each comment belongs to."""

from __future__ import annotations

import pytest
from kit.roles import comment, kind, play, prompt, shown

import afnio
import afnio.cognitive as cog
from afnio.testing import ScriptedClient


@pytest.fixture
def texts() -> list[cog.Parameter]:
    return [cog.Parameter("one", role="first"), cog.Parameter("two", role="second")]


def gradients(texts, *replies, edit=None):
    critic = ScriptedClient(list(replies))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    messages = [{"role": "system", "content": [texts[0]]}, {"role": "user", "content": [texts[-1]]}]
    reply = cog.ChatCompletion()(ScriptedClient("said"), messages, model="m")
    if edit is not None:
        reply.data = edit
    cog.ExactMatchEvaluator()(reply, "right")[1].backward()
    return [[g.data for g in text.grad] for text in texts], critic


@pytest.mark.parametrize(
    "answer",
    [
        {"feedback": [{"variable": "v1", "text": "A"}, {"variable": "v2", "text": "B"}]},
        {"feedback": [{"variable": "v2", "text": "B"}, {"variable": "v1", "text": "A"}]},
        {"feedback": [{"variable": "first", "text": "A"}, {"variable": "second", "text": "B"}]},
        {"feedback": [{"text": "A"}, {"text": "B"}]},
        {"feedback": {"v1": "A", "v2": "B"}},
    ],
)
def test_comments_go_to_their_variables(texts, answer):
    """By their ids, or by their places where the ids are not those that were given."""
    assert gradients(texts, answer)[0] == [["A"], ["B"]]


def test_one_variable_may_get_a_bare_text(texts):
    """With one text there is no doubt whose comment it is."""
    assert gradients(texts[:1], {"feedback": "A"})[0] == [["A"]]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (
            {"feedback": [{"variable": "v1", "text": "A"}]},
            '"feedback" must have one entry for each of v1, v2',
        ),
        ({"feedback": "A"}, '"feedback" must be a list of objects'),
        ({"feedback": [{"variable": "v1", "text": 1}, {"variable": "v2", "text": "B"}]}, 'every "text" must'),
        ({"comments": []}, "the key 'feedback' is missing"),
        ("I think that…", "it holds no JSON object"),
    ],
)
def test_an_answer_that_does_not_fit_is_repaired(texts, bad, complaint):
    """The critic is told what was wrong with its answer."""
    good = {"feedback": [{"variable": "v1", "text": "A"}, {"variable": "v2", "text": ""}]}
    found, critic = gradients(texts, bad, good)
    assert found == [["A"], []]
    assert complaint in critic.requests[1].messages[-1]["content"]
    assert {phase: use["calls"] for phase, use in critic.get_usage()["phases"].items()} == {
        "backward": 1,
        "backward-repair": 1,
    }


def test_an_edit_is_shown_only_where_it_differs(texts):
    """What the consumers saw is part of the story if it isn't the reply."""
    answer = {"feedback": {"v1": "A", "v2": "B"}}
    assert shown(gradients(texts, answer)[1].requests[0], "edited_reply") == []
    assert shown(gradients(texts, answer, edit="said")[1].requests[0], "edited_reply") == []
    assert shown(gradients(texts, answer, edit="SAID")[1].requests[0], "edited_reply") == ["SAID"]


def test_several_consumers_speak_in_one_call(texts):
    """A reply that two evaluators judged is criticized once, with both findings."""
    critic = ScriptedClient(play(critic={"feedback": {"v1": "A"}}))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    reply = cog.ChatCompletion()(
        ScriptedClient("said"), [{"role": "system", "content": [texts[0]]}], model="m"
    )
    found = [cog.ExactMatchEvaluator()(reply, target)[1] for target in ("x", "y")]
    afnio.autodiff.backward(found)
    (request,) = critic.requests
    assert [text.split("expected ")[1].split(",")[0] for text in shown(request, "feedback")] == ['"x"', '"y"']
    assert [g.data for g in texts[0].grad] == ["A"]


def chat(client, parameter, template, **inputs):
    messages = [
        {"role": "system", "content": [parameter]},
        {"role": "user", "content": [afnio.Variable(template)]},
    ]
    return cog.ChatCompletion()(client, messages, inputs=inputs, model="m")


def test_a_text_that_many_samples_share_hears_a_summary():
    """One plan for a batch: its critic is called once, with feedback that was summed up if it is too long."""
    plan_prompt = cog.Parameter("Plan.", role="planner prompt")
    answer_prompt = cog.Parameter("Answer.", role="prompt", requires_grad=False)
    long = " ".join(f"word{n}" for n in range(30))
    critic = ScriptedClient(
        play(
            critic=comment(lambda variable: f"{long} {len(shown_so_far)} {variable.text[:5]}"),
            reducer=lambda request: {
                "points": [
                    {"point": "plan better", "sources": list(range(1, len(shown(request, "feedback")) + 1))}
                ]
            },
        )
    )
    shown_so_far = critic.requests
    with afnio.set_backward_model_client(critic, completion_args={"model": "b"}):
        plan = chat(ScriptedClient("the plan"), plan_prompt, "{task}", task="go")
        replies = chat(
            ScriptedClient("x"), answer_prompt, "{plan} {q}", plan=plan, q=[str(n) for n in range(120)]
        )
        cog.ExactMatchEvaluator()(replies, [str(n) for n in range(120)]).explanation.backward()
    kinds = [kind(request) for request in critic.requests]
    assert (kinds.count("critic"), kinds.count("reducer") > 1) == (121, True)
    last = critic.requests[-1]
    assert (kind(last), shown(last, "feedback")) == ("critic", ["plan better"])
    (gradient,) = plan_prompt.grad
    assert list(range(120)) == [entry["sample"] for entry in gradient.provenance]
    assert set(critic.get_usage()["phases"]) == {"reduce", "backward"}
    assert "the plan" in prompt(last)


def test_feedback_says_what_the_op_was_given():
    """Each node its own inputs; a seed has the reply too."""
    first, second = cog.Parameter("a", role="first"), cog.Parameter("b", role="second")
    critic = ScriptedClient(comment("be brief"))
    with afnio.set_backward_model_client(critic, completion_args={"model": "b"}):
        draft = chat(ScriptedClient("draft"), first, "{q}", q=["one", "two"])
        final = chat(ScriptedClient("final"), second, "{draft}", draft=draft)
        cog.ExactMatchEvaluator()(final, ["x", "final"]).explanation.backward()
    assert [entry["inputs"] for entry in first.grad[0].provenance] == [{"q": "one"}]
    (entry,) = second.grad[0].provenance
    assert (entry["inputs"], entry["prediction"], entry["target"]) == ({"draft": "draft"}, "final", "x")
    third = cog.Parameter("c", role="third")
    with afnio.set_backward_model_client(critic, completion_args={"model": "b"}):
        chat(ScriptedClient("reply"), third, "{q}", q="three").backward(afnio.Variable("shorter"))
    assert third.grad[0].provenance == ({"sample": None, "prediction": "reply", "inputs": {"q": "three"}},)
