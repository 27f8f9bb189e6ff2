"""The loader: batches, epochs, and going on where a run stopped."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from afnio.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler

if TYPE_CHECKING:
    from collections.abc import Iterator


class Numbers(Dataset[int]):
    """The numbers from 0, noting which were loaded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded: list[int] = []

    def __getitem__(self, index: int) -> int:
        self.loaded.append(index)
        return index

    def __len__(self) -> int:
        return self.size


class Backwards(Sampler):
    """A sampler that keeps no state."""

    def __iter__(self) -> Iterator[int]:
        yield from (3, 2, 1, 0)

    def __len__(self) -> int:
        return 4


def test_the_last_batch_may_be_smaller() -> None:
    """Every sample comes, in order."""
    loader = DataLoader(Numbers(5), batch_size=2)
    assert list(loader) == [[0, 1], [2, 3], [4]]
    assert len(loader) == 3


def test_drop_last_leaves_the_smaller_batch_out() -> None:
    """The length agrees."""
    loader = DataLoader(Numbers(5), batch_size=2, drop_last=True)
    assert list(loader) == [[0, 1], [2, 3]]
    assert len(loader) == 2
    assert loader.state_dict()["epoch"] == 1


def test_the_length_follows_the_sampler() -> None:
    """An epoch is as long as the sampler says, not as the dataset."""
    sampler = WeightedRandomSampler([1, 1, 1], num_samples=10, seed=0)
    loader = DataLoader(Numbers(3), batch_size=2, sampler=sampler)
    assert len(loader) == len(list(loader)) == 5


def test_plain_indices_can_be_the_sampler() -> None:
    """Any iterable of indices will do; without a length only len() fails."""
    assert list(DataLoader("abc", sampler=[2, 0])) == [["c"], ["a"]]
    with pytest.raises(TypeError, match=r"must have a length \(got map\)"):
        len(DataLoader("abc", sampler=map(int, "20")))


def test_nested_loops_are_independent() -> None:
    """Each `for` has its own iterator."""
    loader = DataLoader(Numbers(3))
    pairs = [(outer[0], inner[0]) for outer in loader for inner in loader]
    assert pairs == [(a, b) for a in range(3) for b in range(3)]


def test_shuffle_is_new_every_epoch_and_repeatable() -> None:
    """The seed fixes the sequence of epochs."""
    first = DataLoader(Numbers(30), batch_size=30, shuffle=True, seed=5)
    second = DataLoader(Numbers(30), batch_size=30, shuffle=True, seed=5)
    epochs = [batch for _ in range(3) for batch in first]
    assert epochs == [batch for _ in range(3) for batch in second]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == list(range(30))


def test_a_seed_without_shuffle_changes_nothing() -> None:
    """It is allowed, and the order stays the dataset's."""
    assert list(DataLoader("abc", seed=42)) == [["a"], ["b"], ["c"]]


def test_an_empty_dataset_has_no_batches() -> None:
    """Shuffled or not."""
    assert list(DataLoader([])) == list(DataLoader([], shuffle=True)) == []


def test_a_collate_fn_gets_the_samples_of_a_batch() -> None:
    """It takes the place of the default."""
    assert list(DataLoader(Numbers(4), batch_size=2, collate_fn=sum)) == [1, 5]


def test_samples_are_loaded_when_their_batch_is_asked_for() -> None:
    """Nothing is read ahead."""
    data = Numbers(6)
    batches = iter(DataLoader(data, batch_size=2))
    assert data.loaded == []
    next(batches)
    assert data.loaded == [0, 1]


@pytest.mark.parametrize("batches", [0, 1, 3, 4])
def test_a_loaded_state_goes_on_with_the_next_batch(batches: int) -> None:
    """The rest of the epoch and the next epoch are the original's; skipped samples aren't read."""
    original = DataLoader(Numbers(8), batch_size=2, shuffle=True)
    list(original)
    under_way = iter(original)
    list(islice(under_way, batches))
    state = json.loads(json.dumps(original.state_dict()))
    rest, after = list(under_way), list(original)

    data = Numbers(8)
    resumed = DataLoader(data, batch_size=2, shuffle=True)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert list(resumed) == rest
    assert len(data.loaded) == 8 - 2 * batches
    assert list(resumed) == after


def test_an_epoch_left_early_is_over() -> None:
    """After a `break` the next loop begins a new epoch, and so does the state."""
    loader = DataLoader(Numbers(6), shuffle=True, seed=1)
    next(iter(loader))
    second = list(loader)
    whole = DataLoader(Numbers(6), shuffle=True, seed=1)
    list(whole)
    assert second == list(whole)
    assert loader.state_dict() == whole.state_dict()


def test_a_sampler_used_before_does_not_disturb_the_state() -> None:
    """A sampler that somebody left in the middle of an epoch is at the start of the loader's."""
    sampler = RandomSampler(range(6), seed=1)
    next(iter(sampler))
    loader = DataLoader(Numbers(6), sampler=sampler)
    under_way = iter(loader)
    next(under_way)
    state = loader.state_dict()
    resumed = DataLoader(Numbers(6), sampler=RandomSampler(range(6)))
    resumed.load_state_dict(state)
    assert list(resumed) == list(under_way)


def test_a_sampler_without_a_state_is_resumed_by_skipping() -> None:
    """It has the same order every epoch, so the position says all."""
    loader = DataLoader(Numbers(4), sampler=Backwards())
    next(iter(loader))
    resumed = DataLoader(Numbers(4), sampler=Backwards())
    resumed.load_state_dict(loader.state_dict())
    assert list(resumed) == [[2], [1], [0]]


def test_a_broken_state_is_refused() -> None:
    """The error says where a state comes from."""
    with pytest.raises(ValueError, match=r"'sampler' must .*got None.*state_dict\(\)"):
        DataLoader("abc").load_state_dict({"epoch": 0, "position": 0})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": None}, TypeError, r"batch_size must .*got None.*pass 1"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must .*got 2.0"),
        ({"batch_size": True}, TypeError, r"batch_size must .*got True"),
        ({"batch_size": 0}, ValueError, r"batch_size must be at least 1 .*got 0"),
        ({"shuffle": 1}, ValueError, r"shuffle must .*got 1"),
        ({"drop_last": None}, ValueError, r"drop_last must .*got None"),
        ({"shuffle": True, "sampler": [0]}, ValueError, r"shuffle must be left out .*got sampler list"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """The error has the value and the fix."""
    with pytest.raises(error, match=message):
        DataLoader("abc", **arguments)
