"""Samplers: their order, their epochs, their weights and their state."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from afnio.utils.data import RandomSampler, Sampler, SequentialSampler, WeightedRandomSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEEDED: list[Callable[[int | None], Sampler]] = [
    lambda seed: RandomSampler(range(40), seed=seed),
    lambda seed: RandomSampler(range(40), replacement=True, num_samples=30, seed=seed),
    lambda seed: WeightedRandomSampler([1.0] * 40, num_samples=30, seed=seed),
    lambda seed: WeightedRandomSampler([1.0] * 40, 30, replacement=False, seed=seed),
]
seeded = pytest.mark.parametrize("make", SEEDED)


class Backwards(Sampler):
    """A sampler as users write them, calling the base constructor."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size - 1, -1, -1))

    def __len__(self) -> int:
        return self.size


def test_a_subclass_can_be_made_and_iterated() -> None:
    """A user's sampler needs no more than an order and a length; it has an empty state."""
    sampler = Backwards(3)
    assert list(sampler) == [2, 1, 0]
    sampler.load_state_dict(sampler.state_dict())
    assert sampler.state_dict() == {}


def test_sequential_keeps_the_order_every_epoch() -> None:
    """Every epoch is the same."""
    sampler = SequentialSampler("abc")
    assert [list(sampler), list(sampler)] == [[0, 1, 2], [0, 1, 2]]
    assert len(sampler) == 3


@seeded
def test_same_seed_same_epochs(make: Callable[[int | None], Sampler]) -> None:
    """Two samplers with one seed agree in every epoch, and the epochs differ."""
    first, second = make(3), make(3)
    epochs = [list(first) for _ in range(3)]
    assert epochs == [list(second) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(epochs[0]) == len(first)


@seeded
def test_without_a_seed_runs_differ(make: Callable[[int | None], Sampler]) -> None:
    """Samplers without a seed don't share an order."""
    assert list(make(None)) != list(make(None))


@seeded
def test_the_global_generator_stays_untouched(make: Callable[[int | None], Sampler]) -> None:
    """Neither are its draws used nor is it seeded."""
    random.seed(1)
    before = random.getstate()
    list(make(3))
    list(make(None))
    assert random.getstate() == before


@seeded
def test_others_draws_do_not_change_the_order(make: Callable[[int | None], Sampler]) -> None:
    """Two interleaved iterators are each the epoch that they would be alone."""
    alone = make(3)
    epochs = [list(alone), list(alone)]
    sampler = make(3)
    outer, inner = iter(sampler), iter(sampler)
    pairs = list(zip(outer, inner, strict=True))
    assert [list(column) for column in zip(*pairs, strict=True)] == epochs


@seeded
def test_a_saved_state_resumes_in_the_middle(make: Callable[[int | None], Sampler]) -> None:
    """The rest of the epoch and the next epoch are the original's, without a seed too."""
    original = make(None)
    list(original)
    under_way = iter(original)
    list(islice(under_way, 11))
    state = json.loads(json.dumps(original.state_dict()))
    rest, after = list(under_way), list(original)

    resumed = make(99)
    resumed.load_state_dict(state)
    assert [list(resumed), list(resumed)] == [rest, after]


@seeded
def test_a_state_saved_before_the_first_epoch_keeps_the_order(
    make: Callable[[int | None], Sampler],
) -> None:
    """Asking for the state settles the seed."""
    original, resumed = make(None), make(None)
    resumed.load_state_dict(original.state_dict())
    assert list(original) == list(resumed)


@pytest.mark.parametrize("state", [{}, {"seed": "x", "epoch": 0, "position": 0}])
def test_a_broken_state_is_refused(state: dict[str, Any]) -> None:
    """The error names the missing seed and leaves the sampler as it was."""
    sampler = RandomSampler(range(9), seed=1)
    with pytest.raises(ValueError, match=r"'seed' must be"):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == {"seed": 1, "epoch": 0, "position": 0}


def test_a_permutation_visits_each_sample_once() -> None:
    """Without replacement an epoch is a permutation."""
    assert sorted(RandomSampler(range(20), seed=0)) == list(range(20))


def test_fewer_samples_are_a_part_of_a_permutation() -> None:
    """`num_samples` below the size draws distinct samples."""
    drawn = list(RandomSampler(range(20), num_samples=5, seed=0))
    assert len(set(drawn)) == 5


def test_more_samples_visit_all_before_any_again() -> None:
    """`num_samples` above the size goes through whole permutations."""
    drawn = list(RandomSampler(range(4), num_samples=10, seed=0))
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == [0, 1, 2, 3]
    assert len(drawn) == 10


def test_an_empty_dataset_has_empty_epochs() -> None:
    """Nothing to draw is no error, unless a number of samples was asked for."""
    assert list(RandomSampler([])) == []
    with pytest.raises(ValueError, match=r"empty dataset \(got 2\)"):
        list(RandomSampler([], replacement=True, num_samples=2))


def test_a_dataset_that_grows_is_drawn_from_as_a_whole() -> None:
    """The size is read when the epoch begins."""
    samples = [0, 1]
    sampler = RandomSampler(samples, seed=0)
    list(sampler)
    samples.append(2)
    assert sorted(sampler) == [0, 1, 2]


@pytest.mark.parametrize("replacement", [True, False])
def test_weights_are_honoured(replacement: bool) -> None:
    """The first draw follows the weights in both modes."""
    sampler = WeightedRandomSampler([1, 1, 98], num_samples=1, replacement=replacement, seed=0)
    firsts = Counter(next(iter(sampler)) for _ in range(2000))
    assert firsts[2] / 2000 == pytest.approx(0.98, abs=0.015)
    assert set(firsts) == {0, 1, 2}


def test_later_draws_without_replacement_follow_the_weights_that_are_left() -> None:
    """With 3:2:1, the pair (0, 1) has the probability 1/2 * 2/3."""
    sampler = WeightedRandomSampler([3, 2, 1], num_samples=2, replacement=False, seed=0)
    pairs = Counter(tuple(sampler) for _ in range(6000))
    assert pairs[(0, 1)] / 6000 == pytest.approx(1 / 3, abs=0.02)
    assert pairs[(2, 1)] / 6000 == pytest.approx(1 / 6 * 2 / 5, abs=0.015)


def test_a_weight_of_zero_is_never_drawn() -> None:
    """Not with replacement, not without."""
    for replacement in (True, False):
        sampler = WeightedRandomSampler([1, 0, 1], 2, replacement=replacement, seed=0)
        assert 1 not in {index for _ in range(100) for index in sampler}


def test_later_changes_of_the_weights_do_not_reach_the_sampler() -> None:
    """The weights are those given at construction."""
    weights = [0.0, 1.0]
    sampler = WeightedRandomSampler(weights, 3, seed=0)
    weights[:] = [1.0, 0.0]
    assert list(sampler) == [1, 1, 1]


@pytest.mark.parametrize("num_samples", [0, -1, 1.5, True, "3"])
def test_a_bad_number_of_samples_is_named(num_samples: Any) -> None:
    """Both samplers refuse it with the value."""
    with pytest.raises(ValueError, match="num_samples must be"):
        RandomSampler(range(3), num_samples=num_samples)
    with pytest.raises(ValueError, match="num_samples must be"):
        WeightedRandomSampler([1, 1], num_samples)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], r"sum above 0 \(got 0"),
        ([0, 0], r"sum above 0 \(got 0"),
        ([1e308, 1e308], r"sum above 0 \(got inf\)"),
        ([1, -1], r"weights\[1\] must .*got -1"),
        ([1, float("nan")], r"weights\[1\] must .*got nan"),
        (["heavy"], r"weights\[0\] must .*got 'heavy'"),
        ("123", r"weights\[0\] must .*got '1'"),
    ],
)
def test_bad_weights_are_named(weights: Any, message: str) -> None:
    """The error shows which weight is wrong."""
    with pytest.raises(ValueError, match=message):
        WeightedRandomSampler(weights, 1)


def test_more_draws_than_samples_need_replacement() -> None:
    """Samples of weight 0 don't count as available."""
    with pytest.raises(ValueError, match=r"at most 2, .*\(got 3\)"):
        WeightedRandomSampler([1, 0, 1], 3, replacement=False)


def test_other_bad_arguments() -> None:
    """Each has the class that users know."""
    with pytest.raises(TypeError, match=r"replacement must .*got 'no'"):
        RandomSampler(range(3), replacement="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"replacement must .*got 1"):
        WeightedRandomSampler([1], 1, replacement=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"seed must .*got 'x'"):
        RandomSampler(range(3), seed="x")  # type: ignore[arg-type]
