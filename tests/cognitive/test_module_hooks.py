"""Hooks on Modules: before and after forward, and on feedback that has been through a call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from roles import comment, play

import afnio
import afnio.cognitive as cog
from afnio.autodiff import Function
from afnio.models import set_backward_model_client
from afnio.testing import ScriptedClient


class Pass(Function):
    @staticmethod
    def forward(ctx: Any, *texts: str) -> str:
        return "".join(texts)

    @staticmethod
    def backward(ctx: Any, feedback: str) -> Any:
        return tuple([feedback] * len(ctx.needs_input_grad))


class Stage(cog.Module):
    """Puts its prompt before what it is given."""

    def __init__(self, prompt: str = "p") -> None:
        super().__init__()
        self.prompt = cog.Parameter(prompt, role="prompt")

    def forward(self, text: afnio.Variable, *, ending: str = "") -> afnio.Variable:
        return Pass.apply(self.prompt, text, ending)


class AsyncStage(Stage):
    async def forward(self, text: afnio.Variable, *, ending: str = "") -> afnio.Variable:  # type: ignore[override]
        return await Pass.apply(self.prompt, text, ending)


def texts(variable: afnio.Variable) -> list[Any]:
    return [gradient.data for gradient in variable.grad]


def test_pre_hooks_change_arguments() -> None:
    """One value, a tuple, or nothing; with kwargs both; in order, or first of all."""
    stage, seen = Stage(), []
    stage.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].data)))
    stage.register_forward_pre_hook(lambda m, args: afnio.Variable(args[0].data + "1"))
    stage.register_forward_pre_hook(lambda m, args: (afnio.Variable(args[0].data + "0"),), prepend=True)
    stage.register_forward_pre_hook(lambda m, args, kwargs: (args, {"ending": "!"}), with_kwargs=True)
    assert "px01!" == stage(afnio.Variable("x")).data
    assert [(stage, "x0")] == seen
    stage.register_forward_pre_hook(lambda m, args, kwargs: 3, with_kwargs=True)
    with pytest.raises(TypeError, match=r"None or \(args, kwargs\) \(got 3\)"):
        stage(afnio.Variable("x"))


def test_forward_hooks_change_the_output_without_waiting() -> None:
    """The hook gets the pending Variable; a map changes each sample as it arrives."""
    client = ScriptedClient(lambda request: request.messages[0]["content"], latency=0.01)
    chat = cog.ChatCompletion()
    pending = []

    def hook(module: cog.Module, args: Any, output: afnio.Variable) -> afnio.Variable:
        pending.append(output.pending)
        return output.map(str.upper)

    chat.register_forward_hook(hook)
    messages = [{"role": "user", "content": [afnio.Variable("{x}")]}]
    assert ["A", "B"] == chat(client, messages, inputs={"x": ["a", "b"]}, model="m").data
    assert [True] == pending


def test_forward_hooks_see_arguments_and_can_be_removed() -> None:
    """With kwargs too; a handle's block ends its hook."""
    stage, seen = Stage(), []
    with stage.register_forward_hook(lambda m, a, k, o: seen.append((a[0].data, k)), with_kwargs=True):
        stage(afnio.Variable("x"), ending=".")
    assert "px" == stage(afnio.Variable("x")).data
    assert [("x", {"ending": "."})] == seen


async def test_async_forward_takes_both_kinds_of_hooks() -> None:
    """They run when the call is awaited, an `async def` is awaited; the output is the awaited one."""
    stage = AsyncStage()

    async def before(module: cog.Module, args: Any) -> afnio.Variable:
        return await (args[0] + afnio.Variable("1"))

    stage.register_forward_pre_hook(before)
    stage.register_forward_hook(lambda m, args, output: afnio.Variable(output.data + "2"))
    assert "px12" == (await stage(afnio.Variable("x"))).data
    wrapped = Stage()
    wrapped.forward = lambda text: stage(text)
    wrapped.register_forward_hook(lambda m, args, output: afnio.Variable(output.data + "3"))
    assert "px123" == (await wrapped(afnio.Variable("x"))).data


def test_an_async_hook_of_a_plain_forward_is_refused() -> None:
    """Nobody would await it, and the sentence says so."""
    stage = Stage()

    async def hook(module: cog.Module, args: Any, output: Any) -> None:
        pass

    stage.register_forward_hook(hook)
    with pytest.raises(TypeError, match="Stage.forward is a `def`"):
        stage(afnio.Variable("x"))


@pytest.mark.parametrize("kind", [Stage, AsyncStage])
def test_always_call(kind: type[Stage]) -> None:
    """Hooks that are always called are so when forward raises; their own errors are warnings."""
    stage, seen = kind(), []
    stage.register_forward_hook(lambda m, a, o: seen.append(o), always_call=True)
    stage.register_forward_hook(lambda m, a, o: pytest.fail("forward raised"))
    stage.register_forward_hook(lambda m, a, o: 1 / 0, always_call=True)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        fail(stage)
    assert [None] == seen


def fail(stage: Stage) -> None:
    with pytest.raises(TypeError):
        afnio.run(stage(afnio.Variable("x"), wrong=1))  # type: ignore[call-arg]


def test_hooks_are_not_shared_with_copies() -> None:
    """A copied module has the same hooks at first, and handles of its original don't touch them."""
    stage = Stage()
    handle = stage.register_forward_hook(lambda m, a, o: o.map(str.upper))
    twin = copy.deepcopy(stage)
    handle.remove()
    assert ("px", "PX") == (stage(afnio.Variable("x")).data, twin(afnio.Variable("x")).data)


def test_backward_hooks_see_what_comes_and_what_goes() -> None:
    """All samples of a call at once; what it returns goes on to the argument, its own prompt is untouched."""
    stage, given = Stage(), afnio.Variable(["a", "b"], role="text", requires_grad=True)
    seen = []

    def hook(module: cog.Module, grad_input: Any, grad_output: Any) -> Any:
        seen.append((module, grad_input[0].data, grad_input[0].role, grad_output[0].data))
        return ([text and text + "!" for text in grad_input[0].data],)

    with stage.register_full_backward_hook(hook):
        stage(given).backward(afnio.Variable(["x", None]))
    assert [(stage, ["x", None], "feedback to text", ["x", None])] == seen
    assert ([["x!", None]], ["x"]) == (texts(given), texts(stage.prompt))


def test_backward_hooks_without_arguments_that_want_feedback() -> None:
    """They see what came to the output; the first stage of a chain is changed by the second one's hook."""
    first, second, seen = Stage(), Stage(), []
    first.register_full_backward_hook(lambda m, i, o: seen.append((i, o[0].data)))
    second.register_full_backward_hook(lambda m, i, o: (afnio.Variable("changed"),))
    second(first(afnio.Variable("x"))).backward(afnio.Variable("f"))
    assert [((None,), "changed")] == seen
    assert (["changed"], ["f"]) == (texts(first.prompt), texts(second.prompt))


async def test_backward_hooks_of_a_chat_under_a_judge_of_samples() -> None:
    """With lanes, awaited, on what an `async def forward` returned: the reply keeps its class."""
    set_backward_model_client(ScriptedClient(play(critic=comment("shorter"))), completion_args={"model": "m"})

    class Agent(cog.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt = cog.Parameter("Say {text}", role="prompt")

        async def forward(self, client: ScriptedClient, text: list[str]) -> cog.Completion:
            messages = [{"role": "user", "content": [self.prompt]}]
            return await cog.functional.chat_completion(client, messages, {"text": text}, model="m")

    agent, seen = Agent(), []

    async def hook(module: cog.Module, grad_input: Any, grad_output: Any) -> None:
        seen.append((grad_input, grad_output[0].data))

    agent.register_full_backward_hook(hook)
    reply = await agent(ScriptedClient("good"), ["a", "b"])
    assert ["good", "good"] == [response.content for response in reply.response]
    _, explanation = cog.functional.exact_match_evaluator(reply, ["good", "bad"])
    await explanation.backward()
    assert ["shorter"] == texts(agent.prompt)
    ((inputs, (nothing, told)),) = seen
    assert ((None, None), None) == (inputs, nothing)
    assert "bad" in told


def test_a_failing_backward_hook_fails_the_pass() -> None:
    """Nothing is gathered; so does one that returns too few gradients."""
    for said, match in ((lambda m, i, o: 1 / 0, "division"), (lambda m, i, o: (), "must return 1 gradients")):
        stage = Stage()
        with (
            stage.register_full_backward_hook(said),
            pytest.raises((ZeroDivisionError, ValueError), match=match),
        ):
            stage(afnio.Variable("x", requires_grad=True)).backward(afnio.Variable("f"))
        assert [] == texts(stage.prompt)


def test_no_hook_is_called_without_feedback() -> None:
    """A batch in which every sample succeeded says nothing, and no hook hears of it."""
    stage = Stage()
    stage.register_full_backward_hook(lambda m, i, o: pytest.fail("called"))
    _, explanation = cog.functional.exact_match_evaluator(stage(afnio.Variable(["x"])), ["px"])
    explanation.backward()
    assert [] == texts(stage.prompt)
