"""What is told of launches in the graph, and that nothing is told to nobody."""

from __future__ import annotations

import kit

import afnio
from afnio.autodiff import Variable
from afnio.cognitive import Parameter
from afnio.cognitive.functional import chat_completion, exact_match_evaluator
from afnio.runtime.events import NodeLaunched, SampleScored, run_recorder, subscribed
from afnio.testing import ScriptedClient


def ask(prompt: Parameter, texts: list[str]) -> Variable:
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [Variable("{text}")]}]
    return chat_completion(ScriptedClient("yes"), messages, {"text": Variable(texts)}, model="m")


def test_a_launch_tells_where_its_inputs_are_from():
    """Of a sample's own leaves their values, of a prompt nothing, of an op's output the op's address."""
    prompt = Parameter("Answer.", role="prompt", requires_grad=True)
    afnio.set_backward_model_client(ScriptedClient("never"), completion_args={"model": "m"})
    with kit.events() as events, afnio.scope(name="told", rooted=True):
        reply = ask(prompt, ["a", "b"])
        exact_match_evaluator(reply, ["yes", "yes"])[1].backward()
    chat, evaluator, sweep = [event for event in events if isinstance(event, NodeLaunched)]
    assert (chat.name, chat.kind, chat.lanes) == ("ChatCompletion", "forward", 2)
    assert [entry.values for entry in chat.inputs if entry.values is not None] == [["a", "b"]]
    assert {entry.producer for entry in chat.inputs} == {None}
    assert (chat.address, evaluator.address, sweep.address) == ("told/1", "told/2", "told/3")
    assert [tuple(entry) for entry in evaluator.inputs] == [("told/1", None), (None, ["yes", "yes"])]
    assert (sweep.kind, [entry.producer for entry in sweep.inputs]) == ("backward", ["told/2", "told/1"])
    assert __file__ == chat.line.file


def test_an_evaluator_tells_of_each_sample():
    """What it was given, what it found, and where."""
    with kit.events() as events, afnio.scope(name="told", rooted=True):
        exact_match_evaluator(Variable(["yes", "yes", None]), ["yes", "no", "no"])
    scored = [event for event in events if isinstance(event, SampleScored)]
    assert [(e.node, e.lane, e.prediction, e.target, e.score, e.success) for e in scored] == [
        ("told/1", 0, "yes", "yes", 1, True),
        ("told/1", 1, "yes", "no", 0, False),
    ]
    assert "no" in scored[1].explanation


def test_feedback_names_the_evaluator_that_it_came_from():
    """So that it can be looked up."""
    reply = Variable(["a"], requires_grad=True)
    with afnio.scope(name="told", rooted=True):
        exact_match_evaluator(reply, ["b"])[1].backward()
        (gradient,) = reply.grad
    assert [(entry["node"], entry["sample"]) for entry in gradient.provenance[0]] == [("told/1", 0)]


def test_no_event_is_built_without_a_subscriber():
    """A launch doesn't look at where its inputs come from; with a subscriber it does."""
    looked = []

    class Watched(Variable):
        @property
        def origin(self):
            looked.append(self)

    assert (Watched(1) + Variable(2)).data == 3
    assert looked == []
    with subscribed(lambda event: None):
        assert (Watched(1) + Variable(2)).data == 3
    assert len(looked) == 1


def test_an_inner_recorder_hides_the_outer_one():
    """A run_recorder has what is launched in its block, subscribers have all."""
    outer, inner = [], []
    with kit.events() as everything, run_recorder.override(outer.append):
        assert (Variable(1) + Variable(2)).data == 3
        with run_recorder.override(inner.append):
            assert (Variable(3) + Variable(4)).data == 7
    assert (len(outer), len(inner), len(everything)) == (1, 1, 2)
    assert everything == outer + inner
