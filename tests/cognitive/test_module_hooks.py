"""Hooks on Modules: before and after forward."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import afnio
import afnio.cognitive as cog
from afnio.autodiff import Function
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


def test_pre_hooks_change_arguments() -> None:
    """One value, a tuple, or nothing; with kwargs both; in order, or first of all."""
    stage, seen = Stage(), []
    stage.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].data)))
    stage.register_forward_pre_hook(lambda m, args: afnio.Variable(args[0].data + "1"))
    stage.register_forward_pre_hook(lambda m, args: (afnio.Variable(args[0].data + "0"),), prepend=True)
    stage.register_forward_pre_hook(lambda m, args, kwargs: (args, {"ending": "!"}), with_kwargs=True)
    assert stage(afnio.Variable("x")).data == "px01!"
    assert seen == [(stage, "x0")]
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
    assert chat(client, messages, inputs={"x": ["a", "b"]}, model="m").data == ["A", "B"]
    assert pending == [True]


def test_forward_hooks_see_arguments_and_can_be_removed() -> None:
    """With kwargs too; a handle's block ends its hook."""
    stage, seen = Stage(), []
    with stage.register_forward_hook(lambda m, a, k, o: seen.append((a[0].data, k)), with_kwargs=True):
        stage(afnio.Variable("x"), ending=".")
    assert stage(afnio.Variable("x")).data == "px"
    assert seen == [("x", {"ending": "."})]


async def test_async_forward_takes_both_kinds_of_hooks() -> None:
    """They run when the call is awaited, an `async def` is awaited; the output is the awaited one."""
    stage = AsyncStage()

    async def before(module: cog.Module, args: Any) -> afnio.Variable:
        return await (args[0] + afnio.Variable("1"))

    stage.register_forward_pre_hook(before)
    stage.register_forward_hook(lambda m, args, output: afnio.Variable(output.data + "2"))
    assert (await stage(afnio.Variable("x"))).data == "px12"
    wrapped = Stage()
    wrapped.forward = lambda text: stage(text)
    wrapped.register_forward_hook(lambda m, args, output: afnio.Variable(output.data + "3"))
    assert (await wrapped(afnio.Variable("x"))).data == "px123"


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
    assert seen == [None]


def fail(stage: Stage) -> None:
    with pytest.raises(TypeError):
        afnio.run(stage(afnio.Variable("x"), wrong=1))  # type: ignore[call-arg]


def test_hooks_are_not_shared_with_copies() -> None:
    """A copied module has the same hooks at first, and handles of its original don't touch them."""
    stage = Stage()
    handle = stage.register_forward_hook(lambda m, a, o: o.map(str.upper))
    twin = copy.deepcopy(stage)
    handle.remove()
    assert (stage(afnio.Variable("x")).data, twin(afnio.Variable("x")).data) == ("px", "PX")
