"""Held-out samples, from whatever holds them, as a gate and a search get them."""

from __future__ import annotations

import pytest

import afnio.cognitive as cog
from afnio.optim import Gate
from afnio.utils.data import DataLoader, Dataset


class Letters(Dataset[str]):
    def __getitem__(self, index):
        return "abcdefghijkl"[index]

    def __len__(self):
        return 12


def batches(rows):
    """Return the batches that `evaluate` gets from a gate with these rows."""
    got, prompt = [], cog.Parameter("old", role="prompt")

    def evaluate(batch):
        got.append(batch)
        return [1.0] * 12

    gate = Gate(evaluate, rows, seed=0)
    gate.start([prompt]).wait()
    prompt.data = "new"
    gate.judge().wait()
    return got


@pytest.mark.parametrize(
    "rows", [Letters(), list("abcdefghijkl"), DataLoader(Letters(), shuffle=True, seed=3, batch_size=2)]
)
def test_rows_come_from_whatever_holds_them(rows):
    """A loader's own order and batch size don't matter."""
    assert batches(rows) == [list("abcdefghijkl")] * 2


@pytest.mark.parametrize("container", [list, tuple, DataLoader])
def test_rows_come_in_batches_as_from_a_loader(container):
    """A list of samples is no list of batches: `evaluate` never gets a bare sample."""
    rows = container([(letter, number) for number, letter in enumerate("abcdefghijkl")])
    assert batches(rows) == [(list("abcdefghijkl"), list(range(12)))] * 2


@pytest.mark.parametrize(("rows", "error"), [(iter([1]), TypeError), ("text", TypeError), ([], ValueError)])
def test_rows_that_cannot_be_drawn_from_are_refused(rows, error):
    """An iterator could be read once only, and a text would be taken apart."""
    with pytest.raises(error, match="held-out data"):
        Gate(len, rows)
