"""Hooks on Variables: what they see, what they change, when they run, how they fail."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import afnio
from afnio.autodiff import Function, backward, grad
from afnio.errors import BatchError, GraphError


class Pass(Function):
    """Adds a mark and passes feedback on as it is."""

    @staticmethod
    def forward(ctx: Any, *texts: str) -> str:
        return "".join(texts) + "'"

    @staticmethod
    def backward(ctx: Any, feedback: str) -> Any:
        return tuple([feedback] * len(ctx.needs_input_grad))


def leaf(data: Any = "p", role: str = "prompt") -> afnio.Variable:
    return afnio.Variable(data, role=role, requires_grad=True)


def texts(variable: afnio.Variable) -> list[Any]:
    return [gradient.data for gradient in variable.grad]


def test_a_hook_sees_the_feedback_of_each_sample_and_replaces_it() -> None:
    """On a leaf that samples share: called once for each, with role and text; what it returns is gathered."""
    prompt = leaf()
    seen: list[tuple[str, str]] = []

    def hook(gradient: afnio.Variable) -> str:
        seen.append((gradient.data, gradient.role))
        return gradient.data.upper()

    prompt.register_hook(hook)
    Pass.apply(prompt, afnio.Variable(["a", "b"])).backward(afnio.Variable(["x", "y"]))
    assert sorted(seen) == [("x", "feedback to prompt"), ("y", "feedback to prompt")]
    assert texts(prompt) == ["X", "Y"]


def test_hooks_of_an_output_change_what_goes_upstream() -> None:
    """And what the output retains; in the order of registration; a Variable is as good as a text."""
    prompt = leaf()
    middle = Pass.apply(prompt)
    middle.retain_grad()
    middle.register_hook(lambda g: afnio.Variable(g.data + "1"))
    middle.register_hook(lambda g: g.data + "2")
    Pass.apply(middle).backward(afnio.Variable("f"))
    assert texts(prompt) == texts(middle) == ["f12"]


def test_none_keeps_and_empty_drops() -> None:
    """Nothing upstream of feedback that a hook dropped is called."""
    prompt = leaf()
    kept, dropped = Pass.apply(prompt), Pass.apply(prompt)
    kept.register_hook(lambda g: None)
    dropped.register_hook(lambda g: "")
    Pass.apply(kept, dropped).backward(afnio.Variable("f"))
    assert texts(prompt) == ["f"]


def test_a_handle_removes_its_hook() -> None:
    """By hand, twice, or at the end of a block; also after the Variable has gone."""
    prompt = leaf()
    first = prompt.register_hook(lambda g: g.data + "1")
    with prompt.register_hook(lambda g: g.data + "2"):
        Pass.apply(prompt).backward(afnio.Variable("f"))
    first.remove()
    first.remove()
    Pass.apply(prompt).backward(afnio.Variable("f"))
    assert texts(prompt) == ["f12", "f"]
    handle = leaf().register_hook(print)
    handle.remove()


async def test_async_hooks_run_on_the_loop_and_plain_ones_in_threads() -> None:
    """An `async def` may await; a `def` doesn't hold up the runtime's thread."""
    prompt = leaf()
    threads: list[str] = []

    async def on_loop(gradient: afnio.Variable) -> str:
        threads.append(threading.current_thread().name)
        return (await (gradient + afnio.Variable("!"))).data

    def in_thread(gradient: afnio.Variable) -> None:
        threads.append(threading.current_thread().name)

    prompt.register_hook(on_loop)
    prompt.register_hook(in_thread)
    await Pass.apply(prompt).backward(afnio.Variable("f"))
    assert texts(prompt) == ["f!"]
    assert threads[0] == "afnio-runtime" != threads[1]


async def test_one_sample_does_not_wait_for_the_hook_of_another() -> None:
    """The second sample is through the whole pass while the first one's hook still waits."""
    first, second = leaf("1"), leaf("2")
    both = Pass.apply(first) + Pass.apply(second)
    import anyio

    passed, order = anyio.Event(), []

    async def slow(gradient: afnio.Variable) -> None:
        await passed.wait()
        order.append("first")

    async def quick(gradient: afnio.Variable) -> None:
        order.append("second")
        passed.set()

    first.register_hook(slow)
    second.register_hook(quick)
    await both.backward(afnio.Variable("f"))
    assert order == ["second", "first"]


def test_a_failing_hook_fails_its_pass() -> None:
    """Nothing is gathered and the error names sample and hook; under a quorum the other samples are."""

    def hook(gradient: afnio.Variable) -> None:
        if gradient.data == "x":
            raise RuntimeError("no")

    prompt = leaf()
    prompt.register_hook(hook)
    with pytest.raises(BatchError, match="a hook on 'prompt'") as caught:
        Pass.apply(prompt, afnio.Variable(["a", "b"])).backward(afnio.Variable(["x", "y"]))
    assert caught.value.samples == (0,)
    assert texts(prompt) == []
    with afnio.tolerate(quorum=0.5):
        Pass.apply(prompt, afnio.Variable(["a", "b"])).backward(afnio.Variable(["x", "y"]))
    assert texts(prompt) == ["y"]
    middle = Pass.apply(leaf())
    middle.register_hook(lambda g: 3)
    with pytest.raises(TypeError, match=r"a hook must return feedback.*\(got 3\)"):
        Pass.apply(middle).backward(afnio.Variable("f"))


def test_where_hooks_can_not_be() -> None:
    """A Variable without gradient, and what can't be called."""
    with pytest.raises(GraphError, match="gets no feedback"):
        afnio.Variable("x").register_hook(print)
    with pytest.raises(TypeError, match="a hook must be a callable"):
        leaf().register_hook("x")  # type: ignore[arg-type]


def test_roots_targets_and_captured_gradients() -> None:
    """A hook sees the seed at the root; `grad` and `inputs=` go past hooks as `backward` does."""
    prompt, other = leaf(), leaf("o", "other")
    prompt.register_hook(lambda g: g.data + "p")
    other.register_hook(lambda g: pytest.fail("not a target"))
    output = Pass.apply(prompt, other)
    output.register_hook(lambda g: g.data + "r")
    ((found,),) = grad(output, prompt, afnio.Variable("f"), retain_graph=True)
    assert found.data == "frp"
    middle = Pass.apply(prompt)
    middle.register_hook(lambda g: g.data + "m")
    ((found,),) = grad(Pass.apply(middle), middle, afnio.Variable("f"))
    assert found.data == "fm"
    backward(output, afnio.Variable("f"), inputs=prompt)
    assert texts(prompt) == ["frp"]


def test_provenance_stays() -> None:
    """What a hook rewrites keeps the record of where it comes from."""
    prompt = leaf()
    prompt.register_hook(lambda g: "shorter")
    prediction = Pass.apply(prompt, afnio.Variable(["a"]))
    _, explanation = afnio.cognitive.functional.exact_match_evaluator(prediction, ["b"])
    explanation.backward()
    (gradient,) = prompt.grad
    assert gradient.data == "shorter"
    assert gradient.provenance[0]["target"] == "b"
