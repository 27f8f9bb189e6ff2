"""Custom Functions: colours, several outputs, batched ones, wrong returns."""

from __future__ import annotations

from typing import Any

import pytest
from kit.roles import comment, play, shown, variables

import afnio
from afnio.autodiff import Function
from afnio.errors import BatchError, BudgetExceeded
from afnio.testing import ScriptedClient


class Both(Function):
    outputs = ("upper", "length")

    @staticmethod
    def forward(ctx, text):
        ctx.save_for_backward(text)
        return text.upper(), len(text)

    @staticmethod
    def backward(ctx, upper, length):
        (text,) = ctx.saved_values
        return f"{text}: {upper}, {length}"


def test_several_outputs() -> None:
    """Several outputs come as a named tuple that can be awaited; each has its number and feedback."""
    x = afnio.Variable("ab", requires_grad=True)
    upper, length = outputs = Both.apply(x)
    assert (upper.data, length.data, upper.output_nr, length.output_nr) == ("AB", 2, 0, 1)
    assert outputs.upper.role == "upper of Both"
    length.backward(afnio.Variable("too short"))
    assert [g.data for g in x.grad] == ["ab: None, too short"]

    async def main() -> Any:
        return (await Both.apply(afnio.Variable("abc"))).length.data

    assert afnio.run(main()) == 3


def test_async_forward_and_backward() -> None:
    """`async def` bodies run on the runtime's loop."""

    class Later(Function):
        @staticmethod
        async def forward(ctx, text, suffix):
            return text + suffix

        @staticmethod
        async def backward(ctx, feedback):
            return feedback, None

    x = afnio.Variable(["a", "b"], requires_grad=True)
    out = Later.apply(x, "!")
    assert out.data == ["a!", "b!"]
    out.backward(afnio.Variable("f"))
    assert [g.data for g in x.grad] == [["f", "f"]]


def test_batched_gets_lists() -> None:
    """A batched forward is a barrier over the samples that have values."""

    class Rank(Function):
        batched = True

        @staticmethod
        def forward(ctx, values, prefix):
            order = sorted(values)
            return [f"{prefix}{order.index(value)}" for value in values]

        @staticmethod
        def backward(ctx, feedback):
            return feedback, None

    x = afnio.Variable([3, None, 1], requires_grad=True)
    out = Rank.apply(x, afnio.Variable("#"))
    assert out.data == ["#1", None, "#0"]
    out.backward(afnio.Variable(["a", "b", "c"]))
    assert [g.data for g in x.grad] == [["a", None, "c"]]


def test_structured_arguments() -> None:
    """Variables in lists and dicts are replaced by values; other arguments arrive as they are."""
    marker = object()

    class Take(Function):
        @staticmethod
        def forward(ctx, items, *, options, marker):
            return f"{items} {sorted(options.items())} {marker is not None}"

    x = afnio.Variable("x")
    assert Take.apply([x, 1], options={"a": x}, marker=marker).data == "['x', 1] [('a', 'x')] True"


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (lambda text: {"a": 1}, "a dict"),
        (lambda text: (text, text), "tuple"),
    ],
)
def test_wrong_value(returned: Any, match: str) -> None:
    """A forward that returns what no Variable holds fails, with its launch line as a note."""

    class Wrong(Function):
        @staticmethod
        def forward(ctx, text):
            return returned(text)

    with pytest.raises(TypeError, match=match) as caught:
        Wrong.apply(afnio.Variable("a")).data
    assert "test_function.py" in caught.value.__notes__[0]


def test_wrong_number_of_outputs_and_gradients() -> None:
    """Errors say how many values were needed and how many came."""

    class Two(Function):
        outputs = ("a", "b")

        @staticmethod
        def forward(ctx, text):
            return (text,)

    with pytest.raises(ValueError, match="must return 2 values, a, b"):
        Two.apply(afnio.Variable("x")).a.data

    class Short(Function):
        @staticmethod
        def forward(ctx, x, y):
            return x

        @staticmethod
        def backward(ctx, feedback):
            return (feedback,)

    out = Short.apply(afnio.Variable("x", requires_grad=True), "y")
    with pytest.raises(ValueError, match="must return 2 values"):
        out.backward(afnio.Variable("f"))


def test_not_instantiated() -> None:
    """A Function is applied, not made."""
    with pytest.raises(RuntimeError, match=r"Both\.apply"):
        Both()


def test_unequal_batches() -> None:
    """Batches of unequal length are a ValueError that names them; one sample isn't stretched."""
    x, y = afnio.Variable(["a", "b"], role="left"), afnio.Variable(["a"], role="right")
    with pytest.raises(ValueError, match="'left' has 2, 'right' has 1"):
        x + y


def test_system_exit_in_a_callable_is_a_failure() -> None:
    """A callable that raises SystemExit ends its lane, not the engine."""

    def leave(value: str) -> str:
        raise SystemExit(3)

    with pytest.raises(BatchError, match="1 of 1"):
        afnio.Variable(["a"]).map(leave).data
    assert (afnio.Variable("A") + afnio.Variable("B")).data == "AB"


def test_batched_on_an_empty_batch() -> None:
    """A batched op on no samples makes no call and is empty."""

    class Never(Function):
        batched = True

        @staticmethod
        def forward(ctx, values):
            raise AssertionError("called")

    assert Never.apply(afnio.Variable([])).data == []


def test_batched_saves_for_every_lane() -> None:
    """What a batched forward saves, each lane's backward reads."""

    class Total(Function):
        batched = True

        @staticmethod
        def forward(ctx, values):
            ctx.save_for_backward(sum(values))
            return values

        @staticmethod
        def backward(ctx, feedback):
            return f"{feedback} of {ctx.saved_values[0]}"

    x = afnio.Variable([1, 2], requires_grad=True)
    Total.apply(x).backward(afnio.Variable("f"))
    assert [g.data for g in x.grad] == [["f of 3", "f of 3"]]


def test_backward_may_return_variables_and_constant_lists() -> None:
    """Variables in what backward returns are awaited; a list of its own is left as it is."""
    constant = ["x", "y"]

    class Two(Function):
        @staticmethod
        def forward(ctx, parts, last):
            return "".join(parts) + last

        @staticmethod
        def backward(ctx, feedback):
            return constant, afnio.Variable("z") + afnio.Variable("!")

    a, b = afnio.Variable(["1", "2"], requires_grad=True), afnio.Variable("b", requires_grad=True)
    c = afnio.Variable("c", requires_grad=True)
    Two.apply([a, b], c).backward(afnio.Variable("f"))
    assert [[g.data for g in v.grad] for v in (a, b, c)] == [[["x", "x"]], ["y", "y"], ["z!", "z!"]]
    assert constant == ["x", "y"]


def test_strange_exceptions_end_their_lane() -> None:
    """An exception with a broken `__notes__`, or one that all lanes share, still reaches the reader."""
    error = ValueError("no luck")
    error.__notes__ = "not a list"  # type: ignore[assignment]

    def fails(value: str) -> str:
        raise error

    for _ in range(2):
        with pytest.raises(ValueError, match="no luck"):
            afnio.Variable("a").map(fails).data
    shared = ValueError("shared")

    def shares(value: str) -> str:
        raise shared

    with pytest.raises(BatchError):
        afnio.Variable(["a"] * 100).map(shares).data
    assert len(shared.__notes__) == 1


# Without a backward ------------------------------------------------------------------------------


def critic() -> ScriptedClient:
    client = ScriptedClient(play(critic=comment(lambda v: f"mend {v.attributes['name']}")))
    afnio.set_backward_model_client(client, completion_args={"model": "b"})
    return client


MODEL = ScriptedClient("said")


class Asking(Function):
    """Asks a model, and leaves its feedback to the critic."""

    @staticmethod
    async def forward(ctx, prompt, text, *, times):
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
        return "".join([str(await MODEL.achat(messages=messages, model="m")) for _ in range(times)])


def test_a_function_without_backward_has_a_critic_of_its_calls() -> None:
    """One call for each sample with feedback, about all Variables that want some."""
    asked = critic()
    prompt = afnio.Variable("Be brief.", role="prompt", requires_grad=True)
    texts = afnio.Variable(["a", "b"], role="texts", requires_grad=True)
    Asking.apply(prompt, texts, times=2).backward(afnio.Variable(["too long", None]))
    assert len(asked.requests) == 1
    request = asked.requests[0]
    assert [(v.attributes["name"], v.attributes["seen_in"]) for v in variables(request)] == [
        ("prompt", "1 2"),
        ("text", "1 2"),
    ]
    assert (shown(request, "agent_output"), shown(request, "feedback")) == (["saidsaid"], ["too long"])
    assert (
        [g.data for g in prompt.grad],
        [g.data for g in texts.grad],
    ) == (["mend prompt"], [["mend text", None]])


def test_outputs_of_several_and_batched_functions_reach_the_critic() -> None:
    class Pair(Function):
        outputs = ("first", "second")

        @staticmethod
        def forward(ctx, text):
            return text.upper(), text.lower()

    class Sorted(Function):
        batched = True

        @staticmethod
        def forward(ctx, texts):
            return sorted(texts)

    class Quick(Function):
        inline = True

        @staticmethod
        def forward(ctx, *texts):
            return "".join(texts)

    critic()
    x, y = (afnio.Variable(data, requires_grad=True) for data in ("Ab", ["b", "a"]))
    Pair.apply(x).second.backward(afnio.Variable("f"))
    Sorted.apply(y).backward(afnio.Variable(["f", None]))
    assert ([g.data for g in x.grad], [g.data for g in y.grad]) == (["mend text"], [["mend texts", None]])
    z = afnio.Variable("z", requires_grad=True)
    Quick.apply(z, "!").backward(afnio.Variable("f"))
    assert len(z.grad) == 1


def test_without_a_backward_model_backward_says_so_at_its_line() -> None:
    out = Asking.apply(afnio.Variable("p", requires_grad=True), "a", times=1)
    with pytest.raises(RuntimeError, match="no backward model has been set"):
        out.backward(afnio.Variable("f"))
    assert out.data == "said"


def test_a_budget_that_ends_in_forward_ends_the_lane() -> None:
    class Careless(Function):
        @staticmethod
        async def forward(ctx, text):
            try:
                return str(await MODEL.achat(messages=[{"role": "user", "content": text}], model="m"))
            except Exception:
                return "made up"

    with afnio.budget(max_calls=0), pytest.raises(BudgetExceeded):
        Careless.apply(afnio.Variable("a", requires_grad=True)).data
