"""Optimizers: groups with options, steps that never leave a parameter without a value."""

from __future__ import annotations

import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import kit
import pytest

import afnio
import afnio.cognitive as cog
from afnio import tellurio as te
from afnio.models import ChatModel
from afnio.optim import Change, Optimizer
from afnio.runtime.events import StepEnded
from afnio.testing import ScriptedClient


class Append(Optimizer):
    """Appends its gradients; raises what stands in a gradient named `error`."""

    def __init__(self, params, *, sep=" "):
        super().__init__(params, {"sep": sep})
        self.proposed = []

    async def propose(self, parameter, value, gradients, options):
        await anyio.lowlevel.checkpoint()
        texts = [gradient.data for gradient in gradients]
        self.proposed.append((value, texts))
        if "error" in texts:
            raise ValueError(f"no proposal for {value}")
        after = options["sep"].join([value, *texts])
        self.state[parameter]["steps"] = [*self.state[parameter].get("steps", []), len(texts)]
        return Change(parameter.role, value, after, len(texts))


def test_a_step_replaces_values_by_what_is_proposed(learned):
    """From the value and the gradients that were there at its launch."""
    one, two = learned("a", "x", "y"), learned("b", "z")
    optimizer = Append([one, two])
    assert optimizer.step().done
    assert (one.data, two.data) == ("a x y", "b z")
    assert (one.is_leaf, one.requires_grad) == (True, True)
    assert len(one.grad) == 2
    optimizer.clear_grad()
    assert (one.grad, two.grad) == ([], [])


def test_a_step_without_gradients_changes_and_asks_nothing():
    """Nor does it make the values pending."""
    parameter = cog.Parameter("a")
    optimizer = Append([parameter])
    optimizer.step()
    assert (parameter.data, optimizer.proposed) == ("a", [])


def test_a_parameter_that_requires_no_grad_stays(learned):
    """It is frozen."""
    parameter = learned()
    parameter.requires_grad_(False)
    Append([parameter]).step()
    assert parameter.data == "old"


def test_a_failed_proposal_keeps_the_value_and_only_the_step_raises(learned):
    """The other parameter gets its new value."""
    bad, good = learned("bad", "error"), learned("good", "x")
    with pytest.raises(ValueError, match="no proposal for bad") as caught:
        Append([bad, good]).step()
    assert any(__file__ in note for note in caught.value.__notes__)
    assert (bad.data, good.data) == ("bad", "good x")


def test_several_failures_are_raised_together(learned):
    """As one group."""
    with pytest.raises(ExceptionGroup, match="parameters kept their values") as caught:
        Append([learned("a", "error"), learned("b", "error")]).step()
    assert [str(e) for e in caught.value.exceptions] == ["no proposal for a", "no proposal for b"]


async def test_on_a_loop_a_step_is_awaited(learned):
    """The value is pending until then; its error surfaces at the await."""
    parameter, gate = learned("a", "x"), threading.Event()

    class Gated(Append):
        async def propose(self, *args):
            await anyio.to_thread.run_sync(gate.wait)
            return await super().propose(*args)

    work = Gated([parameter]).step()
    assert (parameter.pending, work.done) == (True, False)
    gate.set()
    await work
    assert parameter.data == "a x"
    with pytest.raises(ValueError, match="no proposal"):
        await Append([learned("a", "error")]).step()


async def test_steps_on_one_parameter_follow_each_other(learned):
    """Two optimizers may share it."""
    parameter = learned("a", "x")
    one, two = Append([parameter], sep="-"), Append([parameter], sep="+")
    await afnio.resolve([one.step(), two.step()])
    assert parameter.data == "a-x+x"


async def test_a_step_takes_what_was_there_at_its_launch(learned):
    """clear_grad right after the launch takes nothing away from it."""
    parameter = learned("a", "x")
    optimizer = Append([parameter])
    work = optimizer.step()
    optimizer.clear_grad()
    await work
    assert (parameter.data, parameter.grad) == ("a x", [])


async def test_a_cancelled_step_keeps_the_value(learned):
    """The parameter never becomes a failure."""
    parameter = learned("a", "x")

    class Slow(Append):
        async def propose(self, parameter, value, gradients, options):
            await anyio.sleep_forever()

    with (
        kit.events(StepEnded) as events,
        pytest.raises(RuntimeError, match="stop"),
    ):
        async with afnio.scope():
            Slow([parameter]).step()
            raise RuntimeError("stop")
    await parameter
    assert parameter.data == "a"
    (ended,) = events
    assert (ended.changes, ended.values) == ((), (("prompt", "a"),))
    assert ended.error is not None


def test_the_closure_is_called_first_and_its_result_returned(learned):
    """It may compute the loss and its feedback."""
    parameter = cog.Parameter("a")
    optimizer = Append([parameter])

    def closure():
        parameter.append_grad(afnio.Variable("x"))
        return "score", "explanation"

    assert optimizer.step(closure).wait() == ("score", "explanation")
    assert parameter.data == "a x"


def test_groups_have_options_of_their_own(learned):
    """What they don't give comes from the defaults."""
    one, two, three = learned("a", "x"), learned("b", "x"), learned("c", "x")
    optimizer = Append([{"params": [one]}, {"params": two, "sep": "/"}])
    optimizer.add_param_group({"params": [three], "sep": "|"})
    optimizer.step()
    assert [one.data, two.data, three.data] == ["a x", "b/x", "c|x"]
    assert "Append (\n  group 0: 1 parameters\n    sep: ' '\n" in repr(optimizer)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        (lambda: cog.Parameter("a"), TypeError, "params must be an iterable of Parameters (got "),
        (list, ValueError, "params must have at least one parameter (got none)"),
        (lambda: ["a"], TypeError, "params must be Parameters (got 'a')"),
        (lambda: [{"params": ["a"]}], TypeError, "params must be Parameters (got 'a')"),
        (lambda: [{"sep": "a"}], TypeError, "a group must be a dict with 'params' and options"),
        (lambda: [cog.Parameter("a") + afnio.Variable("b")], ValueError, "a parameter must be a leaf"),
        (lambda: [cog.Parameter(["a"])], ValueError, "a parameter must be one text, not a batch"),
        (lambda: [cog.Parameter("a")] * 2, ValueError, "a parameter must be in one group only"),
        (
            lambda: [{"params": [cog.Parameter("a")], "step": 1}],
            ValueError,
            "a group's options must be among sep (got 'step')",
        ),
    ],
)
def test_what_cannot_be_optimized_is_refused(params, error, words):
    """At the line that gives it."""
    with pytest.raises(error) as caught:
        Append(params())
    assert words in str(caught.value)


def test_state_goes_to_another_optimizer(learned):
    """By the parameters' numbers; a saved state doesn't change with later steps."""
    one, two = learned("a", "x"), learned("b", "y")
    optimizer = Append([{"params": [one]}, {"params": [two], "sep": "/"}])
    optimizer.step()
    state = optimizer.state_dict()
    expected = {
        "state": {0: {"steps": [1]}, 1: {"steps": [1]}},
        "param_groups": [{"sep": " ", "params": [0]}, {"sep": "/", "params": [1]}],
    }
    assert state == expected
    optimizer.step()
    assert state == expected
    other = Append([{"params": [cog.Parameter("c")]}, {"params": [cog.Parameter("d")]}])
    other.load_state_dict(state)
    assert other.state_dict() == expected
    with pytest.raises(ValueError, match=r"groups of \[1\] parameters, as this optimizer \(got \[1, 1\]\)"):
        Append([cog.Parameter("e")]).load_state_dict(state)


def test_clients_are_left_out_of_the_state(learned):
    """They hold keys."""
    optimizer = afnio.optim.TGD([learned()], ScriptedClient("new"), model="m")
    (group,) = optimizer.state_dict()["param_groups"]
    assert "model_client" not in group
    optimizer.load_state_dict(optimizer.state_dict())
    assert "model_client" in optimizer.param_groups[0]


def test_an_event_tells_what_a_step_did(learned):
    """To each parameter, and its error."""
    with kit.events(StepEnded) as events:
        Append([learned("a", "x", role="r")]).step()
        with pytest.raises(ValueError, match="no proposal"):
            Append([learned("b", "error")]).step()
    done, failed = events
    assert ("Append", (Change("r", "a", "a x", 1),), None) == (done.optimizer, done.changes, done.error)
    assert (failed.changes, failed.error) == ((), "no proposal for b")


async def test_an_async_closure_is_awaited_and_sees_the_values_of_earlier_steps(learned):
    """On the runtime's loop; what it returns is the result of the Pending, its feedback that of the step."""
    parameter = learned("a", "x")
    optimizer = Append([parameter])
    seen = []

    async def closure():
        optimizer.clear_grad()
        seen.append((await parameter).data)
        parameter.append_grad(afnio.Variable("y"))
        return "score"

    optimizer.step()
    assert await optimizer.step(closure) == "score"
    assert (seen, (await parameter).data) == (["a x"], "a x y")


def test_an_async_closure_works_in_a_script_too(learned):
    """The step waits for it; a lambda may hand on its coroutine."""
    parameter = cog.Parameter("a")
    optimizer = Append([parameter])

    async def closure(text):
        parameter.append_grad(afnio.Variable(text))
        return text

    assert optimizer.step(lambda: closure("x")).wait() == "x"
    assert parameter.data == "a x"


def test_a_failing_closure_changes_nothing(learned):
    """An async one fails the Pending; parameters keep their values."""
    parameter = learned("a", "x")

    async def closure():
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        Append([parameter]).step(closure)
    assert parameter.data == "a"


@pytest.mark.parametrize("kind", ["plain", "joint"])
def test_feedback_is_reduced_once_a_step(learned, kind):
    """What is proposed and remembered comes from what `reduce` returned; its failure keeps the value."""
    parameter, other = learned("a", "x", "y"), learned("b", "fail")
    seen = []

    class Reducing(Append):
        async def reduce(self, parameter, value, gradients, options):
            if gradients[0].data == "fail":
                raise ValueError("can't be reduced")
            return gradients[:1]

        def remember(self, parameter, value, gradients, options):
            seen.append([gradient.data for gradient in gradients])

    async def closure():
        return None

    with pytest.raises(ValueError, match="can't be reduced"):
        Reducing([parameter, other]).step(closure if kind == "joint" else None)
    assert (parameter.data, other.data) == ("a x", "b")


@pytest.mark.parametrize("parameters", [1, 3])
def test_where_the_budget_ends_values_stay_and_a_run_completes(tmp_path, parameters):
    """An optimizer of one's own lets the error through; the loop around it catches it, in a run as well."""

    class Mine(Optimizer):
        async def propose(self, parameter, value, gradients, options):
            model = ChatModel(options["client"], {"model": "m"})
            reply = await model.ask([{"role": "user", "content": f"{parameter.role} {value}"}], "step")
            return Change(parameter.role, value, str(reply), len(gradients))

    prompts = [cog.Parameter("a", role=f"prompt {number}") for number in range(parameters)]
    optimizer = Mine(prompts, {"client": ScriptedClient(lambda request: "better")})
    ended = False
    with te.init("me", "budget", dir=tmp_path) as run:
        try:
            with afnio.budget(max_calls=parameters):
                for _ in range(3):
                    for prompt in prompts:
                        prompt.append_grad(afnio.Variable("feedback"))
                    optimizer.step()
                    optimizer.clear_grad()
        except* afnio.errors.BudgetExceeded:
            ended = True
    assert ended
    assert [prompt.data for prompt in prompts] == ["better"] * parameters
    assert run.status == "COMPLETED"
