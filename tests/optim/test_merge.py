"""Merges take each parameter from the parent that changed it."""

from __future__ import annotations

import random

from afnio.optim.search import Pool, PoolMember, possible_merges, trial_samples


def pool_of(*members):
    pool = Pool()
    for member in members:
        pool.add(PoolMember(*member))
    return pool


ROOT = (0, (), ("a", "b", "c"), (0, 0, 0))
ONE = (1, (0,), ("A", "b", "c1"), (1, 0, 1))
OTHER = (2, (0,), ("a", "B", "c2"), (0, 1, 0))


def test_each_parameter_comes_from_the_one_that_changed_it():
    """Where both did, from the better one."""
    (merge,) = possible_merges(pool_of(ROOT, ONE, OTHER), [])
    assert (("A", "B", "c1"), (1, 2, 0)) == (merge.values, merge.key)


def test_what_cannot_help_is_not_merged():
    """Tried before, in the pool, an ancestor, nothing of its own, a better ancestor."""
    assert [] == possible_merges(pool_of(ROOT, ONE, OTHER), [[1, 2, 0]])
    merged = (3, (1, 2), ("A", "B", "c1"), (0, 0, 0))
    assert [] == possible_merges(pool_of(ROOT, ONE, OTHER, merged), [])
    assert [] == possible_merges(pool_of(ROOT, ONE, (2, (1,), ("a", "B", "c2"), (0, 1, 0))), [])
    assert [] == possible_merges(pool_of(ROOT, ONE, (2, (0,), ("A2", "b", "c2"), (0, 1, 0))), [])
    assert [] == possible_merges(pool_of((*ROOT[:3], (1, 1, 0)), ONE, OTHER), [])


def test_trials_are_drawn_from_where_the_parents_differ_and_agree():
    """A third each; what is missing is filled up from the rest; failed samples are no use."""
    scores = [(1, 0)] * 20 + [(0, 1)] * 20 + [(1, 1)] * 20 + [(None, 1)] * 20
    one, other = zip(*scores, strict=True)
    (merge,) = possible_merges(pool_of((0, (), ("a", "b"), (0,) * 80), (1, (0,), ("A", "b"), one),
                                       (2, (0,), ("a", "B"), other)), [])  # fmt: skip
    chosen = trial_samples(merge, random.Random(0))
    assert [5, 5, 5, 0] == [sum(low <= s < low + 20 for s in chosen) for low in (0, 20, 40, 60)]
    assert 60 == len(trial_samples(merge, random.Random(0), count=100))
