"""Gradients as a proposer is shown them: each with the samples behind it."""

from __future__ import annotations

import afnio
import afnio.cognitive as cog
from afnio.models import ChatModel
from afnio.optim import Change, Optimizer, reduce
from afnio.testing import ScriptedClient


class Shown(Optimizer):
    """Keeps what `reduce` gives it."""

    def __init__(self, params, client, **options):
        super().__init__(params, {"client": client, "options": options})

    async def propose(self, parameter, value, gradients, options):
        model = ChatModel(options["client"], {"model": "m"})
        self.shown = await reduce(gradients, model, role=parameter.role, value=value, **options["options"])
        return Change(parameter.role, value, value, len(gradients))


def shown(parameter, client, **options):
    optimizer = Shown([parameter], client, **options)
    optimizer.step()
    return optimizer.shown


def learned(count):
    """Return a parameter with feedback that says from which sample it comes."""
    critic = ScriptedClient(
        {"feedback": [{"variable": "v1", "text": "The reply was far too long for them."}]}
    )
    parameter = cog.Parameter("old", role="prompt")
    chat, loss = cog.ChatCompletion(), cog.ExactMatchEvaluator()
    with afnio.set_backward_model_client(critic, completion_args={"model": "b"}):
        reply = chat(
            ScriptedClient(lambda request: request.messages[1]["content"]),
            [
                {"role": "system", "content": [parameter]},
                {"role": "user", "content": [afnio.Variable("{x}")]},
            ],
            inputs={"x": [f"word{n}" for n in range(count)]},
            model="m",
        )
        loss(reply, [f"target {n} " * 30 for n in range(count)]).explanation.backward()
    return parameter


def test_what_fits_are_the_gradients_themselves():
    """The same objects in the same order."""
    parameter = learned(3)
    found = shown(parameter, ScriptedClient())
    assert [gradient.provenance[0]["sample"] for gradient in found] == [0, 1, 2]
    assert (found.gathered, found.reduction.calls) == (3, 0)


def test_equal_feedback_has_the_provenance_of_all():
    """One text for forty samples."""
    found = shown(learned(40), ScriptedClient(), max_tokens=300)
    (gradient,) = found
    assert (gradient.data, gradient.role) == ("The reply was far too long for them.", "feedback to prompt")
    assert list(range(40)) == [entry["sample"] for entry in gradient.provenance]
    assert found.gathered == 40


def test_a_point_has_the_provenance_of_its_sources():
    """In the order of the gradients, and no other's."""
    parameter = cog.Parameter("old", role="prompt")
    for gradient in learned(20).grad:
        gradient.data = f"{gradient.provenance[0]['sample']} {gradient.data} " * 2
        parameter.append_grad(gradient)
    client = ScriptedClient({"points": [{"point": "Be brief.", "sources": [3, 1]}]})
    (gradient,) = shown(parameter, client, max_tokens=300)
    samples = [entry["sample"] for entry in gradient.provenance]
    assert ("Be brief.", 2 * len(client.requests), sorted(samples)) == (gradient.data, len(samples), samples)
    assert list(client.get_usage()["phases"]) == ["reduce"]


def test_as_many_points_as_gradients_are_still_the_points():
    """Two long texts summed up in one call each: what is shown fits, and the texts themselves would not."""
    parameter = cog.Parameter("old", role="prompt")
    for topic in ("length", "tone"):
        parameter.append_grad(afnio.Variable(" ".join(f"{topic}{n}" for n in range(150))))
    client = ScriptedClient(
        lambda request: {
            "points": [
                {"point": "Be brief." if "length1" in str(request.messages) else "Be kind.", "sources": [1]}
            ]
        }
    )
    found = shown(parameter, client, max_tokens=300)
    assert [gradient.data for gradient in found] == ["Be brief.", "Be kind."]
    assert (found.gathered, found.reduction.calls) == (2, 2)
