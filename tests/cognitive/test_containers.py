"""Containers register their modules by number."""

from __future__ import annotations

import pytest

import afnio.cognitive as cog
from afnio.autodiff import Variable


class Suffix(cog.Module):
    def __init__(self, text):
        super().__init__()
        self.text = cog.Parameter(text, role="suffix")

    def forward(self, value):
        return value + self.text


def test_a_sequence_hands_results_on():
    """Each module gets what the one before returned."""
    row = cog.Sequential(Suffix("a"), Suffix("b"))
    assert (row(Variable("x")).data, len(row), row[-1].text.data) == ("xab", 2, "b")
    assert [name for name, _ in row.named_parameters()] == ["0.text", "1.text"]
    assert [module.text.data for module in row] == ["a", "b"]


def test_an_empty_sequence_returns_what_it_got():
    """No module, no change."""
    value = Variable("x")
    assert value is cog.Sequential()(value)


def test_a_list_registers_its_modules():
    """A plain list of modules would not."""
    items = cog.ModuleList([Suffix("a")]).append(Suffix("b")).extend([Suffix("c")])
    assert (len(items), items[2].text.data) == (3, "c")
    assert list(items.state_dict()) == ["0.text", "1.text", "2.text"]
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        items(Variable("x"))
    with pytest.raises(IndexError):
        items[3]


def test_only_modules_go_in():
    """With the value that did not fit."""
    with pytest.raises(TypeError, match="'0' is one of the modules and can't become 'x'"):
        cog.ModuleList(["x"])


def test_a_dict_registers_its_modules_by_name():
    """In the order of insertion; replaced in place, taken out again."""
    parts = cog.ModuleDict({"b": Suffix("b"), "a": Suffix("a")})
    parts["c"] = Suffix("c")
    parts.update([("a", Suffix("A"))])
    assert list(parts.state_dict()) == ["b.text", "a.text", "c.text"]
    assert parts["a"](Variable("x")).data == "xA"
    assert (len(parts), list(parts), "a" in parts, "z" in parts) == (3, ["b", "a", "c"], True, False)
    assert list(parts.items()) == [("b", parts["b"]), ("a", parts["a"]), ("c", parts["c"])]
    assert (list(parts), ["b", "A", "c"]) == (list(parts.keys()), [m.text.data for m in parts.values()])
    taken = parts.pop("c")
    del parts["b"]
    assert (taken.text.data, list(parts)) == ("c", ["a"])
    parts.clear()
    assert parts.state_dict() == {}


def test_names_that_a_dict_refuses():
    """One that it hasn't got, one with a dot, one of its own attributes, and what is no module."""
    parts = cog.ModuleDict({"a": Suffix("a")})
    with pytest.raises(KeyError):
        parts["b"]
    for name, error in (("a.b", KeyError), ("forward", KeyError), (3, TypeError)):
        with pytest.raises(error):
            parts[name] = Suffix("x")
    with pytest.raises(TypeError, match="'a' is one of the modules and can't become 'x'"):
        parts["a"] = "x"
