"""The conformance checks: our optimizers pass them, and each one catches what it is there for."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

import afnio
import afnio.cognitive as cog
from afnio.optim import TGD, Change, Demos, EditTGD, Optimizer
from afnio.testing import ScriptedClient, optimizer_conformance
from afnio.testing.conformance import CHECKS


def parameters_of(params):
    return [p for entry in params for p in (entry["params"] if isinstance(entry, dict) else [entry])]


def tgd(params, client):
    return TGD(params, client, momentum=2, model="m")


def searching(params, client):
    mine = parameters_of(params)
    student = ScriptedClient(lambda request: str(sum(map(ord, str(request.messages))) % 2))

    def evaluate(batch):
        user = afnio.Variable("{sample}", role="sample")
        messages = [{"role": "system", "content": mine}, {"role": "user", "content": [user]}]
        inputs = {"sample": afnio.Variable([str(sample) for sample in batch])}
        pred = cog.functional.chat_completion(student, messages, inputs=inputs, model="student")
        return cog.functional.exact_match_evaluator(pred, ["1"] * len(batch))

    return EditTGD(
        params,
        client,
        evaluate,
        list(range(12)),
        inner=2,
        minibatch=4,
        race=4,
        first=2,
        search_seed=1,
        model="m",
    )


@pytest.fixture
def critic():
    def script(request):
        return {"feedback": [{"variable": f"v{n}", "text": "it was wrong"} for n in range(1, 5)]}

    afnio.set_backward_model_client(ScriptedClient(script), completion_args={"model": "critic"})


@pytest.mark.parametrize("make", [tgd, searching])
@pytest.mark.usefixtures("critic")
def test_our_optimizers_pass(make):
    """All checks."""
    assert list(CHECKS) == optimizer_conformance(make)


def test_demos_pass_what_is_not_about_a_model():
    """They ask none, and learn from runs that they observe, not from feedback."""

    def make(params, client):
        demos = Demos(params)
        demos.observe({"message": ["a", "b"]}, ["yes", "no"], [1.0, 1.0])
        return demos

    about_models = ["no_feedback", "feedback", "failing", "cancelled"]
    assert [n for n in CHECKS if n not in about_models] == optimizer_conformance(make, skip=about_models)


class Mine(Optimizer):
    """One that is right, with places for what may be wrong."""

    def __init__(self, params, client):
        super().__init__(params, {"client": client})

    async def propose(self, parameter, value, gradients, options):
        model = afnio.models.ChatModel(options["client"], {"model": "m"})
        messages = [
            {"role": "user", "content": f"{value}: {[g.data for g in gradients]} {self.steps(parameter)}"}
        ]
        after = str(await model.ask(messages, "step"))
        return Change(parameter.role, value, after, len(gradients))

    def steps(self, parameter):
        return self.state[parameter].get("steps", 0)

    def remember(self, parameter, value, gradients, options):
        self.state[parameter]["steps"] = self.steps(parameter) + 1


class Changing(Mine):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if not parameter.grad:
                    parameter.data = "improved"
        return super().step(closure)


class Swallowing(Mine):
    async def propose(self, parameter, value, gradients, options):
        try:
            return await super().propose(parameter, value, gradients, options)
        except Exception:
            return Change(parameter.role, value, value, 0)


class Clearing(Mine):
    def step(self, closure=None):
        work = super().step(closure)
        self.clear_grad()
        return work


class Forgetful(Mine):
    def load_state_dict(self, state_dict):
        pass


class Random(Mine):
    calls = 0

    async def propose(self, parameter, value, gradients, options):
        Random.calls += 1
        return await super().propose(parameter, f"{value} {Random.calls}", gradients, options)


class Deaf(Mine):
    def step(self, closure=None):
        return super().step()


class Slow(Mine):
    async def propose(self, parameter, value, gradients, options):
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        return await super().propose(parameter, value, gradients, options)


class Nothing(Mine):
    async def propose(self, parameter, value, gradients, options):
        return Change(parameter.role, value, None, len(gradients))


def test_an_optimizer_of_ones_own_passes():
    """Also one that shields some work from cancellation."""
    assert list(CHECKS) == optimizer_conformance(Mine)
    assert optimizer_conformance(Slow, skip=[n for n in CHECKS if n != "cancelled"]) == ["cancelled"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Changing, "no_feedback: a step without feedback changed a value"),
        (Clearing, "feedback: a step changed the gradients of its parameters"),
        (Swallowing, "failing: the proposer failed and the step did not raise"),
        (Deaf, "closure: step(closure) returned None and not the closure's result"),
        (Forgetful, "state: step 1 after loading gave"),
        (Random, "state: step 1 after loading gave"),
        (Nothing, "feedback: a step left 'text 0' with None"),
        (lambda p, c: None, "no_feedback: make_optimizer must return an Optimizer (got None)"),
    ],
)
def test_each_check_finds_what_is_wrong(make, words):
    """Named, in a sentence."""
    with pytest.raises(AssertionError) as caught:
        optimizer_conformance(make)
    assert str(caught.value).startswith(words)


def test_a_replay_that_differs_is_found():
    """Where the request isn't the same each time, the journal has no answer."""
    with pytest.raises(AssertionError, match=r"resume: .*no call must be made"):
        optimizer_conformance(Random, skip=["state"])


def test_checks_are_skipped_by_name():
    """A wrong name is refused."""
    assert optimizer_conformance(tgd, skip=[name for name in CHECKS if name != "groups"]) == ["groups"]
    with pytest.raises(ValueError, match="skip must name checks among .*'speed'"):
        optimizer_conformance(tgd, skip=["speed"])
