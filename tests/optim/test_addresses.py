"""The addresses of a step's calls: a journal finds the replies by them, so they must not change."""

from __future__ import annotations

import kit
import pytest

import afnio
import afnio.cognitive as cog
from afnio.models import ChatModel
from afnio.optim import TGD, Change, Optimizer, tgd
from afnio.runtime.events import CallEnded
from afnio.testing import ScriptedClient


def addresses(run):
    """Return the addresses of the calls that `run` makes, below the scope around it."""
    with kit.events(CallEnded) as ended, afnio.scope(name="run"):
        run()
    return sorted(event.address.partition("/")[2] for event in ended)


def reply(request):
    if "points" in str(request.params):
        return {"points": [{"point": "Be brief.", "sources": [1]}]}
    return {"value": "new"}


@pytest.fixture
def parameters(learned):
    return [learned("a", "x", role="one"), cog.Parameter("b", role="two"), learned("c", "y", role="three")]


def test_a_step_numbers_the_parameters_with_feedback(parameters):
    """Of three parameters here the first and the last."""
    optimizer = TGD(parameters, ScriptedClient(reply), model="m")
    assert addresses(lambda: optimizer.step().wait()) == ["1/parameter 0/step", "1/parameter 1/step"]


def test_the_function_has_the_addresses_of_the_class(parameters):
    """It is one step of it."""
    grads = [parameter.grad for parameter in parameters]
    client = ScriptedClient(reply)
    found = addresses(lambda: tgd(parameters, grads, [[], [], []], client, model="m").wait())
    assert found == ["1/parameter 0/step", "1/parameter 1/step"]


def test_reductions_are_below_their_parameter(learned):
    """By level and group of the tree."""
    texts = [f"{n} " + " ".join(f"word{n}-{k}" for k in range(60)) for n in range(3)]
    optimizer = TGD([learned("a", *texts)], ScriptedClient(reply), feedback_tokens=300, model="m")
    found = addresses(lambda: optimizer.step().wait())
    assert found.pop() == "1/parameter 0/step"
    assert {address.rsplit("/", 2)[0] for address in found} == {"1/parameter 0/1/level 0"}


def test_an_async_closure_makes_the_step_joint(parameters):
    """As it may give feedback to any parameter."""

    async def closure():
        return None

    optimizer = TGD(parameters, ScriptedClient(reply), model="m")
    found = addresses(lambda: optimizer.step(closure).wait())
    assert [f"1/all/2/parameter {number}/step" for number in (0, 2)] == found


def test_calls_of_ones_own_are_numbered_by_purpose(learned):
    """Of a model or of an op; nobody hands over a job."""

    class Mine(Optimizer):
        async def propose(self, parameter, value, gradients, options):
            model = ChatModel(options["client"], {"model": "m"})
            messages = [{"role": "user", "content": "Improve."}]
            for purpose in ("step", "step", "look"):
                await model.ask(messages, purpose)
            await cog.functional.chat_completion(
                options["client"], messages=[{"role": "user", "content": [afnio.Variable("Hi")]}], model="m"
            )
            return Change(parameter.role, value, value, len(gradients))

    optimizer = Mine([learned()], {"client": ScriptedClient("ok")})
    found = addresses(lambda: optimizer.step().wait())
    assert [f"1/parameter 0/{call}" for call in ("1/forward", "look", "step", "step#2")] == found


async def test_a_model_is_not_called_outside_a_job():
    """The error names what to use instead."""
    with pytest.raises(RuntimeError, match=r"inside a job, .*use client\.chat"):
        await ChatModel(ScriptedClient("ok"), {"model": "m"}).ask([{"role": "user", "content": "Hi"}], "step")
