"""Add, Sum, Split and Stack: values, roles, feedback rules, errors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError
from afnio.models import set_backward_model_client
from afnio.testing import ScriptedClient

V = afnio.Variable


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("foo", "bar", "foobar"),
        (1, 2.5, 3.5),
        (["a", None], ["b", "c"], ["ab", None]),
        (["a", "b"], "!", ["a!", "b!"]),
        (1, [1, 2], [2, 3]),
        ([], "x", []),
    ],
)
def test_add(x: Any, y: Any, expected: Any) -> None:
    """Numbers are summed and texts joined, per sample; a scalar is shared."""
    total = cog.functional.add(V(x, role="x"), V(y, role="y"))
    assert (expected, "x and y") == (total.data, total.role)


def test_add_errors() -> None:
    """Mixed kinds and what is no Variable are TypeErrors at the launch line."""
    with pytest.raises(TypeError, match="strings or numbers"):
        V("a") + V(1)
    with pytest.raises(TypeError, match="wrap it"):
        V("a") + "b"  # type: ignore[operator]
    later = V(["a"]).map(len)
    with pytest.raises((TypeError, BatchError)):  # the launch line, unless the value isn't there yet
        (later + V(["b"])).data


def test_add_feedback() -> None:
    """Each part hears the feedback on the whole, led in by its role."""
    x, y = V("a", role="greeting", requires_grad=True), V("b", role="name")
    (x + y).backward(V("too short"))
    (gradient,) = x.grad
    assert gradient.role == "feedback to greeting"
    assert gradient.data.startswith("The greeting ")
    assert gradient.data.endswith("too short")
    assert y.grad == []


def test_sum() -> None:
    """Texts stand in items, numbers add up; every item that needs it gets the feedback."""
    x, y = V("a", role="x", requires_grad=True), V("b", role="y", requires_grad=True)
    total = cog.functional.sum([x, y, x])
    assert total.data == "<ITEM>a</ITEM><ITEM>b</ITEM><ITEM>a</ITEM>"
    total.backward(V("more"))
    assert (len(x.grad), len(y.grad)) == (1, 1)
    assert cog.functional.sum([V([1, 2]), V([2, 3])]).data == [3, 5]
    for bad in ([], "ab", V("a")):
        with pytest.raises(TypeError, match="Sum takes"):
            cog.functional.sum(bad)  # type: ignore[arg-type]


def test_split() -> None:
    """Parts are padded, keep missing samples, carry feedback in their order."""
    x = V(["a,b", None, "c"], role="x", requires_grad=True)
    first, second = cog.functional.split(x, ",")
    assert (first.data, second.data) == (["a", None, "c"], ["b", None, ""])
    assert (second.role, second.output_nr) == ("split part 1 of x", 1)
    second.backward(V(["1", "2", "3"]))
    (gradient,) = x.grad
    assert [isinstance(text, str) for text in gradient.data] == [True, False, True]
    assert gradient.data[0].endswith("<ITEM></ITEM><ITEM>1</ITEM>")
    assert [part.data for part in cog.functional.split(V("a,b,c"), V(","), V(1))] == ["a", "b,c"]


@pytest.mark.parametrize(("args", "match"), [((1,), "sep"), ((",", "x"), "maxsplit"), (("",), "sep")])
def test_split_errors(args: Any, match: str) -> None:
    """Bad separators and limits are TypeErrors; so is splitting numbers."""
    with pytest.raises(TypeError, match=match):
        cog.functional.split(V("a"), *args)
    with pytest.raises(TypeError, match="strings"):
        cog.functional.split(V([1]))


def test_a_list_of_scalars_is_a_batch() -> None:
    """As an input of a chat; each scalar gets the feedback on its own lanes."""

    def critic(request: Any) -> str:
        (feedback,) = re.findall(r"<feedback>\n(.*)\n</feedback>", request.messages[1]["content"])
        return json.dumps({"feedback": [{"variable": "v1", "text": feedback}]})

    set_backward_model_client(ScriptedClient(critic), completion_args={"model": "m"})
    x, y = V("a", role="x", requires_grad=True), V("b", role="y", requires_grad=True)
    client = ScriptedClient(lambda request: request.messages[0]["content"])
    messages = [{"role": "user", "content": [V("{text}")]}]
    batch = cog.functional.chat_completion(client, messages, {"text": [x, y, x]}, model="m")
    assert batch.data == ["a", "b", "a"]
    batch.backward(V(["1", "2", "3"]))
    assert [[g.data for g in v.grad] for v in (x, y)] == [["1", "3"], ["2"]]
    with pytest.raises(ValueError, match="stack takes scalars"):
        cog.functional.chat_completion(client, messages, {"text": [V(["a"])]}, model="m")
