"""Whole batches from a sampler of batches, and samples that have no index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from afnio.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler


class Stream(IterableDataset[int]):
    """Numbers from 0, counting how often it was begun."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.begun = 0

    def __iter__(self) -> Iterator[int]:
        self.begun += 1
        return iter(range(self.size))


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.size


def test_batches_of_indices() -> None:
    """The last one may be smaller, or is left out; the length agrees; a sampler without one says so."""
    for drop_last, expected in ((False, [[0, 1], [2, 3], [4]]), (True, [[0, 1], [2, 3]])):
        batches = BatchSampler(range(5), 2, drop_last)
        assert (expected, len(expected)) == (list(batches), len(batches))
    with pytest.raises(TypeError, match=r"sampler must have a length \(got map\)"):
        len(BatchSampler(map(int, "01"), 2))
    for wrong in (0, True, 1.5):
        with pytest.raises((TypeError, ValueError), match="batch_size"):
            BatchSampler([], wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="drop_last must be"):
        BatchSampler([], 1, 1)  # type: ignore[arg-type]


def test_a_loader_takes_whole_batches() -> None:
    """From a BatchSampler, or from any list of lists; its length is theirs."""
    loader = DataLoader("abc", batch_sampler=[[2], [0, 1]])
    assert (list(loader), len(loader)) == ([["c"], ["a", "b"]], 2)
    assert list(DataLoader("abc", batch_sampler=BatchSampler(range(3), 2))) == [["a", "b"], ["c"]]


@pytest.mark.parametrize("batches", [0, 1, 2, 4])
def test_a_loaded_state_goes_on_with_the_next_batch(batches: int) -> None:
    """Of a random order; the epochs after it are the original's too."""

    def make() -> DataLoader:
        return DataLoader(range(8), batch_sampler=BatchSampler(RandomSampler(range(8)), 2))

    original = make()
    list(original)
    under_way = iter(original)
    list(islice(under_way, batches))
    state = json.loads(json.dumps(original.state_dict()))
    rest, after = list(under_way), list(original)
    resumed = make()
    resumed.load_state_dict(state)
    assert (rest, after) == (list(resumed), list(resumed))


@pytest.mark.parametrize(
    "given", [{"batch_size": 2}, {"shuffle": True}, {"sampler": [0]}, {"drop_last": True}]
)
def test_a_batch_sampler_stands_alone(given: dict[str, Any]) -> None:
    """Whatever else would make batches is named."""
    with pytest.raises(ValueError, match=f"{next(iter(given))} must be left out"):
        DataLoader("abc", batch_sampler=[[0]], **given)


def test_a_stream_is_read_once_for_each_epoch() -> None:
    """In batches, in its own order; with a length only if it has one."""
    stream = Stream(5)
    loader = DataLoader(stream, batch_size=2)
    assert list(loader) == list(loader) == [[0, 1], [2, 3], [4]]
    assert stream.begun == 2
    assert list(DataLoader(stream, batch_size=2, drop_last=True)) == [[0, 1], [2, 3]]
    with pytest.raises(TypeError, match=r"dataset must have a length \(got Stream\)"):
        len(loader)
    assert len(DataLoader(SizedStream(5), batch_size=2)) == 3


def test_a_stream_goes_on_where_it_was() -> None:
    """What comes before is read and dropped."""
    loader = DataLoader(Stream(5), batch_size=2)
    next(iter(loader))
    state = loader.state_dict()
    resumed = DataLoader(Stream(5), batch_size=2)
    resumed.load_state_dict(state)
    assert list(resumed) == [[2, 3], [4]]
    assert list(resumed) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("given", [{"shuffle": True}, {"sampler": [0]}, {"batch_sampler": [[0]]}])
def test_a_stream_has_no_indices(given: dict[str, Any]) -> None:
    """So nothing else can set its order; a plain iterator is told what to be."""
    with pytest.raises(ValueError, match=r"sets its own order \(got Stream\)"):
        DataLoader(Stream(3), **given)
    with pytest.raises(TypeError, match="IterableDataset"):
        DataLoader(iter("abc"))  # type: ignore[arg-type]
