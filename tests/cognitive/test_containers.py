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
    assert ("xab", 2, "b") == (row(Variable("x")).data, len(row), row[-1].text.data)
    assert ["0.text", "1.text"] == [name for name, _ in row.named_parameters()]
    assert ["a", "b"] == [module.text.data for module in row]


def test_an_empty_sequence_returns_what_it_got():
    """No module, no change."""
    value = Variable("x")
    assert value is cog.Sequential()(value)


def test_a_list_registers_its_modules():
    """A plain list of modules would not."""
    items = cog.ModuleList([Suffix("a")]).append(Suffix("b")).extend([Suffix("c")])
    assert (3, "c") == (len(items), items[2].text.data)
    assert ["0.text", "1.text", "2.text"] == list(items.state_dict())
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        items(Variable("x"))
    with pytest.raises(IndexError):
        items[3]


def test_only_modules_go_in():
    """With the value that did not fit."""
    with pytest.raises(TypeError, match="'0' is one of the modules and can't become 'x'"):
        cog.ModuleList(["x"])
