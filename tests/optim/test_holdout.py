"""Held-out samples, from whatever holds them."""

from __future__ import annotations

import random

import pytest

from afnio.optim.search import Holdout
from afnio.utils.data import DataLoader, Dataset


class Letters(Dataset[str]):
    def __getitem__(self, index):
        return "abcdefgh"[index]

    def __len__(self):
        return 8


@pytest.mark.parametrize(
    "data", [Letters(), list("abcdefgh"), DataLoader(Letters(), shuffle=True, seed=3, batch_size=2)]
)
def test_samples_are_drawn_in_blocks(data):
    """A loader's own order and batch size don't matter; the same generator draws the same."""
    holdout = Holdout(data)
    drawn = [holdout.draw(random.Random(7), samples=6, block_size=4) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert [4, 2] == [len(block.units) for block in drawn[0]]
    letters = [letter for block in drawn[0] for letter in holdout.batch(block.units)]
    assert 6 == len(set(letters))


def test_of_few_samples_all_are_taken():
    """In blocks; blocks() keeps the order that it is given."""
    holdout = Holdout(Letters())
    assert 8 == sum(len(b.units) for b in holdout.draw(random.Random(0), samples=64, block_size=3))
    assert [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]] == [
        holdout.batch(b.units) for b in holdout.blocks(range(8), 3)
    ]


@pytest.mark.parametrize(
    "data", [[("a", 1), ("b", 2)], (("a", 1), ("b", 2)), DataLoader([("a", 1), ("b", 2)])]
)
def test_rows_come_in_batches_as_from_a_loader(data):
    """A list of samples is no list of batches: `evaluate` never gets a bare text."""
    holdout = Holdout(data)
    assert [(["b"], [2]), (["a"], [1])] == [holdout.batch(b.units) for b in holdout.blocks([1, 0], 1)]


@pytest.mark.parametrize(("data", "error"), [(iter([1]), TypeError), ("text", TypeError), ([], ValueError)])
def test_what_cannot_be_drawn_from_is_refused(data, error):
    """An iterator could be read once only, and a text would be taken apart."""
    with pytest.raises(error, match="held-out data"):
        Holdout(data)
