"""The backward pass: seeds, pruning, claims, accumulation, order."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

import afnio
from afnio.autodiff import Function, backward, grad
from afnio.errors import BatchError, GraphError


class Tag(Function):
    """Passes feedback on with its name in front; records its calls."""

    @staticmethod
    def forward(ctx, name, calls, *parts):
        ctx.name, ctx.calls = name, calls
        return f"{name}({','.join(parts)})"

    @staticmethod
    def backward(ctx, feedback):
        ctx.calls.append(ctx.name)
        return (None, None, *[f"{ctx.name}:{feedback}"] * (len(ctx.needs_input_grad) - 2))


def leaf(name: str, **kwargs: Any) -> afnio.Variable:
    return afnio.Variable(name, role=name, requires_grad=True, **kwargs)


def texts(variable: afnio.Variable) -> list[Any]:
    return [gradient.data for gradient in variable.grad]


def test_diamond() -> None:
    """A leaf that two nodes use gets one gradient of each, in launch order; a node used twice speaks once."""
    calls: list[str] = []
    a = leaf("a")
    top = Tag.apply("top", calls, a)
    left, right = Tag.apply("left", calls, top, a), Tag.apply("right", calls, top)
    Tag.apply("end", calls, left, right).backward(afnio.Variable("f"))
    assert [calls[0], calls[-1]] == ["end", "top"]
    assert len(calls) == 4
    assert texts(a) == ["top:left:end:f\nright:end:f", "left:end:f"]


def test_used_twice_by_one_node_is_one_edge() -> None:
    """A Variable that a node is given twice gets its feedback once."""
    calls: list[str] = []
    a = leaf("a")
    Tag.apply("n", calls, a, a).backward(afnio.Variable("f"))
    assert texts(a) == ["n:f"]
    assert len(calls) == 1


def test_second_backward_raises_on_its_own_line() -> None:
    """The graph is freed by the first pass, unless it is retained."""
    a = leaf("a")
    out = Tag.apply("n", [], a)
    out.backward(afnio.Variable("1"), retain_graph=True)
    out.backward(afnio.Variable("2"))
    with pytest.raises(GraphError, match=r"second time.*retain_graph=True"):
        out.backward(afnio.Variable("3"))
    assert texts(a) == ["n:1", "n:2"]


def test_a_refused_pass_claims_nothing() -> None:
    """A pass that meets a claimed node leaves the others free."""
    a = leaf("a")
    shared = Tag.apply("shared", [], a)
    first, second = Tag.apply("first", [], shared), Tag.apply("second", [], shared, a)
    first.backward(afnio.Variable("1"))
    for _ in range(2):
        with pytest.raises(GraphError, match="SharedBackward0|TagBackward0"):
            second.backward(afnio.Variable("2"))


@pytest.mark.parametrize(
    ("start", "seed", "match"),
    [
        (lambda: leaf("a"), None, "leaf"),
        (lambda: afnio.Variable("a") + afnio.Variable("b"), None, "leaf"),
        (lambda: Tag.apply("n", [], leaf("a")), None, "only evaluators"),
        (lambda: leaf("a") + leaf("b"), None, "only evaluators"),
    ],
)
def test_bad_starts(start: Any, seed: Any, match: str) -> None:
    """A pass starts at an op's output, with a seed unless an evaluator has its own."""
    with pytest.raises(GraphError, match=match):
        start().backward(seed)


def test_bad_seeds() -> None:
    """A seed is a Variable, one text or one for each sample; create_graph isn't supported."""
    out = Tag.apply("n", [], leaf("a"))
    with pytest.raises(TypeError, match="wrap it"):
        out.backward("f")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one text"):
        out.backward(afnio.Variable(["f", "g"]))
    with pytest.raises(GraphError, match="create_graph"):
        out.backward(afnio.Variable("f"), create_graph=True)
    with pytest.raises(ValueError, match="2 variables"):
        backward([out, out], [afnio.Variable("f")])


def test_inputs_prune() -> None:
    """With `inputs`, a node that leads to none of them isn't called, and nobody else gathers."""
    calls: list[str] = []
    a, b = leaf("a"), leaf("b")
    left, right = Tag.apply("left", calls, a), Tag.apply("right", calls, b)
    Tag.apply("end", calls, left, right).backward(afnio.Variable("f"), inputs=[a])
    assert calls == ["end", "left"]
    assert (texts(a), texts(b)) == (["left:end:f"], [])


def test_grad_returns_without_adding() -> None:
    """`grad` hands the feedback back and leaves `.grad` alone; it reaches op outputs too."""
    a, b = leaf("a"), leaf("b")
    middle = Tag.apply("middle", [], a)
    out = Tag.apply("end", [], middle, b)
    found = grad(out, [a, middle, b], afnio.Variable("f"))
    assert [[g.data for g in gs] for gs in found] == [["middle:end:f"], ["end:f"], ["end:f"]]
    assert [texts(a), texts(b)] == [[], []]


def test_batch_leaf_is_aligned() -> None:
    """A batch leaf has one gradient for each consumer, aligned to its samples; a shared scalar one a sample."""
    x, p = afnio.Variable(["x", None, "z"], role="x", requires_grad=True), leaf("p")
    out = Tag.apply("n", [], x, p)
    out.backward(afnio.Variable(["1", "2", "3"]))
    assert texts(x) == [["n:1", None, "n:3"]]
    assert texts(p) == ["n:1", "n:3"]


def test_scalar_between_batches_speaks_once() -> None:
    """A scalar op that samples share runs its backward once, with the feedback of all of them in order."""
    calls: list[str] = []
    p = leaf("p")
    shared = Tag.apply("shared", calls, p)
    out = Tag.apply("n", [], afnio.Variable(["a", "b", None]), shared)
    out.backward(afnio.Variable(["1", "2", "3"]))
    assert calls == ["shared"]
    assert texts(p) == ["shared:n:1\nn:2"]


def test_no_feedback_no_call() -> None:
    """Upstream of a node that says nothing, nothing is called."""
    calls: list[str] = []

    class Silent(Function):
        @staticmethod
        def forward(ctx, text):
            return text

        @staticmethod
        def backward(ctx, feedback):
            return None

    a = leaf("a")
    Silent.apply(Tag.apply("n", calls, a)).backward(afnio.Variable("f"))
    assert (calls, texts(a)) == ([], [])


def test_failed_backward_adds_nothing() -> None:
    """If one sample's backward fails, no leaf gets the others' half; with a quorum they do."""

    class Picky(Function):
        @staticmethod
        def forward(ctx, text, p):
            ctx.text = text
            return text

        @staticmethod
        def backward(ctx, feedback):
            if ctx.text == "bad":
                raise ValueError("no luck")
            return None, feedback

    p = leaf("p")
    data = afnio.Variable(["a", "bad", "c"])
    with pytest.raises(BatchError, match="1 of 3 samples of PickyBackward0"):
        Picky.apply(data, p).backward(afnio.Variable("f"))
    assert texts(p) == []
    with afnio.tolerate(quorum=0.5):
        Picky.apply(data, p).backward(afnio.Variable("f"))
    assert texts(p) == ["f", "f"]


def test_no_grad_records_nothing() -> None:
    """Under no_grad an output is a leaf that needs no gradient."""
    with afnio.no_grad():
        out = Tag.apply("n", [], leaf("a"))
    assert (out.is_leaf, out.requires_grad, out.grad_fn) == (True, False, None)


def test_deep_graph() -> None:
    """A chain of 3,000 ops neither recurses forward nor backward."""

    class Pass(Function):
        inline = True

        @staticmethod
        def forward(ctx, text):
            return text

        @staticmethod
        def backward(ctx, feedback):
            return feedback

    a = leaf("a")
    out = a
    for _ in range(3_000):
        out = Pass.apply(out)
    assert out.data == "a"
    out.backward(afnio.Variable("f"))
    assert len(a.grad) == 1


def test_graph_is_freed() -> None:
    """After a pass nothing keeps the graph's nodes or intermediate Variables alive."""
    a = leaf("a")
    middle = Tag.apply("middle", [], a)
    out = Tag.apply("end", [], middle)
    nodes = [weakref.ref(middle.grad_fn), weakref.ref(out.grad_fn)]
    out.backward(afnio.Variable("f"))
    del middle, out
    gc.collect()
    assert [node() for node in nodes] == [None, None]
    assert texts(a) == ["middle:end:f"]


def test_clear_grad_drops_what_is_late() -> None:
    """Feedback that arrives after clear_grad goes nowhere."""
    import threading

    go = threading.Event()

    class Slow(Function):
        @staticmethod
        def forward(ctx, text):
            return text

        @staticmethod
        def backward(ctx, feedback):
            assert go.wait(60)
            return feedback

    async def main() -> list[Any]:
        a = leaf("a")
        work = Slow.apply(a).backward(afnio.Variable("f"))
        a.clear_grad()
        go.set()
        await work
        return texts(a)

    assert afnio.run(main()) == []


def test_graph_surface() -> None:
    """Nodes have names."""
    out = leaf("a") + afnio.Variable("b")
    node = out.grad_fn
    assert node is not None
    assert node.name() == "AddBackward0"
    assert out.output_nr == 0


def test_a_pass_that_keeps_the_graph_survives_one_that_frees_it() -> None:
    """A slow pass with retain_graph isn't hurt by a quick one that frees the graph meanwhile."""
    import threading

    go = threading.Event()

    class Wait(Function):
        @staticmethod
        def forward(ctx, text):
            return text

        @staticmethod
        def backward(ctx, feedback):
            if feedback == "slow":
                assert go.wait(60)
            return feedback

    async def main() -> list[Any]:
        a = leaf("a")
        out = Wait.apply(Tag.apply("n", [], a))
        slow = out.backward(afnio.Variable("slow"), retain_graph=True)
        await out.backward(afnio.Variable("quick"))
        go.set()
        await slow
        return texts(a)

    assert afnio.run(main()) == ["n:slow", "n:quick"]


def test_quorum_is_of_samples_not_of_consumers() -> None:
    """A lane with two consumers, of which one failed, sends nothing: never half of its feedback."""

    class Fails(Function):
        @staticmethod
        def forward(ctx, text):
            ctx.text = text
            return text

        @staticmethod
        def backward(ctx, feedback):
            if ctx.text == "bad":
                raise ValueError("no luck")
            return f"fails:{feedback}"

    x = afnio.Variable(["bad", "good"], role="x", requires_grad=True)
    shared = Tag.apply("shared", [], x).map(lambda text: "bad" if "bad" in text else "good")
    with afnio.tolerate(quorum=0.5):
        backward(
            [Fails.apply(shared), Tag.apply("other", [], shared)],
            [afnio.Variable("1"), afnio.Variable("2")],
        )
        (gradient,) = texts(x)
    assert gradient[0] is None
    assert gradient[1].count("\n") == 1


def test_several_nodes_that_fail_are_all_told_of() -> None:
    """Two branches whose backward fails are one group, and nothing is left unread."""

    class Fails(Function):
        @staticmethod
        def forward(ctx, text):
            return text

        @staticmethod
        def backward(ctx, feedback):
            raise ValueError(feedback)

    a, b = leaf("a"), leaf("b")
    with afnio.scope(), pytest.raises(ExceptionGroup) as caught:
        backward([Fails.apply(a), Fails.apply(b)], [afnio.Variable("1"), afnio.Variable("2")])
    assert sorted(str(error) for error in caught.value.exceptions) == ["1", "2"]


def test_a_wrong_seed_claims_nothing() -> None:
    """After a seed of the wrong length the right one works."""
    x = afnio.Variable(["a", "b"], role="x", requires_grad=True)
    out = Tag.apply("n", [], x)
    with pytest.raises(ValueError, match="3 samples"):
        out.backward(afnio.Variable(["1", "2", "3"]))
    out.backward(afnio.Variable(["1", "2"]))
    assert texts(x) == [["n:1", "n:2"]]


def test_threads_that_use_a_leaf_first_share_its_node() -> None:
    """However many threads launch on a fresh leaf at once, it is one target."""
    import threading

    for _ in range(20):
        a = leaf("a")
        barrier, outs = threading.Barrier(8), []

        def use(a: Any = a, barrier: Any = barrier, outs: Any = outs) -> None:
            barrier.wait()
            outs.append(Tag.apply("n", [], a))

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backward(outs, [afnio.Variable("f")] * 8, inputs=[a])
        assert len(texts(a)) == 8


def test_long_additions_stay_short() -> None:
    """In a chain of additions roles and feedback don't pile up, and it takes no quadratic time."""
    a = leaf("a")
    total = a
    for _ in range(1_000):
        total = total + afnio.Variable("", role="nothing")
    total.backward(afnio.Variable("f"))
    (text,) = texts(a)
    assert len(text) < 500
    assert len(total.role) <= 201


def test_seedless_sum_of_explanations() -> None:
    """What adds up explanations needs no seed either; one that adds anything else does."""
    import afnio.cognitive as cog

    a, b = leaf("a"), leaf("b")
    explanations = [cog.functional.exact_match_evaluator(x, "z").explanation for x in (a, b)]
    cog.functional.sum([explanations[0], explanations[1]]).backward()
    assert all("expected" in text for x in (a, b) for text in texts(x))
