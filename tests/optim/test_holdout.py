"""Held-out samples, from whatever holds them."""

from __future__ import annotations

import random

import pytest

import afnio
from afnio.optim.holdout import Holdout
from afnio.utils.data import DataLoader, Dataset


class Letters(Dataset[str]):
    def __getitem__(self, index):
        return "abcdefgh"[index]

    def __len__(self):
        return 8


@pytest.mark.parametrize("data", [Letters(), DataLoader(Letters(), shuffle=True, seed=3, batch_size=2)])
def test_samples_are_drawn_in_blocks(data):
    """A loader's own order and batch size don't matter; the same generator draws the same."""
    holdout = Holdout(data)
    drawn = [holdout.draw(random.Random(7), samples=6, block_size=4) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert [4, 2] == [holdout.size(block, 0) for block in drawn[0]]
    letters = [letter for block in drawn[0] for letter in holdout.batch(block.units)]
    assert 6 == len(set(letters))


def test_of_few_samples_all_are_taken():
    """In blocks; blocks() keeps the order that it is given."""
    holdout = Holdout(Letters())
    assert 8 == sum(len(b.units) for b in holdout.draw(random.Random(0), samples=64, block_size=3))
    assert [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]] == [
        holdout.batch(b.units) for b in holdout.blocks(range(8), 3)
    ]


def test_batches_are_taken_whole():
    """Each is a block; its size is that of the first list or Variable in it."""
    batches = [({"x": afnio.Variable(["a", "b", "c"])}, 1), (["d"], 2)]
    holdout = Holdout(batches)
    blocks = holdout.draw(random.Random(0), samples=64, block_size=16)
    assert {(0,): 3, (1,): 1} == {block.units: holdout.size(block, 9) for block in blocks}
    assert batches[1] is holdout.batch((1,))
    assert 9 == Holdout([object()]).size(blocks[0]._replace(units=(0,)), 9)


@pytest.mark.parametrize(("data", "error"), [(iter([1]), TypeError), ([], ValueError)])
def test_what_cannot_be_drawn_from_is_refused(data, error):
    """An iterator could be read once only."""
    with pytest.raises(error, match="held-out data"):
        Holdout(data)
