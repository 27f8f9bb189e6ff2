"""Variables: data rules, the mutable face, what reads, what never waits."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from typing import Any

import pytest

import afnio
from afnio.errors import BatchError, GraphError


@pytest.mark.parametrize(
    ("data", "expected", "shape"),
    [
        ("a", "a", ()),
        (1, 1, ()),
        (True, True, ()),
        (None, None, ()),
        ([], [], (0,)),
        (["a", None], ["a", None], (2,)),
        ([1, 2.5, True], [1.0, 2.5, 1.0], (3,)),
        ([[1, 2], [3]], [[1, 2], [3]], (2, "j")),
        ([["a"], ["b"]], [["a"], ["b"]], (2, 1)),
    ],
)
def test_data_and_shape(data: Any, expected: Any, shape: Any) -> None:
    """What a Variable holds, and its shape."""
    variable = afnio.Variable(data)
    assert variable.data == expected
    assert str(shape).replace("'", "") == str(variable.shape)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (("a",), "tuple.*list"),
        ([("a",)], "tuple"),
        (["a", 1], "strings or numbers, not both"),
        ([["a"], [1.0]], "not both"),
        ({"a": 1}, "a dict"),
        ([object()], "object"),
        (b"a", "bytes"),
    ],
)
def test_bad_data(data: Any, match: str) -> None:
    """What a Variable can't hold is a TypeError with the value and the fix, on construction and assignment."""
    with pytest.raises(TypeError, match=match):
        afnio.Variable(data)
    with pytest.raises(TypeError, match=match):
        afnio.Variable("a").data = data


def test_nothing_waits_by_accident() -> None:
    """Truth, length and iteration are TypeErrors that say what to write."""
    variable = afnio.Variable(["a"])
    for act, word in [(bool, "truth"), (len, r"\.data"), (iter, "for value in")]:
        with pytest.raises(TypeError, match=word):
            act(variable)


def test_identity() -> None:
    """Variables are equal to themselves alone, and can be keys."""
    a, b = afnio.Variable("x"), afnio.Variable("x")
    assert a != b
    assert len({a, b}) == 2


def test_assignment_points_to_new_values() -> None:
    """An op that was launched before an assignment keeps what it saw."""
    x = afnio.Variable("old", role="x")
    before = x + afnio.Variable("!")
    x.data = "new"
    after = x + afnio.Variable("!")
    assert (before.data, after.data) == ("old!", "new!")


def test_each_consumer_speaks_of_what_it_saw() -> None:
    """Edges keep the value that their consumer captured, before or after an assignment."""
    seen: list[tuple[str, Any]] = []

    class Judge(afnio.autodiff.Function):
        @staticmethod
        def forward(ctx, text):
            ctx.text = text
            return text

        @staticmethod
        def backward(ctx, feedback):
            return feedback

    class Source(afnio.autodiff.Function):
        @staticmethod
        def forward(ctx, text):
            return text + "!"

        @staticmethod
        def backward(ctx, feedback):
            seen.extend((f.text, f.seen) for f in ctx.feedback[0])
            return feedback

    source = Source.apply(afnio.Variable("a", requires_grad=True))
    assert source.data == "a!"
    first = Judge.apply(source)
    source.data = "edited"
    second = Judge.apply(source)
    afnio.autodiff.backward([first, second], [afnio.Variable("one"), afnio.Variable("two")])
    assert sorted(seen) == [("one", "a!"), ("two", "edited")]


def test_output_keeps_its_lanes() -> None:
    """Assigning another number of samples to an op's output names `map`."""
    out = afnio.Variable(["a", "b"]).map(str.upper)
    out.data = ["x", "y"]
    assert out.data == ["x", "y"]
    for data in (["x"], "x"):
        with pytest.raises(ValueError, match=r"2 samples.*map"):
            out.data = data
    with pytest.raises(ValueError, match="one value"):
        (afnio.Variable("a") + afnio.Variable("b")).data = ["x"]


def failing(value: str) -> str:
    if value == "bad":
        raise ValueError("no luck")
    return value.upper()


def test_failed_sample_stays_failed() -> None:
    """None assigned to a failed sample doesn't make it merely missing."""
    out = afnio.Variable(["a", "bad"]).map(failing)
    with afnio.tolerate(quorum=0.5):
        out.data = [None if value is None else value + "!" for value in out.data]
        assert out.data == ["A!", None]
    assert list(out.errors) == [1]


def test_batch_error_names_samples_node_and_line() -> None:
    """Reading failed samples raises one error that says which, where, and why."""
    out = afnio.Variable(["bad", "a", "bad"], role="x").map(failing)
    with pytest.raises(BatchError, match=r"2 of 3 samples of Map launched at .*test_variable.py") as caught:
        out.data
    assert caught.value.samples == (0, 2)
    assert "sample 0" in caught.value.exceptions[0].__notes__[0]


def test_error_can_be_raised_again() -> None:
    """Reading twice raises twice, with a traceback that doesn't grow."""
    out = afnio.Variable("bad").map(failing)
    lengths = []
    for _ in range(3):
        with pytest.raises(ValueError, match="no luck") as caught:
            out.data
        lengths.append(len(list(caught.traceback)))
    assert len(set(lengths)) == 1


def test_quorum() -> None:
    """Below the quorum of the non-missing samples a read raises all the same."""
    out = afnio.Variable(["bad", "a", None]).map(failing)
    with afnio.tolerate(quorum=0.5):
        assert out.data == [None, "A", None]
    with afnio.tolerate(quorum=0.9), pytest.raises(BatchError, match=r"quorum=0\.9"):
        out.data
    with pytest.raises(ValueError, match="got 2"):
        afnio.tolerate(quorum=2)


def test_copy_and_cast() -> None:
    """copy_, to, detach, deepcopy and pickle give values, and leaves."""
    x = afnio.Variable(["1", None], role="x", requires_grad=True)
    assert x.to(int).data == [1, None]
    y = afnio.Variable(["a", "b"], role="y")
    assert y is y.copy_(x)
    assert (y.data, y.role, y.requires_grad) == (["1", None], "x", True)
    with pytest.raises(ValueError, match=r"\(1,\)"):
        y.copy_(afnio.Variable(["a"]))
    with pytest.raises(TypeError, match="got 'a'"):
        y.copy_("a")  # type: ignore[arg-type]
    for clone in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert (clone.data, clone.role, clone.requires_grad) == (["1", None], "x", True)
    out = x.map(str)
    with pytest.raises(GraphError, match="detach"):
        copy.deepcopy(out)
    assert copy.deepcopy(out.detach()).is_leaf


def test_grad_of_an_output_needs_retain_grad() -> None:
    """An op's output gathers no feedback unless asked to."""
    x = afnio.Variable("a", requires_grad=True)
    out = x.map(str.upper)
    with pytest.raises(GraphError, match="retain_grad"):
        out.grad
    out.retain_grad()
    out.map(str.lower).backward(afnio.Variable("f"))
    assert [g.data for g in out.grad] == ["f"]
    assert [g.data for g in x.grad] == ["f"]


def test_grad_can_be_set_and_appended() -> None:
    """Gradients are Variables in a list; anything else is a TypeError."""
    x = afnio.Variable("a", role="x", requires_grad=True)
    x.append_grad(afnio.Variable("one"))
    x.grad = [*x.grad, afnio.Variable("two")]
    assert [(g.data, g.role) for g in x.grad] == [("one", "feedback to x"), ("two", "feedback to x")]
    for bad in ("one", ["one"]):
        with pytest.raises(TypeError, match="list of Variables"):
            x.grad = bad  # type: ignore[assignment]
    with pytest.raises(TypeError, match="wrap it"):
        x.append_grad("one")  # type: ignore[arg-type]
    x.clear_grad()
    assert x.grad == []


def test_in_place_add_keeps_the_variable() -> None:
    """`+=` changes the Variable that it is given."""
    x = y = afnio.Variable("a", role="x", requires_grad=True)
    x += afnio.Variable("b", role="y")
    assert x is y
    assert (x.data, x.role, x.is_leaf) == ("ab", "x and y", False)


def test_bind_is_local_and_nests() -> None:
    """Bound values are seen in the block alone; assignment in it is refused."""
    x, y = afnio.Variable("x"), afnio.Variable("y")
    with afnio.bind({x: "1"}):
        with afnio.bind({y: x}):
            assert (x.data, y.data) == ("1", "1")
            assert (x + y).data == "11"
        assert (x.data, y.data) == ("1", "y")
        with pytest.raises(RuntimeError, match="bound"):
            x.data = "2"
    assert x.data == "x"
    with pytest.raises(TypeError, match="must be Variables"), afnio.bind({"x": "1"}):  # type: ignore[dict-item]
        pass


def test_map() -> None:
    """map works per sample, keeps missing ones, takes any callable, and refuses what is none."""

    async def later(value: str) -> str:
        return value + "?"

    x = afnio.Variable(["a", None], role="x")
    assert x.map(later).data == ["a?", None]
    assert x.map(str).role == "x"
    assert x.map(str, role="y").role == "y"
    with pytest.raises(TypeError, match="got 3"):
        x.map(3)  # type: ignore[arg-type]
    with pytest.raises(BatchError):
        x.map(lambda value: {"no": value}).data


class Scalar:
    """A number as NumPy, Torch and others have them: an array without axes."""

    shape = ()

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        return self.value


class Index:
    """What can stand in for a whole number."""

    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (Scalar(7), 7),
        (Scalar(True), True),
        ([Scalar(1), Scalar(2.5), None], [1.0, 2.5, None]),
        (Fraction(1, 4), 0.25),
        ([Index(), 4], [3, 4]),
        ([[Scalar("a")], ["b"]], [["a"], ["b"]]),
    ],
)
def test_numbers_of_other_libraries_become_pythons_own(data: Any, expected: Any) -> None:
    """On construction and on assignment, whatever their depth."""
    variable = afnio.Variable(data)
    assert variable.data == expected
    assert repr(expected) == repr(variable.data)
    variable.data = data
    assert repr(expected) == repr(variable.data)


@pytest.mark.parametrize("name", ["int64", "float32", "float64", "longdouble", "bool_", "array"])
def test_numpys_numbers(name: str) -> None:
    """As far as it is installed."""
    numpy = pytest.importorskip("numpy")
    number = getattr(numpy, name)(1)
    assert (afnio.Variable(number).data, afnio.Variable([number, 1]).data) == (1, [1, 1])
    assert type(afnio.Variable(number).data) in (int, float, bool)
    with pytest.raises(TypeError, match="convert it first"):
        afnio.Variable(numpy.array([1, 2]))
